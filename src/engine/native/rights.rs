//! What a container's processes may do: capabilities, and the filter of system calls that goes with them.

use super::seccomp::{self, Filter};
use crate::types::{CAPABILITIES, DEFAULT_CAPABILITIES, Options};

/// The capabilities of a service: the default ones, without those dropped, with those added. As Docker has it, what
/// is added by name stays where all are dropped, and what is dropped by name goes where all are added.
pub(super) fn capabilities(options: &Options) -> Vec<&'static str> {
    if options.privileged == Some(true) {
        return known().to_vec();
    }
    let (add, drop) =
        (options.cap_add.as_deref().unwrap_or_default(), options.cap_drop.as_deref().unwrap_or_default());
    let named = |list: &[String], name: &str| list.iter().any(|other| other == name);
    let base: &[&'static str] = match (named(add, "ALL"), named(drop, "ALL")) {
        (true, _) => known(),
        (false, true) => &[],
        (false, false) => &DEFAULT_CAPABILITIES,
    };
    let all = CAPABILITIES.iter().copied();
    all.filter(|name| named(add, name) || (base.contains(name) && !named(drop, name))).collect()
}

/// The capabilities that this kernel knows. Source: proc_sys_kernel(5), `cap_last_cap`.
fn known() -> &'static [&'static str] {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    let count = last.trim().parse::<usize>().map_or(CAPABILITIES.len(), |last| last.saturating_add(1));
    CAPABILITIES.get(..count).unwrap_or(&CAPABILITIES)
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
        assert!(of(&["ALL"], &[]).len() > 30);
    }
}
