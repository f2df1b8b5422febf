//! Log lines of containers in the journal, with the fields that people filter by.
//!
//! Source: systemd, "Native Journal Protocol" (docs/JOURNAL_NATIVE_PROTOCOL.md); systemd.journal-fields(7).

use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Piece, Stream};

/// Where journald listens.
pub(in super::super) const SOCKET: &str = "/run/systemd/journal/socket";

/// How long to leave a journald alone that is not there.
const RETRY: Duration = Duration::from_secs(5);

/// Sends entries to journald and never waits for it: what it cannot take at once is in the log file all the same.
#[derive(Debug)]
pub(in super::super) struct Journal {
    socket: Option<UnixDatagram>,
    path: PathBuf,
    fields: Vec<u8>,
    datagram: Vec<u8>,
    absent_since: Option<Instant>,
}

impl Journal {
    /// `fields` go with every entry; values must hold no line break.
    pub fn new(path: &Path, fields: &[(&str, &str)]) -> Self {
        let mut text = Vec::new();
        for (name, value) in fields.iter().filter(|(_, value)| !value.contains('\n')) {
            // Writing to a Vec cannot fail.
            let _ = writeln!(text, "{name}={value}");
        }
        let socket = UnixDatagram::unbound().ok().filter(|socket| socket.set_nonblocking(true).is_ok());
        Self { socket, path: path.to_owned(), fields: text, datagram: Vec::new(), absent_since: None }
    }

    /// Sends one entry. Stdout has the priority `info`, stderr `err`, as Docker's journald driver has them.
    pub fn send(&mut self, stream: Stream, piece: &Piece<'_>) {
        let Some(socket) = &self.socket else { return };
        if self.absent_since.is_some_and(|since| since.elapsed() < RETRY) {
            return;
        }
        let priority = if stream == Stream::Stdout { 6 } else { 3 };
        self.datagram.clear();
        let _ = write!(
            self.datagram,
            "PRIORITY={priority}\n{}",
            if piece.ends { "" } else { "CONTAINER_PARTIAL_MESSAGE=true\n" }
        );
        self.datagram.extend_from_slice(&self.fields);
        self.datagram.extend_from_slice(b"MESSAGE=");
        self.datagram.extend_from_slice(piece.text);
        self.datagram.push(b'\n');
        self.absent_since = match socket.send_to(&self.datagram, &self.path) {
            Ok(_) => None,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(_) => Some(Instant::now()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_carry_their_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut journal = Journal::new(&path, &[("GITOPSD_SERVICE", "shop"), ("BAD", "a\nb")]);
        let piece = Piece { text: b"hello = \xff", ends: true };
        journal.send(Stream::Stdout, &piece);
        assert!(journal.absent_since.is_some());
        journal.absent_since = None;
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        journal.send(Stream::Stderr, &piece);
        let mut buffer = [0; 1024];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"PRIORITY=3\nGITOPSD_SERVICE=shop\nMESSAGE=hello = \xff\n");
    }

    #[test]
    fn a_journald_that_does_not_read_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _receiver = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::new(&path, &[]);
        let begun = Instant::now();
        for _ in 0..10_000 {
            journal.send(Stream::Stdout, &Piece { text: &[b'x'; 1000], ends: true });
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
