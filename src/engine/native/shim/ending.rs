//! A unit that is stopped: systemd tells the shim, and the shim gives its container the stop signal and its time.
//!
//! So a host that shuts down, or `systemctl stop`, ends a container as the agent would. A shim without a unit is told
//! by nobody, and ignores what a shutdown sends to every process.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use super::super::cgroup::Cgroups;
use super::super::launch::Launch;
use super::super::record::{self, PidFd};

/// Little: the thread waits, and sends two signals.
const STACK: usize = 128 << 10;

/// How often systemd is asked for more time.
const AGAIN: Duration = Duration::from_secs(10);

/// What it is asked for, in microseconds: until the next time, and what a shim takes once its container has ended.
const LONGER: u32 = 60_000_000;

/// The signal that systemd sends (systemd.kill(5)). Kept for [`watch`] from the first moment on.
fn told() -> SigSet {
    let mut told = SigSet::empty();
    told.add(Signal::SIGTERM);
    told
}

/// Keeps what may come while the container is being made.
pub(super) fn hold() -> io::Result<()> {
    told().thread_block().map_err(io::Error::from)
}

/// Waits beside the supervision. A thread, which is harmless now: the container is made, and nothing forks any more.
pub(super) fn watch(launch: &Launch, container: PidFd) -> io::Result<()> {
    let (id, instance) = (launch.id.clone(), launch.layout.instance.clone());
    let (signal, grace) = (launch.stop_signal, launch.grace);
    let run = launch.layout.run(&launch.id);
    let wait = move || {
        if told().wait().is_err() {
            return;
        }
        // What a later commit has changed in place counts.
        let grace = record::read::<Launch>(&run.launch()).map_or(grace, |now| now.grace);
        let _ = container.signal(signal);
        if !wait(&container, grace) {
            let _ = container.signal(nix::libc::SIGKILL);
            if let Ok(cgroups) = Cgroups::detect(&instance) {
                cgroups.kill(&id);
            }
        }
    };
    std::thread::Builder::new().stack_size(STACK).spawn(wait).map(|_| ())
}

/// Waits for the end of the container; `false` when `grace` was over first. The unit has the time that was asked for at the
/// container's start (sd_notify(3), EXTEND_TIMEOUT_USEC): what was raised since is asked for as it is needed.
fn wait(container: &PidFd, grace: Duration) -> bool {
    let end = Instant::now() + grace;
    loop {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(LONGER)]);
        let left = end.saturating_duration_since(Instant::now());
        match container.wait(left.min(AGAIN)) {
            Ok(false) if left > AGAIN => {}
            ended => return ended.unwrap_or(false),
        }
    }
}
