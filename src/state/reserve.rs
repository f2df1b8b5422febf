//! Bytes and inodes kept aside for the moment the file system is full, so that state can be written then.
//!
//! `reserve/space` has the bytes, the empty files beside it are the inodes. All of it is given back at once, and set
//! aside again when there is room.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::atomic;
use crate::types::{ByteSize, Reason, Refusal};

/// Some thousand records.
const BYTES: u64 = 8 << 20;

/// What a round at most makes anew: a record, a receipt and its way out for each of some services.
const INODES: u64 = 64;

/// Gives the reserve back to the file system that holds the state file `path`; whether there was one.
pub(super) fn release(path: &Path) -> bool {
    // State files lie in the state directory or one or two below it. Nothing but what `refill` made is removed.
    path.ancestors().skip(1).take(3).any(|root| {
        let folder = root.join("reserve");
        // A version before had one plain file.
        if std::fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_file()) {
            return std::fs::remove_file(&folder).is_ok();
        }
        std::fs::remove_file(space(&folder)).is_ok_and(|()| {
            for inode in inodes(&folder) {
                // Best effort: what is left is only less to set aside again.
                let _ = std::fs::remove_file(inode);
            }
            true
        })
    })
}

/// Sets the reserve aside again, if there is room for it and as much again. Costs one stat(2) where it is there.
pub(super) fn refill(root: &Path) {
    let folder = root.join("reserve");
    if std::fs::metadata(space(&folder)).is_ok_and(|metadata| metadata.len() == BYTES) {
        return;
    }
    // What a version before left is in the way of the folder.
    if std::fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_file()) {
        // Failing that, there is no reserve, and the next refill tries again.
        let _ = std::fs::remove_file(&folder);
    }
    // Root may take blocks that nobody else may: without this look the last ones would go into the reserve.
    let roomy = rustix::fs::statvfs(root).is_ok_and(|stat| {
        let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        // No limit of inodes: no number of them.
        bytes >= 2 * BYTES && (stat.f_files == 0 || stat.f_favail >= 2 * INODES)
    });
    if roomy && atomic::make_dir(&folder).is_ok() && fill(&folder).is_err() {
        // A disk without that much room has no use for half a reserve.
        let _ = std::fs::remove_file(space(&folder));
    }
}

/// With less than this left, and the reserve used up, the next record may not be written.
const TIGHT_BYTES: u64 = 256 << 10;
const TIGHT_INODES: u64 = 8;

/// Why the next record may not be written: the reserve is used up, and nearly nothing else is left.
pub(super) fn shortage(root: &Path) -> Option<Refusal> {
    if std::fs::metadata(space(&root.join("reserve"))).is_ok() {
        return None;
    }
    let stat = rustix::fs::statvfs(root).ok()?;
    // What root may use, which is who writes here.
    let bytes = stat.f_bfree.saturating_mul(stat.f_frsize);
    let inodes = stat.f_ffree;
    (bytes < TIGHT_BYTES || (stat.f_files > 0 && inodes < TIGHT_INODES)).then(|| {
        let left = ByteSize(bytes).human();
        let what = format!("{left} and {inodes} inodes are left for {}", root.display());
        Refusal::new(Reason::DiskSpace, what)
    })
}

/// The bytes come last: where they are, all is there.
fn fill(folder: &Path) -> std::io::Result<()> {
    let mut new = OpenOptions::new();
    new.write(true).create(true).truncate(true).mode(0o600);
    for inode in inodes(folder) {
        new.open(inode)?;
    }
    let mut file = new.open(space(folder))?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BYTES) {
        // A file system that cannot set space aside has it written.
        Err(rustix::io::Errno::OPNOTSUPP) => {
            std::io::copy(&mut std::io::repeat(0).take(BYTES), &mut file).map(|_| ())
        }
        result => result.map_err(Into::into),
    }
}

fn space(folder: &Path) -> PathBuf {
    folder.join("space")
}

fn inodes(folder: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    (0..INODES).map(|number| folder.join(format!("inode-{number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_of_a_former_version_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("reserve");
        std::fs::write(&old, b"as it once was").unwrap();
        refill(dir.path());
        assert_eq!(std::fs::metadata(space(&old)).unwrap().len(), BYTES);
        // And one that is needed before it was replaced is given back.
        std::fs::remove_dir_all(&old).unwrap();
        std::fs::write(&old, b"as it once was").unwrap();
        assert!(release(&dir.path().join("services/web.json")));
        assert!(!old.exists());
    }
}
