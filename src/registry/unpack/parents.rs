//! Directories that a layer implies: overlayfs shows the uppermost layer's owner and mode, so they have to be those of
//! the layers below.
//!
//! Where no layer says anything of one, it is root's, open to all, and as old as can be (1970): the time of unpacking
//! would make another tree of the same layer on each host.
//!
//! A layer has one tree for all images that hold it, and its implied directories are those of the image it was pulled
//! for. Images that share a layer mostly share what is below it too.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, fstat, openat2};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::folders::openat2_again;
use super::listing::{Kind, Record};
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

/// Gives the implied directories of `tree` the attributes of `lowers`, the trees below it, uppermost first. What they
/// are then, for the listing.
pub(in crate::registry) fn inherit(
    tree: &Path,
    implied: &Implied,
    lowers: &[PathBuf],
) -> Result<Vec<(PathBuf, Record)>, Error> {
    let open = |path: &Path| match File::open(path) {
        Ok(file) => Ok(OwnedFd::from(file)),
        Err(error) => Err(Error::Disk(format!("opening {}", path.display()), error)),
    };
    let root = open(tree)?;
    let lowers = lowers.iter().map(|lower| open(lower)).collect::<Result<Vec<_>, _>>()?;
    let mut records = Vec::new();
    for (path, opaque) in implied {
        let folder = beneath(&root, path).map_err(|error| disk(path, error))?;
        let attributes = match look_up(&lowers, path)? {
            Some(stat) => Attributes::of_stat(&stat),
            None => Attributes::of_stat(&fstat(&folder).map_err(|error| disk(path, error))?).without_time(),
        };
        attributes.set(&folder, path)?;
        attributes.set_times(&folder, path)?;
        records.push((path.clone(), attributes.record(Kind::Directory { opaque: *opaque })));
    }
    Ok(records)
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
        match beneath(lower, &so_far) {
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

fn beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2_again(|| openat2(root, path, flags, Mode::empty(), how))
}
