//! The newest commit ever admitted. It only moves to descendants: an older history served later is noticed. And the word
//! of an operator who had it moved elsewhere.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic};
use crate::types::{CommitId, Timestamp};

/// Where an operator's word is.
const RESET: &str = "trust-reset.json";

/// What was believed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighWater {
    /// The commit.
    pub commit: CommitId,
    /// When it was admitted.
    pub admitted_at: Timestamp,
}

/// An operator's word on what is believed from here on, instead of descendants of the mark alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// This commit and what descends from it; `None`: whatever a host may begin with that has believed nothing yet.
    pub commit: Option<CommitId>,
    /// Who says so.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
    /// When it was said.
    pub at: Timestamp,
    /// The mark that it does away with.
    pub former: Option<CommitId>,
    /// The head that was believed by it: its end. `None`: it is in force.
    pub admitted: Option<CommitId>,
    /// It has been told to the journal.
    #[serde(default)]
    pub told: bool,
}

/// What is remembered of trust, read without the lock: files appear whole.
pub fn read_trust(state_dir: &Path) -> Result<(Option<HighWater>, Option<Reset>), StateError> {
    Ok((atomic::read(&state_dir.join("trust.json"))?, read_reset(state_dir)?))
}

/// Never its former version: that of a word which is over was in force.
fn read_reset(state_dir: &Path) -> Result<Option<Reset>, StateError> {
    atomic::read_one(&state_dir.join(RESET))
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

    /// The last word of an operator, in force or not.
    pub fn load_reset(&self) -> Result<Option<Reset>, StateError> {
        read_reset(self.root())
    }

    /// Keeps it.
    pub fn save_reset(&self, reset: &Reset) -> Result<(), StateError> {
        let path = self.root().join(RESET);
        atomic::write_plain(&path, &atomic::encode(&path, reset)?)
    }

    /// Forgets it: it was not needed.
    pub fn clear_reset(&self) -> Result<(), StateError> {
        atomic::remove(&self.root().join(RESET))
    }
}
