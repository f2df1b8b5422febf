//! The container's `NOTIFY_SOCKET`: what its program says of itself (sd_notify(3)), heard by the shim and written down
//! for the agent. The shim outlives the agent, so no word is lost while that is away; and as the container sees the
//! socket's directory, and not the socket alone, a shim's successor can put a new one there.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::layout::RunFiles;
use super::super::record;
use super::super::spec::BindMount;
use crate::types::Notified;

/// Where the container sees its directory.
const TARGET: &str = "/run/notify";
/// The socket's name in it.
const NAME: &str = "socket";
/// What the program is told.
pub(in super::super) const VARIABLE: &str = "NOTIFY_SOCKET=/run/notify/socket";

/// Longest message, as systemd's.
const MAX_MESSAGE: usize = 4096;
/// Longest `STATUS=` that is kept.
const MAX_STATUS: usize = 200;
/// Messages that are read at once, and the pause after them, in which those who have more to say wait.
const BATCH: usize = 16;
const PAUSE: Duration = Duration::from_millis(20);

/// The socket, and what was said to it.
pub(super) struct Notify {
    socket: UnixDatagram,
    said: Notified,
    record: std::path::PathBuf,
    rests_until: Option<Instant>,
}

impl Notify {
    /// Makes the socket, or another one in the place of that of a shim that has died.
    pub fn open(run: &RunFiles) -> io::Result<Self> {
        let dir = run.notify();
        match DirBuilder::new().mode(0o755).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = dir.join(NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        // Whoever the program runs as: nobody else has a way to it.
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        let record = run.notified();
        let said = match record::read(&record) {
            Some(said) => said,
            None => {
                let said = Notified::default();
                record::write(&record, &said)?;
                said
            }
        };
        Ok(Self { socket, said, record, rests_until: None })
    }

    /// What the container sees.
    pub fn mount(run: &RunFiles) -> BindMount {
        BindMount { source: run.notify(), target: Path::new(TARGET).to_owned(), read_only: true }
    }

    /// What to wait on; `Err`: for so long nothing is read, so that whoever talks without end talks to itself.
    pub fn waits(&self) -> Result<BorrowedFd<'_>, Duration> {
        let left = self.rests_until.map(|until| until.saturating_duration_since(Instant::now()));
        match left.filter(|left| !left.is_zero()) {
            Some(left) => Err(left),
            None => Ok(self.socket.as_fd()),
        }
    }

    /// Hears what was said, and writes down what of it is new.
    pub fn hear(&mut self) {
        if self.waits().is_err() {
            return;
        }
        let before = self.said.clone();
        let mut buffer = [0; MAX_MESSAGE];
        self.rests_until = None;
        for _ in 0..BATCH {
            let Ok(length) = self.socket.recv(&mut buffer) else { break };
            take(&mut self.said, buffer.get(..length).unwrap_or_default());
            self.rests_until = Some(Instant::now() + PAUSE);
        }
        if self.said != before && record::write(&self.record, &self.said).is_err() {
            // Said again, it is tried again.
            self.said = before;
        }
    }
}

/// Takes one message in: assignments, one a line. Those of no interest here are passed over, as systemd does.
fn take(said: &mut Notified, message: &[u8]) {
    let text = String::from_utf8_lossy(message);
    for line in text.split('\n') {
        match line.split_once('=') {
            Some(("READY", "1")) => (said.ready, said.stopping) = (true, false),
            Some(("STOPPING", "1") | ("WATCHDOG", "trigger")) => said.stopping = true,
            Some(("STATUS", status)) => {
                let status: String = status.chars().filter(|c| !c.is_control()).take(MAX_STATUS).collect();
                said.status = Some(status).filter(|status| !status.trim().is_empty());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(messages: &[&str]) -> Notified {
        let mut said = Notified::default();
        messages.iter().for_each(|message| take(&mut said, message.as_bytes()));
        said
    }

    #[test]
    fn messages() {
        assert_eq!(said(&["WATCHDOG=1\nX=READY=1", "READY=0", "READY"]), Notified::default());
        assert!(said(&["STATUS=up\nREADY=1\n"]).ready);
        assert_eq!(said(&["STATUS=load\x1bing", "MAINPID=7"]).status.as_deref(), Some("loading"));
        assert_eq!(said(&["STATUS=loading", "STATUS="]).status, None);
        let stops = said(&["READY=1", "STOPPING=1"]);
        assert!(stops.ready && stops.stopping);
        assert!(said(&["READY=1", "WATCHDOG=trigger"]).stopping);
        assert!(!said(&["READY=1", "STOPPING=1", "READY=1"]).stopping, "it is back");
    }

    #[test]
    fn a_successor_hears_what_comes_after_and_knows_what_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFiles { dir: dir.path().to_owned() };
        let mut first = Notify::open(&run).unwrap();
        let program = UnixDatagram::unbound().unwrap();
        let socket = run.notify().join(NAME);
        program.send_to(b"STATUS=half way", &socket).unwrap();
        first.hear();
        drop(first);
        assert!(program.send_to(b"READY=1", &socket).is_err(), "nobody is there");
        let mut second = Notify::open(&run).unwrap();
        program.send_to(b"READY=1", &socket).unwrap();
        second.hear();
        let record: Notified = record::read(&run.notified()).unwrap();
        assert_eq!(record, Notified { ready: true, stopping: false, status: Some("half way".to_owned()) });
    }

    #[test]
    fn who_talks_without_end_waits() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFiles { dir: dir.path().to_owned() };
        let mut notify = Notify::open(&run).unwrap();
        let program = UnixDatagram::unbound().unwrap();
        program.set_nonblocking(true).unwrap();
        let socket = run.notify().join(NAME);
        let mut sent = 0;
        while program.send_to(b"WATCHDOG=1", &socket).is_ok() || sent < BATCH {
            sent += 1;
            if sent % 8 == 0 {
                notify.hear();
            }
            assert!(sent < 10_000, "it was read without a pause");
        }
        assert!(notify.rests_until.is_some());
    }
}
