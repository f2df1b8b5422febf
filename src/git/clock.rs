//! The clock that certificates of git servers are held against.

use crate::types::Timestamp;

/// Now, by the system's clock.
#[expect(clippy::disallowed_methods, reason = "a look at a remote is made beside any loop, by commands too")]
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}
