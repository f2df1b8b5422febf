//! What containers write: kept in files with rotation, and told to the journal where there is one.
//!
//! A line of a file is `TIME STREAM TAG TEXT`, the format of the Kubernetes container runtime interface: RFC 3339 time,
//! `stdout` or `stderr`, `F` for a whole line or `P` for a part of one that goes on in the next entry of the stream.
//!
//! Writing, in the shim: [`Sink`]. Reading, in commands: [`ServiceLog`], or [`tail()`] for the last lines of one generation.

mod backward;
mod budget;
mod chain;
mod entry;
mod file;
mod forward;
mod journal;
mod lines;
mod prune;
mod service;
mod sink;
mod tail;

pub use entry::{LogEntry, Stream};
pub(super) use prune::prune;
pub use service::{LogQuery, ServiceLog};
pub(super) use sink::{Labels, Sink};
pub(super) use tail::tail;
