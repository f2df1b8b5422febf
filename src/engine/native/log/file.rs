//! The log file of one container, with rotation. A disk that is full or broken costs lines, never the container.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::entry::Stream;
use super::lines::Piece;
use crate::types::LogLimits;

/// Bytes after which a new file is begun, where a service says nothing.
const MAX_SIZE: u64 = 10 << 20;
/// Files kept where a service says nothing: the one written to, and older ones with `.1`, `.2` appended.
const FILES: u32 = 3;
/// Bytes after which a batch is written. With one more entry it is still smaller than the smallest file there may be.
const BATCH: usize = 32 << 10;

/// Appends entries to `path`.
#[derive(Debug)]
pub(in super::super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    batch: Vec<u8>,
    /// Entries that could not be written since the last one that could.
    lost: u64,
    max_size: u64,
    files: u32,
}

fn max_size(limits: LogLimits) -> u64 {
    limits.max_size.map_or(MAX_SIZE, |size| size.0)
}

fn files(limits: LogLimits) -> u32 {
    limits.max_file.unwrap_or(FILES).max(1)
}

/// Bytes that one generation's log may take.
pub(super) fn most(limits: LogLimits) -> u64 {
    max_size(limits).saturating_mul(files(limits).into())
}

/// `path` with the number of an older file; 0 is the newest.
pub(super) fn numbered(path: &Path, number: usize) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

impl LogFile {
    /// A file that is opened by its first entry.
    pub fn new(path: &Path, limits: LogLimits) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            size: 0,
            batch: Vec::new(),
            lost: 0,
            max_size: max_size(limits),
            files: files(limits),
        }
    }

    /// Adds an entry to the batch, which is written when it is large.
    pub fn push(&mut self, at: &str, stream: Stream, piece: &Piece<'_>) {
        if self.batch.len() >= BATCH {
            self.flush();
        }
        self.add(at, stream, piece);
    }

    fn add(&mut self, at: &str, stream: Stream, piece: &Piece<'_>) {
        let tag = if piece.ends { 'F' } else { 'P' };
        // Writing to a Vec cannot fail.
        let _ = write!(self.batch, "{at} {stream} {tag} ");
        self.batch.extend_from_slice(piece.text);
        self.batch.push(b'\n');
    }

    /// Writes the batch.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.lost > 0 {
            let note = format!("gitopsd: {} log entries were lost: the disk refused them", self.lost);
            let at = super::super::clock::now().to_string();
            self.add(&at, Stream::Stderr, &Piece { text: note.as_bytes(), ends: true });
        }
        match self.write_batch() {
            Ok(()) => self.lost = 0,
            Err(_) => {
                let noted = u64::from(self.lost > 0);
                let entries = self.batch.iter().filter(|byte| **byte == b'\n').count() as u64;
                self.lost += entries.saturating_sub(noted);
                // Opened anew next time: the directory may have been taken away.
                self.file = None;
            }
        }
        self.batch.clear();
    }

    /// An empty file, in the place of what still has its name: a log of one file is not without it for a moment.
    fn fresh(&self) -> io::Result<File> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&name)?;
        fs::rename(&name, &self.path)?;
        Ok(file)
    }

    fn write_batch(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            if let Some(dir) = self.path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
            }
            let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        if self.size > 0 && self.size + self.batch.len() as u64 > self.max_size {
            for number in (0..self.files as usize - 1).rev() {
                match fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            self.file = Some(self.fresh()?);
            self.size = 0;
        }
        if let Some(file) = &mut self.file {
            if let Err(error) = file.write_all(&self.batch) {
                // A part of it may be there: the next entry is to begin on a line of its own.
                let _ = file.set_len(self.size);
                return Err(error);
            }
            self.size += self.batch.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_rotate_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop/7.log");
        let mut log = LogFile::new(&path, LogLimits::default());
        let text = vec![b'x'; 15 << 10];
        for number in 0..2800 {
            let line = [format!("{number} ").as_bytes(), &text].concat();
            log.push("2026-01-01T00:00:00Z", Stream::Stdout, &Piece { text: &line, ends: true });
            log.flush();
        }
        let mut names: Vec<_> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
            .collect();
        names.sort();
        assert_eq!(
            names.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
            ["7.log", "7.log.1", "7.log.2"]
        );
        assert!(names.iter().all(|(_, size)| *size <= MAX_SIZE), "{names:?}");
        let newest = fs::read_to_string(&path).unwrap();
        assert!(newest.lines().last().unwrap().starts_with("2026-01-01T00:00:00Z stdout F 2799 x"));
    }

    #[test]
    fn many_small_entries_at_once_stay_within_the_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.log");
        let limits = LogLimits { max_size: Some(crate::types::ByteSize(64 << 10)), max_file: Some(2) };
        let mut log = LogFile::new(&path, limits);
        for number in 0..100_000 {
            let text = number.to_string();
            log.push("2026-01-01T00:00:00Z", Stream::Stdout, &Piece { text: text.as_bytes(), ends: true });
            assert!(log.batch.len() < 64 << 10);
        }
        log.push("2026-01-01T00:00:00Z", Stream::Stdout, &Piece { text: &[b'x'; 16 << 10], ends: true });
        log.flush();
        let sizes = [0, 1].map(|number| fs::metadata(numbered(&path, number)).unwrap().len());
        assert!(sizes.iter().all(|size| (1..=64 << 10).contains(size)), "{sizes:?}");
        assert!(!numbered(&path, 2).exists());
        assert_eq!(most(limits), 128 << 10);
    }

    #[test]
    fn a_disk_that_refuses_costs_lines_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("shop");
        fs::write(&blocked, b"a file where a directory should be").unwrap();
        let mut log = LogFile::new(&blocked.join("7.log"), LogLimits::default());
        let piece = Piece { text: b"hello", ends: true };
        for _ in 0..3 {
            log.push("2026-01-01T00:00:00Z", Stream::Stdout, &piece);
            log.flush();
        }
        assert_eq!(log.lost, 3);
        fs::remove_file(&blocked).unwrap();
        log.push("2026-01-01T00:00:00Z", Stream::Stdout, &piece);
        log.flush();
        let text = fs::read_to_string(blocked.join("7.log")).unwrap();
        assert!(text.contains("stdout F hello\n") && text.contains("3 log entries were lost"), "{text}");
    }
}
