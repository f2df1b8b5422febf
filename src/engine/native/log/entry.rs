//! One entry of a log file: a line that a container wrote, or a part of a long one.

use std::fmt;

use crate::types::{Generation, ReplicaIndex, Timestamp};

/// Which of a container's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// An entry, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// When it came.
    pub at: Timestamp,
    /// Whose container wrote it.
    pub generation: Generation,
    /// Which of that one's containers.
    pub index: ReplicaIndex,
    /// Where to.
    pub stream: Stream,
    /// Whether a line ends with it; else it goes on in the next entry of the stream.
    pub ends: bool,
    /// The bytes as they were written, without a line break.
    pub text: Vec<u8>,
}

/// What stands in front of an entry's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// When it came.
    pub at: Timestamp,
    /// Where to.
    pub stream: Stream,
    /// See [`LogEntry::ends`].
    pub ends: bool,
}

/// Reads a line of a file, without its line break. `None` for what is none of ours: a power cut may leave such.
pub(super) fn parse(line: &[u8]) -> Option<(Head, &[u8])> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let at = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let ends = match fields.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some((Head { at, stream, ends }, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_nothing_else() {
        let (head, text) = parse(b"2026-01-01T00:00:00.5Z stderr P a  b\xff ").unwrap();
        assert_eq!((head.stream, head.ends, text), (Stream::Stderr, false, &b"a  b\xff "[..]));
        assert_eq!(head.at.as_millisecond() % 1000, 500);
        assert_eq!(parse(b"2026-01-01T00:00:00Z stdout F ").unwrap().1, b"");
        for bad in [
            &b""[..],
            b"\0\0\0",
            b"x stdout F y",
            b"2026-01-01T00:00:00Z stdin F x",
            b"2026-01-01T00:00:00Z stdout F",
        ] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }
}
