//! A command in a container that has a user namespace: it gets there as the host's root and becomes the container's user
//! as the last thing. The library's way into a running container leaves that namespace out.
//!
//! Source: user_namespaces(7): who enters one has every capability in it, in all sets, whatever it had before.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, RawFd};

use nix::sched::{CloneFlags, setns};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde_json::{Value, json};

use super::super::rights;
use crate::types::{CAPABILITIES, Options};

/// What is left to do in the command's own process, before its program is executed.
#[derive(Debug, Clone)]
pub(in super::super) struct Enter {
    /// The user namespace, close-on-exec; open as long as this value is used.
    namespace: RawFd,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: CapabilitySet,
}

impl Enter {
    /// Takes from an OCI `process` who it is to be, and makes it one that may enter: the host's root.
    pub fn take(process: &mut Value, namespace: RawFd) -> Option<Self> {
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let user = process.get("user")?;
        let (uid, gid) = (number(user.get("uid")?)?, number(user.get("gid")?)?);
        let groups = user.get("additionalGids").and_then(Value::as_array).into_iter().flatten();
        let groups: Option<Vec<u32>> = groups.map(number).collect();
        let names =
            process.get("capabilities")?.get("bounding")?.as_array()?.iter().filter_map(Value::as_str);
        let bits = names.filter_map(bit).fold(0, |bits, bit| bits | 1 << bit);
        process["user"]["uid"] = json!(0);
        process["user"]["gid"] = json!(0);
        process["user"]["additionalGids"] = json!([]);
        let all = rights::capabilities(&Options { privileged: Some(true), ..Options::default() });
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = json!(all);
        }
        let capabilities = CapabilitySet::from_bits_retain(bits);
        Some(Self { namespace, uid, gid, groups: groups?, capabilities })
    }

    /// Becomes it.
    ///
    /// # Errors
    /// A line for people; the process may not go on.
    pub fn enter(&self) -> Result<(), String> {
        self.become_it().map_err(|error| format!("its user namespace cannot be entered: {error}"))
    }

    fn become_it(&self) -> std::io::Result<()> {
        // SAFETY: the descriptor stays open until this process executes or ends; nobody closes it here.
        let namespace = unsafe { BorrowedFd::borrow_raw(self.namespace) };
        setns(namespace, CloneFlags::CLONE_NEWUSER)?;
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        let last: usize = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(CAPABILITIES.len() - 1);
        for number in (0..=last.min(63)).filter(|number| self.capabilities.bits() >> number & 1 == 0) {
            remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number))?;
        }
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_thread_groups(&groups)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        let kept = if self.uid == 0 { self.capabilities } else { CapabilitySet::empty() };
        set_capabilities(
            None,
            CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
        )?;
        clear_ambient_capability_set()?;
        Ok(())
    }
}

fn bit(name: &str) -> Option<u64> {
    CAPABILITIES.iter().position(|known| *known == name).map(|number| number as u64)
}

/// Opens the user namespace of a process.
pub(in super::super) fn namespace_of(pid: i32) -> std::io::Result<File> {
    let file = File::open(format!("/proc/{pid}/ns/user"))?;
    // It is there for as long as it is open, and for the command's process alone.
    rustix::io::fcntl_setfd(file.as_fd(), rustix::io::FdFlags::CLOEXEC)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_roots_until_it_has_entered() {
        let mut process = json!({
            "user": { "uid": 1000, "gid": 1001, "additionalGids": [44], "umask": 18 },
            "capabilities": { "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": [], "permitted": [],
                              "inheritable": [], "ambient": [] },
        });
        let enter = Enter::take(&mut process, 9).unwrap();
        assert_eq!((enter.uid, enter.gid, enter.groups.as_slice()), (1000, 1001, &[44][..]));
        assert_eq!(enter.capabilities.bits(), 1 | 1 << 5);
        assert_eq!(process["user"]["uid"], 0);
        assert!(process["capabilities"]["effective"].as_array().unwrap().contains(&"CAP_SYS_ADMIN".into()));
        assert!(Enter::take(&mut json!({}), 9).is_none());
    }
}
