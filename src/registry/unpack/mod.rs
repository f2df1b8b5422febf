//! A layer's tar stream into a directory that overlayfs can take (OCI image-spec, layer.md).
//!
//! The reader is our own and strict, every path is resolved one name at a time, and what is written is listed with its
//! digest. All of it runs in a confined process, see `worker`.

mod attributes;
mod content;
mod fields;
mod folders;
mod leftovers;
pub(super) mod listing;
mod merged;
mod parents;
mod pax;
pub(super) mod reader;
mod tree;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, PercentEncode, percent_encode};
use rustix::io::Errno;

use super::PullError;
use crate::types::Reason;
pub(super) use attributes::kept_xattrs;
pub(super) use merged::Merged;
pub(super) use parents::{Unsettled, inherit};
use reader::Reader;
pub(super) use reader::Stream;
pub(super) use reader::{Entry, Kind};
use tree::Tree;

const MAX_ENTRIES: u64 = 1_000_000;

/// Longest path, in bytes, as an archive says it and as it really is (path_resolution(7)).
const MAX_PATH: usize = 4096;

/// Deepest path, in parts.
const MAX_DEPTH: usize = 256;

/// Most that is remembered until the end of a layer, see [`remembered`]: 200,000 directories with paths of 100 bytes.
pub(super) const MAX_REMEMBERED: usize = 32 << 20;

/// Bytes that a path costs beside its own.
const REMEMBERING: usize = 64;

/// What a path must not hold where it is written as text within quotes.
const QUOTED: &AsciiSet = &CONTROLS.add(b'%').add(b'"').add(b'\\');

/// Directories that a layer has only because something is in them: it says nothing of their owner and mode. By path
/// (the empty one is the layer's root), and whether each hides what lower layers have in it.
pub(super) type Implied = BTreeMap<PathBuf, bool>;

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

/// A path as text that can stand within quotes.
pub(super) fn quoted(path: &Path) -> PercentEncode<'_> {
    percent_encode(path.as_os_str().as_bytes(), QUOTED)
}

/// What a path costs that is held until the end: as text in the answer to the agent, which holds all of it too.
pub(super) fn remembered(path: &Path) -> usize {
    quoted(path).map(str::len).sum::<usize>() + REMEMBERING
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

/// Unpacks a tar stream into `root`, an empty directory of ours, and lists what it made. Reads the stream to its end.
pub(super) fn unpack(stream: impl Stream, root: OwnedFd, listing: &mut dyn Write) -> Result<Implied, Error> {
    let mut tree = Tree::new(root, listing)?;
    let mut reader = Reader::new(stream);
    let mut count = 0u64;
    while let Some(entry) = reader.next()? {
        count += 1;
        if count > MAX_ENTRIES {
            return refuse(format!("more than {MAX_ENTRIES} entries"));
        }
        tree.add(entry, &mut reader)?;
    }
    tree.finish()
}

/// The first entry of a piece of an archive, and the bytes of its headers. `Error::Broken`: the piece is too short.
pub(super) fn first_entry(mut piece: &[u8]) -> Result<Option<(Entry, usize)>, Error> {
    let length = piece.len();
    let entry = Reader::new(&mut piece).next()?;
    Ok(entry.map(|entry| (entry, length - piece.len())))
}

#[cfg(test)]
mod tests;
