//! The small first process of a container with `init = true`: passes signals on to the program, takes away children that
//! nobody else waits for, and ends as the program does. It is this very process, which does not execute anything: the
//! image needs to hold nothing for it.
//!
//! Signals are plain numbers here: `nix` knows no real-time signals by name, which programs send and end by as well.

use nix::libc;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid, fork, setpgid};
use rustix::process::{WaitOptions, wait};

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
    unsafe { libc::close_range(3, u32::MAX, 0) };
    loop {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid.as_raw_pid() != program.as_raw() {
                continue;
            }
            let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
            if let Some(code) = code {
                // SAFETY: ends the process; destructors are not wanted, there is nothing to put in order.
                unsafe { libc::_exit(code) };
            }
        }
        let mut signal = 0;
        // SAFETY: both are ours and initialized, and live as long as the call.
        let error = unsafe { libc::sigwait(everything.as_ref(), &raw mut signal) };
        if error == 0 && signal != libc::SIGCHLD {
            // SAFETY: takes two numbers. The program is our child and was not waited for yet, so its number is its own.
            unsafe { libc::kill(program.as_raw(), signal) };
        }
    }
}
