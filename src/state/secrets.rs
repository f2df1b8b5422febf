//! The contents of secrets, kept as long as a generation that began with them may run again, as those of config files are.
//!
//! Private to root and in the clear: whoever can read the state directory can read what its containers read. A name tells
//! nothing of the content without the key beside it, so that records which are shown to somebody do not, either.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::contents::{another, read, sweep};
use super::{StateDir, StateError, atomic};
use crate::types::{Digest, SecretContent};

/// As long as what it makes.
const KEY_BYTES: usize = 32;

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("secrets")
}

/// What contents are named with. Another one gives all of them other names: they count as changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// The host's; `None`: it has none, or what there is is none.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, StateError> {
        match read(&folder(state_dir).join("key"), KEY_BYTES as u64) {
            Ok(bytes) => Ok(bytes.try_into().ok().map(Self)),
            Err(StateError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One that nobody has.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| io::Error::other("the system has no random numbers"))?;
        Ok(Self(bytes))
    }

    /// What a content is called.
    pub fn content(&self, bytes: &[u8]) -> SecretContent {
        let mut keyed = [0; 32];
        // HMAC-SHA256 has as many bytes.
        keyed.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), bytes).as_ref());
        SecretContent { keyed: Digest::from_sha256(&keyed), size: bytes.len() as u64 }
    }

    /// The host's, made where it has none: durable before anything is named with it.
    fn of(state_dir: &Path) -> Result<Self, StateError> {
        if let Some(key) = Self::load(state_dir)? {
            return Ok(key);
        }
        let path = folder(state_dir).join("key");
        let key = Self::random().map_err(|error| StateError::io("making", &path, error))?;
        atomic::make_dir(&folder(state_dir))?;
        atomic::write_plain(&path, &key.0)?;
        Ok(key)
    }
}

/// Where a content is kept.
pub fn path(state_dir: &Path, content: &SecretContent) -> PathBuf {
    folder(state_dir).join(content.keyed.hex())
}

/// Keeps a content, and says how it is called. One that is there and whole is not written again.
pub fn put(state_dir: &Path, bytes: &[u8]) -> Result<SecretContent, StateError> {
    let content = Key::of(state_dir)?.content(bytes);
    if get(state_dir, &content).is_err() {
        atomic::write_plain(&path(state_dir, &content), bytes)?;
    }
    Ok(content)
}

/// Reads a content.
///
/// # Errors
/// It is not there, cannot be read, or is not what its name says.
pub fn get(state_dir: &Path, content: &SecretContent) -> Result<Vec<u8>, StateError> {
    let path = path(state_dir, content);
    let bytes = read(&path, content.size)?;
    match Key::load(state_dir)? {
        Some(key) if key.content(&bytes) == *content => Ok(bytes),
        Some(_) => Err(another(path)),
        None => {
            let why = "it is gone, or is no key".to_owned();
            Err(StateError::Damaged { path: folder(state_dir).join("key"), why })
        }
    }
}

impl StateDir {
    /// Removes the contents that nothing names any more.
    pub fn drop_secrets(&self, needed: &BTreeSet<Digest>) -> Result<(), StateError> {
        sweep(&folder(self.root()), needed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn contents_are_private_whole_named_by_a_key_and_dropped_once_nothing_names_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(Key::load(dir.path()).unwrap().is_none(), "it is made when it is needed");
        let content = put(dir.path(), b"hunter2").unwrap();
        assert_eq!(put(dir.path(), b"hunter2").unwrap(), content);
        assert_eq!(get(dir.path(), &content).unwrap(), b"hunter2");
        let plain = Digest::from_sha256(&Sha256::digest(b"hunter2").into());
        assert_ne!(content.keyed, plain, "it could be guessed");
        let (file, key) = (path(dir.path(), &content), dir.path().join("secrets/key"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&key), mode(file.parent().unwrap())), (0o600, 0o600, 0o700));

        std::fs::write(&file, b"hunter3").unwrap();
        assert!(matches!(get(dir.path(), &content), Err(StateError::Damaged { .. })));
        put(dir.path(), b"hunter2").unwrap();
        assert_eq!(get(dir.path(), &content).unwrap(), b"hunter2", "a damaged one is made anew");

        let other = put(dir.path(), b"").unwrap();
        state.drop_secrets(&BTreeSet::from([other.keyed.clone()])).unwrap();
        assert!(get(dir.path(), &content).is_err() && get(dir.path(), &other).unwrap().is_empty());

        // Without its key it is another one's, and another host's is not this one's.
        for damage in [&b""[..], &[7; 31], &[7; 33]] {
            std::fs::write(&key, damage).unwrap();
            assert!(get(dir.path(), &other).is_err());
            assert!(Key::load(dir.path()).unwrap().is_none());
        }
        assert_ne!(put(dir.path(), b"").unwrap(), other);
    }
}
