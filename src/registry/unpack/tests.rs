//! Layers as they should not be, a row each, and as they should.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use tar::EntryType;

use super::*;

/// One entry of an archive.
struct Row {
    path: &'static str,
    kind: EntryType,
    link: &'static str,
    content: &'static [u8],
    pax: &'static [(&'static str, &'static str)],
    mode: u32,
    owner: u64,
}

const FILE: Row =
    Row { path: "", kind: EntryType::Regular, link: "", content: b"", pax: &[], mode: 0o644, owner: 0 };

fn file(path: &'static str, content: &'static [u8]) -> Row {
    Row { path, content, ..FILE }
}

fn folder(path: &'static str) -> Row {
    Row { path, kind: EntryType::Directory, mode: 0o755, ..FILE }
}

fn symlink(path: &'static str, link: &'static str) -> Row {
    Row { path, kind: EntryType::Symlink, link, ..FILE }
}

fn hardlink(path: &'static str, link: &'static str) -> Row {
    Row { path, kind: EntryType::Link, link, ..FILE }
}

/// Writes headers byte by byte: the crate's builder refuses some of what has to be tried.
fn archive(rows: &[Row]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for row in rows {
        if !row.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in row.pax {
                let rest = format!(" {key}={value}\n");
                let mut length = rest.len() + 1;
                while length.to_string().len() + rest.len() != length {
                    length += 1;
                }
                records.extend_from_slice(format!("{length}{rest}").as_bytes());
            }
            block(&mut bytes, "pax", EntryType::XHeader, "", &records, 0o644, 0);
        }
        block(&mut bytes, row.path, row.kind, row.link, row.content, row.mode, row.owner);
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

fn block(to: &mut Vec<u8>, path: &str, kind: EntryType, link: &str, content: &[u8], mode: u32, owner: u64) {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    to.extend_from_slice(header.as_bytes());
    to.extend_from_slice(content);
    to.resize(to.len().next_multiple_of(512), 0);
}

/// Unpacks into `layer` of a directory that also holds a file which nobody may touch.
fn run(rows: &[Row]) -> (tempfile::TempDir, Result<(), Error>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("layer")).unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    let bytes = archive(rows);
    let result = unpack(&mut bytes.as_slice(), &dir.path().join("layer")).map(|_| ());
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing beside the layer");
    (dir, result)
}

#[test]
fn attacks_are_refused() {
    let device = |kind| Row { path: "dev", kind, ..FILE };
    let twice = &[("size", "0"), ("size", "512")];
    let long_name: &str = Box::leak(format!("a/{}", "n".repeat(300)).into_boxed_str());
    let long_path: &str = Box::leak("pp/".repeat(1500).into_boxed_str());
    let deep_path: &str = Box::leak("d/".repeat(300).into_boxed_str());
    let path = |path: &'static str| Row { pax: Box::leak(Box::new([("path", path)])), ..file("short", b"x") };
    let rows: Vec<(&str, Vec<Row>)> = vec![
        ("dot dot", vec![file("../outside", b"x")]),
        ("dot dot within", vec![file("a/../../outside", b"x")]),
        ("a link out of the layer", vec![hardlink("a", "../outside")]),
        ("a link to nothing of this layer", vec![hardlink("a", "etc/passwd")]),
        ("a link to a directory", vec![folder("d/"), hardlink("a", "d")]),
        ("a character device", vec![device(EntryType::Char)]),
        ("a block device", vec![device(EntryType::Block)]),
        ("a file in place of a full directory", vec![file("d/a", b"x"), file("d", b"x")]),
        ("a key twice", vec![Row { pax: twice, ..file("a", b"x") }]),
        ("a sparse file", vec![Row { pax: &[("GNU.sparse.major", "1")], ..file("a", b"x") }]),
        ("a link with content", vec![Row { content: b"x", ..symlink("a", "b") }]),
        ("a global header", vec![Row { kind: EntryType::XGlobalHeader, content: b"9 a=bcd\n", ..FILE }]),
        ("an unknown kind", vec![Row { kind: EntryType::new(b'Q'), ..file("a", b"") }]),
        ("an owner that is none", vec![Row { pax: &[("uid", "-1")], ..file("a", b"x") }]),
        ("an odd whiteout", vec![file(".wh...", b"")]),
        ("another size in the extended header", vec![Row { pax: &[("size", "512")], ..file("a", b"x") }]),
        ("a size of nothing", vec![Row { pax: &[("size", "0")], ..file("a", b"x") }]),
        ("a size that is no number", vec![Row { pax: &[("size", "1x")], ..file("a", b"x") }]),
        ("a GNU sparse file", vec![Row { kind: EntryType::GNUSparse, ..file("a", b"") }]),
        ("a hard link with content", vec![file("a", b""), Row { content: b"x", ..hardlink("b", "a") }]),
        ("a directory with content", vec![Row { content: b"x", ..folder("d/") }]),
        ("a file that ends like a directory", vec![file("d/", b"")]),
        ("a long name", vec![path(long_name)]),
        ("a long path", vec![path(long_path)]),
        ("a deep path", vec![path(deep_path)]),
        ("a dot dot in the extended header", vec![path("a/../../outside")]),
        ("the root as a file", vec![file("./", b"")]),
        ("the root as a link", vec![symlink(".", "/tmp")]),
        (
            "the highest owner, which chown takes for none",
            vec![Row { pax: &[("uid", "4294967295")], ..file("a", b"") }],
        ),
        ("an owner above all", vec![Row { pax: &[("gid", "4294967296")], ..file("a", b"") }]),
        (
            "a capability that is none",
            vec![Row { pax: &[("SCHILY.xattr.security.capability", "x")], ..file("a", b"") }],
        ),
        ("a link to nowhere, as a directory", vec![symlink("a", "gone"), file("a/b", b"x")]),
        ("a file as a directory", vec![file("a", b""), file("a/b", b"x")]),
        ("a hard link through a link out", vec![symlink("d", "../.."), hardlink("a", "d/outside")]),
        ("a hard link to a whiteout", vec![file(".wh.a", b""), hardlink("b", "a")]),
        ("all layers hidden at once", vec![file(".wh..wh..opq", b"")]),
        ("a loop of links", vec![symlink("a", "b"), symlink("b", "a"), file("a/c", b"x")]),
    ];
    for (what, rows) in rows {
        let (_dir, result) = run(&rows);
        assert!(matches!(result, Err(Error::Refused(_) | Error::Broken(_))), "{what}: {result:?}");
    }
}

