//! Logs outlive their containers, but not for ever: of each service those of its last generations are kept, and of all
//! of them together no more than one may have.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::file::most;
use crate::types::LogLimits;

/// Generations of a service whose logs are kept.
const KEPT: usize = 10;

/// Takes away the logs of all but the newest generations in `dir`, a service's log directory, before another one begins:
/// those left take no more together than `limits` allow one, or as many as a generation has containers. What cannot be
/// taken away stays until the next time.
pub(in super::super) fn prune(dir: &Path, limits: LogLimits) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let (generation, part) = name.to_str()?.split_once(".log")?;
            // All containers of a generation stay together, with a one-shot beside them.
            let (generation, index) = generation.split_once('-').unwrap_or((generation, ""));
            let index = index.parse::<u32>().ok();
            // What was cut short in the middle of a turn counts as the oldest.
            let part: u32 =
                if part.is_empty() { 0 } else { part.strip_prefix('.')?.parse().unwrap_or(u32::MAX) };
            let size = entry.metadata().map_or(0, |metadata| metadata.len());
            Some((generation.parse::<u64>().ok()?, Reverse(part), size, entry.path(), index))
        })
        .collect();
    // Newest first: by generation, then by part, of which 0 is the newest.
    files.sort_by_key(|(generation, part, ..)| Reverse((*generation, *part)));
    let generations: BTreeSet<u64> = files.iter().map(|(generation, ..)| *generation).collect();
    let oldest = generations.iter().rev().nth(KEPT - 1).copied().unwrap_or(0);
    // What is written now is not taken away for the others of its generation.
    let mut further: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for (generation, .., index) in &files {
        further.entry(*generation).or_default().extend(index);
    }
    let containers = further.values().map(BTreeSet::len).max().unwrap_or(0).saturating_add(1);
    let most = most(limits).saturating_mul(u64::try_from(containers).unwrap_or(u64::MAX));
    let mut sum = 0u64;
    for (generation, _, size, path, _) in &files {
        sum = sum.saturating_add(*size);
        if *generation < oldest || sum > most {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay() {
        let dir = tempfile::tempdir().unwrap();
        for generation in [1, 2, 3, 9, 10, 11, 12, 13, 14, 15, 100] {
            fs::write(dir.path().join(format!("{generation}.log")), "x").unwrap();
        }
        fs::write(dir.path().join("1.log.2"), "x").unwrap();
        fs::write(dir.path().join("1-2.log"), "x").unwrap();
        fs::write(dir.path().join("15-2.log"), "x").unwrap();
        fs::write(dir.path().join("notes"), "x").unwrap();
        prune(dir.path(), LogLimits::default());
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left.len(), 12, "{left:?}");
        assert!(!left.iter().any(|name| name.starts_with("1.") || name.starts_with("1-")), "{left:?}");
        prune(&dir.path().join("none"), LogLimits::default());
    }

    #[test]
    fn all_older_ones_together_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1.log", "2.log", "2.log.1", "3.log", "3.log.1", "3.log.10"] {
            fs::write(dir.path().join(name), vec![b'x'; 50 << 10]).unwrap();
        }
        let size = Some(crate::types::ByteSize(64 << 10));
        prune(dir.path(), LogLimits { max_size: size, max_file: Some(4) });
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["2.log", "2.log.1", "3.log", "3.log.1", "3.log.10"]);
    }

    #[test]
    fn several_containers_have_a_bound_each() {
        let dir = tempfile::tempdir().unwrap();
        let own = ["3.log", "3.log.1", "3-2.log", "3-2.log.1", "3-3.log", "3-3.log.1"];
        for name in own.into_iter().chain(["2.log", "2-post.log", "1.log"]) {
            fs::write(dir.path().join(name), vec![b'x'; 64 << 10]).unwrap();
        }
        let size = Some(crate::types::ByteSize(64 << 10));
        prune(dir.path(), LogLimits { max_size: size, max_file: Some(2) });
        assert!(own.iter().all(|name| dir.path().join(name).exists()), "what is written now stays");
        assert!(!dir.path().join("1.log").exists());
    }
}
