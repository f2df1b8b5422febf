//! When an image came: the store is told nothing of time, and writes it down for people and for the collection.

use crate::types::Timestamp;

/// Now, by the system's clock.
#[expect(clippy::disallowed_methods, reason = "what is pulled by a command is pulled beside any loop")]
pub(in crate::registry) fn now() -> Timestamp {
    Timestamp::now()
}
