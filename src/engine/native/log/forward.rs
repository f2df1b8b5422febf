//! Reading a log on from a place, over the turn of its files, as it grows.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::backward::Place;
use super::chain::{identity, newest, open_all};
use super::entry::{LogEntry, parse};
use crate::types::{Generation, InstanceId, ReplicaIndex};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Longer than any entry: what has no line break for so long is damage, and is skipped.
const LONGEST: usize = 256 << 10;

/// Reads the log of one generation.
#[derive(Debug)]
pub(super) struct Forward {
    path: PathBuf,
    generation: Generation,
    index: ReplicaIndex,
    /// The file that is read; held open, so that no other can be taken for it.
    file: Option<File>,
    /// Files that came after it.
    later: VecDeque<File>,
    /// Bytes of the file that are in `bytes` or were given.
    offset: u64,
    bytes: Vec<u8>,
    /// How many of `bytes` were given.
    given: usize,
    next: Option<LogEntry>,
    /// Bytes of the newest file that are read, and no newer file is; `None` = as it grows.
    end: Option<u64>,
}

impl Forward {
    /// From `place` in `files`, which are oldest first.
    pub fn new(path: PathBuf, id: &InstanceId, files: Vec<File>, place: Place) -> Self {
        let mut later: VecDeque<File> = files.into_iter().skip(place.file).collect();
        Self {
            path,
            generation: id.generation,
            index: id.index,
            file: later.pop_front(),
            later,
            offset: place.offset,
            bytes: Vec::new(),
            given: 0,
            next: None,
            end: None,
        }
    }

    /// Reads no more than `end` bytes of the newest file: a log may grow faster than it is read.
    pub fn ending_at(self, end: u64) -> Self {
        Self { end: Some(end), ..self }
    }

    /// The next entry, which stays until [`Self::take`]; `None` when there is none yet.
    pub fn peek(&mut self) -> io::Result<Option<&LogEntry>> {
        while self.next.is_none() {
            let waiting = self.bytes.get(self.given..).unwrap_or_default();
            let Some(length) = waiting.iter().position(|byte| *byte == b'\n') else {
                if self.fill()? {
                    continue;
                }
                return Ok(None);
            };
            let entry = waiting.get(..length).and_then(parse);
            self.next = entry.map(|(head, text)| LogEntry {
                at: head.at,
                generation: self.generation,
                index: self.index,
                stream: head.stream,
                ends: head.ends,
                text: text.to_vec(),
            });
            self.given += length + 1;
        }
        Ok(self.next.as_ref())
    }

    /// The entry that was peeked at.
    pub fn take(&mut self) -> Option<LogEntry> {
        self.next.take()
    }

    /// Reads more; `false` when there is no more for now.
    fn fill(&mut self) -> io::Result<bool> {
        self.bytes.drain(..self.given);
        self.given = 0;
        if self.bytes.len() > LONGEST {
            self.bytes.clear();
        }
        if let Some(end) = self.end {
            return self.fill_to(end);
        }
        let Some(file) = &self.file else { return self.turn(None) };
        let metadata = file.metadata()?;
        if metadata.len() < self.offset {
            // The writer took back what the disk did not take whole.
            self.offset = metadata.len();
            self.bytes.clear();
        }
        if self.read(CHUNK as u64)? {
            return Ok(true);
        }
        if self.later.is_empty() && newest(&self.path)? == Some(identity(&metadata)) {
            return Ok(false);
        }
        // It was turned over: no more is written to it, but more may have been since it was read.
        if self.read(CHUNK as u64)? {
            return Ok(true);
        }
        self.turn(Some(identity(&metadata)))
    }

    fn fill_to(&mut self, end: u64) -> io::Result<bool> {
        let most = if self.later.is_empty() { end.saturating_sub(self.offset) } else { CHUNK as u64 };
        if self.read(most)? {
            return Ok(true);
        }
        let Some(file) = self.later.pop_front() else { return Ok(false) };
        self.enter(file);
        Ok(true)
    }

    fn read(&mut self, most: u64) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let before = self.bytes.len();
        self.bytes.resize(before + most.min(CHUNK as u64) as usize, 0);
        let result = file.read_at(self.bytes.get_mut(before..).unwrap_or_default(), self.offset);
        let length = *result.as_ref().unwrap_or(&0);
        self.bytes.truncate(before + length);
        self.offset += length as u64;
        result.map(|length| length > 0)
    }

    /// Goes to the file after the one named; to the oldest, where that has gone. `false` when there is none yet.
    fn turn(&mut self, from: Option<(u64, u64)>) -> io::Result<bool> {
        if self.later.is_empty() {
            let all = open_all(&self.path)?;
            let mut ids = Vec::with_capacity(all.len());
            for file in &all {
                ids.push(identity(&file.metadata()?));
            }
            let at = ids.iter().position(|id| Some(*id) == from).map_or(0, |at| at + 1);
            self.later = all.into_iter().skip(at).collect();
        }
        let Some(file) = self.later.pop_front() else { return Ok(false) };
        self.enter(file);
        Ok(true)
    }

    fn enter(&mut self, file: File) {
        self.file = Some(file);
        self.offset = 0;
        self.bytes.clear();
        self.given = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::entry::Stream;
    use super::super::file::{LogFile, numbered};
    use super::super::lines::Piece;
    use super::*;
    use crate::types::{ByteSize, LogLimits};

    fn texts(from: &mut Forward) -> Vec<String> {
        let mut found = Vec::new();
        while from.peek().unwrap().is_some() {
            found.push(String::from_utf8(from.take().unwrap().text).unwrap());
        }
        found
    }

    fn forward(path: &std::path::Path) -> Forward {
        Forward::new(
            path.to_owned(),
            &"shop.7".parse().unwrap(),
            open_all(path).unwrap(),
            Place { file: 0, offset: 0 },
        )
    }

    #[test]
    fn nothing_is_lost_or_twice_however_often_the_files_turn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.log");
        let limits = LogLimits { max_size: Some(ByteSize(64 << 10)), max_file: Some(3) };
        let mut log = LogFile::new(&path, limits);
        let mut reader = forward(&path);
        let mut found = Vec::new();
        let fill = "x".repeat(300);
        for number in 0..3000 {
            let text = format!("{number} {fill}");
            log.push("2026-01-01T00:00:00Z", Stream::Stdout, &Piece { text: text.as_bytes(), ends: true });
            log.flush();
            // Late enough for a turn or two in between, early enough to find the file still.
            if number % 170 == 0 {
                found.extend(texts(&mut reader));
            }
        }
        found.extend(texts(&mut reader));
        let numbers: Vec<usize> =
            found.iter().map(|t| t.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..3000).collect::<Vec<_>>());
        assert!(numbered(&path, 2).exists());
    }

    #[test]
    fn what_is_taken_back_and_what_is_not_whole_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.log");
        let mut reader = forward(&path);
        assert!(texts(&mut reader).is_empty());
        let entry = |text: &str| format!("2026-01-01T00:00:00Z stdout F {text}");
        fs::write(&path, entry("one\n") + &entry("tw")).unwrap();
        assert_eq!(texts(&mut reader), ["one"]);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(entry("one\n").len() as u64).unwrap();
        assert!(texts(&mut reader).is_empty());
        file.write_all_at(entry("three\n").as_bytes(), entry("one\n").len() as u64).unwrap();
        assert_eq!(texts(&mut reader), ["three"]);
        // Files that came and went while nobody read.
        fs::remove_file(&path).unwrap();
        fs::write(&path, entry("four\n")).unwrap();
        assert_eq!(texts(&mut reader), ["four"]);
    }
}
