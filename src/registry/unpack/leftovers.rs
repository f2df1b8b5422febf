//! Whiteouts with nothing to hide: in the layers below a file or a link has the name of the directory they are in.
//!
//! The directory is there for their sake alone, and would take the place of the file, or of the link (`/lib` of many
//! distributions). So it goes, and what is below stays as it is; umoci leaves it, too.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps, fstat, futimens, openat, statat, unlinkat,
};
use rustix::io::Errno;

use super::Implied;

/// Removes the directory `path` from below `parent`, where it holds nothing but whiteouts and directories that they
/// imply; whether it did. The parent's time stays.
pub(super) fn clear(parent: &OwnedFd, path: &Path, implied: &Implied) -> Result<bool, Errno> {
    let name = path.file_name().unwrap_or_default();
    if !is_of_whiteouts(&open(parent, name)?, path, implied)? {
        return Ok(false);
    }
    let before = fstat(parent)?;
    remove(parent, name)?;
    let time = Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec.try_into().unwrap_or(0) };
    futimens(parent, &Timestamps { last_access: time, last_modification: time })?;
    Ok(true)
}

fn is_of_whiteouts(folder: &OwnedFd, path: &Path, implied: &Implied) -> Result<bool, Errno> {
    if !implied.contains_key(path) {
        return Ok(false);
    }
    let mut all = true;
    each(folder, |name, kind| {
        all = match kind {
            // No other device is ever unpacked.
            FileType::CharacterDevice => all,
            FileType::Directory => all && is_of_whiteouts(&open(folder, name)?, &path.join(name), implied)?,
            _ => false,
        };
        Ok(())
    })?;
    Ok(all)
}

fn remove(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let folder = open(parent, name)?;
    each(&folder, |name, kind| match kind {
        FileType::Directory => remove(&folder, name),
        _ => unlinkat(&folder, name, AtFlags::empty()),
    })?;
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn each(folder: &OwnedFd, mut visit: impl FnMut(&OsStr, FileType) -> Result<(), Errno>) -> Result<(), Errno> {
    for entry in Dir::read_from(folder)?.collect::<Result<Vec<_>, _>>()? {
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            visit(name, FileType::from_raw_mode(stat.st_mode))?;
        }
    }
    Ok(())
}

fn open(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}
