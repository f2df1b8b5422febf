//! The only place that asks what time it is.

use crate::types::Timestamp;

/// Now, by the system's clock.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn now() -> Timestamp {
    Timestamp::now()
}
