//! What an entry says of the thing it makes, and giving it that: owner, mode, times, extended attributes.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{
    Gid, Mode, RawMode, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fsetxattr, futimens,
};
use rustix::io::Errno;

use super::{Error, disk, refuse};

const MAX_XATTR: usize = 64 << 10;

/// Largest number that a size field of 11 octal digits takes: above it writers have to say it otherwise.
const MAX_OCTAL_SIZE: u64 = 0o777_7777_7777;

pub(super) struct Attributes {
    pub mode: Mode,
    pub uid: Uid,
    pub gid: Gid,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    pub fn times(&self) -> Timestamps {
        Timestamps { last_access: self.mtime, last_modification: self.mtime }
    }

    /// Owner before mode: chown(2) takes set-id bits away. Attributes last: so does it with capabilities.
    pub fn set(&self, fd: &impl AsFd, path: &Path) -> Result<(), Error> {
        fchown(fd, Some(self.uid), Some(self.gid)).map_err(|error| disk(path, error))?;
        fchmod(fd, self.mode).map_err(|error| disk(path, error))?;
        for (name, value) in &self.xattrs {
            match fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // A file system without user attributes is no reason to do without the image.
                Err(Errno::OPNOTSUPP) if name.starts_with("user.") => {}
                Err(error) => return Err(disk(path, error)),
            }
        }
        Ok(())
    }

    pub fn set_times(&self, fd: &impl AsFd, path: &Path) -> Result<(), Error> {
        futimens(fd, &self.times()).map_err(|error| disk(path, error))
    }
}

/// What one key of the extended header says; the last word on what the header says too.
pub(super) fn read<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Attributes, Error> {
    let path_bytes = entry.path_bytes().into_owned();
    let link_bytes = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
    let path = String::from_utf8_lossy(&path_bytes).into_owned();
    let header = entry.header();
    let old = header.as_old();
    // A field that is all blank or NUL is 0, as GNU tar and Go's archive/tar take it.
    let number = |field: &[u8], value: io::Result<u64>| match value {
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
        value => value.map_err(Error::Broken),
    };
    let size = number(&old.size, header.entry_size())?;
    let (mut uid, mut gid) = (number(&old.uid, header.uid())?, number(&old.gid, header.gid())?);
    let mode = number(&old.mode, header.mode().map(u64::from))? & 0o7777;
    let mut mtime =
        Timespec { tv_sec: i64::try_from(number(&old.mtime, header.mtime())?).unwrap_or(0), tv_nsec: 0 };
    let mut xattrs = Vec::new();
    let mut seen = BTreeSet::new();
    if let Some(extensions) = entry.pax_extensions().map_err(Error::Broken)? {
        for extension in extensions {
            let extension = extension.map_err(Error::Broken)?;
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            let key = String::from_utf8_lossy(key).into_owned();
            if !seen.insert(key.clone()) {
                return refuse(format!("{path}: `{key}` twice, which readers take differently"));
            }
            let text = String::from_utf8_lossy(value);
            let whole = || text.parse::<u64>().or_else(|_| refuse(format!("{path}: a {key} of `{text}`")));
            let disagrees = match key.as_str() {
                "uid" => {
                    uid = whole()?;
                    false
                }
                "gid" => {
                    gid = whole()?;
                    false
                }
                "mtime" => {
                    mtime = time(&text).unwrap_or(mtime);
                    false
                }
                // The header's own number is good for nothing only where it has no room for the truth.
                "size" => whole()? <= MAX_OCTAL_SIZE && whole()? != size,
                "path" => value != path_bytes,
                "linkpath" => link_bytes.as_deref() != Some(value),
                key if key.starts_with("GNU.sparse") => return refuse(format!("{path}: a sparse file")),
                key => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.").filter(|name| is_kept(name)) {
                        if value.len() > MAX_XATTR {
                            return refuse(format!("{path}: attribute {name} is too large"));
                        }
                        xattrs.push((name.to_owned(), value.to_vec()));
                    }
                    false
                }
            };
            if disagrees {
                return refuse(format!("{path}: its headers name two of `{key}`"));
            }
        }
    }
    // The highest number means "leave it as it is" to chown(2).
    let id = |value: u64| match u32::try_from(value) {
        Ok(value) if value != u32::MAX => Ok(value),
        _ => refuse(format!("{path}: an owner of {value}")),
    };
    let (uid, gid) = (Uid::from_raw(id(uid)?), Gid::from_raw(id(gid)?));
    Ok(Attributes { mode: Mode::from_raw_mode(mode as RawMode), uid, gid, mtime, xattrs })
}

/// Overlay's own attributes would change how the layer is read, the others belong to the host's policy.
fn is_kept(name: &str) -> bool {
    name.starts_with("user.") || name == "security.capability"
}

/// Seconds with a fraction (pax(1), "mtime"); more digits than nanoseconds have are cut off.
fn time(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    // -1.25 is 0.75 seconds after -2.
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanoseconds });
    }
    Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_nanoseconds() {
        let parsed = |text| time(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(parsed("12"), Some((12, 0)));
        assert_eq!(parsed("12.5"), Some((12, 500_000_000)));
        assert_eq!(parsed("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(parsed("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parsed("1.x"), None);
        assert_eq!(parsed(""), None);
    }
}
