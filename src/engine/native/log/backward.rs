//! Finding the place in a log from which on it is to be shown, read from its end. Keeps one block in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::entry::{Head, parse};

/// Bytes read at once.
const BLOCK: u64 = 64 << 10;

/// Longer than any entry: what has no line break for so long is damage, and is skipped.
const LONGEST: usize = 256 << 10;

/// Where an entry begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Which of the files, the oldest being 0.
    pub file: usize,
    /// Bytes before it.
    pub offset: u64,
}

/// Walks over the entries of a log, newest first.
#[derive(Debug)]
pub(super) struct Backward<'a> {
    files: &'a [File],
    /// One more than the file that is read; 0 at the end.
    file: usize,
    /// Bytes of that file from `begin` on, up to the last entry given.
    block: Vec<u8>,
    begin: u64,
}

impl<'a> Backward<'a> {
    /// From the end of the newest of `files`, which are oldest first.
    pub fn new(files: &'a [File]) -> io::Result<Self> {
        let mut this = Self { files, file: files.len(), block: Vec::new(), begin: 0 };
        this.enter()?;
        Ok(this)
    }

    /// Where the walk begins: after the last whole entry.
    pub fn place(&self) -> Place {
        Place { file: self.file.saturating_sub(1), offset: self.begin + self.block.len() as u64 }
    }

    /// The entry before; `None` at the beginning of the oldest file.
    pub fn previous(&mut self) -> io::Result<Option<(Head, Place)>> {
        while self.file > 0 {
            let Some(line) = self.line()? else {
                self.file -= 1;
                self.enter()?;
                continue;
            };
            let place = self.place();
            if let Some((head, _)) = parse(&line) {
                return Ok(Some((head, place)));
            }
        }
        Ok(None)
    }

    /// Goes to the end of the file that is to be read; what has no line break there is not an entry yet.
    fn enter(&mut self) -> io::Result<()> {
        self.block.clear();
        self.begin = 0;
        let Some(file) = self.file.checked_sub(1).and_then(|number| self.files.get(number)) else {
            return Ok(());
        };
        self.begin = file.metadata()?.len();
        loop {
            if let Some(at) = self.block.iter().rposition(|byte| *byte == b'\n') {
                self.block.truncate(at + 1);
                return Ok(());
            }
            if self.block.len() > LONGEST {
                self.block.clear();
            }
            if !self.extend()? {
                self.block.clear();
                return Ok(());
            }
        }
    }

    /// Takes the last line off the block, without its line break.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(before) = self.block.len().checked_sub(1) else {
                if self.extend()? {
                    continue;
                }
                return Ok(None);
            };
            let text = self.block.get(..before).unwrap_or_default();
            let begin = match text.iter().rposition(|byte| *byte == b'\n') {
                Some(at) => at + 1,
                None if self.begin == 0 || self.block.len() > LONGEST => 0,
                None => {
                    self.extend()?;
                    continue;
                }
            };
            let line = text.get(begin..).unwrap_or_default().to_vec();
            self.block.truncate(begin);
            return Ok(Some(line));
        }
    }

    /// Puts the bytes before the block in front of it; `false` at the beginning of the file.
    fn extend(&mut self) -> io::Result<bool> {
        let Some(file) = self.file.checked_sub(1).and_then(|number| self.files.get(number)) else {
            return Ok(false);
        };
        let length = self.begin.min(BLOCK);
        if length == 0 {
            return Ok(false);
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, self.begin - length)?;
        bytes.append(&mut self.block);
        self.block = bytes;
        self.begin -= length;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[Vec<u8>]) -> Vec<File> {
        let file = |text: &Vec<u8>| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(text, 0).unwrap();
            file
        };
        texts.iter().map(file).collect()
    }

    fn entry(second: u32, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}Z stdout F {text}\n")
    }

    #[test]
    fn entries_come_newest_first_over_files_and_blocks() {
        let long = "x".repeat(40 << 10);
        let old: String = (0..9).map(|n| entry(n, &long)).collect();
        let new = format!("{}garbage\n{}2026-01-01T00:00:59Z stdout F half", entry(10, "a"), entry(11, "b"));
        let files = files(&[old.clone().into_bytes(), Vec::new(), new.into_bytes()]);
        let mut walk = Backward::new(&files).unwrap();
        let mut seconds = Vec::new();
        while let Some((head, place)) = walk.previous().unwrap() {
            seconds.push(head.at.as_second() % 60);
            // What stands at the place is the entry itself.
            let mut bytes = [0; 24];
            files[place.file].read_exact_at(&mut bytes, place.offset).unwrap();
            assert!(bytes.starts_with(head.at.to_string().as_bytes()), "{place:?}");
        }
        assert_eq!(seconds, [11, 10, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
        assert!(Backward::new(&[]).unwrap().previous().unwrap().is_none());
    }

    #[test]
    fn damage_is_skipped() {
        let files = files(&[[
            entry(1, "a").into_bytes(),
            vec![0; 700 << 10],
            b"\n".to_vec(),
            entry(2, "b").into_bytes(),
        ]
        .concat()]);
        let mut walk = Backward::new(&files).unwrap();
        let mut count = 0;
        while walk.previous().unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 2);
    }
}
