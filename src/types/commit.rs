//! A revision of the config repo.

use std::fmt;
use std::str::FromStr;

use super::{Invalid, Timestamp, serde_through_str};

/// The name of a commit: 40 lower-case hex digits (or 64, in a SHA-256 repository).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(String);

impl FromStr for CommitId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex || !(text.len() == 40 || text.len() == 64) {
            return Err(Invalid::new(format!("`{text}` is not a commit id: expected 40 hex digits")));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl CommitId {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first ten digits, as people quote it.
    pub fn short(&self) -> &str {
        &self.0[..10]
    }
}
serde_through_str!(CommitId);

/// What a commit says about itself: who, when, and its first line.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CommitInfo {
    /// Its name.
    pub id: CommitId,
    /// The first line of its message.
    pub subject: String,
    /// `Name <mail>` of its author.
    pub author: String,
    /// The committer's time.
    pub committed_at: Timestamp,
}
