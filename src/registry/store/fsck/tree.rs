//! A layer's tree against its listing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, Stat, fgetxattr, fstat, openat, readlinkat};
use rustix::io::Errno;

use super::content::Reader;
use super::{Depth, FOLDER, Findings, TREE, in_tree};
use crate::registry::store::walk::{self, Event, Found};
use crate::registry::unpack::kept_xattrs;
use crate::registry::unpack::listing::{self, Kind, Record};
use crate::types::Digest;

type Listing = BTreeMap<PathBuf, Record>;

/// Which file a name leads to.
type Inode = (u64, u64);

struct Comparison<'a> {
    listing: &'a Listing,
    depth: Depth,
    findings: &'a mut Findings,
    tell: &'a mut dyn FnMut(u64),
    reader: Reader,
    seen: HashSet<&'a Path>,
    /// How many further names a path should have.
    names: HashMap<&'a Path, u64>,
    /// What the paths are that have further names, and the further names.
    inodes: HashMap<&'a Path, Inode>,
    bytes: u64,
}

/// Compares; gives the paths that were seen and the bytes that were read.
pub(super) fn compare(
    layer: &OwnedFd,
    listing: &Listing,
    depth: Depth,
    findings: &mut Findings,
    tell: &mut dyn FnMut(u64),
) -> (u64, u64) {
    let root = match openat(layer, TREE, FOLDER, Mode::empty()) {
        Ok(root) => root,
        Err(error) => {
            findings.note(Path::new(TREE), format!("cannot be opened: {error}"));
            return (0, 0);
        }
    };
    let mut names = HashMap::new();
    for record in listing.values() {
        if let Kind::Link(to) = &record.kind {
            *names.entry(origin(listing, to)).or_default() += 1;
        }
    }
    let mut comparison = Comparison {
        listing,
        depth,
        findings,
        tell,
        reader: Reader::default(),
        seen: HashSet::new(),
        names,
        inodes: HashMap::new(),
        bytes: 0,
    };
    comparison.root(&root);
    walk::walk(&root, &mut |event| match event {
        Event::Entry(found) => comparison.entry(found),
        Event::Trouble(path, error) => {
            comparison.findings.note(&in_tree(path), format!("cannot be looked at: {error}"));
        }
    });
    comparison.finish()
}

/// The first of all the names of a file. A listing that leads in circles ends somewhere in it.
fn origin<'a>(listing: &'a Listing, path: &'a Path) -> &'a Path {
    let mut path = path;
    for _ in 0..64 {
        match listing.get(path).map(|record| &record.kind) {
            Some(Kind::Link(to)) => path = to,
            _ => break,
        }
    }
    path
}

impl<'a> Comparison<'a> {
    fn root(&mut self, root: &OwnedFd) {
        let Some((path, record)) = self.listing.get_key_value(Path::new("")) else {
            return self.findings.note(Path::new(TREE), "is not in the listing");
        };
        self.seen.insert(path);
        match fstat(root) {
            Ok(stat) => self.attributes(path, record, &stat),
            Err(error) => self.findings.note(Path::new(TREE), format!("cannot be looked at: {error}")),
        }
        if self.depth == Depth::Full {
            self.extended(path, record, root);
        }
    }

    fn entry(&mut self, found: &Found<'_>) {
        // Also of what has no bytes: whoever waits hears that it goes on.
        (self.tell)(0);
        let listing = self.listing;
        let Some((path, record)) = listing.get_key_value(found.path) else {
            return self.note(found.path, "is no part of the layer");
        };
        self.seen.insert(path);
        let (expected, kind) = (kind_of(listing, &record.kind), found.kind());
        if expected != Some(kind) {
            let expected = expected.map_or("nothing", word);
            return self.note(path, format!("is {}, and was {expected}", word(kind)));
        }
        match &record.kind {
            Kind::Link(to) => {
                self.inodes.insert(path, inode(&found.stat));
                self.names.entry(origin(listing, to)).or_default();
            }
            Kind::Whiteout => {
                if found.stat.st_rdev != 0 {
                    self.note(path, "is a device, and was a whiteout");
                }
            }
            _ => {
                self.attributes(path, record, &found.stat);
                self.count_names(path, record, &found.stat);
                self.value(path, record, found);
            }
        }
    }

