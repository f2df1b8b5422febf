//! What a container's processes may do: capabilities, and the filter of system calls that goes with them.

use super::seccomp::{self, Filter};
use crate::types::{CAPABILITIES, DEFAULT_CAPABILITIES, Options};

/// The capabilities of a service: the default ones, without those dropped, with those added. As Docker has it, what
/// is added by name stays where all are dropped, and what is dropped by name goes where all are added.
pub(super) fn capabilities(options: &Options) -> Vec<&'static str> {
    if options.privileged == Some(true) {
        return ours();
    }
    let (add, drop) =
        (options.cap_add.as_deref().unwrap_or_default(), options.cap_drop.as_deref().unwrap_or_default());
    let named = |list: &[String], name: &str| list.iter().any(|other| other == name);
    let base = match (named(add, "ALL"), named(drop, "ALL")) {
        (true, _) => ours(),
        (false, true) => Vec::new(),
        (false, false) => DEFAULT_CAPABILITIES.to_vec(),
    };
    let all = CAPABILITIES.iter().copied();
    all.filter(|name| named(add, name) || (base.contains(name) && !named(drop, name))).collect()
}

/// All that this process can give: those that the kernel knows and that the machine, which may be a container itself,
/// has not taken away for good. Source: proc_pid_status(5), `CapBnd`.
fn ours() -> Vec<&'static str> {
    let bits = set("CapBnd");
    let held = CAPABILITIES.iter().enumerate().filter(|(number, _)| bits >> number & 1 == 1);
    held.map(|(_, name)| *name).collect()
}

/// Whether this process has a capability in force.
pub(super) fn in_force(name: &str) -> bool {
    let number = CAPABILITIES.iter().position(|known| *known == name);
    number.is_some_and(|number| set("CapEff") >> number & 1 == 1)
}

/// One of this process's sets of capabilities, a bit each. Source: proc_pid_status(5).
fn set(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    bits.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or_default()
}

/// The filter of system calls; empty = none.
pub(super) fn filter(options: &Options) -> Filter {
    if options.privileged == Some(true) || options.unconfined == Some(true) {
        return Filter::new();
    }
    seccomp::filter(&capabilities(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_and_dropped() {
        let of = |add: &[&str], drop: &[&str]| {
            let list = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
            capabilities(&Options { cap_add: list(add), cap_drop: list(drop), ..Options::default() })
        };
        assert_eq!(of(&[], &[]).len(), 11);
        assert_eq!(of(&["CAP_NET_RAW"], &["ALL"]), ["CAP_NET_RAW"]);
        assert_eq!(of(&["CAP_SYS_TIME"], &["CAP_CHOWN"]).len(), 11);
        assert!(!of(&["ALL"], &["CAP_SYS_ADMIN"]).contains(&"CAP_SYS_ADMIN"));
        assert_eq!(of(&["ALL"], &[]), ours());
        assert!(!in_force("CAP_UNHEARD_OF"));
    }
}
