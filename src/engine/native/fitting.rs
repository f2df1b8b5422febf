//! What a service's keys make of a container's defaults: names, rights, limits, mounts in memory. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::launch::Launch;
use crate::types::{Container, DEFAULT_CAPABILITIES, Tmpfs};

/// What a limit is where there is none (getrlimit(2), `RLIM_INFINITY`).
const UNLIMITED: u64 = u64::MAX;

/// The name that it has for itself.
pub(super) fn hostname(launch: &Launch) -> &str {
    launch.container.hostname.as_deref().unwrap_or(launch.id.service.as_str())
}

/// The default set, less what is dropped, and what is added: so that `cap_drop = ["ALL"]` leaves what is named.
pub(super) fn capabilities(container: &Container) -> Vec<&str> {
    let dropped = |name: &&str| container.cap_drop.iter().flatten().any(|drop| drop == "ALL" || drop == name);
    let mut all: Vec<&str> = DEFAULT_CAPABILITIES.into_iter().filter(|name| !dropped(name)).collect();
    for name in container.cap_add.iter().flatten() {
        if !all.contains(&name.as_str()) {
            all.push(name);
        }
    }
    all
}

/// Source: runtime-spec, config.md, "POSIX process"; setrlimit(2). `files` is what it may have open by default.
pub(super) fn limits(container: &Container, files: u64) -> Vec<Value> {
    let mut limits = BTreeMap::from([("nofile", (files, files))]);
    for (name, limit) in container.ulimits.iter().flatten() {
        limits.insert(name, (limit.soft.unwrap_or(UNLIMITED), limit.hard.unwrap_or(UNLIMITED)));
    }
    let limit = |(name, (soft, hard)): (&str, (u64, u64))| {
        let name = format!("RLIMIT_{}", name.to_ascii_uppercase());
        json!({ "type": name, "soft": soft, "hard": hard })
    };
    limits.into_iter().map(limit).collect()
}

/// Kernel parameters of its own namespaces.
pub(super) fn sysctls(container: &Container) -> BTreeMap<&str, &str> {
    // As Docker does: the ports below 1024 are the container's own, not the host's.
    let mut all = BTreeMap::from([("net.ipv4.ip_unprivileged_port_start", "0")]);
    all.extend(container.sysctls.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())));
    all
}

/// A directory in memory, and where it is.
pub(super) fn tmpfs(tmpfs: &Tmpfs) -> (&Path, Value) {
    let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
    options.push(if tmpfs.exec { "exec" } else { "noexec" }.to_owned());
    options.push(format!("mode={:o}", tmpfs.mode.unwrap_or(0o1777)));
    options.extend(tmpfs.size.map(|size| format!("size={}", size.0)));
    let mount =
        json!({ "destination": tmpfs.target, "type": "tmpfs", "source": "tmpfs", "options": options });
    (&tmpfs.target, mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ulimit;

    #[test]
    fn capabilities_are_dropped_and_added() {
        let of = |drop: &[&str], add: &[&str]| {
            let all = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
            let container = Container { cap_drop: all(drop), cap_add: all(add), ..Container::default() };
            capabilities(&container).join(" ")
        };
        assert_eq!(of(&[], &[]).split(' ').count(), 11);
        assert_eq!(of(&["ALL"], &[]), "");
        assert_eq!(of(&["ALL"], &["CAP_CHOWN"]), "CAP_CHOWN");
        assert!(of(&[], &["CAP_CHOWN"]).matches("CHOWN").count() == 1);
        assert!(!of(&["CAP_KILL"], &[]).contains("KILL"));
        assert!(of(&[], &["CAP_NET_ADMIN"]).ends_with(" CAP_NET_ADMIN"));
    }

    #[test]
    fn limits_stand_beside_the_default() {
        let ulimits = BTreeMap::from([
            ("core".to_owned(), Ulimit { soft: Some(0), hard: None }),
            ("nofile".to_owned(), Ulimit { soft: Some(5), hard: Some(6) }),
        ]);
        let container = Container { ulimits: Some(ulimits), ..Container::default() };
        assert_eq!(
            limits(&container, 100),
            [
                json!({ "type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX }),
                json!({ "type": "RLIMIT_NOFILE", "soft": 5, "hard": 6 }),
            ]
        );
        assert_eq!(limits(&Container::default(), 100).len(), 1);
    }
}
