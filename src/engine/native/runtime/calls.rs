//! The filter of system calls as an OCI profile: the very program that the built-in runtime gives the kernel is asked
//! about every call by number, so that both runtimes filter alike; but for 32-bit programs, which do not run here.
//!
//! Source: OCI runtime-spec config-linux.md, "Seccomp"; the tables of numbers are those of Linux 6.13's headers.

use nix::libc;
use seccompiler::sock_filter;
use serde_json::{Value, json};

use super::super::seccomp::Filter;

/// Families of sockets that there may be: `AF_MAX` of linux/socket.h.
const FAMILIES: u32 = 46;

/// Number and name of every call, a line each.
#[cfg(target_arch = "x86_64")]
const CALLS: &str = include_str!("calls.x86_64");
#[cfg(target_arch = "aarch64")]
const CALLS: &str = include_str!("calls.aarch64");

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: (&str, u32) = ("SCMP_ARCH_X86_64", 0xC000_003E);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: (&str, u32) = ("SCMP_ARCH_AARCH64", 0xC000_00B7);

/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO`; the number is in the lower half.
const ERRNO: u32 = 0x0005_0000;

/// Flags of clone(2) that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// What personality(2) may be asked for.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile that does what `filter` does.
///
/// # Errors
/// The filter holds what is not understood here.
pub(super) fn profile(filter: &Filter) -> Result<Value, String> {
    let mut allowed = Vec::new();
    let mut refused = Vec::new();
    let mut rules = Vec::new();
    for (number, name) in CALLS.lines().filter_map(|line| line.split_once(' ')) {
        let number: u32 = number.parse().map_err(|_| format!("the table of system calls: {number}"))?;
        let ask = |argument: u32| verdict(filter, number, argument);
        let allow =
            |arguments: Value| json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": arguments });
        // Those that are judged by an argument; all others are by their number alone.
        match i64::from(number) {
            libc::SYS_clone if ask(0)? == ALLOW && ask(0x1000_0000)? != ALLOW => {
                rules.push(allow(json!([{
                    "index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"
                }])));
            }
            libc::SYS_socket if ask(2)? == ALLOW && ask(40)? != ALLOW => {
                // Each by itself, and by the half that the kernel takes: libseccomp has no "none of these", and compares 64 bits.
                for family in 0..FAMILIES {
                    if ask(family)? == ALLOW {
                        let low = json!({ "index": 0, "value": u32::MAX, "valueTwo": family, "op": "SCMP_CMP_MASKED_EQ" });
                        rules.push(allow(json!([low])));
                    }
                }
            }
            libc::SYS_personality if ask(0)? == ALLOW && ask(0x40_0000)? != ALLOW => {
                for value in PERSONALITIES {
                    rules.push(allow(json!([{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }])));
                }
            }
            _ => match ask(0)? {
                ALLOW => allowed.push(name),
                other if other == ERRNO | libc::EPERM.cast_unsigned() => refused.push(name),
                // Not there, as all that is not named.
                _ => {}
            },
        }
    }
    let mut calls = vec![
        json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM }),
    ];
    // With another argument than those that are allowed a call is as one that is not there: libseccomp has no rule for
    // "none of these".
    calls.extend(rules);
    Ok(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "architectures": [ARCHITECTURE.0],
        "syscalls": calls,
    }))
}

/// What the kernel would do with a call, by the rules of linux/filter.h.
fn verdict(program: &[sock_filter], number: u32, argument: u32) -> Result<u32, String> {
    let (mut at, mut value) = (0usize, 0u32);
    // A program only goes forward.
    for _ in 0..=program.len() {
        let Some(sock_filter { code, jt, jf, k }) = program.get(at).cloned() else { break };
        at += 1;
        let holds = match code {
            0x20 => {
                value = match k {
                    0 => number,
                    4 => ARCHITECTURE.1,
                    16 => argument,
                    other => return Err(format!("the filter of system calls looks at {other}")),
                };
                continue;
            }
            0x54 => {
                value &= k;
                continue;
            }
            0x06 => return Ok(k),
            0x05 => {
                at = at.saturating_add(k as usize);
                continue;
            }
            0x15 => value == k,
            0x25 => value > k,
            0x35 => value >= k,
            other => return Err(format!("the filter of system calls holds {other:#x}")),
        };
        at += usize::from(if holds { jt } else { jf });
    }
    Err("the filter of system calls has no end".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::native::seccomp;
    use crate::types::{CAPABILITIES, DEFAULT_CAPABILITIES};

    fn names(profile: &Value, action: &str) -> Vec<String> {
        let calls = profile["syscalls"].as_array().unwrap().iter();
        let calls = calls.filter(|call| call["action"] == action && call["args"].is_null());
        calls
            .flat_map(|call| call["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap().into())
            .collect()
    }

    #[test]
    fn the_profile_says_what_the_filter_does() {
        let usual = profile(&seccomp::filter(&DEFAULT_CAPABILITIES)).unwrap();
        let allowed = names(&usual, "SCMP_ACT_ALLOW");
        let refused = names(&usual, "SCMP_ACT_ERRNO");
        let has = |list: &[String], name: &str| list.iter().any(|other| other == name);
        for name in ["read", "execve", "chroot", "futex", "openat2", "close_range"] {
            assert!(has(&allowed, name), "{name}");
        }
        for name in ["mount", "keyctl", "bpf", "unshare", "io_uring_setup", "open_tree", "lsm_list_modules"] {
            assert!(has(&refused, name), "{name}");
        }
        for name in ["clone", "clone3", "socket", "personality"] {
            assert!(!has(&allowed, name) && !has(&refused, name), "{name}");
        }
        let rules = usual["syscalls"].as_array().unwrap();
        assert_eq!(rules.len(), 2 + 1 + 37 + 5);
        let family = |number: u32| {
            rules.iter().any(|call| call["names"][0] == "socket" && call["args"][0]["valueTwo"] == number)
        };
        assert!(family(2) && family(39) && !family(38) && !family(40));
        let mighty = profile(&seccomp::filter(&CAPABILITIES)).unwrap();
        let allowed = names(&mighty, "SCMP_ACT_ALLOW");
        assert!(has(&allowed, "mount") && has(&allowed, "clone3") && !has(&allowed, "keyctl"));
        let _: oci_spec::runtime::LinuxSeccomp = serde_json::from_value(usual).unwrap();
    }

    #[test]
    fn an_unknown_instruction_is_told() {
        let odd = vec![sock_filter { code: 0x1d, jt: 0, jf: 0, k: 0 }];
        assert!(profile(&odd).is_err());
    }
}
