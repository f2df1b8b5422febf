//! The newest commit ever admitted. It only moves to descendants: an older history served later is noticed.

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic};
use crate::types::{CommitId, Timestamp};

/// What was believed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighWater {
    /// The commit.
    pub commit: CommitId,
    /// When it was admitted.
    pub admitted_at: Timestamp,
}

impl StateDir {
    /// The high-water mark; `None` before the first admission.
    pub fn load_high_water(&self) -> Result<Option<HighWater>, StateError> {
        atomic::read(&self.root().join("trust.json"))
    }

    /// Moves it. Durable before anything of the new commit is acted on.
    pub fn save_high_water(&self, mark: &HighWater) -> Result<(), StateError> {
        atomic::write(&self.root().join("trust.json"), mark)
    }
}
