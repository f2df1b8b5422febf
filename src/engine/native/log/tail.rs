//! The last lines of one generation's log, as text for receipts and screens.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::chain::open_all;
use super::entry::{Stream, parse};

/// Most bytes looked at in each file.
const WINDOW: u64 = 1 << 20;

/// The last `count` lines, oldest first. Parts of a long line are put together.
pub(in super::super) fn tail(path: &Path, count: usize) -> Vec<String> {
    let mut found: VecDeque<String> = VecDeque::new();
    for file in open_all(path).unwrap_or_default().into_iter().rev() {
        if found.len() >= count {
            break;
        }
        let Ok(bytes) = last_bytes(file) else { continue };
        for line in lines(&bytes).into_iter().rev().take(count - found.len()) {
            found.push_front(line);
        }
    }
    found.into()
}

fn last_bytes(mut file: File) -> io::Result<Vec<u8>> {
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

fn lines(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    // The parts of a long line so far, for stdout and stderr: their entries may alternate.
    let mut parts = [String::new(), String::new()];
    for entry in bytes.split(|byte| *byte == b'\n') {
        let Some((head, text)) = parse(entry) else { continue };
        let [out, err] = &mut parts;
        let part = if head.stream == Stream::Stderr { err } else { out };
        part.push_str(&String::from_utf8_lossy(text));
        if head.ends {
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
        let entries = |list: &[&str]| -> String {
            list.iter().map(|entry| format!("2026-01-01T00:00:00Z {entry}\n")).collect()
        };
        std::fs::write(dir.path().join("7.log.1"), entries(&["stdout F one", "stdout F two"])).unwrap();
        std::fs::write(&path, entries(&["stdout P th", "stderr F oops  x", "stdout F ree"])).unwrap();
        assert_eq!(tail(&path, 3), ["two", "oops  x", "three"]);
        assert_eq!(tail(&path, 1), ["three"]);
        assert_eq!(tail(&path, 99).len(), 4);
        assert!(tail(&dir.path().join("none"), 5).is_empty());
        assert!(tail(&path, 0).is_empty());
    }
}
