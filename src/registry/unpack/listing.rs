//! What a layer holds, written down as it was unpacked: one line for each path, so that a flipped bit can be found.
//!
//! ```text
//! gitopsd-layer 1
//! d 0755 0 0 1700000000.0 - - usr/bin
//! f 0644 0 0 1700000000.5 - 1234:<sha256> etc/passwd
//! l 0777 0 0 1700000000.0 - ../run var/run
//! end 3 <sha256 of all before this line>
//! ```
//!
//! Kind, mode, owner, group, time, attributes (their digest), value, path. Bytes that are not plain are %-escaped. A
//! later line of a path replaces an earlier one, as a later entry of an archive replaces an earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode, percent_encode};
use sha2::{Digest as _, Sha256};

use crate::types::Digest;

pub(super) const HEAD: &str = "gitopsd-layer 1\n";

/// Most bytes of a listing: a million paths need two hundred and some each. The agent holds what is in it when it
/// compares a layer with it.
pub(super) const MAX_LISTING: u64 = 256 << 20;

/// Longest line: a path and a link's target, of which every byte may be escaped, and some numbers.
const MAX_LINE: u64 = 32 << 10;

/// Bytes that are read at once.
const PART: usize = 64 << 10;

/// What cannot stand for itself in a field.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// One path of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) struct Record {
    pub kind: Kind,
    /// Permission bits, with set-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Of the extended attributes, see [`xattrs`]; `None` = it has none.
    pub xattrs: Option<Digest>,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) enum Kind {
    /// A regular file: its size in bytes, and the digest of its content.
    File(u64, Digest),
    /// A directory; whether it hides what lower layers have in it.
    Directory { opaque: bool },
    /// A symbolic link to that.
    Symlink(Vec<u8>),
    /// Another name of that path of the layer.
    Link(PathBuf),
    /// A named pipe.
    Fifo,
    /// Hides the path in lower layers: character device 0/0 (overlayfs.rst).
    Whiteout,
}

/// Why a listing cannot be believed.
#[derive(Debug, thiserror::Error)]
pub(in crate::registry) enum ListingError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It was never finished, or has changed.
    #[error("line {0}: {1}")]
    Damaged(usize, &'static str),
}

/// The digest of extended attributes; sorted here, so that their order does not matter.
pub(in crate::registry) fn xattrs<'a>(all: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Option<Digest> {
    let sorted: BTreeMap<&[u8], &[u8]> = all.into_iter().collect();
    if sorted.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    for (name, value) in sorted {
        for part in [name, value] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Some(Digest::from_sha256(&hash.finalize().into()))
}

/// The line of one path.
pub(in crate::registry) fn line(path: &Path, record: &Record) -> String {
    let escape = |bytes: &[u8]| percent_encode(bytes, ESCAPED).to_string();
    let (letter, value) = match &record.kind {
        Kind::File(size, digest) => ('f', format!("{size}:{}", digest.hex())),
        Kind::Directory { opaque: true } => ('d', "opaque".to_owned()),
        Kind::Directory { opaque: false } => ('d', "-".to_owned()),
        Kind::Symlink(target) => ('l', escape(target)),
        Kind::Link(path) => ('h', escape(path.as_os_str().as_bytes())),
        Kind::Fifo => ('p', "-".to_owned()),
        Kind::Whiteout => ('w', "-".to_owned()),
    };
    let mut line = String::with_capacity(160);
    let (mode, uid, gid, (seconds, nanoseconds)) = (record.mode, record.uid, record.gid, record.mtime);
    let attributes = record.xattrs.as_ref().map_or("-", Digest::hex);
    // Writing to a String cannot fail.
    let _ = write!(line, "{letter} {mode:04o} {uid} {gid} {seconds}.{nanoseconds} {attributes} {value} ");
    line.extend(percent_encode(path.as_os_str().as_bytes(), ESCAPED));
    line.push('\n');
    line
}

/// Begins a listing.
pub(super) fn begin(to: &mut dyn Write) -> io::Result<()> {
    to.write_all(HEAD.as_bytes())
}

