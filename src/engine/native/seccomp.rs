//! The system calls that a container may make: those of Docker's default profile, in a filter that the kernel runs.
//!
//! Compiled in the shim and loaded by the container's own process right before execve(2), so that nothing has to be
//! generated in between. A process that has no right to a call gets EPERM; `clone3`, whose flags no filter can see,
//! is said not to exist, so that C libraries fall back to `clone`.
//!
//! Sources: seccomp(2); moby, `profiles/seccomp` (the set of calls, and what each capability adds).

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Allowed whatever their arguments.
#[rustfmt::skip]
const ALWAYS: &[libc::c_long] = &[
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_adjtimex, libc::SYS_bind, libc::SYS_brk, libc::SYS_capget,
    libc::SYS_capset, libc::SYS_chdir, libc::SYS_clock_adjtime, libc::SYS_clock_getres,
    libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_close, libc::SYS_close_range,
    libc::SYS_connect, libc::SYS_copy_file_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_execve,
    libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_fadvise64, libc::SYS_fallocate, libc::SYS_fanotify_mark, libc::SYS_fchdir, libc::SYS_fchmod,
    libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_fcntl, libc::SYS_fdatasync,
    libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_flock, libc::SYS_fremovexattr, libc::SYS_fsetxattr,
    libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync, libc::SYS_ftruncate, libc::SYS_futex,
    libc::SYS_futex_waitv, libc::SYS_get_robust_list, libc::SYS_getcpu, libc::SYS_getcwd,
    libc::SYS_getdents64, libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getgroups,
    libc::SYS_getitimer, libc::SYS_getpeername, libc::SYS_getpgid, libc::SYS_getpid, libc::SYS_getppid,
    libc::SYS_getpriority, libc::SYS_getrandom, libc::SYS_getresgid, libc::SYS_getresuid,
    libc::SYS_getrlimit, libc::SYS_getrusage, libc::SYS_getsid, libc::SYS_getsockname, libc::SYS_getsockopt,
    libc::SYS_gettid, libc::SYS_gettimeofday, libc::SYS_getuid, libc::SYS_getxattr,
    libc::SYS_inotify_add_watch, libc::SYS_inotify_init1, libc::SYS_inotify_rm_watch, libc::SYS_io_cancel,
    libc::SYS_io_destroy, libc::SYS_io_getevents, libc::SYS_io_setup,
    libc::SYS_io_submit, libc::SYS_ioctl, libc::SYS_ioprio_get, libc::SYS_ioprio_set, libc::SYS_kill,
    libc::SYS_landlock_add_rule, libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self,
    libc::SYS_lgetxattr, libc::SYS_linkat, libc::SYS_listen, libc::SYS_listxattr, libc::SYS_llistxattr,
    libc::SYS_lremovexattr, libc::SYS_lseek, libc::SYS_lsetxattr, libc::SYS_madvise, libc::SYS_membarrier,
    libc::SYS_memfd_create, libc::SYS_memfd_secret, libc::SYS_mincore, libc::SYS_mkdirat, libc::SYS_mknodat,
    libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_mlockall, libc::SYS_mmap, libc::SYS_mprotect,
    libc::SYS_mq_getsetattr, libc::SYS_mq_notify, libc::SYS_mq_open, libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend, libc::SYS_mq_unlink, libc::SYS_mremap, libc::SYS_msgctl, libc::SYS_msgget,
    libc::SYS_msgrcv, libc::SYS_msgsnd, libc::SYS_msync, libc::SYS_munlock, libc::SYS_munlockall,
    libc::SYS_munmap, libc::SYS_name_to_handle_at, libc::SYS_nanosleep, libc::SYS_newfstatat,
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal, libc::SYS_pipe2,
    libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect, libc::SYS_ppoll, libc::SYS_prctl,
    libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_prlimit64, libc::SYS_process_mrelease,
    libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_pselect6, libc::SYS_ptrace,
    libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_read, libc::SYS_readahead,
    libc::SYS_readlinkat, libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmmsg, libc::SYS_recvmsg,
    libc::SYS_remap_file_pages, libc::SYS_removexattr, libc::SYS_renameat, libc::SYS_renameat2,
    libc::SYS_restart_syscall, libc::SYS_rseq, libc::SYS_rt_sigaction, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait, libc::SYS_rt_tgsigqueueinfo, libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min, libc::SYS_sched_getaffinity, libc::SYS_sched_getattr,
    libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity, libc::SYS_sched_setattr, libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler, libc::SYS_sched_yield, libc::SYS_seccomp, libc::SYS_semctl,
    libc::SYS_semget, libc::SYS_semop, libc::SYS_semtimedop, libc::SYS_sendfile, libc::SYS_sendmmsg,
    libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_set_robust_list, libc::SYS_set_tid_address,
    libc::SYS_setfsgid, libc::SYS_setfsuid, libc::SYS_setgid, libc::SYS_setgroups, libc::SYS_setitimer,
    libc::SYS_setpgid, libc::SYS_setpriority, libc::SYS_setregid, libc::SYS_setresgid, libc::SYS_setresuid,
    libc::SYS_setreuid, libc::SYS_setrlimit, libc::SYS_setsid, libc::SYS_setsockopt, libc::SYS_setuid,
    libc::SYS_setxattr, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt, libc::SYS_shmget,
    libc::SYS_shutdown, libc::SYS_sigaltstack, libc::SYS_signalfd4, libc::SYS_socketpair, libc::SYS_splice,
    libc::SYS_statfs, libc::SYS_statx, libc::SYS_symlinkat, libc::SYS_sync, libc::SYS_sync_file_range,
    libc::SYS_syncfs, libc::SYS_sysinfo, libc::SYS_tee, libc::SYS_tgkill, libc::SYS_timer_create,
    libc::SYS_timer_delete, libc::SYS_timer_getoverrun, libc::SYS_timer_gettime, libc::SYS_timer_settime,
    libc::SYS_timerfd_create, libc::SYS_timerfd_gettime, libc::SYS_timerfd_settime, libc::SYS_times,
    libc::SYS_tkill, libc::SYS_truncate, libc::SYS_umask, libc::SYS_uname, libc::SYS_unlinkat,
    libc::SYS_utimensat, libc::SYS_vmsplice, libc::SYS_wait4, libc::SYS_waitid, libc::SYS_write,
    libc::SYS_writev,
];

