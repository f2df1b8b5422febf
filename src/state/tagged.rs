//! What this host found last that tags stood for, and whether that is in git.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic};
use crate::reconcile::tagged::Tagged;
use crate::types::{CommitId, Digest};

/// It, kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTags {
    /// What was found.
    pub tagged: Tagged,
    /// Whether it is in git.
    pub pushed: bool,
}

impl KeptTags {
    /// What goes into the record of `commit`, which takes the place of this one: what was found for it, and for another
    /// commit what is not in git yet, of which nobody would hear any more.
    pub fn go_on_at(self, commit: &CommitId) -> BTreeMap<String, Digest> {
        match self.tagged.commit == *commit || !self.pushed {
            true => self.tagged.tags,
            false => BTreeMap::new(),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    #[test]
    fn what_is_not_in_git_yet_is_not_dropped() {
        let [here, next] = ["a", "b"].map(|c| c.repeat(40).parse::<CommitId>().unwrap());
        let digest: Digest = format!("sha256:{}", "1".repeat(64)).parse().unwrap();
        let tags = BTreeMap::from([("r.io/shop:1".to_owned(), digest)]);
        let tagged = Tagged::new(&"web-1".parse().unwrap(), &here, tags.clone(), Timestamp::UNIX_EPOCH);
        let kept = |pushed| KeptTags { tagged: tagged.clone(), pushed };
        assert_eq!(kept(false).go_on_at(&next), tags);
        assert_eq!(kept(true).go_on_at(&here), tags);
        assert_eq!(kept(true).go_on_at(&next), BTreeMap::new());
    }
}
