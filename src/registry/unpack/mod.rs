//! A layer's tar stream into a directory that overlayfs can take (OCI image-spec, layer.md).
//!
//! The `tar` crate parses; every path operation is ours, on a directory that openat2(2) resolved within the tree. What
//! readers of tar disagree about is refused rather than guessed at.

mod attributes;
mod parents;
mod tree;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::io::Errno;

use super::PullError;
use crate::types::Reason;
pub(super) use parents::inherit;
use tree::Tree;

const MAX_ENTRIES: u64 = 1_000_000;

/// Most bytes of headers before one entry: long names and extended attributes are held in memory.
const MAX_HEADERS: u64 = 1 << 20;

/// Most bytes of paths that are remembered until the end of a layer: some hundred thousand directories.
const MAX_REMEMBERED: usize = 64 << 20;

/// Directories that a layer has only because something is in them: it says nothing of their owner and mode.
/// The empty path is the layer's root.
pub(super) type Implied = BTreeSet<PathBuf>;

/// Why a layer was not unpacked.
#[derive(Debug)]
pub(super) enum Error {
    /// It holds what no layer should.
    Refused(String),
    /// The stream broke, or is no tar.
    Broken(io::Error),
    /// The disk said no.
    Disk(String, io::Error),
}

impl Error {
    pub fn into_pull_error(self, name: &str) -> PullError {
        match self {
            Self::Refused(why) => PullError::fatal(Reason::ImageInvalid, format!("{name}: {why}")),
            Self::Broken(error) => PullError::fatal(Reason::ImageInvalid, format!("{name}: {error}")),
            Self::Disk(what, error) => PullError::io(format_args!("{name}: {what}"), &error),
        }
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Refused(why.into()))
}

fn disk(path: &Path, error: Errno) -> Error {
    match error {
        // What the archive asked for cannot be: a way that leads nowhere within it, a name that no kernel takes.
        Errno::LOOP
        | Errno::XDEV
        | Errno::NOTDIR
        | Errno::NOENT
        | Errno::NAMETOOLONG
        | Errno::MLINK
        | Errno::INVAL => Error::Refused(format!("{}: {error}", path.display())),
        _ => Error::Disk(format!("unpacking {}", path.display()), error.into()),
    }
}

/// Unpacks a tar stream into `target`, an empty directory of ours. Reads the stream to its end.
pub(super) fn unpack(stream: &mut dyn Read, target: &Path) -> Result<Implied, Error> {
    let root = File::open(target).map_err(|error| Error::Disk("opening the target".to_owned(), error))?;
    let mut tree = Tree::new(root.into());
    let allowance = Rc::new(Cell::new(MAX_HEADERS));
    let mut archive = tar::Archive::new(Metered { inner: stream, allowance: allowance.clone() });
    let mut entries = archive.entries().map_err(Error::Broken)?;
    let mut count = 0u64;
    loop {
        allowance.set(MAX_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(Error::Broken)?;
        allowance.set(u64::MAX);
        count += 1;
        if count > MAX_ENTRIES {
            return refuse(format!("more than {MAX_ENTRIES} entries"));
        }
        tree.add(&mut entry)?;
    }
    allowance.set(u64::MAX);
    only_zeros(&mut archive.into_inner())?;
    tree.finish()
}

/// Some readers stop at the end mark, some go on behind it (TARmageddon's kind): so nothing may be there.
fn only_zeros(rest: &mut impl Read) -> Result<(), Error> {
    let mut buffer = [0u8; 16 << 10];
    loop {
        match rest.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) if buffer[..count].iter().all(|byte| *byte == 0) => {}
            Ok(_) => return refuse("data behind the archive's end, which readers take differently"),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Broken(error)),
        }
    }
}

/// Bounds what the parser may read by itself: it holds headers in memory, however long they say they are.
struct Metered<'a> {
    inner: &'a mut dyn Read,
    allowance: Rc<Cell<u64>>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!(
                "headers of more than {MAX_HEADERS} bytes before an entry"
            )));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        if left != u64::MAX {
            self.allowance.set(left - count as u64);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