/// Adds the last lines and the end to what [`begin`] began, without what is `gone`: directories, and all that was in them.
pub(in crate::registry) fn seal(
    path: &Path,
    last: &[(PathBuf, Record)],
    gone: &BTreeSet<PathBuf>,
) -> io::Result<()> {
    let from = File::open(path)?;
    // Whoever wrote it has read the layer: its word alone does not count.
    if from.metadata()?.len() > MAX_LISTING {
        return Err(io::Error::other(format!("it has more than {MAX_LISTING} bytes")));
    }
    let mut from = BufReader::with_capacity(PART, from);
    let mut to = BufWriter::new(OpenOptions::new().write(true).open(path)?);
    let mut written = Lines::default();
    if gone.is_empty() {
        while !from.fill_buf()?.is_empty() {
            let part = from.buffer();
            let count = part.len();
            written.add(part);
            from.consume(count);
        }
        to.seek(SeekFrom::End(0))?;
    } else {
        // In place: a line only ever moves to where lines were read before.
        let (mut line, mut end) = (Vec::new(), 0u64);
        while next_line(&mut from, &mut line)? {
            if parsed(&line).is_none_or(|(path, _)| !path.ancestors().any(|above| gone.contains(above))) {
                written.add(&line);
                end += line.len() as u64;
                to.write_all(&line)?;
            }
        }
        to.flush()?;
        to.get_ref().set_len(end)?;
    }
    for (path, record) in last {
        let line = line(path, record);
        written.add(line.as_bytes());
        to.write_all(line.as_bytes())?;
    }
    to.write_all(written.end().as_bytes())?;
    to.flush()
}

/// What has been written so far, for the last line.
#[derive(Default)]
struct Lines {
    hash: Sha256,
    count: usize,
}

impl Lines {
    fn add(&mut self, text: &[u8]) {
        self.hash.update(text);
        self.count += text.iter().filter(|byte| **byte == b'\n').count();
    }

    fn end(self) -> String {
        let digest = Digest::from_sha256(&self.hash.finalize().into());
        // The head is no path.
        format!("end {} {}\n", self.count.saturating_sub(1), digest.hex())
    }
}

/// The next line, with its end; whether there is one.
fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    from.by_ref().take(MAX_LINE).read_until(b'\n', line)?;
    Ok(!line.is_empty())
}

/// Reads a finished listing.
pub(in crate::registry) fn read(path: &Path) -> Result<BTreeMap<PathBuf, Record>, ListingError> {
    parse(BufReader::with_capacity(PART, File::open(path)?))
}

fn parse(mut from: impl BufRead) -> Result<BTreeMap<PathBuf, Record>, ListingError> {
    let damaged = |number, why| Err(ListingError::Damaged(number, why));
    let (mut records, mut before, mut line) = (BTreeMap::new(), Lines::default(), Vec::new());
    next_line(&mut from, &mut line)?;
    if line != HEAD.as_bytes() {
        return damaged(1, "not a listing");
    }
    loop {
        before.add(&line);
        let number = before.count + 1;
        if !next_line(&mut from, &mut line)? {
            return damaged(number, "it was never finished");
        }
        if line.starts_with(b"end ") {
            let is_whole = line == before.end().as_bytes() && !next_line(&mut from, &mut line)?;
            return if is_whole { Ok(records) } else { damaged(number, "its checksum does not match") };
        }
        let Some((path, record)) = parsed(&line) else { return damaged(number, "not a record") };
        records.insert(path, record);
    }
}

/// What a line says; the head and the end say nothing of a path.
fn parsed(line: &[u8]) -> Option<(PathBuf, Record)> {
    record(std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?)
}

