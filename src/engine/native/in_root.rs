//! Looking into a container's root file system without being led out of it: every path is resolved by the kernel as if
//! the root were `/`, symbolic links included. Source: openat2(2), RESOLVE_IN_ROOT.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// Opens `path` as a process whose root directory is `root` would.
pub(super) fn open(root: impl AsFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    Ok(openat2(root, relative, how)?)
}

/// Reads a text file of the container; `None` when it is absent, longer than `limit`, or not a regular file.
pub(super) fn read_text(root: impl AsFd, path: &Path, limit: u64) -> Option<String> {
    // O_NONBLOCK: the image may have put a named pipe there.
    let file = File::from(open(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?);
    let metadata = file.metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() <= limit)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).ok()?);
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes a directory and its parents inside the root, with mode 0755, where they are missing.
pub(super) fn create_dir_all(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let mut so_far = std::path::PathBuf::from("/");
    let mut current = open(root.as_fd(), &so_far, directory)?;
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        so_far.push(name);
        current = match open(root.as_fd(), &so_far, directory) {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
                mkdirat(&current, name, Mode::from_bits_truncate(0o755))?;
                open(root.as_fd(), &so_far, directory)?
            }
            other => other?,
        };
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_never_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "host").unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", root.join("etc/absolute")).unwrap();
        symlink("../../secret", root.join("etc/up")).unwrap();
        symlink(dir.path().join("secret"), root.join("etc/out")).unwrap();
        let fd = File::open(&root).unwrap();
        let read = |path: &str| read_text(&fd, Path::new(path), 100);
        assert_eq!(read("/etc/absolute").as_deref(), Some("inside"));
        assert_eq!(read("/etc/up"), None);
        assert_eq!(read("/etc/out"), None);
        assert_eq!(read("/etc"), None);
        assert_eq!(read_text(&fd, Path::new("/etc/passwd"), 3), None, "over the limit");
    }

    #[test]
    fn directories_are_made_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("real")).unwrap();
        symlink("/real", root.join("link")).unwrap();
        let fd = File::open(&root).unwrap();
        create_dir_all(&fd, Path::new("/link/a/b")).unwrap();
        create_dir_all(&fd, Path::new("/link/a/b")).unwrap();
        assert!(root.join("real/a/b").is_dir());
        assert!(!dir.path().join("real").exists());
    }
}
