//! Giving a thing what its entry says of it: owner, mode, times, extended attributes.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{
    Gid, Mode, RawMode, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fsetxattr, fstat, fstatfs,
    futimens,
};
use rustix::io::Errno;

use super::listing::{self, Kind, Record};
use super::reader::Entry;
use super::{Error, disk, refuse};

/// The seconds that ext4 keeps (kernel documentation, ext4/inodes.rst, "Inode Timestamps"); XFS and btrfs keep more. The
/// kernel would cut off what is beyond in silence, and the listing would never agree with the disk.
const SECONDS: std::ops::RangeInclusive<i64> = -(1 << 31)..=(3 << 32) + (1 << 31) - 1;

/// What the kernel takes (xattr(7)).
const MAX_XATTR: usize = 64 << 10;

#[derive(Clone)]
pub(super) struct Attributes {
    pub mode: Mode,
    pub uid: Uid,
    pub gid: Gid,
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// Of the extended ones those that mean something in a container.
    pub fn of(entry: &mut Entry) -> Result<Self, Error> {
        let mut xattrs = std::mem::take(&mut entry.xattrs);
        xattrs.retain(|(name, _)| is_kept(name));
        if let Some((name, _)) =
            xattrs.iter().find(|(name, value)| value.len() > MAX_XATTR || name.len() > 255)
        {
            let name: Vec<u8> = name.iter().copied().take(80).collect();
            return refuse(format!("{}: attribute {} is too large", entry.shown(), name.escape_ascii()));
        }
        Ok(Self {
            mode: Mode::from_raw_mode(entry.mode as RawMode),
            uid: Uid::from_raw(entry.uid),
            gid: Gid::from_raw(entry.gid),
            mtime: kept(entry.mtime),
            xattrs,
        })
    }

    /// Those of a directory in a layer below.
    pub fn of_stat(stat: &rustix::fs::Stat) -> Self {
        Self {
            mode: Mode::from_raw_mode(stat.st_mode & 0o7777),
            uid: Uid::from_raw(stat.st_uid),
            gid: Gid::from_raw(stat.st_gid),
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            xattrs: Vec::new(),
        }
    }

    /// The same, as old as can be.
    pub fn without_time(self) -> Self {
        Self { mtime: (0, 0), ..self }
    }

    pub fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1.into() };
        Timestamps { last_access: time, last_modification: time }
    }

    /// For the listing. The root's own time changes with what is around the tree, and is not kept.
    pub fn record(&self, kind: Kind) -> Record {
        let xattrs = listing::xattrs(self.xattrs.iter().map(|(name, value)| (&name[..], &value[..])));
        let (mode, uid, gid) = (self.mode.as_raw_mode(), self.uid.as_raw(), self.gid.as_raw());
        Record { kind, mode, uid, gid, mtime: self.mtime, xattrs }
    }

    /// The mode to make it with, which mostly is all of it: open(2) and mkdir(2) may leave out what is beyond.
    pub fn first_mode(&self) -> Mode {
        self.mode & Mode::from_raw_mode(0o777)
    }

    /// What it was not made with. Owner before mode: chown(2) takes set-id bits away. Attributes last: so does it with
    /// capabilities.
    pub fn set(&self, fd: &impl AsFd, path: &Path) -> Result<(), Error> {
        let made = fstat(fd).map_err(|error| disk(path, error))?;
        let is_owner = (made.st_uid, made.st_gid) == (self.uid.as_raw(), self.gid.as_raw());
        if !is_owner {
            fchown(fd, Some(self.uid), Some(self.gid)).map_err(|error| disk(path, error))?;
        }
        if !is_owner || Mode::from_raw_mode(made.st_mode & 0o7777) != self.mode {
            fchmod(fd, self.mode).map_err(|error| disk(path, error))?;
        }
        for (name, value) in &self.xattrs {
            match fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
                Ok(()) => {}
                // A file system without user attributes is no reason to do without the image.
                Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => {}
                // That is also how a full disk answers; but then it has no room for anything.
                Err(Errno::NOSPC) if has_room(fd) => {
                    let shown = path.display();
                    return refuse(format!(
                        "{shown}: more attributes than the file system takes for one file"
                    ));
                }
                Err(error) => return Err(disk(path, error)),
            }
        }
        Ok(())
    }

    pub fn set_times(&self, fd: &impl AsFd, path: &Path) -> Result<(), Error> {
        futimens(fd, &self.times()).map_err(|error| disk(path, error))
    }
}

/// Whether a mebibyte is free.
fn has_room(fd: &impl AsFd) -> bool {
    let free = fstatfs(fd).map(|stat| stat.f_bavail.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0)));
    free.is_ok_and(|bytes| bytes > 1 << 20)
}

/// The nearest time that is kept.
fn kept((seconds, nanoseconds): (i64, u32)) -> (i64, u32) {
    match seconds {
        seconds if SECONDS.contains(&seconds) => (seconds, nanoseconds),
        seconds => (seconds.clamp(*SECONDS.start(), *SECONDS.end()), 0),
    }
}

/// Overlay's own attributes would change how the layer is read, the others belong to the host's policy.
pub(in crate::registry) fn is_kept(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")) || name == b"security.capability"
}
