//! Names that lead out of the layer, or are none.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::super::forge::{PREFIX, head, tar};
use super::{Row, harmless, refused};

const OUT: &str = "leads out of the layer";

pub fn rows() -> Vec<Row> {
    vec![
        refused("`..` at the front", "CVE-2007-4559, CVE-2001-1267", OUT, |out| {
            tar().named(format!("{}/secret", out.relative), b"x").end()
        }),
        refused("`..` in the middle", "CVE-2007-4559, CVE-2001-1267", OUT, |out| {
            tar().dir("a").named(format!("a/../{}/secret", out.relative), b"x").end()
        }),
        refused("`..` at the end", "CVE-2007-4559, CVE-2001-1267", OUT, |_| {
            tar().head(head(b'5', "a/..").mode(0o777)).end()
        }),
        refused("`..` in the old header", "CVE-2007-4559, CVE-2001-1267", OUT, |_| {
            tar().file("../outside/secret", b"x").end()
        }),
        refused("`..` in a GNU long name", "CVE-2007-4559, CVE-2001-1267", OUT, |out| {
            tar().long(b'L', format!("{}/secret", out.relative)).file("a", b"x").end()
        }),
        refused("`..` in the prefix field", "CVE-2007-4559, CVE-2001-1267", OUT, |_| {
            tar().entry(head(b'0', "outside/secret").put(PREFIX, ".."), b"x").end()
        }),
        refused("`..` behind an absolute path", "CVE-2007-4559, CVE-2001-1267", OUT, |out| {
            tar().named(format!("/x/..{}/secret", out.absolute), b"x").end()
        }),
        harmless(
            "an absolute path",
            "CVE-2014-9356, CVE-2021-32804",
            "`/` is the layer's root",
            |out| tar().named(format!("{}/secret", out.absolute), b"x").file("/etc/passwd", b"y").end(),
            |seen| assert_eq!(seen.text("etc/passwd"), "y"),
        ),
        harmless(
            "more slashes than one, and dots between them",
            "umoci",
            "they mean what one slash means",
            |_| tar().file("//a/.//./b", b"x").dir("./a//").end(),
            |seen| assert_eq!(seen.text("a/b"), "x"),
        ),
        refused("the root as a link: `/.`", "CVE-2021-29136", "in place of the layer's root", |out| {
            tar().symlink("/.", &out.absolute).file("secret", b"x").end()
        }),
        refused("the root as a link: `.`", "CVE-2021-29136", "in place of the layer's root", |out| {
            tar().symlink(".", &out.relative).end()
        }),
        refused("the root as a hard link", "CVE-2021-29136", "in place of the layer's root", |_| {
            tar().file("a", b"x").hardlink("./", "a").end()
        }),
        refused("the root as a file", "CVE-2021-29136", "readers differ", |_| tar().file("./", b"x").end()),
        refused("the root as a pipe", "CVE-2021-29136", "in place of the layer's root", |_| {
            tar().head(head(b'6', ".")).end()
        }),
        refused("no name at all", "GNU tar, libarchive", "a name that is none", |_| {
            tar().file("", b"x").end()
        }),
        refused("a NUL in an extended name", "C strings", "a name that is none", |_| {
            tar().named(b"a\0/../../x", b"x").end()
        }),
        refused("a NUL in a GNU long name", "C strings", "a long name that does not end", |_| {
            tar().long(b'L', b"a\0b").file("c", b"x").end()
        }),
        harmless(
            "bytes behind the NUL of a name",
            "Python tarfile",
            "a name ends at its NUL",
            |_| tar().file(b"a\0/../../outside/secret", b"x").end(),
            |seen| assert_eq!(seen.names(), ["a"]),
        ),
        harmless(
            "newlines, escapes and blanks in a name",
            "GNU tar quoting",
            "they are bytes of the name, and no message shows them raw",
            |_| tar().named(b"a\n\x1b[2J\r b", b"x").end(),
            |seen| assert_eq!(seen.text("a\n\x1b[2J\r b"), "x"),
        ),
        refused("a terminal's escapes in a name that is refused", "log injection", OUT, |_| {
            tar().named(b"\x1b]0;x\x07\n<0>forged line\n/../x", b"x").end()
        }),
        harmless(
            "a name that is not UTF-8",
            "Python tarfile",
            "its bytes are the name",
            |_| tar().file(b"caf\xe9\xff", b"x").end(),
            |seen| assert_eq!(seen.text(OsStr::from_bytes(b"caf\xe9\xff")), "x"),
        ),
        harmless(
            "names that differ in case",
            "CVE-2021-37712, CVE-2021-21300",
            "they are two names",
            |out| tar().symlink("A", &out.absolute).dir("a").file("a/x", b"1").end(),
            |seen| assert!(seen.meta("A").is_symlink() && seen.text("a/x") == "1"),
        ),
        harmless(
            "names that are one in Unicode's normal forms",
            "CVE-2021-37712",
            "they are two names",
            |out| tar().symlink("caf\u{e9}", &out.absolute).file("cafe\u{301}/x", b"1").end(),
            |seen| assert!(seen.meta("caf\u{e9}").is_symlink() && seen.text("cafe\u{301}/x") == "1"),
        ),
        harmless(
            "slashes of another system",
            "CVE-2021-37713",
            "`\\` and `:` are bytes of the name",
            |_| tar().file("..\\..\\x", b"x").file("C:\\x", b"x").end(),
            |seen| assert_eq!(seen.names(), ["..\\..\\x", "C:\\x"]),
        ),
        harmless(
            "names that begin with dots",
            "over-eager filters",
            "only `.` and `..` are special",
            |_| tar().file("..a", b"x").file("...", b"x").end(),
            |seen| assert_eq!(seen.names(), ["...", "..a"]),
        ),
        harmless(
            "a name of 255 bytes",
            "ext4",
            "it is a name",
            |_| tar().named(vec![b'n'; 255], b"x").end(),
            |seen| assert_eq!(seen.text("n".repeat(255)), "x"),
        ),
        refused("a name of 256 bytes", "ext4", "ame too long", |_| tar().named(vec![b'n'; 256], b"x").end()),
        refused("a path of 4,097 bytes", "path_resolution(7)", "more than 4096 bytes", |_| {
            tar().named("ab/".repeat(1366) + "x", b"").end()
        }),
        refused("a path of 257 parts", "limits", "more than 256 parts", |_| {
            tar().named(format!("{}x", "d/".repeat(256)), b"x").end()
        }),
        harmless(
            "a path of 256 parts",
            "limits",
            "it is unpacked",
            |_| tar().named(format!("{}x", "d/".repeat(255)), b"x").end(),
            |seen| assert_eq!(seen.text(format!("{}x", "d/".repeat(255))), "x"),
        ),
        harmless(
            "the host's own places",
            "CVE-2026-41579",
            "they are directories of the layer",
            |_| tar().file("proc/self/exe", b"x").file("dev/null", b"x").file("sys/kernel/x", b"x").end(),
            |seen| assert_eq!(seen.text("dev/null"), "x"),
        ),
    ]
}
