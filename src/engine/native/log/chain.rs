//! The files of one log, the older ones included, while somebody else turns them over.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::file::numbered;

/// Most files of one log that a service may ask for.
pub(super) const MAX_FILES: usize = 100;

/// How often a look that met a turn-over in the middle is begun anew. One takes microseconds.
const TRIES: usize = 20;

/// Names an open file: as long as it is open, no other file has these numbers.
pub(super) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Every file of the log at `path`, oldest first, each once. None where nothing was written. Where they turn faster than
/// one can look, an older one may be missing: what is in it is about to go in any case.
pub(super) fn open_all(path: &Path) -> io::Result<Vec<File>> {
    let mut look = attempt(path)?;
    for _ in 0..TRIES {
        if look.whole {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        look = attempt(path)?;
    }
    look.files.reverse();
    Ok(look.files)
}

struct Look {
    /// Newest first.
    files: Vec<File>,
    /// `false` when some were renamed meanwhile: one may be missing.
    whole: bool,
}

fn attempt(path: &Path) -> io::Result<Look> {
    let mut look = Look { files: Vec::new(), whole: true };
    let mut seen = Vec::new();
    for number in 0..=MAX_FILES {
        match File::open(numbered(path, number)) {
            Ok(file) => {
                let id = identity(&file.metadata()?);
                if seen.contains(&id) {
                    look.whole = false;
                    continue;
                }
                seen.push(id);
                look.files.push(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !numbered(path, number + 1).exists() {
                    break;
                }
                look.whole = false;
            }
            Err(error) => return Err(error),
        }
    }
    look.whole &= newest(path)? == seen.first().copied();
    Ok(look)
}

/// Names the file that is written to now.
pub(super) fn newest(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(identity(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn oldest_first_and_a_gap_is_a_turn_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.log");
        assert!(open_all(&path).unwrap().is_empty());
        for (number, text) in [(0, "new"), (1, "older"), (2, "oldest")] {
            fs::write(numbered(&path, number), text).unwrap();
        }
        let read = |mut file: &File| {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        };
        let all = open_all(&path).unwrap();
        assert_eq!(all.iter().map(read).collect::<Vec<_>>(), ["oldest", "older", "new"]);
        fs::remove_file(numbered(&path, 1)).unwrap();
        assert!(!attempt(&path).unwrap().whole);
        fs::hard_link(&path, numbered(&path, 1)).unwrap();
        let look = attempt(&path).unwrap();
        assert!(!look.whole && look.files.len() == 2, "the same file twice");
    }
}
