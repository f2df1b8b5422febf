//! What a host found that tags stood for: hosts that follow run the same bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{CommitId, Digest, HostName, Timestamp};

/// Tells it from a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Tag {
    Tags,
}

/// What one host found for one commit. Written before anything of it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tagged {
    /// Stable: the same when it is written a second time.
    pub id: String,
    kind: Tag,
    /// Who found it.
    pub host: HostName,
    /// For what.
    pub commit: CommitId,
    /// When, by its clock.
    pub at: Timestamp,
    /// References without a digest, and what they stood for on every platform.
    pub tags: BTreeMap<String, Digest>,
}

impl Tagged {
    /// What a host found.
    pub fn new(host: &HostName, commit: &CommitId, tags: BTreeMap<String, Digest>, at: Timestamp) -> Self {
        let id = format!("tags-{}-{:x}", commit.short(), at.as_microsecond());
        Self { id, kind: Tag::Tags, host: host.clone(), commit: commit.clone(), at, tags }
    }
}

/// What hosts found for one commit, in one: of two who looked at the same time, the first counts, for everybody alike.
pub fn first(mut found: Vec<Tagged>) -> BTreeMap<String, (Digest, HostName)> {
    found.sort_by(|a, b| (a.at, &a.host).cmp(&(b.at, &b.host)));
    let mut all = BTreeMap::new();
    for Tagged { host, tags, .. } in found {
        for (image, digest) in tags {
            all.entry(image).or_insert_with(|| (digest, host.clone()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_counts_for_everybody() {
        let digest = |c: char| format!("sha256:{}", c.to_string().repeat(64)).parse::<Digest>().unwrap();
        let tagged = |host: &str, at: i64, tags: &[(&str, char)]| {
            let tags = tags.iter().map(|(image, c)| ((*image).to_owned(), digest(*c))).collect();
            let at = Timestamp::from_second(at).unwrap();
            Tagged::new(&host.parse().unwrap(), &"a".repeat(40).parse().unwrap(), tags, at)
        };
        let found = vec![
            tagged("b", 2, &[("x:1", 'b'), ("y:1", 'b')]),
            tagged("c", 1, &[("x:1", 'c')]),
            tagged("a", 2, &[("y:1", 'a')]),
        ];
        let all = first(found.clone());
        assert_eq!(all["x:1"], (digest('c'), "c".parse().unwrap()));
        assert_eq!(all["y:1"], (digest('a'), "a".parse().unwrap()));
        assert_eq!(first(found.into_iter().rev().collect()), all);
        let text = serde_json::to_string(&tagged("a", 1, &[("x:1", 'a')])).unwrap();
        assert!(text.contains(r#""kind":"tags""#) && serde_json::from_str::<Tagged>(&text).is_ok());
    }
}
