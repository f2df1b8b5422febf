//! A path inside a named volume. What is in a volume was written by containers, which may write to it at this moment:
//! the kernel resolves the path as if the volume were `/`, and what was opened is what is mounted.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

use super::super::in_root;
use super::volumes::{Fill, make_unfinished};

/// So often is a path looked up again that somebody renames something of: openat2(2), EAGAIN.
const TRIES: u32 = 100;

/// Opens `path` of the volume `volume`. What is not there is made: a directory that begins as the one of the image that
/// it covers (`fill`), as a volume of its own would.
pub(super) fn open(volume: &Path, path: &Path, fill: Option<Fill<'_, '_>>) -> io::Result<OwnedFd> {
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A container that exchanges a directory for a link out of the volume, again and again, while it is looked up.
    #[test]
    fn nobody_is_quick_enough_to_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("data"), dir.path().join("outside"));
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::create_dir_all(outside.join("b")).unwrap();
        symlink(&outside, volume.join("link")).unwrap();
        symlink("../outside", volume.join("up")).unwrap();
        let over = AtomicBool::new(false);
        let mut opened = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for other in ["link", "up"] {
                        let (one, two) = (volume.join("a"), volume.join(other));
                        let _ = renameat2(AT_FDCWD, &one, AT_FDCWD, &two, RenameFlags::RENAME_EXCHANGE);
                    }
                }
            });
            let root = File::open(&volume).unwrap();
            for _ in 0..20_000 {
                let Ok(found) = look(&root, Path::new("a/b")) else { continue };
                let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap();
                assert!(path.starts_with(&volume), "{}", path.display());
                opened += 1;
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(opened > 0, "it was never there");
    }
}
