//! What the unpacking process gives up before it reads a byte: the host's files, the network, other processes, most
//! privileges, and more memory than it can need.
//!
//! It stays root, because owners, whiteouts and overlay attributes need it: of root's powers it keeps the seven that
//! say so.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Bytes of address space: a zstd window of 128 MiB, and room.
const MOST_MEMORY: u64 = 512 << 20;

/// Seconds of processor time: a layer of 16 GiB takes about one minute.
const MOST_CPU: u64 = 1800;

const MOST_FILES: u64 = 256;

/// Whom the kernel ends where memory is short: this process before any app, and never the agent, whose own value it
/// would have otherwise (proc_pid_oom_score_adj(5)).
const OOM_SCORE_ADJ: &str = "500";

/// Ends this process with the agent, also when the agent is killed.
pub(super) fn die_with(parent: u32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // It may have ended before.
    match u32::try_from(nix::unistd::getppid().as_raw()) {
        Ok(now) if now == parent => Ok(()),
        _ => Err(io::Error::other("the agent has ended")),
    }
}

/// Makes `tree` all that there is.
pub(super) fn enter(tree: &Path, most_written: u64, nice: i32) -> io::Result<()> {
    // No directory and no file gets another mode than its entry says.
    rustix::process::umask(rustix::fs::Mode::empty());
    // Only politeness: no reason to do without the image.
    let _ = rustix::process::nice(nice);
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ)?;
    limit(most_written)?;
    new_root(tree)?;
    give_up_rights()?;
    landlock()
}

/// What it may use up.
fn limit(most_written: u64) -> io::Result<()> {
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, MOST_FILES),
        (Resource::RLIMIT_FSIZE, most_written),
        (Resource::RLIMIT_AS, MOST_MEMORY),
        (Resource::RLIMIT_CPU, MOST_CPU),
    ] {
        setrlimit(resource, most, most)?;
    }
    Ok(())
}

fn give_up_rights() -> io::Result<()> {
    let keep = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        // For trusted.overlay.* alone (xattr(7)).
        | CapabilitySet::SYS_ADMIN;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(())
}

/// A mount namespace whose root is the tree, and that holds nothing else (pivot_root(2), "pivot_root(".", ".")").
fn new_root(tree: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some(tree), tree, none, MsFlags::MS_BIND, none)?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(none, tree, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, none)?;
    std::env::set_current_dir(tree)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

/// As much of it as the kernel has; the namespace and the filter do not depend on it.
fn landlock() -> io::Result<()> {
    let all = AccessFs::from_all(ABI::V5);
    let needed = all & !(AccessFs::Execute | AccessFs::IoctlDev);
    let apply = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .handle_access(AccessNet::from_all(ABI::V5))?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new("/")?, needed))?
            .restrict_self()?;
        Ok(())
    };
    apply().map_err(|error| io::Error::other(format!("landlock: {error}")))
}

/// The last step, for all threads at once: from here on only what unpacking takes, and no further thread.
pub(super) fn seal() -> io::Result<()> {
    let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("seccomp: {error}"));
    let program = filter().map_err(|error| failed(&error))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| failed(&error))
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    use nix::libc;
    let always = [
        // The two pipes, the listing, and the tree.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_lseek,
        libc::SYS_fcntl,
        libc::SYS_dup3,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_readlinkat,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_symlinkat,
        libc::SYS_linkat,
        libc::SYS_unlinkat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_fsetxattr,
        libc::SYS_sync_file_range,
        libc::SYS_fadvise64,
        // Memory, the two threads and their end.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_tgkill,
        libc::SYS_rseq,
        libc::SYS_set_robust_list,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        always.into_iter().map(|number| (number, Vec::new())).collect();
    // Memory that is not executable.
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = libc::PROT_EXEC as u64;
        let condition =
            SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)?;
        rules.insert(number, vec![SeccompRule::new(vec![condition])?]);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    let kill = SeccompAction::KillProcess;
    SeccompFilter::new(rules, kill, SeccompAction::Allow, arch)?.try_into()
}

#[cfg(test)]
mod tests;
