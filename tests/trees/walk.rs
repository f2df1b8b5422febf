//! A tree on disk as it is, and the differences of two.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, utimensat};
use sha2::{Digest as _, Sha256};

use super::support::tree::xattrs;

/// Everything below a directory, and the directory itself as the empty path.
pub struct Tree(BTreeMap<PathBuf, Node>);

#[derive(Clone, PartialEq, Eq)]
struct Node {
    /// With the kind.
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    /// Of a device.
    device: u64,
    /// Bytes of a file.
    size: u64,
    /// Of a file's content.
    sha256: String,
    /// Where a symbolic link leads.
    target: PathBuf,
    xattrs: Vec<(String, Vec<u8>)>,
    /// All names of the file in this tree.
    names: BTreeSet<PathBuf>,
}

impl Tree {
    pub fn read(root: &Path) -> Self {
        let mut tree = BTreeMap::new();
        let mut files = BTreeMap::new();
        walk(root, Path::new(""), &mut tree, &mut files);
        for names in files.values() {
            for name in names {
                tree.get_mut(name).unwrap().names.clone_from(names);
            }
        }
        Self(tree)
    }

    /// A line for each path and each thing that is not the same, this tree's before the other's.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let paths: BTreeSet<&PathBuf> = self.0.keys().chain(other.0.keys()).collect();
        let mut found = Vec::new();
        for path in paths {
            match (self.0.get(path), other.0.get(path)) {
                (Some(ours), Some(theirs)) => ours.compare(theirs, path, &mut found),
                (Some(_), None) => found.push(format!("{path:?}: only here")),
                _ => found.push(format!("{path:?}: missing")),
            }
        }
        found
    }

    /// Cells of a table: entries, bytes, hard-linked, set-id, with attributes.
    pub fn summary(&self) -> String {
        let count = |which: &dyn Fn(&Node) -> bool| self.0.values().filter(|node| which(node)).count();
        let linked: BTreeSet<&BTreeSet<PathBuf>> =
            self.0.values().filter(|node| node.names.len() > 1).map(|node| &node.names).collect();
        let counted = |(path, node): (&PathBuf, &Node)| match node.names.first() {
            Some(first) if first != path => 0,
            _ => node.size,
        };
        format!(
            "{} | {} | {} | {} | {}",
            self.0.len(),
            self.0.iter().map(counted).sum::<u64>(),
            linked.len(),
            count(&|node| node.mode & 0o6000 != 0),
            count(&|node| !node.xattrs.is_empty()),
        )
    }
}

impl Node {
    fn compare(&self, other: &Self, path: &Path, found: &mut Vec<String>) {
        let mut say = |what: &str, ours: String, theirs: String| {
            if ours != theirs {
                found.push(format!("{path:?}: {what} {ours}, {theirs}"));
            }
        };
        say("mode", format!("{:o}", self.mode), format!("{:o}", other.mode));
        say("owner", format!("{:?}", self.owner), format!("{:?}", other.owner));
        say("time", format!("{:?}", self.mtime), format!("{:?}", other.mtime));
        say("device", self.device.to_string(), other.device.to_string());
        say("size", self.size.to_string(), other.size.to_string());
        say("content", self.sha256.clone(), other.sha256.clone());
        say("target", format!("{:?}", self.target), format!("{:?}", other.target));
        say("attributes", format!("{:?}", self.xattrs), format!("{:?}", other.xattrs));
        say("names", format!("{:?}", self.names), format!("{:?}", other.names));
    }
}

fn walk(
    root: &Path,
    path: &Path,
    tree: &mut BTreeMap<PathBuf, Node>,
    files: &mut BTreeMap<u64, BTreeSet<PathBuf>>,
) {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).unwrap();
    let kind = meta.file_type();
    let mut node = Node {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        device: meta.rdev(),
        size: 0,
        sha256: String::new(),
        target: PathBuf::new(),
        xattrs: xattrs(&full),
        names: BTreeSet::new(),
    };
    if kind.is_file() {
        node.size = meta.len();
        let mut hash = Sha256::new();
        io::copy(&mut File::open(&full).unwrap(), &mut HashWriter(&mut hash)).unwrap();
        node.sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    } else if kind.is_symlink() {
        node.target = fs::read_link(&full).unwrap();
    }
    if !kind.is_dir() && meta.nlink() > 1 {
        files.entry(meta.ino()).or_default().insert(path.to_owned());
    }
    tree.insert(path.to_owned(), node);
    if kind.is_dir() {
        for entry in fs::read_dir(&full).unwrap() {
            walk(root, &path.join(entry.unwrap().file_name()), tree, files);
        }
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.0.update(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Changes a tree in every way that counts, and wants to hear of each.
pub fn self_test() {
    type Change = fn(&Path);
    let changes: &[(&str, Change)] = &[
        ("mode", |root| fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4755)).unwrap()),
        ("owner", |root| std::os::unix::fs::lchown(root.join("link"), Some(7), None).unwrap()),
        ("time", |root| {
            let at = Timespec { tv_sec: 5, tv_nsec: 1 };
            let times = Timestamps { last_access: at, last_modification: at };
            utimensat(CWD, root.join("link"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }),
        ("size", |root| fs::write(root.join("file"), "longer").unwrap()),
        ("content", |root| fs::write(root.join("file"), "b").unwrap()),
        ("target", |root| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("elsewhere", root.join("link")).unwrap();
        }),
        ("attributes", |root| {
            rustix::fs::setxattr(root.join("file"), "user.some", b"thing", XattrFlags::empty()).unwrap();
        }),
        ("names", |root| {
            fs::remove_file(root.join("other")).unwrap();
            fs::write(root.join("other"), "a").unwrap();
        }),
        ("missing", |root| fs::remove_file(root.join("pipe")).unwrap()),
        ("only here", |root| fs::create_dir(root.join(std::ffi::OsStr::from_bytes(b"\xff"))).unwrap()),
    ];
    for (what, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::write(root.join("file"), "a").unwrap();
        fs::hard_link(root.join("file"), root.join("other")).unwrap();
        symlink("file", root.join("link")).unwrap();
        mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let before = Tree::read(root);
        assert_eq!(before.differences(&Tree::read(root)), Vec::<String>::new());
        change(root);
        let found = Tree::read(root).differences(&before);
        assert!(found.iter().any(|line| line.contains(what)), "{what}: {found:?}");
    }
}
