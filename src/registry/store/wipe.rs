//! What a crash left unfinished goes at the next start.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a process of a former agent may take to let go of what it had under way.
const PATIENCE: Duration = Duration::from_secs(2);

/// So long a start waits for it: what runs is not to wait for a slow disk with a million files on it.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Removes all that is in `folder`, and waits no longer than `limit` for that: the rest goes meanwhile. The folder stays, since a
/// full disk may not have the inode for another one.
pub(super) fn wipe(folder: &Path, limit: Duration) -> std::io::Result<()> {
    let left: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?,
    };
    if left.is_empty() {
        return Ok(());
    }
    // What is made from now on has other names.
    let (done, over) = channel();
    let behind = left.clone();
    let begun = std::thread::Builder::new().name("wipe".to_owned()).spawn(move || {
        let result = remove_all(&behind);
        if let Err(Err(error)) = done.send(result).map_err(|unheard| unheard.0) {
            tracing::warn!("what an earlier start left unfinished cannot be removed: {error}");
        }
    });
    if begun.is_err() {
        return remove_all(&left);
    }
    match over.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            tracing::info!("what an earlier start left unfinished takes its time to be removed");
            Ok(())
        }
        Err(RecvTimeoutError::Disconnected) => Err(std::io::Error::other("removing it ended early")),
    }
}

fn remove_all(left: &[PathBuf]) -> std::io::Result<()> {
    left.iter().map(|path| remove(path)).fold(Ok(()), Result::and)
}

/// A process that unpacked for a former agent may still be about to end, and make things meanwhile.
fn remove(path: &Path) -> std::io::Result<()> {
    let begun = Instant::now();
    loop {
        let removed = match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
            Ok(_) => std::fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == ErrorKind::NotFound && path.symlink_metadata().is_err() => {
                return Ok(());
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound)
                    && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn all_that_is_left_goes_and_its_folder_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tmp");
        wipe(&folder, LIMIT).unwrap();
        std::fs::create_dir_all(folder.join("17/fs/usr")).unwrap();
        std::fs::write(folder.join("17/listing"), b"x").unwrap();
        std::fs::write(folder.join("file"), b"x").unwrap();
        std::os::unix::fs::symlink("/etc", folder.join("link")).unwrap();
        let inode = folder.metadata().unwrap().ino();
        wipe(&folder, LIMIT).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        assert_eq!(folder.metadata().unwrap().ino(), inode, "no new one is needed");
        assert!(Path::new("/etc/passwd").exists());
        wipe(&folder, LIMIT).unwrap();
    }

    #[test]
    fn what_takes_its_time_keeps_nobody_and_takes_nothing_new() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..2000 {
            std::fs::create_dir_all(dir.path().join(format!("old/{number}"))).unwrap();
        }
        wipe(dir.path(), Duration::ZERO).unwrap();
        std::fs::create_dir(dir.path().join("new")).unwrap();
        let begun = Instant::now();
        while dir.path().join("old").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it goes all the same");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(dir.path().join("new").exists());
    }
}
