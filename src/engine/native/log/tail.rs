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

/// The texts of the last `count` lines, oldest first, without time and stream. Parts of a long line are put together.
pub(in super::super) fn tail(path: &Path, count: usize) -> Vec<String> {
    let mut found: VecDeque<String> = VecDeque::new();
    for number in 0..=MAX_FILES {
        // One may be missing for the moment in which they are renamed.
        if found.len() >= count || (number > 1 && !numbered(path, number).exists()) {
            break;
        }
        let Ok(bytes) = last_bytes(&numbered(path, number)) else { continue };
        let lines = texts(&bytes);
        for line in lines.into_iter().rev().take(count - found.len()) {
            found.push_front(line);
        }
    }
    found.into()
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

fn texts(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    // The parts of a long line so far, for stdout and stderr: their entries may alternate.
    let mut parts = [String::new(), String::new()];
    for entry in bytes.split(|byte| *byte == b'\n') {
        let mut fields = entry.splitn(4, |byte| *byte == b' ');
        let (Some(_), Some(stream), Some(tag), Some(text)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let part = &mut parts[usize::from(stream == b"stderr")];
        part.push_str(&String::from_utf8_lossy(text));
        if tag == b"F" {
            found.push(std::mem::take(part));
        }
    }
    found.extend(parts.into_iter().filter(|part| !part.is_empty()));
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
        assert_eq!(tail(&path, 99).len(), 4);
        assert!(tail(&dir.path().join("none"), 5).is_empty());
        assert!(tail(&path, 0).is_empty());
    }
}