/// The same, that newer architectures do without.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALSO: &[libc::c_long] = &[
    333, // io_pgetevents, which the C library's headers do not have
    libc::SYS_access, libc::SYS_alarm, libc::SYS_arch_prctl, libc::SYS_chmod, libc::SYS_chown,
    libc::SYS_creat, libc::SYS_dup2, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_eventfd,
    libc::SYS_fork, libc::SYS_futimesat, libc::SYS_get_thread_area, libc::SYS_getdents, libc::SYS_getpgrp,
    libc::SYS_inotify_init, libc::SYS_lchown, libc::SYS_link, libc::SYS_lstat, libc::SYS_mkdir,
    libc::SYS_mknod, libc::SYS_modify_ldt, libc::SYS_open, libc::SYS_pause, libc::SYS_pipe, libc::SYS_poll,
    libc::SYS_readlink, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_select, libc::SYS_set_thread_area,
    libc::SYS_signalfd, libc::SYS_stat, libc::SYS_symlink, libc::SYS_time, libc::SYS_unlink, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALSO: &[libc::c_long] = &[];

/// Not in the C library's headers: cachestat, fchmodat2, map_shadow_stack, futex_wake, futex_wait, futex_requeue,
/// statmount, listmount, mseal, and the four *xattrat. Every architecture has the same numbers.
const NEWEST: [libc::c_long; 13] = [451, 452, 453, 454, 455, 456, 457, 458, 462, 463, 464, 465, 466];

