//! Links, and what goes through them.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::super::forge::{head, tar};
use super::{Row, harmless, refused};

pub fn rows() -> Vec<Row> {
    vec![
        harmless(
            "a file through an absolute link",
            "CVE-2014-9356, CVE-2026-50162",
            "the link's way begins at the layer's root",
            |out| tar().symlink("a", &out.absolute).file("a/secret", b"pwned").end(),
            |seen| assert!(seen.meta("a").is_symlink()),
        ),
        harmless(
            "a file through a link upwards",
            "CVE-2018-20990, CVE-2020-10696, CVE-2026-50162",
            "nothing is above the layer's root",
            |out| tar().symlink("a", &out.relative).file("a/secret", b"pwned").end(),
            |seen| assert_eq!(seen.text("outside/secret"), "pwned"),
        ),
        harmless(
            "a file through two links, each within the layer",
            "CVE-2021-38511",
            "nothing is above the layer's root",
            |out| {
                tar()
                    .dir("d")
                    .symlink("d/up", "..")
                    .symlink("b", format!("d/up/{}", out.relative))
                    .file("b/secret", b"pwned")
                    .end()
            },
            |seen| assert_eq!(seen.text("outside/secret"), "pwned"),
        ),
        harmless(
            "a file in place of a link out",
            "CVE-2018-20990",
            "it takes the link's place",
            |out| tar().symlink("a", format!("{}/secret", out.absolute)).file("a", b"x").end(),
            |seen| assert_eq!(seen.text("a"), "x"),
        ),
        harmless(
            "a directory in place of a link out, open to all",
            "CVE-2021-32760, CVE-2026-33056",
            "it takes the link's place, and its mode is its own",
            |out| {
                tar()
                    .symlink("d", format!("{}/dir", out.absolute))
                    .head(head(b'5', "d").mode(0o777).owner(7))
                    .end()
            },
            |seen| assert!(seen.meta("d").is_dir() && seen.meta("d").mode() & 0o7777 == 0o777),
        ),
        harmless(
            "attributes for a link out",
            "CVE-2021-32760",
            "owner and times are the link's, extended attributes are left out",
            |out| {
                let target = format!("{}/secret", out.absolute);
                tar()
                    .pax(&[
                        ("linkpath", target.as_bytes()),
                        ("SCHILY.xattr.user.canary", b"changed"),
                        ("mtime", b"5"),
                        ("uid", b"12345"),
                    ])
                    .head(head(b'2', "s").mode(0o666))
                    .end()
            },
            |seen| assert_eq!((seen.meta("s").uid(), seen.meta("s").mtime()), (12_345, 5)),
        ),
        harmless(
            "the time of a directory that became a link out",
            "CVE-2021-32760 class",
            "the time goes to no link's target",
            |out| tar().head(head(b'5', "d").time(5)).symlink("d", format!("{}/dir", out.absolute)).end(),
            |seen| assert!(seen.meta("d").is_symlink()),
        ),
        harmless(
            "a directory that was seen, and is a link out by then",
            "CVE-2021-32803, CVE-2025-47290",
            "nothing goes through what is no longer there",
            |out| {
                tar()
                    .file("d/e/x", b"1")
                    .dir("f")
                    .symlink("f", format!("{}/dir", out.absolute))
                    .file("f/secret", b"pwned")
                    .end()
            },
            |seen| assert!(seen.meta("f").is_symlink() && seen.text("d/e/x") == "1"),
        ),
        harmless(
            "a file through the kernel's magic links",
            "CVE-2026-41579, proc(5)",
            "`/proc` is a name of the layer like others",
            |out| {
                tar()
                    .symlink("c", "/proc/self/cwd")
                    .file("c/x", b"1")
                    .symlink("r", format!("/proc/self/root{}", out.absolute))
                    .file("r/secret", b"pwned")
                    .end()
            },
            |seen| assert_eq!(seen.text("proc/self/cwd/x"), "1"),
        ),
        refused("a loop of links", "path_resolution(7)", "symbolic links", |_| {
            tar().symlink("a", "b").symlink("b", "a").file("a/x", b"1").end()
        }),
        refused("41 links on one way", "path_resolution(7)", "symbolic links", |_| {
            (0..41)
                .fold(tar(), |tar, n| tar.symlink(format!("l{n}"), format!("l{}", n + 1)))
                .file("l0/x", b"1")
                .end()
        }),
        refused("a way that doubles with each link", "path_resolution(7)", "symbolic links", |_| {
            (0..40)
                .fold(tar(), |tar, n| tar.symlink(format!("l{n}"), format!("l{0}/../l{0}", n + 1)))
                .file("l0/x", b"1")
                .end()
        }),
        refused(
            "a tree deeper than any path, by links that lead on",
            "found here: what cannot be removed",
            "more than 256 parts",
            |_| {
                let deep = |from: &str, parts: usize| format!("{from}{}", "d/".repeat(parts));
                (1..4)
                    .fold(tar().symlink("l0", deep("", 2000)), |tar, n| {
                        tar.symlink(format!("l{n}"), deep(&format!("l{}/", n - 1), 2000))
                    })
                    .file("l3/x", b"1")
                    .end()
            },
        ),
        refused(
            "a name longer than any path, by links that lead on",
            "found here",
            "more than 4096 bytes",
            |_| {
                let name = format!("{}/", "n".repeat(250));
                tar()
                    .symlink("a", name.repeat(15))
                    .symlink("b", format!("a/{}", name.repeat(3)))
                    .file(format!("b/{}", "x".repeat(90)), b"1")
                    .end()
            },
        ),
        refused(
            "a list of gigabytes: short names of long paths, by a link",
            "found here",
            "a list of its paths of more than 268435456 bytes",
            |_| {
                let far = tar().symlink("d", format!("{}/", "n".repeat(250)).repeat(15)).file("d/0", b"");
                (1..36_000).fold(far, |tar, n| tar.hardlink(format!("d/{n}"), "d/0")).end()
            },
        ),
        refused(
            "a memory of gigabytes: directories with long paths, by a link",
            "found here",
            "directories whose paths take more than 33554432 bytes",
            |_| {
                let far = tar().symlink("d", format!("{}/", "n".repeat(250)).repeat(15));
                (0..10_000).fold(far, |tar, n| tar.dir(format!("d/{n}"))).end()
            },
        ),
        refused("a link to nothing", "GNU tar", "a link to nothing", |_| tar().symlink("a", "").end()),
        refused("a link with a NUL in it", "C strings", "a link to nothing", |_| {
            tar().pax(&[("linkpath", b"a\0b")]).head(head(b'2', "l")).end()
        }),
        refused("a link of 4,096 bytes", "symlink(2)", "ame too long", |_| {
            tar().pax(&[("linkpath", &[b'x'; 4096])]).head(head(b'2', "l")).end()
        }),
        refused("a hard link upwards", "CVE-2026-50163", "leads out of the layer", |out| {
            tar().hardlink("a", format!("{}/secret", out.relative)).end()
        }),
        refused(
            "a hard link to the host's file",
            "CVE-2026-50163",
            "which this layer does not have",
            |out| tar().hardlink("a", format!("{}/secret", out.absolute)).end(),
        ),
        refused(
            "a hard link through a link out",
            "CVE-2026-50163",
            "which this layer does not have",
            |out| tar().symlink("d", &out.absolute).hardlink("a", "d/secret").end(),
        ),
        refused(
            "a hard link through a link upwards",
            "CVE-2026-50163",
            "which this layer does not have",
            |out| tar().symlink("d", &out.relative).hardlink("a", "d/secret").end(),
        ),
        harmless(
            "a hard link to a link out",
            "CVE-2026-50163",
            "it is another name of the link",
            |out| tar().symlink("s", format!("{}/secret", out.absolute)).hardlink("h", "s").end(),
            |seen| assert!(seen.meta("h").is_symlink() && seen.meta("h").ino() == seen.meta("s").ino()),
        ),
        refused(
            "a file written over such a name",
            "CVE-2026-50163",
            "other names were linked to it",
            |out| {
                tar()
                    .symlink("s", format!("{}/secret", out.absolute))
                    .hardlink("h", "s")
                    .file("h", b"pwned")
                    .end()
            },
        ),
        refused(
            "a hard link to an entry behind it",
            "GNU tar, docker",
            "which this layer does not have",
            |_| tar().hardlink("a", "b").file("b", b"x").end(),
        ),
        refused(
            "a hard link to a file of the layers below",
            "layer.md",
            "which this layer does not have",
            |_| tar().hardlink("a", "etc/passwd").end(),
        ),
        refused("a hard link to itself", "GNU tar", "which this layer does not have", |_| {
            tar().hardlink("a", "a").end()
        }),
        harmless(
            "a hard link to the file of its own name",
            "GNU tar",
            "the file stays",
            |_| tar().file("a", b"x").hardlink("a", "./a").end(),
            |seen| assert_eq!(seen.text("a"), "x"),
        ),
        refused("a hard link to a directory", "linkat(2)", "which is no file", |_| {
            tar().dir("d").hardlink("a", "d").end()
        }),
        refused("a hard link to the root", "linkat(2)", "a hard link to a directory", |_| {
            tar().hardlink("a", "/").end()
        }),
        refused("a hard link to a whiteout", "overlayfs.rst", "which is no file", |_| {
            tar().file(".wh.a", b"").hardlink("b", "a").end()
        }),
        refused("a hard link to nothing", "GNU tar", "a link to nothing", |_| tar().hardlink("a", "").end()),
        harmless(
            "a hard link that says another owner and mode",
            "CVE-2021-32760 class",
            "the file keeps what its own entry said",
            |_| {
                tar()
                    .entry(head(b'0', "su").mode(0o755), b"x")
                    .head(head(b'1', "l").link("su").mode(0o4777).owner(1000))
                    .end()
            },
            |seen| assert_eq!((seen.meta("su").mode() & 0o7777, seen.meta("su").uid()), (0o755, 0)),
        ),
        harmless(
            "a file below a link to a directory of the layer",
            "docker, usrmerge",
            "it goes where a container would see it",
            |_| tar().dir("usr/bin").symlink("bin", "usr/bin").file("bin/x", b"1").end(),
            |seen| assert!(seen.meta("bin").is_symlink() && seen.text("usr/bin/x") == "1"),
        ),
        harmless(
            "a link to a directory that is not there",
            "docker, usrmerge",
            "the directory is made within the layer",
            |_| tar().symlink("bin", "/usr/bin").file("bin/x", b"1").end(),
            |seen| assert_eq!(fs::read_link(seen.at("bin")).unwrap().to_str(), Some("/usr/bin")),
        ),
    ]
}