    fn attributes(&mut self, path: &Path, record: &Record, stat: &Stat) {
        let mode = u32::from(stat.st_mode as u16 & 0o7777);
        if mode != record.mode && !matches!(record.kind, Kind::Symlink(_)) {
            self.note(path, format!("has mode {mode:04o}, and had {:04o}", record.mode));
        }
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        if (uid, gid) != (record.uid, record.gid) {
            self.note(path, format!("belongs to {uid}:{gid}, and did to {}:{}", record.uid, record.gid));
        }
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(u32::MAX));
        if mtime != record.mtime {
            let (was, is) = (record.mtime, mtime);
            self.note(path, format!("was changed at {}.{:09}, and says {}.{:09}", was.0, was.1, is.0, is.1));
        }
    }

    fn count_names(&mut self, path: &'a Path, record: &Record, stat: &Stat) {
        if matches!(record.kind, Kind::Directory { .. }) {
            return;
        }
        let expected = 1 + self.names.get(path).copied().unwrap_or(0);
        #[allow(clippy::unnecessary_cast, reason = "it is of another type on other machines")]
        let names = stat.st_nlink as u64;
        if names != expected {
            self.note(path, format!("has {names} names, and had {expected}"));
        }
        if expected > 1 {
            self.inodes.insert(path, inode(stat));
        }
    }

    /// What is in it.
    fn value(&mut self, path: &Path, record: &Record, found: &Found<'_>) {
        match &record.kind {
            Kind::File(size, digest) => self.file(path, record, (*size, digest), found),
            Kind::Directory { opaque } => {
                // Where it cannot be opened, the walk says so.
                if let Ok(folder) = openat(found.folder, found.name, FOLDER, Mode::empty()) {
                    let mut value = [0u8; 1];
                    let is = matches!(fgetxattr(&folder, "trusted.overlay.opaque", &mut value), Ok(1))
                        && value == *b"y";
                    if is != *opaque {
                        let words = ["shows", "hides"].map(|does| format!("{does} what is below it"));
                        self.note(path, format!("{}, and did not", words[usize::from(is)]));
                    }
                    if self.depth == Depth::Full {
                        self.extended(path, record, &folder);
                    }
                }
            }
            Kind::Symlink(target) => match readlinkat(found.folder, found.name, Vec::new()) {
                Ok(there) if there.as_bytes() == target => {}
                Ok(there) => {
                    let (is, was) = (there.as_bytes().escape_ascii(), target.escape_ascii());
                    self.note(path, format!("leads to {is}, and did to {was}"));
                }
                Err(error) => self.note(path, format!("cannot be read: {error}")),
            },
            Kind::Link(_) | Kind::Fifo | Kind::Whiteout => {}
        }
    }

    fn file(&mut self, path: &Path, record: &Record, (size, digest): (u64, &Digest), found: &Found<'_>) {
        let there = u64::try_from(found.stat.st_size).unwrap_or(0);
        if there != size {
            self.note(path, format!("has {there} bytes, and had {size}"));
        } else if self.depth == Depth::Full {
            match self.reader.digest(found.folder, found.name, size) {
                Ok((_, is)) if is != *digest => {
                    self.note(path, format!("has content {}, and had {}", is.short(), digest.short()));
                }
                Ok((file, _)) => self.extended(path, record, &file),
                Err(error) => self.note(path, format!("cannot be read: {error}")),
            }
            self.bytes += size;
        }
        (self.tell)(size);
    }

    fn extended(&mut self, path: &Path, record: &Record, file: &impl AsFd) {
        match attributes(file) {
            Ok(is) if is == record.xattrs => {}
            Ok(_) => self.note(path, "has other extended attributes than it had"),
            // Where the file system knows none, none were set.
            Err(Errno::OPNOTSUPP) => {}
            Err(error) => self.note(path, format!("its attributes cannot be read: {error}")),
        }
    }

    fn finish(mut self) -> (u64, u64) {
        let listing = self.listing;
        for (path, record) in listing {
            if !self.seen.contains(path.as_path()) {
                self.note(path, "is missing");
            } else if let Kind::Link(to) = &record.kind
                && self.inodes.get(path.as_path()) != self.inodes.get(origin(listing, to))
            {
                self.note(path, format!("is no longer the same file as {}", super::shown(to)));
            }
        }
        (self.seen.len() as u64, self.bytes)
    }

    fn note(&mut self, path: &Path, what: impl Into<String>) {
        self.findings.note(&in_tree(path), what);
    }
}

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

fn kind_of(listing: &Listing, kind: &Kind) -> Option<FileType> {
    Some(match kind {
        Kind::File(..) => FileType::RegularFile,
        Kind::Directory { .. } => FileType::Directory,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::Whiteout => FileType::CharacterDevice,
        Kind::Link(to) => match &listing.get(origin(listing, to))?.kind {
            Kind::Link(_) => return None,
            kind => kind_of(listing, kind)?,
        },
    })
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::CharacterDevice => "a device",
        _ => "something else",
    }
}

/// Of the extended attributes those that a layer can have.
fn attributes(file: &impl AsFd) -> Result<Option<Digest>, Errno> {
    let found = kept_xattrs(file)?;
    Ok(listing::xattrs(found.iter().map(|(name, value)| (&name[..], &value[..]))))
}
