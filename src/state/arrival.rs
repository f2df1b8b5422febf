//! What this host said last of a commit as a whole, and whether that is in git.

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic};
use crate::reconcile::arrival::Arrival;

/// A word, kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// It.
    pub arrival: Arrival,
    /// Whether it is in git.
    pub pushed: bool,
}

impl StateDir {
    /// What was said last. One that cannot be read is said anew: nothing of this host is decided by it.
    pub fn load_arrival(&self) -> Option<Kept> {
        atomic::read_one(&self.root().join("arrival.json")).ok().flatten()
    }

    /// Makes it durable.
    pub fn save_arrival(&self, kept: &Kept) -> Result<(), StateError> {
        atomic::write(&self.root().join("arrival.json"), kept)
    }
}
