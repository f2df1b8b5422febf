//! The content of one file on its way to the disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use nix::libc;
/// Bytes of a file after which the disk is asked to begin with them.
const WRITE_BACK: u64 = 1 << 20;

/// Bytes of a rest that are worth asking for.
const REST: u64 = 128 << 10;

/// A new file that is being filled.
pub(super) struct Content<'a> {
    file: &'a File,
    written: u64,
    /// Of these, bytes that the disk was asked to begin with.
    begun: u64,
}

impl<'a> Content<'a> {
    pub fn of(file: &'a File) -> Self {
        Self { file, written: 0, begun: 0 }
    }

    pub fn write(&mut self, part: &[u8]) -> io::Result<()> {
        let mut file = self.file;
        file.write_all(part)?;
        self.written += part.len() as u64;
        if self.written - self.begun >= WRITE_BACK {
            self.write_back();
        }
        Ok(())
    }

    /// That was all of the file.
    pub fn end(mut self) {
        if self.written - self.begun >= REST {
            self.write_back();
        }
    }

    /// The disk works while the next bytes are inflated, and the sync at the end finds little left to do. This promises
    /// nothing and need not succeed: errors of the disk come out at that sync (sync_file_range(2)).
    fn write_back(&mut self) {
        let (Ok(from), Ok(count)) = (i64::try_from(self.begun), i64::try_from(self.written - self.begun))
        else {
            return;
        };
        // SAFETY: the descriptor is open as long as `self.file`, and no memory is handed over.
        unsafe { libc::sync_file_range(self.file.as_raw_fd(), from, count, libc::SYNC_FILE_RANGE_WRITE) };
        self.begun = self.written;
    }
}
