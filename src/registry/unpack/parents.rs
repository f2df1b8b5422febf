//! Directories that a layer implies: overlayfs shows the uppermost layer's owner and mode, so they have to be those of
//! the layers below.
//!
//! Where no layer says anything of one, it is root's, open to all, and as old as can be (1970): the time of unpacking
//! would make another tree of the same layer on each host.
//!
//! A layer has one tree for all images that hold it, and its implied directories are those of the image it was unpacked
//! for. An image in which they look otherwise has directories of its own above all its layers (`merged`). What was left
//! out of that tree (`leftovers`) is left out for all images.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fgetxattr, openat2, statat};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::folders::openat2_again;
use super::listing::{Kind, Record};
use super::{Error, Implied, disk, leftovers};

/// What one layer says about a directory.
pub(super) enum Found {
    /// It has it. `alone`: it hides what layers below it have in its place, by a directory on the way.
    Here { attributes: Attributes, alone: bool },
    /// It does not know of it.
    Nothing,
    /// It hides it, or has something else in the place of a directory on its way: what is further below does not show.
    Hidden,
    /// It has a file or a link in its place.
    Other,
}

/// Why implied directories did not become what they are to be.
#[derive(Debug)]
pub(in crate::registry) enum Unsettled {
    /// What one of them is, a layer below has to say which is not here: this one of the list, from 0.
    NoLower(usize),
    /// It failed.
    Failed(Error),
}

impl From<Error> for Unsettled {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What became of a layer's implied directories.
pub(in crate::registry) struct Inherited {
    /// What they are now.
    pub records: Vec<(PathBuf, Record)>,
    /// Those that had nothing to hide, and are gone with all that was in them.
    pub gone: BTreeSet<PathBuf>,
}

/// Gives the implied directories of `tree` the attributes of `lowers`, the trees below it, uppermost first. One of those
/// that is not here is missed only where it has the say.
pub(in crate::registry) fn inherit(
    tree: &Path,
    implied: &Implied,
    lowers: &[PathBuf],
) -> Result<Inherited, Unsettled> {
    let failed = |path: &Path, error| Error::Disk(format!("opening {}", path.display()), error);
    let root = OwnedFd::from(File::open(tree).map_err(|error| failed(tree, error))?);
    let open = |lower: &PathBuf| match File::open(lower) {
        Ok(file) => Ok(Some(OwnedFd::from(file))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(lower, error)),
    };
    let lowers = lowers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut records = Vec::new();
    let (mut gone, mut last) = (BTreeSet::new(), None);
    for (path, opaque) in implied {
        // What is in a directory follows it.
        if last.is_some_and(|last| path.starts_with(last)) {
            continue;
        }
        let failed = |error| disk(path, error);
        let found = match (look_up(&lowers, path)?, in_layer(&root, path).map_err(failed)?) {
            (Found::Here { .. }, Found::Here { alone: true, .. }) => Found::Hidden,
            (found, _) => found,
        };
        if matches!(found, Found::Other) {
            let parent = beneath(&root, path.parent().unwrap_or(Path::new(""))).map_err(failed)?;
            if leftovers::clear(&parent, path, implied).map_err(failed)? {
                last = Some(path);
                gone.insert(path.clone());
                continue;
            }
        }
        let folder = beneath(&root, path).map_err(failed)?;
        let attributes = match found {
            Found::Here { attributes, .. } => attributes,
            _ => Attributes::of_folder(&folder).map_err(failed)?.without_time(),
        };
        attributes.set(&folder, path)?;
        attributes.set_times(&folder, path)?;
        records.push((path.clone(), attributes.record(Kind::Directory { opaque: *opaque })));
    }
    Ok(Inherited { records, gone })
}

/// What the uppermost layer says that says anything.
fn look_up(lowers: &[Option<OwnedFd>], path: &Path) -> Result<Found, Unsettled> {
    for (index, lower) in lowers.iter().enumerate() {
        let lower = lower.as_ref().ok_or(Unsettled::NoLower(index))?;
        match in_layer(lower, path).map_err(|error| disk(path, error))? {
            Found::Nothing => {}
            found => return Ok(found),
        }
    }
    Ok(Found::Nothing)
}

/// What a layer says. Its root it has in any case.
pub(super) fn in_layer(lower: &OwnedFd, path: &Path) -> Result<Found, Errno> {
    let mut opaque = false;
    let mut so_far = PathBuf::new();
    for part in path.components() {
        so_far.push(part);
        match beneath(lower, &so_far) {
            Ok(folder) if so_far == path => {
                let attributes = Attributes::of_folder(&folder)?;
                return Ok(Found::Here { attributes, alone: opaque });
            }
            Ok(folder) => {
                let mut value = [0u8; 1];
                opaque |= matches!(fgetxattr(&folder, "trusted.overlay.opaque", &mut value), Ok(1))
                    && value == *b"y";
            }
            Err(Errno::NOENT) if opaque => return Ok(Found::Hidden),
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let stat = statat(lower, &so_far, AtFlags::SYMLINK_NOFOLLOW)?;
                let is_whiteout = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
                return Ok(if so_far == path && !is_whiteout { Found::Other } else { Found::Hidden });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Found::Here { attributes: Attributes::of_folder(lower)?, alone: false })
}

/// Opens a directory of a tree.
pub(super) fn beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2_again(|| openat2(root, path, flags, Mode::empty(), how))
}
