//! The calls of 32-bit programs on x86-64, by their own numbers: the same refusals as for 64-bit ones.
//!
//! Source: arch/x86/entry/syscalls/syscall_32.tbl of Linux.

use super::{Number, Numbers};

/// `AUDIT_ARCH_I386` of linux/audit.h.
pub(super) const ARCH: u32 = 0x4000_0003;

/// What sets this architecture apart.
pub(super) const NUMBERS: Numbers = Numbers {
    never: &[NEVER],
    without: WITHOUT,
    // socketcall(2): the family of the socket is in memory, where no filter can look, and some families lead past every
    // namespace. C libraries have had a call for each of its parts since Linux 4.3.
    unknown: &[102],
    clone: 120,
    socket: 359,
    personality: 136,
};

const NEVER: &[Number] = &[
    // add_key, request_key, keyctl; kexec_load; migrate_pages, move_pages; nfsservctl, pivot_root; swapon, swapoff.
    286, 287, 288, 283, 294, 317, 169, 217, 87, 115,
    // userfaultfd; vm86 and its former version; create_module, get_kernel_syms, query_module; _sysctl, afs_syscall.
    374, 166, 113, 127, 130, 167, 149, 137,
    // getpmsg, putpmsg, bdflush, sysfs, uselib, ustat, vserver.
    188, 189, 134, 135, 86, 62, 273,
];

const WITHOUT: &[(&[&str], &[Number])] = &[
    // open_by_handle_at.
    (&["CAP_DAC_READ_SEARCH"], &[342]),
    // bpf.
    (&["CAP_SYS_ADMIN", "CAP_BPF"], &[357]),
    // perf_event_open.
    (&["CAP_SYS_ADMIN", "CAP_PERFMON"], &[336]),
    // syslog.
    (&["CAP_SYS_ADMIN", "CAP_SYSLOG"], &[103]),
    (
        &["CAP_SYS_ADMIN"],
        // fanotify_init, lookup_dcookie, mount, umount, umount2, quotactl, setdomainname, sethostname, setns, unshare.
        &[338, 253, 21, 22, 52, 131, 121, 74, 346, 310],
    ),
    // reboot.
    (&["CAP_SYS_BOOT"], &[88]),
    // chroot.
    (&["CAP_SYS_CHROOT"], &[61]),
    // delete_module, init_module, finit_module.
    (&["CAP_SYS_MODULE"], &[129, 128, 350]),
    // acct.
    (&["CAP_SYS_PACCT"], &[51]),
    // kcmp.
    (&["CAP_SYS_PTRACE"], &[349]),
    // iopl, ioperm.
    (&["CAP_SYS_RAWIO"], &[110, 101]),
    // stime, settimeofday, clock_settime, and that with 64 bits.
    (&["CAP_SYS_TIME"], &[25, 79, 264, 404]),
    // vhangup.
    (&["CAP_SYS_TTY_CONFIG"], &[111]),
    // mbind, get_mempolicy, set_mempolicy.
    (&["CAP_SYS_NICE"], &[274, 275, 276]),
];
