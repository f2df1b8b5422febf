//! What is made of layers as they should be.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::forge::{Tar, head, tar};
use super::table::Seen;
use super::unpack;

fn unpacked(tar: Tar) -> (tempfile::TempDir, Seen) {
    let dir = tempfile::tempdir().unwrap();
    unpack(&tar.end(), dir.path()).unwrap();
    let seen = Seen(dir.path().to_owned());
    (dir, seen)
}

#[test]
fn a_layer_is_what_its_archive_says() {
    let (_dir, seen) = unpacked(
        tar()
            .head(head(b'5', "./tmp/").mode(0o1777).owner(7))
            .entry(head(b'0', "usr/bin/su").mode(0o4755).owner(1000), b"program")
            .hardlink("usr/bin/sudo", "usr/bin/su")
            .symlink("bin", "usr/bin")
            .file("bin/late", b"through the link")
            .head(head(b'6', "run/fifo").mode(0o600))
            .pax(&[("SCHILY.xattr.user.note", b"hi")])
            .file("noted", b"")
            .file("etc/.wh.gone", b"")
            .file("opt/.wh..wh..opq", b"")
            .file(".wh.dir", b"")
            .dir("dir/"),
    );
    let mode = |path: &str| (seen.meta(path).mode() & 0o7777, seen.meta(path).uid());
    assert_eq!(mode("tmp"), (0o1777, 7));
    assert_eq!(mode("usr/bin/su"), (0o4755, 1000));
    assert_eq!(seen.meta("usr/bin/su").ino(), seen.meta("usr/bin/sudo").ino());
    assert_eq!(seen.meta("usr/bin/su").mtime(), 1_700_000_000);
    assert_eq!(seen.meta("tmp").mtime(), 1_700_000_000, "times of directories come last");
    assert_eq!(seen.text("usr/bin/late"), "through the link");
    assert!(seen.meta("run/fifo").file_type().is_fifo());
    assert_eq!(mode("run"), (0o755, 0), "a parent that is not in the archive");
    assert!(seen.meta("etc/gone").file_type().is_char_device());
    assert_eq!(seen.meta("etc/gone").rdev(), 0);
    assert_eq!(seen.xattr("noted", "user.note").unwrap(), b"hi");
    assert_eq!(seen.xattr("opt", "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(seen.xattr("dir", "trusted.overlay.opaque").unwrap(), b"y", "what was hidden stays hidden");
}

#[test]
fn nothing_goes_through_a_link_once_something_else_took_its_place() {
    let (_dir, seen) =
        unpacked(tar().dir("e/").symlink("a", "e").file("a/x", b"1").dir("a/").file("a/y", b"2"));
    assert_eq!(seen.text("e/x"), "1");
    assert_eq!(seen.text("a/y"), "2");
    // Nor does the time of a directory go to where a link in its place leads.
    let (_dir, seen) = unpacked(tar().dir("e/").head(head(b'5', "d/").time(5)).symlink("d", "e"));
    assert_eq!(seen.meta("e").mtime(), 1_700_000_000);
}

#[test]
fn what_a_layer_does_not_say_is_told() {
    let archive = tar().file("a/b/c", b"x").dir("a/").symlink("l", "a").file("a/d/.wh.e", b"").end();
    let dir = tempfile::tempdir().unwrap();
    let implied = unpack(&archive, dir.path()).unwrap();
    let expected = [Path::new(""), Path::new("a/b"), Path::new("a/d")];
    assert_eq!(implied.keys().map(PathBuf::as_path).collect::<Vec<_>>(), expected);
}

#[test]
fn what_nobody_says_is_the_same_on_every_host() {
    let lower = tempfile::tempdir().unwrap();
    unpack(&tar().head(head(b'5', "a").mode(0o711).owner(7).time(5)).end(), lower.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let implied = unpack(&tar().file("a/x", b"1").file("b/c/y", b"2").end(), dir.path()).unwrap();
    let lowers = [lower.path().to_owned()];
    let records = super::super::inherit(dir.path(), &implied, &lowers).unwrap().records;
    let seen = Seen(dir.path().to_owned());
    let on_disk = |path: &Path| {
        let meta = seen.meta(path);
        (meta.mode() & 0o7777, meta.uid(), (meta.mtime(), meta.mtime_nsec()))
    };
    for (path, record) in &records {
        let (mode, uid, (seconds, nanoseconds)) = on_disk(path);
        assert_eq!((record.mode, record.uid), (mode, uid), "{}", path.display());
        assert_eq!(record.mtime, (seconds, u32::try_from(nanoseconds).unwrap()), "{}", path.display());
    }
    assert_eq!(on_disk(Path::new("a")), (0o711, 7, (5, 0)), "as the layer below says");
    for path in ["b", "b/c"] {
        assert_eq!(on_disk(Path::new(path)), (0o755, 0, (0, 0)), "{path}");
    }
    // The root's mode is the directory's that it was unpacked into; the layer below says nothing of its time either.
    let root = records.iter().find(|(path, _)| path.as_os_str().is_empty()).unwrap();
    assert!(records.len() == 4 && root.1.uid == 0);
}

#[test]
fn whiteouts_below_a_file_or_a_link_of_the_layers_below_leave_it_alone() {
    let lower = tempfile::tempdir().unwrap();
    let below = tar().dir("etc/").file("etc/f", b"x").symlink("lib", "usr/lib").file("usr/lib/a", b"x");
    unpack(&below.file("g", b"x").symlink("l", "usr").file(".wh.w", b"").end(), lower.path()).unwrap();
    let upper = tempfile::tempdir().unwrap();
    let archive = tar()
        .head(head(b'5', "etc/").time(5))
        .file("etc/f/.wh.none", b"")
        .file("lib/.wh.a", b"")
        .file("lib/deep/.wh.b", b"")
        .file("lib/deep/er/.wh..wh..opq", b"")
        // These have something of their own, and take the place of what is below.
        .file("g/.wh.a", b"")
        .file("g/new", b"x")
        .file("l/.wh.a", b"")
        .dir("l/said/")
        // Hidden below already.
        .file("w/.wh.a", b"")
        .end();
    let implied = unpack(&archive, upper.path()).unwrap();
    let lowers = [lower.path().to_owned()];
    let inherited = super::super::inherit(upper.path(), &implied, &lowers).unwrap();
    let gone: Vec<&Path> = inherited.gone.iter().map(PathBuf::as_path).collect();
    assert_eq!(gone, [Path::new("etc/f"), Path::new("lib")]);
    let seen = Seen(upper.path().to_owned());
    assert_eq!(seen.names(), ["etc", "g", "l", "w"]);
    assert!(!seen.there("etc/f") && seen.there("g/a") && seen.there("l/said") && seen.there("w/a"));
    assert_eq!(seen.meta("etc").mtime(), 5, "what goes leaves no trace in its parent's time");
    let listed: Vec<_> = inherited.records.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!(listed, ["", "g", "l", "w"]);
}

#[test]
fn long_names_and_long_contents() {
    let name = format!("d/{}", "n".repeat(200));
    let content = vec![b'x'; 3 << 20];
    let (_dir, seen) = unpacked(
        tar()
            .long(b'L', &name)
            .file("short", &content)
            .file(".wh.b", &content)
            .file("c", &content)
            .long(b'K', "t".repeat(300))
            .head(head(b'2', "l").link("short")),
    );
    assert_eq!(fs::read(seen.at(&name)).unwrap(), content);
    assert_eq!(fs::read(seen.at("c")).unwrap(), content);
    assert_eq!(fs::read_link(seen.at("l")).unwrap().as_os_str().len(), 300);
}

#[test]
fn the_listing_says_what_the_disk_keeps() {
    let archive = tar()
        .pax(&[("mtime", b"9223372036854775807.5")])
        .file("late", b"x")
        .pax(&[("mtime", b"-9223372036854775808")])
        .file("early", b"x")
        .pax(&[("mtime", b"-1.25")])
        .dir("d")
        .end();
    let dir = tempfile::tempdir().unwrap();
    let mut listing = Vec::new();
    let root = fs::File::open(dir.path()).unwrap().into();
    super::super::unpack(archive.as_slice(), root, &mut listing).unwrap();
    let listing = String::from_utf8(listing).unwrap();
    for name in ["late", "early", "d"] {
        let meta = dir.path().join(name).metadata().unwrap();
        let time = format!(" {}.{} ", meta.mtime(), meta.mtime_nsec());
        let line = listing.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        assert!(line.contains(&time), "{line} is not{time}");
    }
}
