//! Directories that a layer implies: overlayfs shows the uppermost layer's owner and mode, so they have to be those of
//! the layers below.
//!
//! A layer has one tree for all images that hold it, and its implied directories are those of the image it was pulled
//! for. Images that share a layer mostly share what is below it too.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, fchmod, fchown, fgetxattr,
    fstat, futimens, openat2,
};
use rustix::io::Errno;

use super::{Error, Implied, disk};

/// What one layer says about a directory.
enum Found {
    /// It has it.
    Here(Stat),
    /// It does not know of it.
    Nothing,
    /// It hides it, or has something else in its place: what is further below does not show.
    Hidden,
}

/// Gives the implied directories of `tree` the attributes of `lowers`, the trees below it, uppermost first.
pub(in crate::registry) fn inherit(tree: &Path, implied: &Implied, lowers: &[PathBuf]) -> Result<(), Error> {
    let open = |path: &Path| match File::open(path) {
        Ok(file) => Ok(OwnedFd::from(file)),
        Err(error) => Err(Error::Disk(format!("opening {}", path.display()), error)),
    };
    let root = open(tree)?;
    let lowers = lowers.iter().map(|lower| open(lower)).collect::<Result<Vec<_>, _>>()?;
    for path in implied {
        let Some(stat) = look_up(&lowers, path)? else { continue };
        // The way may lead through a link of this layer's own.
        let folder = match beneath(&root, path, ResolveFlags::IN_ROOT) {
            // It was named through a link, and later made room for something else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            opened => opened.map_err(|error| disk(path, error))?,
        };
        let failed = |error| disk(path, error);
        fchown(&folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
            .map_err(failed)?;
        fchmod(&folder, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed)?;
        let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        futimens(&folder, &Timestamps { last_access: time, last_modification: time }).map_err(failed)?;
    }
    Ok(())
}

fn look_up(lowers: &[OwnedFd], path: &Path) -> Result<Option<Stat>, Error> {
    for lower in lowers {
        match in_layer(lower, path).map_err(|error| disk(path, error))? {
            Found::Here(stat) => return Ok(Some(stat)),
            Found::Hidden => return Ok(None),
            Found::Nothing => {}
        }
    }
    Ok(None)
}

fn in_layer(lower: &OwnedFd, path: &Path) -> Result<Found, Errno> {
    let mut opaque = false;
    let mut so_far = PathBuf::new();
    for part in path.components() {
        so_far.push(part);
        match beneath(lower, &so_far, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
            Ok(folder) if so_far == path => return fstat(&folder).map(Found::Here),
            Ok(folder) => {
                let mut value = [0u8; 1];
                opaque |= matches!(fgetxattr(&folder, "trusted.overlay.opaque", &mut value), Ok(1))
                    && value == *b"y";
            }
            Err(Errno::NOENT) if opaque => return Ok(Found::Hidden),
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            // A file, a link or a whiteout.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Found::Hidden),
            Err(error) => return Err(error),
        }
    }
    let root = fstat(lower)?;
    debug_assert_eq!(FileType::from_raw_mode(root.st_mode), FileType::Directory);
    Ok(Found::Here(root))
}

fn beneath(root: &OwnedFd, path: &Path, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    super::tree::openat2_again(|| {
        openat2(root, path, flags, Mode::empty(), how | ResolveFlags::NO_MAGICLINKS)
    })
}
