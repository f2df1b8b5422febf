//! The contents of config files, kept as long as a generation that names them may run again: a boot without git has them.
//!
//! Named by their digest, private, durable before anything names them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{StateDir, StateError, atomic};
use crate::types::Digest;

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("configs")
}

/// Where a content is kept.
pub fn path(state_dir: &Path, digest: &Digest) -> PathBuf {
    folder(state_dir).join(digest.hex())
}

/// Keeps a content, and says how it is called. One that is there and whole is not written again.
pub fn put(state_dir: &Path, bytes: &[u8]) -> Result<Digest, StateError> {
    let digest = Digest::from_sha256(&Sha256::digest(bytes).into());
    if get(state_dir, &digest, bytes.len() as u64).is_err() {
        atomic::make_dir(&folder(state_dir))?;
        atomic::write_plain(&path(state_dir, &digest), bytes)?;
    }
    Ok(digest)
}

/// Reads a content of `size` bytes.
///
/// # Errors
/// It is not there, cannot be read, or is not what its name says.
pub fn get(state_dir: &Path, digest: &Digest, size: u64) -> Result<Vec<u8>, StateError> {
    let path = path(state_dir, digest);
    let bytes = read(&path, size)?;
    if Digest::from_sha256(&Sha256::digest(&bytes).into()) != *digest {
        return Err(another(path));
    }
    Ok(bytes)
}

/// Reads a file that is to hold `size` bytes, and no more than one beyond that.
pub(super) fn read(path: &Path, size: u64) -> Result<Vec<u8>, StateError> {
    let reading = |error: io::Error| StateError::io("reading", path, error);
    let mut bytes = Vec::new();
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StateError::Damaged { path: path.to_owned(), why: "it is gone".to_owned() });
        }
        file => file.map_err(reading)?,
    };
    file.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(reading)?;
    Ok(bytes)
}

/// A content that is not what its name says.
pub(super) fn another(path: PathBuf) -> StateError {
    StateError::Damaged { path, why: "its content has another digest".to_owned() }
}

/// Removes what lies in a folder by a digest that nothing names any more, and what was never finished; all else is left
/// alone.
pub(super) fn sweep(folder: &Path, needed: &BTreeSet<Digest>) -> Result<(), StateError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StateError::io("reading", folder, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| StateError::io("reading", folder, error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // An unfinished one is a killed agent's.
        let stem = name.strip_suffix(".tmp").unwrap_or(&name);
        let Ok(digest) = format!("sha256:{stem}").parse::<Digest>() else { continue };
        if stem == name && needed.contains(&digest) {
            continue;
        }
        std::fs::remove_file(entry.path())
            .map_err(|error| StateError::io("removing", &entry.path(), error))?;
    }
    Ok(())
}

impl StateDir {
    /// Makes the contents durable that are about to be named.
    pub fn keep_contents(&self, contents: &BTreeMap<Digest, Vec<u8>>) -> Result<(), StateError> {
        contents.values().try_for_each(|bytes| put(self.root(), bytes).map(|_| ()))
    }

    /// Removes the contents that nothing names any more; what is no content is left alone.
    pub fn drop_contents(&self, needed: &BTreeSet<Digest>) -> Result<(), StateError> {
        sweep(&folder(self.root()), needed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn contents_are_private_whole_and_dropped_once_nothing_names_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let digest = put(dir.path(), b"listen 80").unwrap();
        let file = path(dir.path(), &digest);
        assert_eq!(get(dir.path(), &digest, 9).unwrap(), b"listen 80");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));

        std::fs::write(&file, b"listen 81").unwrap();
        assert!(matches!(get(dir.path(), &digest, 9), Err(StateError::Damaged { .. })));
        std::fs::write(&file, vec![b'x'; 5000]).unwrap();
        assert!(get(dir.path(), &digest, 9).is_err(), "a longer one was read whole");
        let all = BTreeMap::from([(digest.clone(), b"listen 80".to_vec())]);
        state.keep_contents(&all).unwrap();
        assert_eq!(get(dir.path(), &digest, 9).unwrap(), b"listen 80", "a damaged one is made anew");

        let other = put(dir.path(), b"").unwrap();
        for name in [format!("{}.tmp", "a".repeat(64)), "README".to_owned()] {
            std::fs::write(file.with_file_name(name), b"").unwrap();
        }
        state.drop_contents(&BTreeSet::from([other.clone()])).unwrap();
        let left = std::fs::read_dir(file.parent().unwrap()).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["README", other.hex()]);
    }
}
