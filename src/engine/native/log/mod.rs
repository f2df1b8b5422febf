//! What containers write: kept in files with rotation, and told to the journal where there is one.
//!
//! A line of a file is `TIME STREAM TAG TEXT`, the format of the Kubernetes container runtime interface: RFC 3339 time,
//! `stdout` or `stderr`, `F` for a whole line or `P` for a part of one that goes on in the next entry of the stream.

mod file;
mod journal;
mod lines;
mod prune;
mod tail;

pub(super) use file::LogFile;
pub(super) use journal::{Journal, SOCKET};
pub(super) use lines::{Piece, Splitter};
pub(super) use prune::prune;
pub use tail::LogLine;
pub(super) use tail::{lines_of, tail};

use std::fmt;

/// Which of a container's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
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
