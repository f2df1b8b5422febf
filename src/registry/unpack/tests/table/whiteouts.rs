//! Whiteouts (OCI image-spec, layer.md, "Whiteouts"; overlayfs.rst).

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::super::forge::{head, tar};
use super::{Row, Seen, harmless, refused};

const OPAQUE: &str = "trusted.overlay.opaque";

fn is_whiteout(seen: &Seen, path: &str) -> bool {
    seen.there(path) && seen.meta(path).file_type().is_char_device() && seen.meta(path).rdev() == 0
}

pub fn rows() -> Vec<Row> {
    vec![
        harmless(
            "a whiteout through an absolute link",
            "CVE-2014-9356",
            "it is left out: a link of the same layer hides what was below its name",
            |out| tar().symlink("d", &out.absolute).file("d/.wh.secret", b"").end(),
            |seen| assert_eq!(seen.names(), ["d"]),
        ),
        harmless(
            "a whiteout through a link upwards",
            "CVE-2014-9356",
            "it is left out, and hides nothing elsewhere",
            |out| tar().symlink("d", &out.relative).file("d/.wh.secret", b"").end(),
            |seen| assert_eq!(seen.names(), ["d"]),
        ),
        harmless(
            "an opaque mark through a link out",
            "CVE-2014-9356",
            "it is left out, and marks nothing elsewhere",
            |out| tar().symlink("d", &out.relative).file("d/.wh..wh..opq", b"").end(),
            |seen| assert_eq!(seen.names(), ["d"]),
        ),
        harmless(
            "a whiteout and an opaque mark through a link to a directory of the layer",
            "umoci, containerd",
            "they are left out: tools that compare trees go into no link",
            |_| {
                tar()
                    .dir("usr/")
                    .file("usr/lib/a", b"x")
                    .symlink("lib", "usr/lib")
                    .file("lib/.wh.b", b"")
                    .file("lib/.wh..wh..opq", b"")
                    .file("lib/deeper/.wh.c", b"")
                    .end()
            },
            |seen| {
                assert_eq!(std::fs::read_dir(seen.at("usr/lib")).unwrap().count(), 1);
                assert_eq!(seen.xattr("usr/lib", OPAQUE), None);
            },
        ),
        harmless(
            "whiteouts below a file, a pipe, a whiteout",
            "umoci repack: a directory that became a file",
            "they are left out: what took the name hides all that was below it",
            |_| {
                tar()
                    .file("f", b"x")
                    .file("f/.wh.a", b"")
                    .file("f/d/.wh.b", b"")
                    .head(head(b'6', "p"))
                    .file("p/.wh.a", b"")
                    .file(".wh.w", b"")
                    .file("w/.wh.a", b"")
                    .end()
            },
            |seen| {
                assert!(seen.names() == ["f", "p", "w"] && seen.text("f") == "x" && is_whiteout(seen, "w"))
            },
        ),
        harmless(
            "whiteouts, and a file or a link in their directory's place after them",
            "layer.md: their order does not count",
            "they go with the directory that only they implied",
            |out| {
                tar()
                    .file("f/.wh.a", b"")
                    .file("f/d/e/.wh.b", b"")
                    .file("f", b"x")
                    .file("l/.wh.secret", b"")
                    .symlink("l", &out.absolute)
                    .end()
            },
            |seen| {
                assert!(seen.names() == ["f", "l"] && seen.text("f") == "x" && seen.meta("l").is_symlink())
            },
        ),
        refused(
            "whiteouts and a file in a directory, and a file in its place",
            "path_resolution(7)",
            "a file in place of a directory",
            |_| tar().file("f/.wh.a", b"").file("f/b", b"x").file("f", b"y").end(),
        ),
        refused("a whiteout of `..`", "umoci", "an odd whiteout", |_| tar().file("d/.wh...", b"").end()),
        refused("a whiteout of `.`", "umoci", "an odd whiteout", |_| tar().file("d/.wh..", b"").end()),
        refused("a whiteout of nothing", "umoci", "an odd whiteout", |_| tar().file("d/.wh.", b"").end()),
        refused("a whiteout of a whiteout", "umoci", "an odd whiteout", |_| {
            tar().file(".wh..wh.a", b"").end()
        }),
        refused("AUFS's own files", "aufs", "an odd whiteout", |_| tar().file(".wh..wh.plnk", b"").end()),
        refused("an opaque mark for the root", "overlayfs.rst", "hides all layers below", |_| {
            tar().file(".wh..wh..opq", b"").end()
        }),
        harmless(
            "an opaque mark for the root, through a link",
            "overlayfs.rst",
            "it is left out",
            |_| tar().symlink("d", "/").file("d/.wh..wh..opq", b"").end(),
            |seen| assert_eq!(seen.names(), ["d"]),
        ),
        harmless(
            "an opaque mark below a file",
            "umoci",
            "it is left out: nothing is below a file",
            |_| tar().file("d", b"").file("d/.wh..wh..opq", b"").end(),
            |seen| assert_eq!(seen.names(), ["d"]),
        ),
        refused("an entry below a whiteout", "umoci", "Not a directory", |_| {
            tar().file(".wh.d", b"").file("d/x", b"").end()
        }),
        harmless(
            "a whiteout of something that is nowhere",
            "layer.md",
            "it hides nothing",
            |_| tar().file("d/.wh.a", b"").end(),
            |seen| assert!(is_whiteout(seen, "d/a")),
        ),
        harmless(
            "a whiteout that is a directory, a link, a pipe",
            "docker, umoci",
            "only its name counts",
            |out| {
                tar()
                    .dir(".wh.a")
                    .symlink(".wh.b", format!("{}/secret", out.absolute))
                    .head(head(b'6', ".wh.c"))
                    .hardlink(".wh.d", "a")
                    .end()
            },
            |seen| assert!(["a", "b", "c", "d"].iter().all(|name| is_whiteout(seen, name))),
        ),
        harmless(
            "a whiteout with content",
            "docker",
            "the content is passed over, and no reader is put out of step",
            |_| tar().file(".wh.a", [0xff; 700]).file("b", b"x").end(),
            |seen| assert!(is_whiteout(seen, "a") && seen.text("b") == "x"),
        ),
        harmless(
            "a whiteout, and the same name after it",
            "layer.md",
            "the entry counts: a whiteout hides lower layers only",
            |_| tar().file(".wh.a", b"").file("a", b"x").end(),
            |seen| assert_eq!(seen.text("a"), "x"),
        ),
        harmless(
            "a name, and its whiteout after it",
            "layer.md",
            "the entry counts: a whiteout hides lower layers only",
            |_| tar().file("a", b"x").file(".wh.a", b"").end(),
            |seen| assert_eq!(seen.text("a"), "x"),
        ),
        harmless(
            "a directory and its whiteout, in both orders",
            "containerd#13030, umoci",
            "the directory is there, and nothing of the layers below shows in it",
            |_| {
                tar().file("a/x", b"1").file(".wh.a", b"").file(".wh.b", b"").dir("b").file("b/x", b"2").end()
            },
            |seen| {
                assert!(seen.text("a/x") == "1" && seen.text("b/x") == "2");
                assert!(["a", "b"].iter().all(|name| seen.xattr(name, OPAQUE).is_some()));
            },
        ),
        harmless(
            "a whiteout in an opaque directory",
            "umoci",
            "it hides nothing more, and overlayfs would show it: it is left out",
            |_| tar().file("d/.wh.a", b"").file("d/.wh..wh..opq", b"").file("d/e/.wh.b", b"").end(),
            |seen| assert!(!seen.there("d/a") && !seen.there("d/e/b") && seen.xattr("d", OPAQUE).is_some()),
        ),
        harmless(
            "an opaque mark, ten thousand times",
            "CVE-2026-95838",
            "it says the same again",
            |_| (0..10_000).fold(tar().file("d/x", b"1"), |tar, _| tar.file("d/.wh..wh..opq", b"")).end(),
            |seen| assert!(seen.text("d/x") == "1" && seen.xattr("d", OPAQUE).is_some()),
        ),
        harmless(
            "an opaque directory that becomes a file, and a directory again",
            "CVE-2021-32803 class",
            "nothing of the first is left",
            |_| tar().file("d/.wh..wh..opq", b"").file("d", b"x").dir("d").end(),
            |seen| assert!(seen.meta("d").is_dir() && seen.xattr("d", OPAQUE).is_none()),
        ),
        harmless(
            "overlay's own attributes",
            "overlayfs.rst, umoci",
            "they are left out: the image does not say how its layers are read",
            |_| {
                tar()
                    .pax(&[
                        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
                        ("SCHILY.xattr.trusted.overlay.overlay.opaque", b"y"),
                        ("SCHILY.xattr.trusted.overlay.whiteout", b"y"),
                        ("SCHILY.xattr.user.overlay.opaque", b"y"),
                        ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
                        ("SCHILY.xattr.user.kept", b"1"),
                    ])
                    .dir("d")
                    .end()
            },
            |seen| {
                let mut names = vec![0; 4096];
                let count = rustix::fs::llistxattr(seen.at("d"), &mut names[..]).unwrap();
                let names: Vec<_> =
                    names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
                assert_eq!(names, [&b"user.kept"[..]]);
            },
        ),
        harmless(
            "a directory that is called like a whiteout, with something in it",
            "docker, containerd",
            "only the last part of a path makes a whiteout",
            |_| tar().file(".wh.d/x", b"1").end(),
            |seen| assert_eq!(seen.text(".wh.d/x"), "1"),
        ),
    ]
}
