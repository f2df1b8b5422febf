//! The clock of shims and of what reads their records: processes of their own, which the agent's clock does not reach.

use crate::types::Timestamp;

/// Now, by the system's clock.
#[expect(clippy::disallowed_methods, reason = "the one place on this side of the process border")]
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}
