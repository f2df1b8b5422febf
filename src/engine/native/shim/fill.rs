//! Filling a new named volume with what the image has at its place, as Docker does: once, before anything runs in it.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::progress::Progress;

/// So much is copied before it is made durable: a disk that is slow shows that it goes on.
const PIECE: u64 = 64 << 20;

/// What any file counts at least: it is work for the disk too.
const ENTRY: u64 = 4096;

/// Deeper than this no image has its files; a directory that holds itself would have no end.
const MAX_DEPTH: u32 = 256;

/// Longest list of names of attributes, and longest attribute, that the kernel gives: xattr(7).
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Copies what is in `from` to the existing directory `to`: owners, modes, times, attributes and links as they are;
/// devices and sockets are left out. No link is followed. Nothing may change in `from` meanwhile. It is durable then.
pub(super) fn fill(from: &OwnedFd, to: &Path, progress: &mut Progress<'_>) -> io::Result<()> {
    let from = PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd()));
    let mut filling = Filling { place: File::open(to)?, unsynced: 0, seen: HashMap::new(), progress };
    // The first path is a link of /proc to the directory itself.
    filling.directory(&from, &fs::metadata(&from)?, to, MAX_DEPTH)?;
    Ok(rustix::fs::syncfs(&filling.place)?)
}

struct Filling<'a, 'r> {
    /// On the file system that is written to.
    place: File,
    /// Bytes that were copied and may not be durable.
    unsynced: u64,
    /// Files with several names: the one that each has already.
    seen: HashMap<(u64, u64), PathBuf>,
    progress: &'a mut Progress<'r>,
}

impl Filling<'_, '_> {
    fn directory(&mut self, from: &Path, model: &fs::Metadata, to: &Path, depth: u32) -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let model = fs::symlink_metadata(&from)?;
            let kind = model.file_type();
            if kind.is_dir() {
                let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("it is too deep"))?;
                fs::create_dir(&to)?;
                self.directory(&from, &model, &to, depth)?;
            } else if kind.is_symlink() {
                symlink(fs::read_link(&from)?, &to)?;
                lchown(&to, Some(model.uid()), Some(model.gid()))?;
            } else if kind.is_file() || kind.is_fifo() {
                self.file(&from, &model, to)?;
            }
            self.count(ENTRY)?;
        }
        describe(from, model, to)
    }

    /// A file or a named pipe.
    fn file(&mut self, from: &Path, model: &fs::Metadata, to: PathBuf) -> io::Result<()> {
        if let Some(first) = self.seen.get(&(model.dev(), model.ino())) {
            return fs::hard_link(first, to);
        }
        if model.file_type().is_fifo() {
            mkfifo(&to, Mode::S_IRUSR)?;
        } else {
            self.content(from, &to)?;
        }
        describe(from, model, &to)?;
        if model.nlink() > 1 {
            self.seen.insert((model.dev(), model.ino()), to);
        }
        Ok(())
    }

    fn content(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let from = File::open(from)?;
        let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        loop {
            let copied = io::copy(&mut (&from).take(PIECE), &mut &to)?;
            self.count(copied)?;
            if copied < PIECE {
                return Ok(());
            }
        }
    }

    fn count(&mut self, copied: u64) -> io::Result<()> {
        self.unsynced += copied;
        if self.unsynced >= PIECE {
            rustix::fs::syncfs(&self.place)?;
            self.unsynced = 0;
        }
        self.progress.made();
        Ok(())
    }
}

/// Owner first: to change it takes away set-user-ID bits and capabilities of files.
fn describe(from: &Path, model: &fs::Metadata, to: &Path) -> io::Result<()> {
    chown(to, Some(model.uid()), Some(model.gid()))?;
    fs::set_permissions(to, Permissions::from_mode(model.mode() & 0o7777))?;
    if model.file_type().is_fifo() {
        return Ok(());
    }
    attributes(from, to)?;
    let times = FileTimes::new().set_modified(model.modified()?).set_accessed(model.accessed()?);
    File::open(to)?.set_times(times)
}

fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0u8; MAX_ATTRIBUTE];
    let length = match rustix::fs::listxattr(from, &mut names) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    let names = names.get(..length).unwrap_or_default();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Those of the overlay file system and of the host's security module are not the image's.
        if !name.starts_with(b"user.") && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0u8; MAX_ATTRIBUTE];
        let length = rustix::fs::getxattr(from, name, &mut value)?;
        let value = value.get(..length).unwrap_or_default();
        match rustix::fs::setxattr(to, name, value, rustix::fs::XattrFlags::empty()) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}
