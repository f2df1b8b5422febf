//! Proof that this agent is alone on its state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StateError;
use crate::types::{Reason, Refusal};

/// Held as long as the value lives; the kernel lets go of it when the process dies, however it dies.
#[derive(Debug)]
pub struct HostLock {
    _file: File,
}

impl HostLock {
    /// Takes the lock, or says who has it.
    pub fn take(path: &Path) -> Result<Self, StateError> {
        let mut file = open(path).map_err(|error| StateError::io("opening", path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(StateError::Locked { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(StateError::io("locking", path, error)),
        }
        // For people and for the message above; the lock itself is the kernel's. A full disk keeps nobody from it.
        if let Err(error) = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())) {
            tracing::warn!("writing {}: {error}", path.display());
        }
        Ok(Self { _file: file })
    }
}

/// Proof that no other agent of this host has the same instance: each would take the other's containers for debris.
#[derive(Debug)]
pub struct InstanceLock {
    path: PathBuf,
    /// `None`: there is no place for it, as where `/run` cannot be written to.
    _lock: Option<HostLock>,
}

impl InstanceLock {
    /// Takes the name, or says who has it.
    pub fn take(instance: &str) -> Result<Self, Refusal> {
        // Not in a run directory, which is another one for each configuration, nor where others than root may write.
        let path = PathBuf::from(format!("/run/gitopsd.{instance}.lock"));
        match HostLock::take(&path) {
            Ok(lock) => Ok(Self { path, _lock: Some(lock) }),
            Err(StateError::Locked { holder, .. }) => {
                let pid = holder.map(|pid| format!(" with pid {pid}")).unwrap_or_default();
                let message = format!(
                    "instance `{instance}` of this host is held by another agent{pid}: stop that one, or give this \
                     one an `instance` and an `engine.subnet` of its own"
                );
                Err(Refusal::new(Reason::ConfigInvalid, message))
            }
            Err(error) => {
                tracing::warn!("{}", error.to_refusal());
                Ok(Self { path, _lock: None })
            }
        }
    }

    /// Takes the file away too: the instance is gone.
    pub fn forget(self) {
        // Best effort: it is empty but for a number, and goes with the next boot.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The process that holds the lock, if one does. Asked without taking it: an agent may be about to.
///
/// Source: proc_locks(5).
pub fn holder(path: &Path) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    // Nearly always the answer, and reading the kernel's table makes all of the host wait for some milliseconds.
    if !Path::new(&format!("/proc/{pid}")).exists() {
        return None;
    }
    let inode = format!(":{}", std::fs::metadata(path).ok()?.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let is_it = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields.as_slice(), [_, "FLOCK", _, "WRITE", holder, file, ..]
            if holder.parse() == Ok(pid) && file.ends_with(&inode))
    };
    locks.lines().any(is_it).then_some(pid)
}

/// A file system that was made read-only gives the lock all the same, where the file is there.
fn open(path: &Path) -> std::io::Result<File> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).create(true).truncate(false).mode(0o600);
    match how.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_learns_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = HostLock::take(&path).unwrap();
        match HostLock::take(&path) {
            Err(StateError::Locked { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        assert_eq!(holder(&path), Some(std::process::id()));
        drop(first);
        assert_eq!(holder(&path), None);
        HostLock::take(&path).unwrap();
    }
}