/// What a capability adds: without it the kernel would refuse these calls anyway, or they are not worth their risk.
const BY_CAPABILITY: &[(&str, &[libc::c_long])] = &[
    ("CAP_BPF", &[libc::SYS_bpf]),
    ("CAP_DAC_READ_SEARCH", &[libc::SYS_open_by_handle_at]),
    ("CAP_PERFMON", &[libc::SYS_perf_event_open]),
    (
        "CAP_SYS_ADMIN",
        &[
            libc::SYS_bpf,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_syslog,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
    ("CAP_SYS_BOOT", &[libc::SYS_reboot]),
    ("CAP_SYS_CHROOT", &[libc::SYS_chroot]),
    ("CAP_SYS_MODULE", &[libc::SYS_delete_module, libc::SYS_init_module, libc::SYS_finit_module]),
    (
        "CAP_SYS_NICE",
        &[
            libc::SYS_get_mempolicy,
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
            libc::SYS_set_mempolicy_home_node,
        ],
    ),
    ("CAP_SYS_PACCT", &[libc::SYS_acct]),
    ("CAP_SYS_PTRACE", &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise]),
    #[cfg(target_arch = "x86_64")]
    ("CAP_SYS_RAWIO", &[libc::SYS_iopl, libc::SYS_ioperm]),
    ("CAP_SYS_TIME", &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    ("CAP_SYS_TTY_CONFIG", &[libc::SYS_vhangup]),
    ("CAP_SYSLOG", &[libc::SYS_syslog]),
];

/// Flags of clone(2) that make a namespace.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// What personality(2) may be asked: Linux, as old as 2.6 if need be (`UNAME26`), 32 bits, and the question itself.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets between the host and its virtual machines (vsock(7)) know no namespaces.
const AF_VSOCK: u64 = 40;

/// A compiled filter: in the order in which it is loaded.
#[derive(Debug, Clone)]
pub(super) struct Filter([BpfProgram; 2]);

impl Filter {
    /// For a process with these capabilities.
    pub fn new(capabilities: &[&str]) -> Result<Self, BackendError> {
        let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> = BTreeMap::new();
        let when = |argument, operator, value| -> Result<SeccompRule, BackendError> {
            let width = SeccompCmpArgLen::Dword;
            SeccompRule::new(vec![SeccompCondition::new(argument, width, operator, value)?])
        };
        rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(NEW_NAMESPACES), 0)?]);
        rules.insert(libc::SYS_socket, vec![when(0, SeccompCmpOp::Ne, AF_VSOCK)?]);
        let personalities = PERSONALITIES.iter().map(|value| when(0, SeccompCmpOp::Eq, *value));
        rules.insert(libc::SYS_personality, personalities.collect::<Result<_, _>>()?);
        let granted = BY_CAPABILITY.iter().filter(|(name, _)| capabilities.contains(name));
        let granted = granted.flat_map(|(_, calls)| calls.iter());
        for call in ALWAYS.iter().chain(ALSO).chain(&NEWEST).chain(granted) {
            rules.insert(*call, Vec::new());
        }
        // Seen by its number only, and told not to be there. Of two filters that refuse, the later one's error counts.
        let unseen = match rules.contains_key(&libc::SYS_clone3) {
            true => BTreeMap::new(),
            false => BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        };
        let (permitted, missing) = (libc::EPERM.cast_unsigned(), libc::ENOSYS.cast_unsigned());
        Ok(Self([
            compile(rules, SeccompAction::Errno(permitted), SeccompAction::Allow)?,
            compile(unseen, SeccompAction::Allow, SeccompAction::Errno(missing))?,
        ]))
    }

    /// Loads it for the calling thread, for good. Allocates nothing.
    pub fn load(&self) -> Result<(), seccompiler::Error> {
        self.0
            .iter()
            .filter(|program| !program.is_empty())
            .try_for_each(|program| seccompiler::apply_filter(program))
    }
}

fn compile(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    found: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    if rules.is_empty() {
        return Ok(BpfProgram::new());
    }
    SeccompFilter::new(rules, otherwise, found, std::env::consts::ARCH.try_into()?)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_capabilities_compiles() {
        let all: Vec<&str> = BY_CAPABILITY.iter().map(|(name, _)| *name).collect();
        let none = Filter::new(&[]).unwrap();
        // BPF_MAXINSNS of the kernel.
        assert!(none.0.iter().all(|program| (1..4096).contains(&program.len())), "{}", none.0[0].len());
        assert!(Filter::new(&all).unwrap().0[1].is_empty(), "clone3 is for SYS_ADMIN");
        for one in all {
            Filter::new(&[one]).unwrap();
        }
    }
}
