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
            "it hides a name within the layer",
            |out| tar().symlink("d", &out.absolute).file("d/.wh.secret", b"").end(),
            |seen| assert!(seen.meta("d").is_symlink()),
        ),
        harmless(
            "a whiteout through a link upwards",
            "CVE-2014-9356",
            "it hides a name within the layer",
            |out| tar().symlink("d", &out.relative).file("d/.wh.secret", b"").end(),
            |seen| assert!(is_whiteout(seen, "outside/secret")),
        ),
        harmless(
            "an opaque mark through a link out",
            "CVE-2014-9356",
            "it marks a directory within the layer",
            |out| tar().symlink("d", &out.relative).file("d/.wh..wh..opq", b"").end(),
            |seen| assert_eq!(seen.xattr("outside", OPAQUE).as_deref(), Some(&b"y"[..])),
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
        refused(
            "an opaque mark for the root, through a link",
            "overlayfs.rst",
            "hides all layers below",
            |_| tar().symlink("d", "/").file("d/.wh..wh..opq", b"").end(),
        ),
        refused("an opaque mark below a file", "umoci", "Not a directory", |_| {
            tar().file("d", b"").file("d/.wh..wh..opq", b"").end()
        }),
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
