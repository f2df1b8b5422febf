//! Every path of a tree, by descriptors: paths of images are never handed to the kernel in one piece.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

/// Descriptors that one walk may hold: deeper trees are none that this program unpacked.
const MAX_DEPTH: usize = 512;

/// How a directory is opened: itself, and nothing that a link leads to.
pub(super) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One name of a tree.
pub(super) struct Found<'a> {
    /// The directory that it is in.
    pub folder: &'a OwnedFd,
    pub name: &'a OsStr,
    /// From the tree's root.
    pub path: &'a Path,
    pub stat: Stat,
}

impl Found<'_> {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// What a walk comes upon.
pub(super) enum Event<'a> {
    Entry(&'a Found<'a>),
    /// A path that could not be looked at.
    Trouble(&'a Path, Errno),
}

/// Goes through all that is below `root`, in the order of names; the root itself is the caller's.
pub(super) fn walk(root: &OwnedFd, visit: &mut dyn FnMut(Event<'_>)) {
    inside(root, &mut PathBuf::new(), 0, visit);
}

fn inside(folder: &OwnedFd, path: &mut PathBuf, depth: usize, visit: &mut dyn FnMut(Event<'_>)) {
    let names = match names(folder) {
        Ok(names) if depth < MAX_DEPTH => names,
        Ok(_) => return visit(Event::Trouble(path, Errno::NAMETOOLONG)),
        Err(error) => return visit(Event::Trouble(path, error)),
    };
    for name in names {
        path.push(&name);
        match statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let found = Found { folder, name: &name, path, stat };
                let kind = found.kind();
                visit(Event::Entry(&found));
                if kind == FileType::Directory {
                    match openat(folder, &name, FOLDER, Mode::empty()) {
                        Ok(inner) => inside(&inner, path, depth + 1, visit),
                        Err(error) => visit(Event::Trouble(path, error)),
                    }
                }
            }
            Err(error) => visit(Event::Trouble(path, error)),
        }
        path.pop();
    }
}

/// The names in a directory, sorted.
pub(super) fn names(folder: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
