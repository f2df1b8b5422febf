//! What is kept of a layer packed against its record.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, statat};
use rustix::io::Errno;

use super::Findings;
use super::content::Reader;
use crate::registry::store::blob::NAME;
use crate::registry::store::record::BlobRecord;

/// Compares; gives the bytes that were read. One thing at the most is noted of it.
pub(super) fn compare(
    layer: &OwnedFd,
    record: &BlobRecord,
    findings: &mut Findings,
    tell: &mut dyn FnMut(u64),
) -> u64 {
    let mut note = |what: String| findings.note(Path::new(NAME), what);
    let stat = match statat(layer, NAME, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return 0,
        Err(error) => {
            note(format!("cannot be looked at: {error}"));
            return 0;
        }
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        note("is no file".to_owned());
        return 0;
    }
    let there = u64::try_from(stat.st_size).unwrap_or(0);
    let mut read = 0;
    if there != record.size {
        note(format!("has {there} bytes, and had {}", record.size));
    } else {
        match Reader::default().digest(layer, OsStr::new(NAME), there) {
            Ok((_, is)) if is != record.digest => {
                note(format!("has content {}, and had {}", is.short(), record.digest.short()));
            }
            Ok(_) => {}
            Err(error) => note(format!("cannot be read: {error}")),
        }
        read = there;
    }
    tell(there);
    read
}