#[test]
fn links_are_followed_within_the_layer_only() {
    for link in ["/", "/../..", "../../..", "/outside", "../outside"] {
        let (dir, result) = run(&[symlink("a", link), file("a/b", b"x")]);
        // Either it leads into the layer itself, or nowhere.
        match result {
            Ok(()) => assert_eq!(fs::read(dir.path().join("layer/b")).unwrap(), b"x", "{link}"),
            Err(error) => assert!(matches!(error, Error::Refused(_) | Error::Disk(..)), "{link}: {error:?}"),
        }
    }
    // A file takes the link's place, not the place that it leads to.
    let (dir, result) = run(&[symlink("a", "../outside"), file("a", b"x")]);
    result.unwrap();
    assert!(dir.path().join("layer/a").symlink_metadata().unwrap().is_file());
    // Nor does anything go through a link once something else took its place.
    let (dir, result) =
        run(&[folder("e/"), symlink("a", "e"), file("a/x", b"1"), folder("a/"), file("a/y", b"2")]);
    result.unwrap();
    assert_eq!(fs::read(dir.path().join("layer/e/x")).unwrap(), b"1");
    assert_eq!(fs::read(dir.path().join("layer/a/y")).unwrap(), b"2");
    // Nor does the time of a directory go to where a link in its place leads.
    let old = Row { pax: &[("mtime", "5")], ..folder("d/") };
    let (dir, result) = run(&[folder("e/"), old, symlink("d", "e")]);
    result.unwrap();
    assert_eq!(dir.path().join("layer/e").metadata().unwrap().mtime(), 1_700_000_000);
}

