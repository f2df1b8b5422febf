//! The files of one log, the older ones included, while somebody else turns them over.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::file::numbered;

/// Most files of one log that a service may ask for.
pub(super) const MAX_FILES: usize = 100;

/// How often a look that met a turn-over in the middle is begun anew. One takes microseconds.
const TRIES: usize = 50;

/// Names an open file: as long as it is open, no other file has these numbers.
pub(super) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Every file of the log at `path`, oldest first, each once. None where nothing was written.
pub(super) fn open_all(path: &Path) -> io::Result<Vec<File>> {
    for _ in 0..TRIES {
        if let Some(files) = attempt(path)? {
            return Ok(files);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(io::Error::other(format!("{} is turned over too fast to be read", path.display())))
}

/// `None` when they were renamed meanwhile: a file would be missing, or be there twice.
fn attempt(path: &Path) -> io::Result<Option<Vec<File>>> {
    let mut files = Vec::new();
    let mut seen = Vec::new();
    for number in 0..=MAX_FILES {
        match File::open(numbered(path, number)) {
            Ok(file) => {
                let id = identity(&file.metadata()?);
                if seen.contains(&id) {
                    return Ok(None);
                }
                seen.push(id);
                files.push(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if numbered(path, number + 1).exists() {
                    return Ok(None);
                }
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if newest(path)? != seen.first().copied() {
        return Ok(None);
    }
    files.reverse();
    Ok(Some(files))
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
        assert!(attempt(&path).unwrap().is_none());
        fs::hard_link(&path, numbered(&path, 1)).unwrap();
        assert!(attempt(&path).unwrap().is_none(), "the same file twice");
    }
}
