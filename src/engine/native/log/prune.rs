//! Logs outlive their containers, but not for ever: of each service those of its last generations are kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Generations of a service whose logs are kept.
const KEPT: usize = 10;

/// Takes away the logs of all but the newest generations in `dir`, a service's log directory. What cannot be taken away
/// stays until the next time.
pub(in super::super) fn prune(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let files: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let (generation, _) = path.file_name()?.to_str()?.split_once(".log")?;
            Some((generation.parse::<u64>().ok()?, path))
        })
        .collect();
    let generations: BTreeSet<u64> = files.iter().map(|(generation, _)| *generation).collect();
    let Some(oldest) = generations.iter().rev().nth(KEPT - 1) else { return };
    for (_, path) in files.iter().filter(|(generation, _)| generation < oldest) {
        let _ = fs::remove_file(path);
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
        fs::write(dir.path().join("notes"), "x").unwrap();
        prune(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left.len(), 11, "{left:?}");
        assert!(!left.iter().any(|name| name.starts_with("1.")), "{left:?}");
        prune(&dir.path().join("none"));
    }
}
