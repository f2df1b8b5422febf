//! Who a container's processes run as: `user[:group]` looked up in the image's own passwd and group files.
//!
//! Source: OCI image-spec config.md, `User`; passwd(5), group(5).

use std::os::fd::AsFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::in_root;

/// No image's user database is larger.
const MAX_FILE: u64 = 4 << 20;

/// Numbers, as the kernel takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// User.
    pub uid: u32,
    /// First group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Directory of the user, `/` where the image does not know it.
    pub home: String,
}

/// Looks `user` up, and the groups it is to be in beside its own, in the root file system. The error is a line for people.
pub(super) fn look_up(root: impl AsFd, user: &str, more: &[String]) -> Result<Identity, String> {
    let passwd = in_root::read_text(root.as_fd(), Path::new("/etc/passwd"), MAX_FILE).unwrap_or_default();
    let group = in_root::read_text(root.as_fd(), Path::new("/etc/group"), MAX_FILE).unwrap_or_default();
    let mut identity = resolve(user, &passwd, &group)?;
    for wanted in more {
        let number = group_number(wanted, &group)?;
        if !identity.groups.contains(&number) {
            identity.groups.push(number);
        }
    }
    Ok(identity)
}

fn resolve(text: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = entries(passwd).find(|fields| fields.first() == Some(&user) || field_is(fields, 2, user));
    let number = |fields: &Vec<&str>, at: usize| fields.get(at).and_then(|field| field.parse().ok());
    let uid = match (&entry, user.parse::<u32>()) {
        (_, Ok(uid)) => uid,
        (Some(fields), Err(_)) => number(fields, 2).ok_or_else(|| format!("user `{user}` has no number"))?,
        (None, Err(_)) => return Err(format!("user `{user}` is not in the image's /etc/passwd")),
    };
    let own_group = entry.as_ref().and_then(|fields| number(fields, 3));
    let home = entry.as_ref().and_then(|fields| fields.get(5).copied());
    let home = home.filter(|home| home.starts_with('/') && !home.contains('\0')).unwrap_or("/").to_owned();
    let Some(wanted) = wanted_group else {
        // As Docker does: memberships count only where no group was named.
        let name = entry.as_ref().and_then(|fields| fields.first().copied()).unwrap_or_default();
        return Ok(Identity { uid, gid: own_group.unwrap_or(0), groups: memberships(name, group), home });
    };
    let gid = group_number(wanted, group)?;
    Ok(Identity { uid, gid, groups: Vec::new(), home })
}

fn group_number(wanted: &str, group: &str) -> Result<u32, String> {
    if let Ok(gid) = wanted.parse() {
        return Ok(gid);
    }
    entries(group)
        .find(|fields| fields.first() == Some(&wanted))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| format!("group `{wanted}` is not in the image's /etc/group"))
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

fn field_is(fields: &[&str], at: usize, value: &str) -> bool {
    fields.get(at) == Some(&value)
}

fn memberships(name: &str, group: &str) -> Vec<u32> {
    if name.is_empty() {
        return Vec::new();
    }
    entries(group)
        .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|m| m.trim() == name)))
        .filter_map(|fields| fields.get(2)?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbad:x\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\nlogs:x:11:app\n";

    #[test]
    fn names_and_numbers() {
        let resolved = |text: &str| resolve(text, PASSWD, GROUP).map(|i| (i.uid, i.gid, i.groups));
        assert_eq!(resolved(""), Ok((0, 0, vec![10])));
        assert_eq!(resolved("app"), Ok((1000, 1001, vec![10, 11])));
        assert_eq!(resolved("1000"), Ok((1000, 1001, vec![10, 11])));
        assert_eq!(resolved("app:wheel"), Ok((1000, 10, vec![])));
        assert_eq!(resolved("4711"), Ok((4711, 0, vec![])));
        assert_eq!(resolved("4711:4712"), Ok((4711, 4712, vec![])));
        for (user, home) in [("", "/root"), ("app:wheel", "/home/app"), ("4711", "/")] {
            assert_eq!(
                resolve(user, PASSWD, GROUP).map(|identity| identity.home),
                Ok(home.to_owned()),
                "{user}"
            );
        }
        for bad in ["nobody", "app:nogroup", "bad", "-1", "99999999999"] {
            assert!(resolved(bad).is_err(), "{bad}");
        }
    }
}
