//! Which system calls a container's processes may make: what the default profile of Docker allows, resolved here for
//! the capabilities of one container and written as a program for the kernel. No library, no text format: some hundred
//! instructions, made in microseconds.
//!
//! It is a list of what is refused among the calls that are known; calls of later kernels than [`LAST`] do not exist
//! for the container (ENOSYS), so that C libraries fall back to older ones. 32-bit programs run on x86-64 and are
//! refused the same, see [`i386`]; calls of x32 and of other architectures do not exist. Source: seccomp(2);
//! linux/filter.h; Docker's documentation, "Seccomp security profiles for Docker".

#[cfg(test)]
mod docker;
#[cfg(target_arch = "x86_64")]
mod i386;

use nix::libc;
use seccompiler::sock_filter;

/// What is put before the kernel; empty = no filter.
pub(super) type Filter = Vec<sock_filter>;

/// `AUDIT_ARCH_*` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// Newest call that is known: removexattrat(2) of Linux 6.13. All since [`COMMON`] have one number on every
/// architecture.
const LAST: u32 = 466;
const COMMON: libc::c_long = 424;

/// The number of a system call; they are far below the limits of this type.
type Number = libc::c_long;

/// What differs from one architecture to another.
struct Numbers {
    /// Refused whatever the container may do.
    never: &'static [&'static [Number]],
    /// Refused without one of these capabilities.
    without: &'static [(&'static [&'static str], &'static [Number])],
    /// Calls that do not exist.
    unknown: &'static [Number],
    clone: Number,
    socket: Number,
    personality: Number,
}

/// Those of this program's own architecture. What follows in `NEVER` and `WITHOUT` from [`COMMON`] on counts for all.
const NATIVE: Numbers = Numbers {
    never: &[NEVER, NEVER_HERE],
    without: WITHOUT,
    unknown: &[],
    clone: libc::SYS_clone,
    socket: libc::SYS_socket,
    personality: libc::SYS_personality,
};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// Instructions of classic BPF.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = 0x0005_0000 | libc::EPERM as u32;
const UNKNOWN: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// Flags of clone(2) that make namespaces, but for a time namespace, which clone(2) cannot.
const NEW_NAMESPACES: u32 = 0x7e02_0000;

/// Kinds of sockets that are not for containers: AF_VSOCK (vsock(7)) leads past every namespace to the machine below,
/// and AF_ALG opens the kernel's cryptography, by which a container could write to files it only reads (CVE-2026-31431).
/// The others are protocols that nobody speaks any more: DECnet, Econet, ATM, IrDA, Wanpipe, ISDN, CAIF.
const FAMILIES: [u32; 9] = [40, 38, 12, 19, 20, 23, 25, 34, 37];
/// Instructions that look at the family of a socket.
const LOOK_AT_FAMILY: u8 = 2 + 2 * FAMILIES.len() as u8;

