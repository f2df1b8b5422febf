//! Telling people and machines what happened: the journal, systemd, the status, events.
//!
//! Change is news, repetition is not: a message goes out when something came to be so, never because it still is.

pub mod events;
pub mod fleet;
pub mod handed_over;
pub mod journal;
pub mod message;
pub mod notify;
pub mod past;
pub mod proposal;
pub mod status;
pub mod waves;

pub use message::Message;
