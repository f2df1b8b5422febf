//! One lock a container. Whoever starts a container holds it and hands it on: agent, then shim, then (until execve(2))
//! the half-made container itself. So "the lock is free" means: nobody supervises this container and nobody is about
//! to. It lives as long as one process has it open, so no crash leaves it held.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use super::layout::RunFiles;

/// Takes the lock if it is free, making the container's run directory on the way.
pub(super) fn try_take(run: &RunFiles) -> io::Result<Option<File>> {
    for _ in 0..100 {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&run.dir)?;
        let file = match OpenOptions::new().append(true).create(true).mode(0o600).open(run.lock()) {
            Ok(file) => file,
            // The directory was removed in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // A lock on a file that a removal has unlinked guards nothing.
        if fs::metadata(run.lock()).is_ok_and(|now| file.metadata().is_ok_and(|mine| mine.ino() == now.ino()))
        {
            return Ok(Some(file));
        }
    }
    Err(io::Error::other(format!("{} comes and goes", run.lock().display())))
}

/// Whether someone holds the lock. Makes nothing.
pub(super) fn is_held(run: &RunFiles) -> bool {
    let Ok(file) = File::open(run.lock()) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Takes the lock as soon as it is free; `None` when `timeout` was over first. `between` runs before each new attempt.
pub(super) fn take(run: &RunFiles, timeout: Duration, mut between: impl FnMut()) -> io::Result<Option<File>> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(lock) = try_take(run)? {
            return Ok(Some(lock));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        between();
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_a_removed_lock_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFiles { dir: dir.path().join("shop.1") };
        assert!(!is_held(&run));
        let first = try_take(&run).unwrap().unwrap();
        assert!(is_held(&run));
        assert!(try_take(&run).unwrap().is_none());
        fs::remove_dir_all(&run.dir).unwrap();
        let second = try_take(&run).unwrap().expect("a fresh directory has a fresh lock");
        drop(first);
        assert!(is_held(&run));
        drop(second);
        assert!(!is_held(&run));
    }
}
