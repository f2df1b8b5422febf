//! What systemd is told: READY, EXTEND_TIMEOUT_USEC, STATUS, WATCHDOG, STOPPING, FDSTORE (sd_notify(3)). Nothing where there is no
//! systemd.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sd_notify::NotifyState;

/// The connection to the service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    status: String,
}

impl Notifier {
    /// The agent has looked at the host once.
    pub fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// It takes longer until the agent is ready: so long from now at least.
    pub fn not_yet(&self, longer: Duration) {
        let longer = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
        send(&[NotifyState::ExtendTimeoutUsec(longer)]);
    }

    /// One line for `systemctl status`; said only when it differs.
    pub fn status(&mut self, line: &str) {
        if line != self.status {
            line.clone_into(&mut self.status);
            send(&[NotifyState::Status(line)]);
        }
    }

    /// The loop has come round once more. Never called from a timer: a loop that hangs must be noticed.
    pub fn alive(&self) {
        send(&[NotifyState::Watchdog]);
    }

    /// The agent ends on purpose.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }
}

/// How long the service manager waits for [`Notifier::alive`]; `None` = it does not.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Has systemd keep a descriptor: it stays open while there is no agent, until the service is stopped, and the next agent is
/// handed it ([`super::handed_over`]).
pub fn keep(name: &str, descriptor: BorrowedFd<'_>) {
    // Whatever waits in it to be read, an error too, is no reason to let it go.
    let said = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    if let Err(error) = sd_notify::notify_with_fds(&said, &[descriptor]) {
        tracing::debug!("sd_notify: {error}");
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("sd_notify: {error}");
    }
}
