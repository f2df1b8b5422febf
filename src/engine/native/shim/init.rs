//! The small first process of a container with `init = true`: passes signals on to the program, takes away children that
//! nobody else waits for, and ends as the program does. It is this very process, which does not execute anything: the
//! image needs to hold nothing for it.

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setpgid};

/// Comes back in the process that is to execute the program; the other one stays, under the same `profile` of AppArmor as
/// the program will have, and never comes back.
///
/// # Errors
/// A line for people.
pub(super) fn split(profile: Option<&str>) -> Result<(), String> {
    let everything = SigSet::all();
    everything.thread_block().map_err(|error| format!("signals: {error}"))?;
    // Children are told by SIGCHLD, which has to be at its default for that.
    // SAFETY: this process has one thread, so its child may do all that it may.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            // Its own group, so that what it signals to its group leaves the first process alone.
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            Ok(())
        }
        Ok(ForkResult::Parent { child }) => {
            if let Some(profile) = profile {
                confine(profile);
            }
            stay(child, &everything)
        }
        Err(error) => Err(format!("the first process cannot fork: {error}")),
    }
}

/// Takes this process under a profile at once, as it executes nothing. Without that it is under none, and the program could
/// not signal it. Source: aa_change_profile(2).
fn confine(profile: &str) {
    let word = format!("changeprofile {profile}");
    let _ = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"]
        .iter()
        .any(|path| std::fs::write(path, &word).is_ok());
}

fn stay(program: Pid, everything: &SigSet) -> ! {
    // Nothing of ours is for processes in the container to open by /proc/1; that execve(2) succeeded is told by the
    // end of a pipe that has to be closed here too.
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = nix::sys::prctl::set_name(c"init");
    // SAFETY: nothing that is closed here is used again.
    unsafe { nix::libc::close_range(3, u32::MAX, 0) };
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let code = match status {
                WaitStatus::Exited(pid, code) if pid == program => code,
                WaitStatus::Signaled(pid, signal, _) if pid == program => 128 + signal as i32,
                WaitStatus::StillAlive => break,
                _ => continue,
            };
            // SAFETY: ends the process; destructors are not wanted, there is nothing to put in order.
            unsafe { nix::libc::_exit(code) };
        }
        match everything.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) => {
                let _ = kill(program, signal);
            }
        }
    }
}
