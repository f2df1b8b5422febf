//! Layers as they should not be, a row each: where the case comes from, the archive, and what has to come of it.
//!
//! The same rows are unpacked directly, and come over the network through the whole pull (`tests/attacks`), which also
//! writes `docs/attacks.md` from them. So nothing here knows of the crate.

mod attributes;
mod files;
mod headers;
mod links;
mod paths;
mod records;
mod whiteouts;

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

/// What an archive aims at: a directory beside the layer.
pub struct Outside {
    /// The way there from the layer's root.
    pub relative: String,
    pub absolute: String,
}

/// One case.
pub struct Row {
    pub name: &'static str,
    /// A CVE, an advisory, or who is known to differ.
    pub source: &'static str,
    pub archive: fn(&Outside) -> Vec<u8>,
    pub verdict: Verdict,
}

/// What has to come of it.
pub enum Verdict {
    /// It is refused as `image-invalid`, and the message says this.
    Refused(&'static str),
    /// It is unpacked; what then holds, in words and as a check of the layer.
    Harmless(&'static str, fn(&Seen)),
}

/// An unpacked layer.
pub struct Seen(pub PathBuf);

impl Seen {
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    /// Of the thing itself, never of what a link leads to.
    pub fn meta(&self, path: impl AsRef<Path>) -> Metadata {
        let path = path.as_ref();
        self.at(path).symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn there(&self, path: impl AsRef<Path>) -> bool {
        self.at(path).symlink_metadata().is_ok()
    }

    pub fn text(&self, path: impl AsRef<Path>) -> String {
        assert!(self.meta(&path).is_file(), "{} is no file", path.as_ref().display());
        fs::read_to_string(self.at(path)).unwrap()
    }

    pub fn xattr(&self, path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 64 << 10];
        let count = rustix::fs::lgetxattr(self.at(path), name, &mut value).ok()?;
        value.truncate(count);
        Some(value)
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// All rows, in the order of the page, under their headings.
pub fn all() -> Vec<(&'static str, Vec<Row>)> {
    vec![
        ("Paths", paths::rows()),
        ("Links", links::rows()),
        ("Entries in each other's place", files::rows()),
        ("Whiteouts", whiteouts::rows()),
        ("Headers that readers take differently", headers::rows()),
        ("Extended headers", records::rows()),
        ("Owners, modes, times and attributes", attributes::rows()),
    ]
}

fn refused(
    name: &'static str,
    source: &'static str,
    part: &'static str,
    archive: fn(&Outside) -> Vec<u8>,
) -> Row {
    Row { name, source, archive, verdict: Verdict::Refused(part) }
}

fn harmless(
    name: &'static str,
    source: &'static str,
    words: &'static str,
    archive: fn(&Outside) -> Vec<u8>,
    check: fn(&Seen),
) -> Row {
    Row { name, source, archive, verdict: Verdict::Harmless(words, check) }
}
