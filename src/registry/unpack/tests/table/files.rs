//! Entries that take each other's place, and kinds that no layer needs.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::super::forge::{MAJOR, MINOR, Tar, head, tar};
use super::{Row, harmless, refused};

pub fn rows() -> Vec<Row> {
    vec![
        refused("an entry below a file", "umoci", "Not a directory", |_| {
            tar().file("a", b"").file("a/b", b"x").end()
        }),
        refused("an entry below a pipe", "umoci", "Not a directory", |_| {
            tar().head(head(b'6', "a")).file("a/b", b"x").end()
        }),
        refused(
            "a file in place of a directory with something in it",
            "umoci",
            "a file in place of a directory",
            |_| tar().file("d/x", b"").file("d", b"x").end(),
        ),
        refused(
            "a link in place of a directory with something in it",
            "CVE-2021-32803",
            "a file in place of a directory",
            |out| tar().file("d/x", b"").symlink("d", &out.absolute).end(),
        ),
        harmless(
            "a directory, a file, a directory, a link, a file",
            "CVE-2021-32803",
            "the last one is there, wholly",
            |out| {
                tar()
                    .head(head(b'5', "d").mode(0o700))
                    .file("d", b"1")
                    .head(head(b'5', "d").mode(0o4711))
                    .symlink("d", &out.absolute)
                    .entry(head(b'0', "d").mode(0o600), b"2")
                    .end()
            },
            |seen| assert!(seen.text("d") == "2" && seen.meta("d").mode() & 0o7777 == 0o600),
        ),
        harmless(
            "the same name a thousand times",
            "docker",
            "the last one is there",
            |_| (0..1000).fold(tar(), |tar, n| tar.file("a", n.to_string())).end(),
            |seen| assert!(seen.text("a") == "999" && seen.names().len() == 1),
        ),
        harmless(
            "the same directory a thousand times",
            "docker",
            "the last one's mode is there, and what is in it stays",
            |_| {
                (0..1000u32)
                    .fold(tar().file("d/x", b"1"), |tar, n| tar.head(head(b'5', "d").mode(n & 0o777)))
                    .end()
            },
            |seen| assert!(seen.text("d/x") == "1" && seen.meta("d").mode() & 0o7777 == 999 & 0o777),
        ),
        harmless(
            "a pipe",
            "layer.md",
            "it is a pipe, which nobody opens",
            |_| tar().head(head(b'6', "p").mode(0o640)).end(),
            |seen| assert!(seen.meta("p").file_type().is_fifo() && seen.meta("p").mode() & 0o7777 == 0o640),
        ),
        harmless(
            "a file in place of a pipe",
            "fifo(7)",
            "it takes the pipe's place and does not wait for a reader",
            |_| tar().head(head(b'6', "p")).file("p", b"x").end(),
            |seen| assert_eq!(seen.text("p"), "x"),
        ),
        refused("a character device", "layer.md, mknod(2)", "a device", |_| {
            device(b'3', "0000001\0", "0000003\0")
        }),
        refused("a block device: the host's disk", "layer.md, mknod(2)", "a device", |_| {
            device(b'4', "0000010\0", "0000000\0")
        }),
        refused("a device that is a whiteout: 0, 0", "overlayfs.rst", "a device", |_| {
            device(b'3', "0000000\0", "0000000\0")
        }),
        refused("a device whose numbers are cut off to 0, 0", "containerd 0205398ac", "a device", |_| {
            device(b'3', "\u{0}", "\u{0}")
        }),
        refused("a device with numbers beyond all", "containerd 0205398ac", "a device", |_| {
            device(b'3', "7777777\0", "7777777\0")
        }),
        harmless(
            "devices below /dev",
            "debootstrap",
            "they are left out: a container has a /dev of its own",
            |_| {
                tar()
                    .dir("dev")
                    .head(head(b'3', "dev/null").put(MINOR, "0000003\0"))
                    .head(head(b'4', "dev/sda"))
                    .end()
            },
            |seen| assert_eq!(std::fs::read_dir(seen.at("dev")).unwrap().count(), 0),
        ),
        refused("a device with a size", "Python tarfile, Go", "with content", |_| {
            tar().dir("dev").entry(head(b'3', "dev/null"), [7; 512]).end()
        }),
        refused("a device through a link into /dev", "mknod(2)", "a device", |_| {
            tar().dir("dev/shm").symlink("dev/out", "../etc").head(head(b'4', "dev/out/sda")).end()
        }),
        harmless(
            "programs and libraries that programs for unpacking execute and load",
            "CVE-2014-9357, CVE-2019-14271, CVE-2026-41567",
            "they are files of the layer: nothing of it is executed or loaded",
            |out| {
                let script = format!("#!/bin/sh\necho pwned > {}/secret\n", out.absolute);
                let library = "lib/x86_64-linux-gnu/libnss_files.so.2";
                let tar = tar()
                    .file("etc/nsswitch.conf", b"passwd: files\ngroup: files\n")
                    .file("etc/ld.so.preload", format!("/{library}\n"));
                PROGRAMS
                    .iter()
                    .chain([&library])
                    .fold(tar, |tar, name| tar.entry(head(b'0', *name).mode(0o755), &script))
                    .end()
            },
            |seen| assert!(PROGRAMS.iter().all(|name| seen.meta(name).mode() & 0o777 == 0o755)),
        ),
        refused("a kind that nobody knows", "pax(1)", "an entry of kind", |_| {
            tar().head(head(b'Q', "a")).end()
        }),
        refused("a kind that is no letter", "pax(1)", "an entry of kind", |_| {
            tar().head(head(0xff, "a")).end()
        }),
        refused("a part of another volume", "GNU tar", "an entry of kind", |_| {
            tar().entry(head(b'M', "a").gnu(), b"x").end()
        }),
        refused("a volume's label", "GNU tar", "an entry of kind", |_| {
            tar().head(head(b'V', "a").gnu()).end()
        }),
        refused("a directory of an incremental archive", "GNU tar", "an entry of kind", |_| {
            tar().entry(head(b'D', "a/").gnu(), b"Ya\0\0").end()
        }),
        refused(
            "the extended header of another vendor",
            "Solaris tar, libarchive",
            "an entry of kind",
            |_| tar().entry(head(b'X', "a"), b"12 path=../x\n").file("a", b"x").end(),
        ),
        refused("names of an ancient GNU tar", "GNU tar, libarchive", "an entry of kind", |_| {
            tar().entry(head(b'N', "a").gnu(), b"Rename a to ../x\n").file("a", b"x").end()
        }),
        harmless(
            "a contiguous file",
            "pax(1)",
            "it is a file, as everybody takes it",
            |_| tar().entry(head(b'7', "a"), b"x").end(),
            |seen| assert_eq!(seen.text("a"), "x"),
        ),
        harmless(
            "a file of the oldest kind",
            "pax(1)",
            "it is a file, as everybody takes it",
            |_| tar().entry(head(0, "a").v7(), b"x").end(),
            |seen| assert_eq!(seen.text("a"), "x"),
        ),
    ]
}

/// What unpackers of layers execute, or did.
const PROGRAMS: [&str; 7] =
    ["bin/sh", "bin/tar", "usr/bin/gzip", "usr/bin/pigz", "usr/bin/unpigz", "usr/bin/xz", "usr/bin/zstd"];

fn device(kind: u8, major: &str, minor: &str) -> Vec<u8> {
    let head = head(kind, "dev").put(MAJOR, major).put(MINOR, minor);
    Tar::default().head(head).end()
}
