//! A path inside a named volume. What is in a volume was written by containers, which may write to it at this moment:
//! the kernel resolves the path as if the volume were `/`, and what was opened is what is mounted.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

use super::super::in_root;
use super::volumes::make_unfinished;

/// So often is a path looked up again that somebody renames something of: openat2(2), EAGAIN.
const TRIES: u32 = 100;

/// Opens `path` of the volume `volume`. What is not there is made: a directory that begins as the one of the image that
/// it covers (`fill`), as a volume of its own would.
pub(super) fn open(volume: &Path, path: &Path, fill: Option<(BorrowedFd<'_>, &Path)>) -> io::Result<OwnedFd> {
    let root = File::open(volume)?;
    match look(&root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("it has no name"));
    };
    let parent = in_root::create_dir_all(&root, parent)?;
    // Filled where no container reaches it, so that none can lead the copy elsewhere.
    let (unfinished, _) = make_unfinished(volume, fill)?;
    match renameat2(AT_FDCWD, &unfinished, &parent, name, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => {}
        // A link that leads nowhere has that name, or somebody was quicker: looking once more tells.
        Err(nix::errno::Errno::EEXIST) => std::fs::remove_dir_all(&unfinished)?,
        Err(error) => return Err(error.into()),
    }
    // Durable before something runs in it.
    rustix::fs::syncfs(&root)?;
    look(&root, path)
}

fn look(root: &File, path: &Path) -> io::Result<OwnedFd> {
    let mut tries = TRIES;
    loop {
        match in_root::open(root, path, OFlag::O_PATH) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries > 0 => tries -= 1,
            found => return found,
        }
    }
}
