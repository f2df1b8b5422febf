//! What a file holds, from the disk itself: the page cache neither answers for it nor is washed out by it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{Advice, Mode, OFlags, fadvise, openat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::types::Digest;

/// Bytes that are read at once.
const PART: usize = 1 << 20;

/// What direct reads are aligned to: no disk asks for more (open(2), "O_DIRECT").
const ALIGNMENT: usize = 4096;

/// Reads files one after the other, into the same memory.
pub(super) struct Reader {
    memory: Vec<u8>,
    begin: usize,
}

impl Default for Reader {
    fn default() -> Self {
        let memory = vec![0u8; PART + ALIGNMENT];
        let begin = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { memory, begin }
    }
}

impl Reader {
    /// The digest of a file of `size` bytes, and the file.
    pub fn digest(&mut self, folder: &OwnedFd, name: &OsStr, size: u64) -> std::io::Result<(File, Digest)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = |more: OFlags| openat(folder, name, flags | more, Mode::empty()).map(File::from);
        if size > 0 {
            match open(OFlags::DIRECT) {
                Ok(mut file) => match self.read(&mut file, size) {
                    // Nothing was read, or all: a file system without direct reads says so at the first.
                    Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
                    digest => return Ok((file, digest?)),
                },
                Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut file = open(OFlags::empty())?;
        let digest = self.read(&mut file, size)?;
        // Only a wish: what programs have mapped stays.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        Ok((file, digest))
    }

    fn read(&mut self, file: &mut File, size: u64) -> std::io::Result<Digest> {
        let part = &mut self.memory[self.begin..self.begin + PART];
        let (mut hash, mut done) = (Sha256::new(), 0u64);
        while done < size {
            match file.read(part)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => {
                    hash.update(&part[..count]);
                    done += count as u64;
                }
            }
        }
        Ok(Digest::from_sha256(&hash.finalize().into()))
    }
}
