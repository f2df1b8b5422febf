//! Giving a thing what its entry says of it: owner, mode, times, extended attributes.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{
    Gid, Mode, RawMode, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
    flistxattr_query, fsetxattr, fstat, fstatfs, futimens,
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

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attributes {
    pub mode: Mode,
    pub uid: Uid,
    pub gid: Gid,
    mtime: (i64, u32),
    xattrs: Xattrs,
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

    /// Those of a directory that is on the disk.
    pub fn of_folder(folder: &impl AsFd) -> Result<Self, Errno> {
        let stat = fstat(folder)?;
        let xattrs = match kept_xattrs(folder) {
            // A file system without them.
            Err(Errno::OPNOTSUPP) => Vec::new(),
            xattrs => xattrs?,
        };
        Ok(Self {
            mode: Mode::from_raw_mode(stat.st_mode & 0o7777),
            uid: Uid::from_raw(stat.st_uid),
            gid: Gid::from_raw(stat.st_gid),
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            xattrs,
        })
    }

    /// Those of a directory that no layer says anything of: root's, open to all, and as old as can be.
    pub fn of_nobody() -> Self {
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        Self { mode: Mode::from_raw_mode(0o755), uid, gid, mtime: (0, 0), xattrs: Vec::new() }
    }

    /// What is other than it ought to be, for people.
    pub fn unlike(&self, ought: &Self) -> Option<String> {
        let owner = |of: &Self| format!("{}:{}", of.uid.as_raw(), of.gid.as_raw());
        let time = |of: &Self| format!("{}.{:09}", of.mtime.0, of.mtime.1);
        if self.mode != ought.mode {
            let (is, ought) = (self.mode.as_raw_mode(), ought.mode.as_raw_mode());
            Some(format!("has mode {is:04o}, and should have {ought:04o}"))
        } else if (self.uid, self.gid) != (ought.uid, ought.gid) {
            Some(format!("belongs to {}, and should to {}", owner(self), owner(ought)))
        } else if self.mtime != ought.mtime {
            Some(format!("says it was changed at {}, and should say {}", time(self), time(ought)))
        } else {
            (self.xattrs != ought.xattrs).then(|| "has other extended attributes than it should".to_owned())
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

/// Of the extended attributes those that a layer can have, by name.
pub(in crate::registry) fn kept_xattrs(file: &impl AsFd) -> Result<Xattrs, Errno> {
    let mut found = Vec::new();
    // Asked for its length first: most files have none.
    if flistxattr_query(file)? == 0 {
        return Ok(found);
    }
    let mut list = vec![0u8; MAX_XATTR];
    let length = flistxattr(file, &mut list[..])?;
    for name in list[..length].split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        let mut value = vec![0u8; MAX_XATTR];
        let length = fgetxattr(file, name, &mut value[..])?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// Overlay's own attributes would change how the layer is read, the others belong to the host's policy.
pub(in crate::registry) fn is_kept(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")) || name == b"security.capability"
}
