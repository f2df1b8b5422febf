//! The profile that containers run under where the host's kernel has AppArmor: a second fence around what capabilities,
//! masks and mounts that are only read hold already, as Docker and Podman have one. It may not be what anything relies on:
//! a host whose tools take no profile runs containers all the same, and says so.
//!
//! Source: apparmor.d(5), apparmor_parser(8); Linux Documentation/admin-guide/LSM/apparmor.rst.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::layout::Layout;
use crate::types::Options;

/// What the profile is called.
const NAME: &str = "gitopsd-default";
/// Who gives profiles to the kernel.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// What the kernel has, a line each.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// What the kernel calls having none.
const UNCONFINED: &str = "unconfined";
/// Which version of the language rules are to be read as, where the tools know versions.
const ABI: &str = "/etc/apparmor.d/abi/3.0";

/// All that a container does to itself, and nothing to the host: no mounts, nothing of the kernel's own files written, no
/// signal to and no look into what is outside.
const RULES: &str = "profile gitopsd-default flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  unix,
  umount,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=gitopsd-default,
  ptrace (trace, read, tracedby, readby) peer=gitopsd-default,

  deny mount,
  deny /proc/* w,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,sys,tty}/** wklx,
  deny /proc/{kcore,sysrq-trigger} rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
";

/// What this agent knows of the kernel's profiles.
#[derive(Debug, Default)]
pub(super) struct AppArmor {
    /// Whether this agent has given the kernel its own version of the profile.
    given: Mutex<bool>,
}

impl AppArmor {
    /// The profile for a container with these options; `None` = none, because the service wants or the machine has none.
    pub fn profile(&self, layout: &Layout, options: &Options) -> Option<String> {
        if options.privileged == Some(true) || options.without_apparmor == Some(true) || !is_for_us() {
            return None;
        }
        let parser = PARSERS.iter().copied().find(|path| Path::new(path).is_file())?;
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have taken it away, as aa-remove-unknown(8) does.
        if !(*given && is_loaded()) {
            if let Err(error) = give(parser, layout) {
                tracing::warn!("containers have no profile of AppArmor: {error}");
                return None;
            }
            *given = true;
        }
        Some(NAME.to_owned())
    }
}

/// Whether the kernel has AppArmor in force, and it is for this process to say what runs under which profile: it is under
/// none itself, and in no container, whose host that is for.
fn is_for_us() -> bool {
    let says = |path: &str, word: &str| fs::read_to_string(path).is_ok_and(|text| text.trim_end() == word);
    says("/sys/module/apparmor/parameters/enabled", "Y")
        && ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"]
            .iter()
            .any(|path| says(path, UNCONFINED))
        && !Path::new("/run/systemd/container").exists()
        && std::env::var_os("container").is_none()
}

fn is_loaded() -> bool {
    fs::read_to_string(LOADED).is_ok_and(|loaded| names(&loaded, NAME))
}

/// Whether the kernel's list has the profile.
fn names(loaded: &str, profile: &str) -> bool {
    loaded.lines().any(|line| line.split(" (").next() == Some(profile))
}

/// Puts a command where its container is, which `init` is the first process of: under the profile that `process` names, or
/// under none, as the container is once somebody has taken the profile away. What has none could not be signalled from under
/// one that was given again; and of one that the kernel has not, no program is executed under it.
pub(super) fn follow(process: &mut serde_json::Value, init: i32) {
    let label = ["attr/apparmor/current", "attr/current"]
        .iter()
        .find_map(|file| fs::read_to_string(format!("/proc/{init}/{file}")).ok());
    follow_label(process, label.as_deref(), fs::read_to_string(LOADED).ok().as_deref());
}

fn follow_label(process: &mut serde_json::Value, label: Option<&str>, loaded: Option<&str>) {
    let Some(profile) = process["apparmorProfile"].as_str() else { return };
    if label.is_some_and(|label| label.trim_end() == UNCONFINED)
        || loaded.is_some_and(|loaded| !names(loaded, profile))
    {
        // Not without the key: runtimes take the container's own then.
        process["apparmorProfile"] = UNCONFINED.into();
    }
}

/// Puts the profile into the kernel, in the place of an older version of it; what runs under that goes on under this one.
fn give(parser: &str, layout: &Layout) -> io::Result<()> {
    let file = layout.run_dir.join("apparmor-profile");
    let abi = if Path::new(ABI).exists() { "abi <abi/3.0>,\n" } else { "" };
    fs::write(&file, format!("{abi}{RULES}"))?;
    let output = Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .arg(&file)
        .env_clear()
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() && is_loaded() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim();
    Err(io::Error::other(format!("{parser} did not take it: {said} ({})", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_where_its_container_is() {
        let had = serde_json::json!({ "args": ["true"], "apparmorProfile": NAME });
        let label = "gitopsd-default (enforce)\n";
        let there = "docker-default (enforce)\ngitopsd-default (enforce)\n";
        let gone = "docker-default (enforce)\ngitopsd-default-2 (enforce)\n";
        for (label, loaded, profile) in [
            (Some(label), Some(there), NAME),
            (Some(label), None, NAME),
            (None, Some(there), NAME),
            (None, None, NAME),
            (Some("unconfined\n"), Some(gone), UNCONFINED),
            (Some(label), Some(gone), UNCONFINED),
            (None, Some(gone), UNCONFINED),
            // Given again for another container since: this one goes on under none.
            (Some("unconfined\n"), Some(there), UNCONFINED),
            (Some("unconfined\n"), None, UNCONFINED),
        ] {
            let mut process = had.clone();
            follow_label(&mut process, label, loaded);
            assert_eq!(process["apparmorProfile"], profile, "{label:?} {loaded:?}");
        }
        let none = serde_json::json!({ "args": ["true"] });
        let mut process = none.clone();
        follow_label(&mut process, Some("unconfined\n"), Some(""));
        assert_eq!(process, none);
    }

    #[test]
    fn what_is_to_have_none_has_none() {
        let layout = Layout { state_dir: "/none".into(), run_dir: "/none".into(), instance: "x".into() };
        let yes = Some(true);
        for options in [
            Options { privileged: yes, ..Options::default() },
            Options { without_apparmor: yes, ..Options::default() },
        ] {
            assert_eq!(AppArmor::default().profile(&layout, &options), None);
        }
        assert!(RULES.starts_with(&format!("profile {NAME} ")), "the rules are the profile's");
    }
}