#[test]
fn a_layer_is_what_its_archive_says() {
    let (dir, result) = run(&[
        Row { mode: 0o1777, owner: 7, ..folder("./tmp/") },
        Row { mode: 0o4755, owner: 1000, ..file("usr/bin/su", b"program") },
        hardlink("usr/bin/sudo", "usr/bin/su"),
        symlink("bin", "usr/bin"),
        file("bin/late", b"through the link"),
        Row { path: "run/fifo", kind: EntryType::Fifo, mode: 0o600, ..FILE },
        Row {
            pax: &[("SCHILY.xattr.user.note", "hi"), ("SCHILY.xattr.trusted.overlay.opaque", "y")],
            ..file("noted", b"")
        },
        file("etc/.wh.gone", b""),
        file("etc/.wh..wh..opq", b""),
        file("twice", b"first"),
        file("twice", b"second"),
        file(".wh.dir", b""),
        folder("dir/"),
    ]);
    result.unwrap();
    let layer = dir.path().join("layer");
    let meta = |path: &str| layer.join(path).symlink_metadata().unwrap();
    assert_eq!((meta("tmp").mode() & 0o7777, meta("tmp").uid()), (0o1777, 7));
    assert_eq!((meta("usr/bin/su").mode() & 0o7777, meta("usr/bin/su").uid()), (0o4755, 1000));
    assert_eq!(meta("usr/bin/su").ino(), meta("usr/bin/sudo").ino());
    assert_eq!(meta("usr/bin/su").mtime(), 1_700_000_000);
    assert_eq!(meta("tmp").mtime(), 1_700_000_000, "times of directories come last");
    assert_eq!(fs::read(layer.join("usr/bin/late")).unwrap(), b"through the link");
    assert!(meta("run/fifo").file_type().is_fifo());
    assert_eq!(meta("run").permissions().mode() & 0o7777, 0o755, "a parent that is not in the archive");
    assert!(meta("etc/gone").file_type().is_char_device());
    assert_eq!(meta("etc/gone").rdev(), 0);
    assert_eq!(fs::read(layer.join("twice")).unwrap(), b"second");
    let xattr = |path: &str, name: &str| {
        let mut value = [0u8; 16];
        rustix::fs::lgetxattr(layer.join(path), name, &mut value).map(|count| value[..count].to_vec())
    };
    assert_eq!(xattr("noted", "user.note").unwrap(), b"hi");
    assert!(
        xattr("noted", "trusted.overlay.opaque").is_err(),
        "overlay's own attributes are not the image's to set"
    );
    assert_eq!(xattr("etc", "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(xattr("dir", "trusted.overlay.opaque").unwrap(), b"y", "what was hidden stays hidden");
}

#[test]
fn what_takes_the_place_of_a_directory_takes_it_wholly() {
    // A directory, a file, and a directory again: nothing of the first one's is left, nor of what was known of it.
    let (dir, result) = run(&[
        Row { mode: 0o700, ..folder("d/") },
        file("d/.wh..wh..opq", b""),
        file("d", b"file"),
        file("e/f", b"x"),
        folder("d/"),
        file("d/inside", b"x"),
    ]);
    result.unwrap();
    let layer = dir.path().join("layer");
    assert!(rustix::fs::lgetxattr(layer.join("d"), "trusted.overlay.opaque", &mut [0u8; 1]).is_err());
    assert_eq!(fs::read(layer.join("d/inside")).unwrap(), b"x");
    assert_eq!(layer.join("d").metadata().unwrap().mode() & 0o7777, 0o755);
    // A directory whose whiteout comes after it hides as one whose whiteout came before.
    let (dir, result) = run(&[folder("d/"), file("d/new", b"x"), file(".wh.d", b"")]);
    result.unwrap();
    let mut value = [0u8; 1];
    rustix::fs::lgetxattr(dir.path().join("layer/d"), "trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(value, *b"y");
}

#[test]
fn what_a_layer_does_not_say_is_told() {
    let bytes = archive(&[file("a/b/c", b"x"), folder("a/"), symlink("l", "a"), file("l/d/.wh.e", b"")]);
    let dir = tempfile::tempdir().unwrap();
    let implied = unpack(&mut bytes.as_slice(), dir.path()).unwrap();
    let expected: Vec<&Path> = vec![Path::new(""), Path::new("a/b"), Path::new("l/d")];
    assert_eq!(implied.iter().map(PathBuf::as_path).collect::<Vec<_>>(), expected);
}

#[test]
fn headers_are_bounded() {
    // Nobody's memory is filled by one header that says it is long.
    let mut bytes = Vec::new();
    let records = vec![b'x'; 2 << 20];
    block(&mut bytes, "pax", EntryType::XHeader, "", &records, 0o644, 0);
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(&mut bytes.as_slice(), dir.path()).unwrap_err();
    assert!(error.into_pull_error("l").to_string().contains("headers of more than 1048576 bytes"));
    // A long content is no header.
    let content: &'static [u8] = Vec::leak(vec![b'x'; 3 << 20]);
    let (_dir, result) = run(&[file("a", content), file(".wh.b", content), file("c", content)]);
    result.unwrap();
}

#[test]
fn nothing_comes_behind_the_end() {
    let mut bytes = archive(&[file("a", b"x")]);
    bytes.extend_from_slice(&[0; 8192]);
    unpack(&mut bytes.as_slice(), tempfile::tempdir().unwrap().path()).unwrap();
    bytes.extend_from_slice(&archive(&[file("b", b"x")]));
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(&mut bytes.as_slice(), dir.path()).unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert!(!dir.path().join("b").exists());
}

#[test]
fn many_whiteouts_take_their_number_in_time() {
    let time = |count: usize| {
        let rows: Vec<Row> = (0..count)
            .map(|number| {
                let path: &'static str = match number % 2 {
                    0 => "d/.wh..wh..opq",
                    _ => Box::leak(format!("d/.wh.{number}").into_boxed_str()),
                };
                file(path, b"")
            })
            .collect();
        let bytes = archive(&rows);
        let dir = tempfile::tempdir().unwrap();
        let begun = std::time::Instant::now();
        unpack(&mut bytes.as_slice(), dir.path()).unwrap();
        begun.elapsed()
    };
    time(1000);
    let (few, many) = (time(4000), time(32_000));
    // Eight times as many; were it quadratic, it would be sixty-four.
    assert!(many < few * 32, "{few:?} for 4000, {many:?} for 32000");
}

#[test]
fn blank_numbers_are_zero_and_torn_archives_are_told() {
    let mut bytes = archive(&[file("a", b"x")]);
    bytes[108..124].fill(0);
    let sum: u32 = bytes[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let dir = tempfile::tempdir().unwrap();
    unpack(&mut bytes.as_slice(), dir.path()).unwrap();
    assert_eq!(dir.path().join("a").metadata().unwrap().uid(), 0);
    let dir = tempfile::tempdir().unwrap();
    let torn = archive(&[file("a", &[7; 4000])]);
    let error = unpack(&mut &torn[..2000], dir.path()).unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
}