fn record(line: &str) -> Option<(PathBuf, Record)> {
    let mut fields = line.split(' ');
    let mut next = || fields.next();
    let (letter, mode, uid, gid) = (next()?, next()?, next()?, next()?);
    let (seconds, nanoseconds) = next()?.split_once('.')?;
    let (attributes, value, path) = (next()?, next()?, next()?);
    let unescape = |text: &str| percent_decode(text.as_bytes()).collect::<Vec<u8>>();
    let digest = |hex: &str| format!("sha256:{hex}").parse::<Digest>().ok();
    let kind = match letter {
        "f" => {
            let (size, hex) = value.split_once(':')?;
            Kind::File(size.parse().ok()?, digest(hex)?)
        }
        "d" => Kind::Directory { opaque: value == "opaque" },
        "l" => Kind::Symlink(unescape(value)),
        "h" => Kind::Link(OsString::from_vec(unescape(value)).into()),
        "p" => Kind::Fifo,
        "w" => Kind::Whiteout,
        _ => return None,
    };
    let record = Record {
        kind,
        mode: u32::from_str_radix(mode, 8).ok()?,
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        mtime: (seconds.parse().ok()?, nanoseconds.parse().ok()?),
        xattrs: if attributes == "-" { None } else { Some(digest(attributes)?) },
    };
    fields.next().is_none().then(|| (OsString::from_vec(unescape(path)).into(), record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<(PathBuf, Record)> {
        let digest = Digest::from_sha256(&[7; 32]);
        let kinds = [
            ("", Kind::Directory { opaque: false }),
            ("a b%\n", Kind::File(5, digest.clone())),
            ("d", Kind::Directory { opaque: true }),
            ("d/l", Kind::Symlink(b"../\xff x".to_vec())),
            ("d/h", Kind::Link("a b%\n".into())),
            ("p", Kind::Fifo),
            ("w", Kind::Whiteout),
        ];
        kinds
            .into_iter()
            .map(|(path, kind)| {
                let record = Record {
                    kind,
                    mode: 0o4755,
                    uid: 1,
                    gid: 2,
                    mtime: (-3, 999_999_999),
                    xattrs: xattrs([(&b"user.a"[..], &b"\0"[..])]),
                };
                (path.into(), record)
            })
            .collect()
    }

    fn written() -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = Vec::new();
        begin(&mut text).unwrap();
        let sample = sample();
        let stale = Record { mode: 0, ..sample[1].1.clone() };
        text.extend_from_slice(line(&sample[1].0, &stale).as_bytes());
        std::fs::write(file.path(), &text).unwrap();
        seal(file.path(), &sample, &BTreeSet::new()).unwrap();
        assert_eq!(read(file.path()).unwrap(), sample.into_iter().collect());
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        written();
    }

    #[test]
    fn what_is_gone_is_not_listed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = Vec::new();
        begin(&mut text).unwrap();
        let whiteout = Record { kind: Kind::Whiteout, ..sample()[0].1.clone() };
        for path in ["etc/a b/x", "etc/a b/c/y", "etc/a bc", "etc/a"] {
            text.extend_from_slice(line(Path::new(path), &whiteout).as_bytes());
        }
        std::fs::write(file.path(), &text).unwrap();
        seal(file.path(), &sample(), &[PathBuf::from("etc/a b")].into()).unwrap();
        let mut expected: BTreeMap<_, _> = sample().into_iter().collect();
        expected.extend(["etc/a bc", "etc/a"].map(|path| (path.into(), whiteout.clone())));
        assert_eq!(read(file.path()).unwrap(), expected);
        // A line of what is gone is longer than what comes instead.
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.lines().count(), 2 + expected.len());
    }

    /// The agent reads it, and whoever wrote it had the layer in its hands.
    #[test]
    fn a_listing_has_bounds() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_LISTING + 1).unwrap();
        let error = seal(file.path(), &[], &BTreeSet::new()).unwrap_err();
        assert!(error.to_string().contains("more than 268435456 bytes"), "{error}");
        let error = read(file.path()).unwrap_err();
        assert!(matches!(error, ListingError::Damaged(1, _)), "{error}");
        let endless = io::Read::chain(HEAD.as_bytes(), io::repeat(b'f'));
        let error = parse(BufReader::new(endless)).unwrap_err();
        assert!(matches!(error, ListingError::Damaged(2, _)), "{error}");
    }

    #[test]
    fn a_million_files_fit() {
        let digest = Digest::from_sha256(&[7; 32]);
        let (uid, gid, mtime) = (1000, 1000, (1_700_000_000, 123_456_789));
        let file =
            Record { kind: Kind::File(12_345_678, digest), mode: 0o644, uid, gid, mtime, xattrs: None };
        let path = "srv/app/node_modules/@scope/a-package-name/node_modules/another-package/dist/esm/internal/index.d.ts";
        assert!(path.len() >= 100 && line(Path::new(path), &file).len() as u64 * 1_000_000 < MAX_LISTING);
    }

    /// Longest path and longest target, each byte escaped.
    #[test]
    fn the_longest_line_is_one() {
        let name = OsString::from_vec(vec![b' '; 4096]);
        let kind = Kind::Link(name.clone().into());
        let record = Record { kind, mtime: (i64::MIN, u32::MAX), ..sample()[1].1.clone() };
        assert!((line(Path::new(&name), &record).len() as u64) < MAX_LINE);
    }

    #[test]
    fn no_bit_can_change() {
        let good = written();
        assert!(parse(&good[..]).is_ok());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(parse(&bad[..]).is_err(), "byte {at}");
            assert!(parse(&good[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_order_of_attributes_does_not_matter() {
        let a: (&[u8], &[u8]) = (b"a", b"1");
        let b: (&[u8], &[u8]) = (b"b", b"2");
        assert_eq!(xattrs([a, b]), xattrs([b, a]));
        assert_ne!(xattrs([a, b]), xattrs([a]));
        assert_eq!(xattrs([]), None);
    }
}
