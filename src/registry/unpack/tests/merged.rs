//! Directories that layers only imply, in images that share the layers.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::super::{Implied, Merged, inherit};
use super::forge::{Tar, head, tar};
use super::table::Seen;
use super::unpack;

/// A layer as it is in the store: its tree, and what it only implies.
struct Layer(tempfile::TempDir, Implied);

impl Layer {
    /// Unpacked for an image with these below it, uppermost first.
    fn new(tar: Tar, lowers: &[&Layer]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let implied = unpack(&tar.end(), dir.path()).unwrap();
        let lowers: Vec<PathBuf> = lowers.iter().map(|lower| lower.0.path().to_owned()).collect();
        inherit(dir.path(), &implied, &lowers).unwrap();
        Self(dir, implied)
    }
}

fn merged(layers: &[&Layer]) -> Merged {
    let layers: Vec<_> =
        layers.iter().map(|Layer(dir, implied)| (dir.path().to_owned(), implied.clone())).collect();
    Merged::of(&layers).unwrap()
}

/// Mode, owner and time of a directory, once they are made.
fn made(merged: &Merged, path: &str) -> (u32, u32, i64) {
    let dir = tempfile::tempdir().unwrap();
    merged.make(dir.path()).unwrap();
    assert_eq!(merged.amiss(dir.path()).unwrap(), None);
    let meta = dir.path().join(path).metadata().unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.mtime())
}

fn app(mode: u32, owner: u32, time: u64) -> Tar {
    tar().head(head(b'5', "app").mode(mode).owner(owner).time(time))
}

const NOBODYS: (u32, u32, i64) = (0o755, 0, 0);

#[test]
fn a_layer_on_another_base_takes_the_others_directories() {
    let (first, second) = (Layer::new(app(0o711, 7, 5), &[]), Layer::new(app(0o2700, 1000, 9), &[]));
    let shared = Layer::new(tar().file("app/x", b"").file("app/deep/y", b""), &[&first]);
    let as_it_is = merged(&[&shared, &first]);
    assert_eq!(as_it_is.otherwise, None);
    assert_eq!(made(&as_it_is, "app"), (0o711, 7, 5));
    let other = merged(&[&shared, &second]);
    assert_eq!(other.otherwise.as_deref(), Some(Path::new("app")));
    assert_eq!((made(&other, "app"), made(&other, "app/deep")), ((0o2700, 1000, 9), NOBODYS));
    // What lies on the way to one of them is said by whoever says it last, and so is one of them above the layer.
    let upper = Layer::new(app(0o750, 3, 4), &[]);
    let covered = merged(&[&upper, &shared, &second]);
    assert_eq!((covered.otherwise.as_deref(), made(&covered, "app")), (None, (0o750, 3, 4)));
    // A layer that implies it again says nothing more.
    let again = Layer::new(tar().file("app/z", b""), &[&shared, &first]);
    assert_eq!(made(&merged(&[&again, &shared, &second]), "app"), (0o2700, 1000, 9));
}

#[test]
fn what_hides_a_directory_below_or_above_counts() {
    let (first, second) = (Layer::new(app(0o711, 7, 5), &[]), Layer::new(app(0o700, 1000, 9), &[]));
    let shared = Layer::new(tar().file("app/x", b""), &[&first]);
    let whiteout = Layer::new(tar().file(".wh.app", b""), &[]);
    let file = Layer::new(tar().file("app", b""), &[]);
    for between in [&whiteout, &file] {
        let merged = merged(&[&shared, between, &second]);
        assert_eq!(merged.otherwise.as_deref(), Some(Path::new("app")));
        assert_eq!(made(&merged, "app"), NOBODYS);
    }
    for above in [&whiteout, &file] {
        let merged = merged(&[above, &shared, &second]);
        assert!(merged.otherwise.is_none() && !merged.has(Path::new("app")));
    }
    // Opaque above the directory: what is below has no say.
    let lower = Layer::new(app(0o711, 7, 5).head(head(b'5', "app/in").mode(0o700).owner(7)), &[]);
    let opaque = Layer::new(tar().file("app/.wh..wh..opq", b"").file("app/in/x", b""), &[&lower]);
    let merged = merged(&[&opaque, &lower]);
    assert_eq!(merged.otherwise, None, "it was unpacked like that");
    assert_eq!((made(&merged, "app"), made(&merged, "app/in")), ((0o711, 7, 5), NOBODYS));
}

#[test]
fn extended_attributes_are_taken_too() {
    let tagged = || tar().pax(&[("SCHILY.xattr.user.note", b"hi")]).head(head(b'5', "app"));
    let (plain, tagged) = (Layer::new(app(0o755, 0, super::forge::THEN), &[]), Layer::new(tagged(), &[]));
    let shared = Layer::new(tar().file("app/x", b""), &[&tagged]);
    assert_eq!(Seen(shared.0.path().to_owned()).xattr("app", "user.note").unwrap(), b"hi");
    assert_eq!(merged(&[&shared, &plain]).otherwise.as_deref(), Some(Path::new("app")));
    let shared = Layer::new(tar().file("app/x", b""), &[&plain]);
    let merged = merged(&[&shared, &tagged]);
    let dir = tempfile::tempdir().unwrap();
    merged.make(dir.path()).unwrap();
    assert_eq!(Seen(dir.path().to_owned()).xattr("app", "user.note").unwrap(), b"hi");
    fs::set_permissions(dir.path().join("app"), Permissions::from_mode(0o700)).unwrap();
    let (path, what) = merged.amiss(dir.path()).unwrap().unwrap();
    assert_eq!((path, &what[..]), (Path::new("app"), "has mode 0700, and should have 0755"));
}
