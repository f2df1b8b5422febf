//! What came of repairs.

use serde::{Deserialize, Serialize};

use crate::types::{Digest, Reason};

/// What was done about something damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// It is here again, as it was.
    Rebuilt,
    /// The layer was sound: what is kept of it packed is here again, as it was.
    BlobRebuilt,
    /// The layer is sound: what was kept of it packed was damaged, and is gone.
    BlobRemoved,
    /// Nothing used it, and it is gone.
    Removed,
    /// It could not be had again: nothing new runs on it, and it is pulled when something needs it.
    Quarantined,
    /// It is as it was found.
    Left,
}

impl Remedy {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Rebuilt => "rebuilt",
            Self::BlobRebuilt => "sound, and what is kept of it packed is, too, again",
            Self::BlobRemoved => "sound; what was kept of it packed was not, and is removed",
            Self::Removed => "removed, as nothing used it",
            Self::Quarantined => "taken out of use",
            Self::Left => "left as it is",
        }
    }
}

/// What came of one repair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repaired {
    /// The layer's diff-ID, or the image's manifest.
    pub digest: Digest,
    /// What was done.
    pub remedy: Remedy,
    /// Bytes that came over the network for it.
    pub pulled_bytes: u64,
    /// Wall time.
    pub seconds: f64,
    /// Why it could not be had again.
    pub reason: Option<Reason>,
    /// The same, for people.
    pub message: Option<String>,
}

impl Repaired {
    /// Whether nothing is wrong with it any more.
    pub fn is_well(&self) -> bool {
        !matches!(self.remedy, Remedy::Quarantined | Remedy::Left)
    }
}
