//! What this host found last that tags stood for, and whether that is in git.

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic};
use crate::reconcile::tagged::Tagged;

/// It, kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTags {
    /// What was found.
    pub tagged: Tagged,
    /// Whether it is in git.
    pub pushed: bool,
}

impl StateDir {
    /// What was found last. One that cannot be read is lost: this host itself has its digests elsewhere.
    pub fn load_tags(&self) -> Option<KeptTags> {
        atomic::read_one(&self.root().join("tags.json")).ok().flatten()
    }

    /// Makes it durable.
    pub fn save_tags(&self, kept: &KeptTags) -> Result<(), StateError> {
        atomic::write(&self.root().join("tags.json"), kept)
    }
}
