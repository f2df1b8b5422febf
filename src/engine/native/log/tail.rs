//! The last lines of a container's log, read from the end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::file::numbered;

/// Most files of one log that a service may ask for.
const MAX_FILES: usize = 100;

/// Most bytes looked at in each file.
const WINDOW: u64 = 1 << 20;

/// A line that a container wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogLine {
    /// When its first part came, in RFC 3339.
    pub at: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// What it wrote.
    pub text: String,
}

/// The last `count` lines, oldest first. Parts of a long line are put together.
pub(in super::super) fn lines_of(path: &Path, count: usize) -> Vec<LogLine> {
    let mut found: VecDeque<LogLine> = VecDeque::new();
    for number in 0..=MAX_FILES {
        // One may be missing for the moment in which they are renamed.
        if found.len() >= count || (number > 1 && !numbered(path, number).exists()) {
            break;
        }
        let Ok(bytes) = last_bytes(&numbered(path, number)) else { continue };
        let lines = parse(&bytes);
        for line in lines.into_iter().rev().take(count - found.len()) {
            found.push_front(line);
        }
    }
    found.into()
}

/// Their texts alone.
pub(in super::super) fn tail(path: &Path, count: usize) -> Vec<String> {
    lines_of(path, count).into_iter().map(|line| line.text).collect()
}

fn last_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let skipped = size.saturating_sub(WINDOW);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(WINDOW).read_to_end(&mut bytes)?;
    if skipped > 0 {
        // It begins in the middle of an entry.
        let first = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..first);
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Vec<LogLine> {
    let mut found = Vec::new();
    // The parts of a long line so far, for stdout and stderr: their entries may alternate.
    let mut parts = [LogLine::default(), LogLine::default()];
    for entry in bytes.split(|byte| *byte == b'\n') {
        let mut fields = entry.splitn(4, |byte| *byte == b' ');
        let (Some(at), Some(stream), Some(tag), Some(text)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let part = &mut parts[usize::from(stream == b"stderr")];
        if part.at.is_empty() {
            part.at = String::from_utf8_lossy(at).into_owned();
            part.stream = String::from_utf8_lossy(stream).into_owned();
        }
        part.text.push_str(&String::from_utf8_lossy(text));
        if tag == b"F" {
            found.push(std::mem::take(part));
        }
    }
    found.extend(parts.into_iter().filter(|part| !part.text.is_empty()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_reach_into_older_files_and_join_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.log");
        std::fs::write(dir.path().join("7.log.1"), "T stdout F one\nT stdout F two\n").unwrap();
        std::fs::write(&path, "T stdout P th\nT stderr F oops  x\nT stdout F ree\n").unwrap();
        assert_eq!(tail(&path, 3), ["two", "oops  x", "three"]);
        assert_eq!(tail(&path, 1), ["three"]);
        let last = LogLine { at: "T".into(), stream: "stdout".into(), text: "three".into() };
        assert_eq!(lines_of(&path, 1), [last]);
        assert_eq!(tail(&path, 99).len(), 4);
        assert!(tail(&dir.path().join("none"), 5).is_empty());
        assert!(tail(&path, 0).is_empty());
    }
}