/// What personality(2) may be asked for: Linux, 32 bit, both without a release of its own, and what is set now.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Refused whatever the container may do: they change the host, are old and unused, or open much of the kernel.
const NEVER: &[libc::c_long] = &[
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_pivot_root,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_userfaultfd,
    // Refused by Docker since version 25.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

#[cfg(target_arch = "x86_64")]
const NEVER_HERE: &[libc::c_long] = &[
    // create_module, get_kernel_syms, query_module.
    174,
    177,
    178,
    libc::SYS__sysctl,
    libc::SYS_afs_syscall,
    libc::SYS_getpmsg,
    libc::SYS_putpmsg,
    libc::SYS_security,
    libc::SYS_sysfs,
    libc::SYS_tuxcall,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_vserver,
];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: &[libc::c_long] = &[];

#[cfg(target_arch = "x86_64")]
const RAW_IO: &[libc::c_long] = &[libc::SYS_iopl, libc::SYS_ioperm];
#[cfg(not(target_arch = "x86_64"))]
const RAW_IO: &[libc::c_long] = &[];

/// Refused without one of these capabilities.
const WITHOUT: &[(&[&str], &[libc::c_long])] = &[
    (&["CAP_DAC_READ_SEARCH"], &[libc::SYS_open_by_handle_at]),
    (&["CAP_SYS_ADMIN", "CAP_BPF"], &[libc::SYS_bpf]),
    (&["CAP_SYS_ADMIN", "CAP_PERFMON"], &[libc::SYS_perf_event_open]),
    (&["CAP_SYS_ADMIN", "CAP_SYSLOG"], &[libc::SYS_syslog]),
    (
        &["CAP_SYS_ADMIN"],
        &[
            libc::SYS_fanotify_init,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_quotactl,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
            libc::SYS_quotactl_fd,
            // lsm_get_self_attr, lsm_set_self_attr, lsm_list_modules.
            459,
            460,
            461,
        ],
    ),
    (&["CAP_SYS_BOOT"], &[libc::SYS_reboot]),
    (&["CAP_SYS_CHROOT"], &[libc::SYS_chroot]),
    (&["CAP_SYS_MODULE"], &[libc::SYS_delete_module, libc::SYS_init_module, libc::SYS_finit_module]),
    (&["CAP_SYS_PACCT"], &[libc::SYS_acct]),
    (&["CAP_SYS_PTRACE"], &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise]),
    (&["CAP_SYS_RAWIO"], RAW_IO),
    (&["CAP_SYS_TIME"], &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    (&["CAP_SYS_TTY_CONFIG"], &[libc::SYS_vhangup]),
    (
        &["CAP_SYS_NICE"],
        // The last one: set_mempolicy_home_node.
        &[libc::SYS_get_mempolicy, libc::SYS_mbind, libc::SYS_set_mempolicy, 450],
    ),
];

/// The program for a container that has `capabilities`.
pub(super) fn filter(capabilities: &[&str]) -> Filter {
    let native = rules(&NATIVE, capabilities);
    let mut program = vec![instruction(LOAD, 0, 0, ARCHITECTURE)];
    #[cfg(target_arch = "x86_64")]
    {
        // A conditional jump reaches 255 instructions, an unconditional one all.
        let past = u32::try_from(native.len()).unwrap_or(u32::MAX).saturating_add(2);
        program.push(instruction(EQUAL, 0, 1, i386::ARCH));
        program.push(instruction(JUMP, 0, 0, past));
    }
    program.push(instruction(EQUAL, 1, 0, ARCH));
    program.push(instruction(RETURN, 0, 0, UNKNOWN));
    program.extend(native);
    #[cfg(target_arch = "x86_64")]
    program.extend(rules(&i386::NUMBERS, capabilities));
    program
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// The part of the program for calls of one architecture; every way through it ends in an answer.
fn rules(numbers: &Numbers, capabilities: &[&str]) -> Filter {
    let has = |name: &str| capabilities.contains(&name);
    let lacks = |needed: &&[&str]| !needed.iter().any(|name| has(name));
    let number = |number: Number| u32::try_from(number).unwrap_or(u32::MAX);
    let mut program = Vec::with_capacity(256);
    let mut put = |code, jt, jf, k| program.push(instruction(code, jt, jf, k));
    put(LOAD, 0, 0, NUMBER);
    // Those of x32 too, which have a high bit set.
    put(GREATER, 0, 1, LAST);
    put(RETURN, 0, 0, UNKNOWN);
    for unknown in numbers.unknown {
        put(EQUAL, 0, 1, number(*unknown));
        put(RETURN, 0, 0, UNKNOWN);
    }
    let own = numbers.without.iter().filter(|(needed, _)| lacks(needed)).flat_map(|(_, calls)| *calls);
    let common = WITHOUT.iter().filter(|(needed, _)| lacks(needed)).flat_map(|(_, calls)| *calls);
    let common = NEVER.iter().chain(common).filter(|number| **number >= COMMON);
    let mut refused: Vec<u32> =
        numbers.never.iter().flat_map(|calls| *calls).chain(own).chain(common).copied().map(number).collect();
    refused.sort_unstable();
    refused.dedup();
    for call in refused {
        put(EQUAL, 0, 1, call);
        put(RETURN, 0, 0, REFUSE);
    }
    if !has("CAP_SYS_ADMIN") {
        // Its flags are in memory, where no filter can look: C libraries go on with clone(2).
        put(EQUAL, 0, 1, number(libc::SYS_clone3));
        put(RETURN, 0, 0, UNKNOWN);
        put(EQUAL, 0, 5, number(numbers.clone));
        put(LOAD, 0, 0, FIRST_ARGUMENT);
        put(AND, 0, 0, NEW_NAMESPACES);
        put(EQUAL, 1, 0, 0);
        put(RETURN, 0, 0, REFUSE);
        put(RETURN, 0, 0, ALLOW);
    }
    put(EQUAL, 0, LOOK_AT_FAMILY, number(numbers.socket));
    put(LOAD, 0, 0, FIRST_ARGUMENT);
    for family in FAMILIES {
        put(EQUAL, 0, 1, family);
        put(RETURN, 0, 0, REFUSE);
    }
    put(RETURN, 0, 0, ALLOW);
    // All that follows is for personality(2).
    put(EQUAL, 1, 0, number(numbers.personality));
    put(RETURN, 0, 0, ALLOW);
    put(LOAD, 0, 0, FIRST_ARGUMENT);
    for allowed in PERSONALITIES {
        put(EQUAL, 0, 1, allowed);
        put(RETURN, 0, 0, ALLOW);
    }
    put(RETURN, 0, 0, REFUSE);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{CAPABILITIES, DEFAULT_CAPABILITIES};

    /// What the kernel would do with a call, by the rules of linux/filter.h.
    pub(super) fn verdict(program: &[sock_filter], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let holds = match code {
                LOAD => {
                    value = match k {
                        NUMBER => number,
                        ARCHITECTURE => arch,
                        FIRST_ARGUMENT => argument,
                        other => panic!("offset {other}"),
                    };
                    continue;
                }
                JUMP => {
                    at += usize::try_from(k).unwrap();
                    continue;
                }
                AND => {
                    value &= k;
                    continue;
                }
                RETURN => return k,
                EQUAL => value == k,
                GREATER => value > k,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    #[test]
    fn what_is_allowed_goes_by_the_capabilities() {
        let (default, all) = (filter(&DEFAULT_CAPABILITIES), filter(&CAPABILITIES));
        let ask = |program: &Filter, number: libc::c_long, argument| {
            verdict(program, ARCH, u32::try_from(number).unwrap(), argument)
        };
        for (number, argument, usual, mighty) in [
            (libc::SYS_read, 0, ALLOW, ALLOW),
            (libc::SYS_execve, 0, ALLOW, ALLOW),
            (libc::SYS_chroot, 0, ALLOW, ALLOW),
            (libc::SYS_ptrace, 0, ALLOW, ALLOW),
            (libc::SYS_mount, 0, REFUSE, ALLOW),
            (libc::SYS_unshare, 0, REFUSE, ALLOW),
            (libc::SYS_bpf, 0, REFUSE, ALLOW),
            (libc::SYS_keyctl, 0, REFUSE, REFUSE),
            (libc::SYS_io_uring_setup, 0, REFUSE, REFUSE),
            (libc::SYS_kexec_load, 0, REFUSE, REFUSE),
            (libc::SYS_clone, 17, ALLOW, ALLOW),
            (libc::SYS_clone, 0x1000_0011, REFUSE, ALLOW),
            (libc::SYS_clone3, 0, UNKNOWN, ALLOW),
            (libc::SYS_socket, 2, ALLOW, ALLOW),
            (libc::SYS_socket, 38, REFUSE, REFUSE),
            (libc::SYS_socket, 39, ALLOW, ALLOW),
            (libc::SYS_socket, 40, REFUSE, REFUSE),
            (libc::SYS_personality, 0, ALLOW, ALLOW),
            (libc::SYS_personality, 0x0040_0000, REFUSE, REFUSE),
            (467, 0, UNKNOWN, UNKNOWN),
            (0x4000_0000, 0, UNKNOWN, UNKNOWN),
        ] {
            assert_eq!(ask(&default, number, argument), usual, "call {number}({argument:#x})");
            assert_eq!(ask(&all, number, argument), mighty, "call {number}({argument:#x}), all capabilities");
        }
        assert_eq!(verdict(&default, 0x4000_0028, 1, 0), UNKNOWN, "32 bit of ARM");
        assert!(default.len() < 4096);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn calls_of_32_bit_programs_are_told_apart_by_their_own_numbers() {
        let (default, all) = (filter(&DEFAULT_CAPABILITIES), filter(&CAPABILITIES));
        for (number, argument, usual, mighty) in [
            // exit, read, write, execve; 11 is munmap(2) of 64-bit programs.
            (1, 0, ALLOW, ALLOW),
            (3, 0, ALLOW, ALLOW),
            (11, 0, ALLOW, ALLOW),
            // mount, umount, unshare; keyctl and io_uring_setup; kexec_load; vm86.
            (21, 0, REFUSE, ALLOW),
            (22, 0, REFUSE, ALLOW),
            (310, 0, REFUSE, ALLOW),
            (288, 0, REFUSE, REFUSE),
            (425, 0, REFUSE, REFUSE),
            (283, 0, REFUSE, REFUSE),
            (166, 0, REFUSE, REFUSE),
            // open_tree, whose number all have; the clock; the clock with 64 bits.
            (428, 0, REFUSE, ALLOW),
            (264, 0, REFUSE, ALLOW),
            (404, 0, REFUSE, ALLOW),
            (120, 17, ALLOW, ALLOW),
            (120, 0x1000_0011, REFUSE, ALLOW),
            (435, 0, UNKNOWN, ALLOW),
            (102, 1, UNKNOWN, UNKNOWN),
            (359, 2, ALLOW, ALLOW),
            (359, 38, REFUSE, REFUSE),
            (359, 40, REFUSE, REFUSE),
            (136, 0, ALLOW, ALLOW),
            (136, 0x0040_0000, REFUSE, REFUSE),
            (467, 0, UNKNOWN, UNKNOWN),
        ] {
            assert_eq!(
                verdict(&default, i386::ARCH, number, argument),
                usual,
                "call {number}({argument:#x})"
            );
            assert_eq!(
                verdict(&all, i386::ARCH, number, argument),
                mighty,
                "call {number}, all capabilities"
            );
        }
    }
}
