//! Commit statuses on a forge: what became of a commit on this host, where people look at commits.
//!
//! It is a view, and git stays the record: what is shown follows from the agent's status, whatever was missed meanwhile,
//! and what was shown last is remembered, so that the same is not said twice. Nothing waits for it.

mod api;
pub mod memory;
mod view;

pub use api::{PostError, Poster};
pub use view::{CommitStatus, Shown, Verdict, next, of};
