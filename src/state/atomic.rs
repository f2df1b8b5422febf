//! The only way state is written: a temporary file, fsync, rename, fsync of the directory.
//!
//! A file is a header line with format, length and SHA-256 of the body, then the body as readable JSON. After an error
//! of fsync nothing is retried on that file: the kernel may have dropped the dirty pages and report success the second
//! time (<https://wiki.postgresql.org/wiki/Fsync_Errors>).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use super::{FORMAT, StateError, reserve};
use crate::types::Digest;

/// Larger than any file that is written here.
const MAX_FILE: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    length: u64,
    sha256: String,
}

/// Makes a directory and its parents, readable by root alone.
pub fn make_dir(path: &Path) -> Result<(), StateError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| StateError::io("making the directory", path, error))
}

/// Writes `value` durably under `path`. What was there before stays as `<stem>.previous.json`.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let bytes = encode(path, value)?;
    with_reserve(path, || keep_previous(path))?;
    write_plain(path, &bytes)
}

/// What [`write()`] writes, for those who make it durable with much else at once. `path` is for messages.
pub fn encode<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, StateError> {
    let mut body = serde_json::to_vec_pretty(value)
        .map_err(|error| StateError::io("encoding", path, io::Error::other(error)))?;
    body.push(b'\n');
    let header = Header { format: FORMAT, length: body.len() as u64, sha256: sha256(&body) };
    let mut bytes = serde_json::to_vec(&header)
        .map_err(|error| StateError::io("encoding", path, io::Error::other(error)))?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Writes bytes durably under `path`, without a header.
pub fn write_plain(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    with_reserve(path, || try_write(path, bytes).map_err(|error| StateError::io("writing", path, error)))
}

/// Gives a file or directory beside the state another name, of which nothing is durable yet. For what makes room: where there
/// is none even for that, the reserve is given back.
pub fn rename(from: &Path, to: &Path) -> Result<(), StateError> {
    with_reserve(to, || std::fs::rename(from, to).map_err(|error| StateError::io("moving", from, error)))
}

/// Does it once more with the reserve given back, where the file system is full.
fn with_reserve(path: &Path, mut act: impl FnMut() -> Result<(), StateError>) -> Result<(), StateError> {
    match act() {
        Err(StateError::Io { source, .. }) if is_full(&source) && reserve::release(path) => act(),
        result => result,
    }
}

fn try_write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("a state file has a directory"))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = parent.join(name);
    let result = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(parent)?.sync_all()
    })();
    if result.is_err() {
        // Best effort: an unfinished file is overwritten by the next write of the same name.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// Reads what [`write()`] wrote. `Ok(None)`: there is no such file. A damaged file gives its former version.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    match read_one(path) {
        Err(StateError::Damaged { why, .. }) => match read_one(&previous(path)) {
            Ok(Some(value)) => Ok(Some(value)),
            _ => Err(StateError::Damaged { path: path.to_owned(), why }),
        },
        Ok(None) => read_one(&previous(path)),
        result => result,
    }
}

/// Reads what [`write()`] wrote, and no former version of it.
pub fn read_one<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let damaged = |why: String| StateError::Damaged { path: path.to_owned(), why };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE => {
            return Err(damaged(format!("{} bytes", metadata.len())));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::io("reading", path, error)),
    }
    let bytes = std::fs::read(path).map_err(|error| StateError::io("reading", path, error))?;
    let split =
        bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("no header line".to_owned()))?;
    let (head, body) = (&bytes[..split], &bytes[split + 1..]);
    let header: Header =
        serde_json::from_slice(head).map_err(|error| damaged(format!("its header: {error}")))?;
    if header.format > FORMAT {
        return Err(StateError::Newer { path: path.to_owned(), found: header.format });
    }
    if header.length != body.len() as u64 || header.sha256 != sha256(body) {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    serde_json::from_slice(body).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Removes a state file with its former version, durably. Fine if it is not there.
pub fn remove(path: &Path) -> Result<(), StateError> {
    for path in [previous(path), path.to_owned()] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::io("removing", &path, error));
            }
            _ => {}
        }
    }
    let parent = path.parent().unwrap_or(path);
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| StateError::io("syncing", parent, error))
}

/// `shop.json` -> `shop.previous.json`.
fn previous(path: &Path) -> PathBuf {
    path.with_extension("previous.json")
}

/// Whether a file name in a state directory is one that [`write()`] gave, and not a former version or a temporary file.
pub fn stem_of(name: &str) -> Option<&str> {
    name.strip_suffix(".json").filter(|stem| !stem.ends_with(".previous"))
}

fn keep_previous(path: &Path) -> Result<(), StateError> {
    let previous = previous(path);
    let link = || std::fs::hard_link(path, &previous);
    let result = match link() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(&previous).and_then(|()| link())
        }
        result => result,
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StateError::io("keeping the former version of", path, error))
        }
        _ => Ok(()),
    }
}

fn sha256(bytes: &[u8]) -> String {
    Digest::from_sha256(&Sha256::digest(bytes).into()).hex().to_owned()
}

/// Whether an error says that the file system is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_gives_its_former_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.json");
        assert_eq!(read::<u32>(&path).unwrap(), None);
        write(&path, &1u32).unwrap();
        write(&path, &2u32).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), Some(2));
        for garbage in
            [&b""[..], b"\0\0\0\0", b"{}\n2\n", b"{\"format\":1,\"length\":2,\"sha256\":\"00\"}\n3\n"]
        {
            std::fs::write(&path, garbage).unwrap();
            assert_eq!(read::<u32>(&path).unwrap(), Some(1));
        }
        std::fs::write(dir.path().join("shop.previous.json"), b"x").unwrap();
        assert!(matches!(read::<u32>(&path), Err(StateError::Damaged { .. })));
        remove(&path).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), None);
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        std::fs::write(&path, b"{\"format\":2,\"length\":2,\"sha256\":\"00\"}\n3\n").unwrap();
        assert!(matches!(read::<u32>(&path), Err(StateError::Newer { found: 2, .. })));
    }
}
