//! Log lines of containers in the journal, with the fields that people filter by.
//!
//! Source: systemd, "Native Journal Protocol" (docs/JOURNAL_NATIVE_PROTOCOL.md); systemd.journal-fields(7).

use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::entry::Stream;
use super::lines::Piece;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// How long to leave a journald alone that is not there.
const RETRY: Duration = Duration::from_secs(5);

/// In this time no more than so many entries are sent, as journald itself has it for a unit. Where shims are no units, nobody
/// else would keep a container that floods its log from pushing out what others have in the journal.
const WINDOW: Duration = Duration::from_secs(30);
/// See [`WINDOW`].
const MOST: u32 = 10_000;

/// Sends entries to journald and never waits for it: what it cannot take at once is in the log file all the same.
#[derive(Debug)]
pub(super) struct Journal {
    socket: Option<UnixDatagram>,
    path: PathBuf,
    fields: Vec<u8>,
    datagram: Vec<u8>,
    absent_since: Option<Instant>,
    window: Instant,
    sent: u32,
    kept_back: u64,
}

impl Journal {
    /// `fields` go with every entry, except those without a value; values must hold no line break.
    pub fn new(path: &Path, fields: &[(&str, &str)]) -> Self {
        let mut text = Vec::new();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty() && !value.contains('\n')) {
            // Writing to a Vec cannot fail.
            let _ = writeln!(text, "{name}={value}");
        }
        let socket = UnixDatagram::unbound().ok().filter(|socket| socket.set_nonblocking(true).is_ok());
        Self {
            socket,
            path: path.to_owned(),
            fields: text,
            datagram: Vec::new(),
            absent_since: None,
            window: Instant::now(),
            sent: 0,
            kept_back: 0,
        }
    }

    /// Sends one entry. Stdout has the priority `info`, stderr `err`, as Docker's journald driver has them.
    pub fn send(&mut self, stream: Stream, piece: &Piece<'_>) {
        if self.absent_since.is_some_and(|since| since.elapsed() < RETRY) {
            return;
        }
        if self.sent >= MOST {
            if self.window.elapsed() < WINDOW {
                self.kept_back += 1;
                return;
            }
            self.finish();
        }
        if self.sent == 0 {
            self.window = Instant::now();
        }
        self.sent += 1;
        self.transmit(stream, piece);
    }

    /// Ends a time in which entries were kept back, and says how many there were.
    pub fn finish(&mut self) {
        self.sent = 0;
        let kept_back = std::mem::take(&mut self.kept_back);
        if kept_back > 0 {
            let note = format!(
                "gitopsd: {kept_back} lines more were written; `gitopsd logs` has what is kept of them"
            );
            self.transmit(Stream::Stderr, &Piece { text: note.as_bytes(), ends: true });
        }
    }

    fn transmit(&mut self, stream: Stream, piece: &Piece<'_>) {
        let Some(socket) = &self.socket else { return };
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
    fn a_flood_is_cut_off_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let mut journal = Journal::new(&path, &[]);
        let (mut count, mut last) = (0, Vec::new());
        let mut receive = || {
            let mut buffer = [0; 1024];
            while let Ok(length) = receiver.recv(&mut buffer) {
                count += 1;
                last = buffer[..length].to_vec();
            }
            (count, last.clone())
        };
        let piece = Piece { text: b"y", ends: true };
        for _ in 0..MOST + 500 {
            journal.send(Stream::Stdout, &piece);
            receive();
        }
        assert_eq!(receive().0, MOST);
        journal.window = Instant::now().checked_sub(WINDOW).unwrap();
        journal.send(Stream::Stdout, &piece);
        journal.finish();
        let (count, last) = receive();
        assert_eq!((count, last.as_slice()), (MOST + 2, &b"PRIORITY=6\nMESSAGE=y\n"[..]));
    }

    #[test]
    fn a_journald_that_does_not_read_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _receiver = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::new(&path, &[]);
        let begun = Instant::now();
        for _ in 0..5_000 {
            journal.send(Stream::Stdout, &Piece { text: &[b'x'; 1000], ends: true });
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
