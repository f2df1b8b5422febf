//! What is really on disk, as text that two trees can be compared by; and overlayfs on top of it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Everything below a directory, a line each, sorted: kind, mode, owner, time, attributes, content.
pub fn describe(root: &Path) -> String {
    let mut lines = String::new();
    walk(root, Path::new("."), &mut lines);
    lines
}

fn walk(root: &Path, path: &Path, lines: &mut String) {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).unwrap();
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!("link to {}", fs::read_link(&full).unwrap().display())
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else if kind.is_char_device() {
        format!("char {}", meta.rdev())
    } else {
        let content = fs::read(&full).unwrap();
        let hash: String =
            Sha256::digest(&content).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("file of {} {hash} links {}", content.len(), meta.nlink())
    };
    write!(lines, "{} {what}", path.display()).unwrap();
    if !kind.is_char_device() {
        if !kind.is_symlink() {
            write!(lines, " {:o}", meta.mode() & 0o7777).unwrap();
        }
        write!(lines, " {}:{} at {}", meta.uid(), meta.gid(), meta.mtime()).unwrap();
        if meta.mtime_nsec() != 0 {
            write!(lines, ".{:09}", meta.mtime_nsec()).unwrap();
        }
    }
    for (name, value) in xattrs(&full) {
        write!(lines, " {name}={}", value.escape_ascii()).unwrap();
    }
    lines.push('\n');
    if kind.is_dir() {
        for name in super::names(&full) {
            walk(root, &path.join(name), lines);
        }
    }
}

pub fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut list = [0u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut found: Vec<(String, Vec<u8>)> = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = [0u8; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (String::from_utf8(name.to_vec()).unwrap(), value[..length].to_vec())
        })
        .collect();
    found.sort();
    found
}

/// An overlay of layers, as a container sees it. Unmounted at the end.
pub struct Overlay(tempfile::TempDir);

impl Overlay {
    /// `layers`: lowest first.
    pub fn mount(layers: &[PathBuf]) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-overlay-").tempdir().unwrap();
        let mut lower: Vec<&[u8]> = layers.iter().rev().map(|layer| layer.as_os_str().as_bytes()).collect();
        // overlayfs takes no single layer without an upper one.
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        lower.push(empty.as_os_str().as_bytes());
        let point = dir.path().join("merged");
        fs::create_dir(&point).unwrap();
        let mut options = b"lowerdir=".to_vec();
        options.extend_from_slice(&lower.join(&b':'));
        nix::mount::mount(
            Some("overlay"),
            &point,
            Some("overlay"),
            nix::mount::MsFlags::MS_RDONLY,
            Some(std::ffi::OsStr::from_bytes(&options)),
        )
        .unwrap();
        Self(dir)
    }

    pub fn root(&self) -> PathBuf {
        self.0.path().join("merged")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        nix::mount::umount2(&self.root(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}
