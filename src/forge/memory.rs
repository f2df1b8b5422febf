//! What was shown last, in the state directory: a restart does not show it again.

use std::path::{Path, PathBuf};

use super::Shown;
use crate::state::{StateError, atomic};

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("commit-status.json")
}

/// What was shown last; `None` where nothing is known of it: then it is shown once more.
pub fn load(state_dir: &Path) -> Option<Shown> {
    atomic::read(&path(state_dir)).ok().flatten()
}

/// Remembers what is shown now.
///
/// # Errors
/// It cannot be written.
pub fn save(state_dir: &Path, shown: &Shown) -> Result<(), StateError> {
    atomic::write(&path(state_dir), shown)
}
