//! PAX records (pax(1), "pax Extended Header").

use super::super::forge::{head, pax, tar};
use super::{Outside, Row, harmless, refused};

const BROKEN: &str = "a PAX header that is broken";
const TWICE: &str = "twice, which readers take differently";

/// One file behind an extended header of these bytes.
fn raw(records: impl AsRef<[u8]>) -> Vec<u8> {
    tar().entry(head(b'x', "x"), records).file("a", b"x").end()
}

fn one(key: &str, value: &[u8]) -> Vec<u8> {
    raw(pax(&[(key, value)]))
}

fn twice(key: &str, first: &[u8], second: &[u8]) -> Vec<u8> {
    tar().entry(head(b'x', "x"), pax(&[(key, first), (key, second)])).head(head(b'2', "a").link("b")).end()
}

/// How an archive is made.
type Archive = fn(&Outside) -> Vec<u8>;

/// Rows that differ only in the archive.
fn each(source: &'static str, part: &'static str, rows: &[(&'static str, Archive)]) -> Vec<Row> {
    rows.iter().map(|(name, archive)| refused(name, source, part, *archive)).collect()
}

pub fn rows() -> Vec<Row> {
    let mut rows = vec![
        harmless(
            "a value that looks like records",
            "tar 0.4.46 (issues 428, 452)",
            "it is a value: records go by their lengths",
            |_| one("SCHILY.xattr.user.note", b"a\n12 path=sly\n10 size=0\n"),
            |seen| {
                assert_eq!(seen.text("a"), "x");
                assert_eq!(
                    seen.xattr("a", "user.note").as_deref(),
                    Some(&b"a\n12 path=sly\n10 size=0\n"[..])
                );
            },
        ),
        harmless(
            "a capability with a newline among its bytes",
            "tar 0.4.46 (issue 428)",
            "it is kept bit by bit",
            |_| one("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            |seen| {
                let found = seen.xattr("a", "security.capability").unwrap();
                assert_eq!(found, b"\x01\0\0\x02\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
            },
        ),
        harmless(
            "keys that nobody knows, and charsets",
            "pax(1)",
            "they are passed over",
            |_| {
                raw(pax(&[
                    ("comment", b"x"),
                    ("hdrcharset", b"BINARY"),
                    ("charset", b"x"),
                    ("VENDOR.key", b"\xff\n\0"),
                    ("SCHILY.realsize", b"9999"),
                    ("LIBARCHIVE.xattr.user.a", b"eA=="),
                    ("uname", b"root"),
                    ("atime", b"junk"),
                    ("ctime", b"-"),
                    ("SCHILY.devmajor", b"8"),
                    ("SCHILY.filetype", b"device"),
                ]))
            },
            |seen| assert_eq!((seen.text("a"), seen.xattr("a", "user.a")), ("x".to_owned(), None)),
        ),
        refused(
            "two extended headers for one entry",
            "Go, GNU tar, Python tarfile",
            "two PAX headers",
            |_| tar().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("c", b"").end(),
        ),
        refused(
            "an extended header at the end",
            "Go, Python tarfile",
            "a header that nothing follows",
            |_| tar().pax(&[("path", b"a")]).end(),
        ),
        refused(
            "an extended header of more than a mebibyte",
            "CVE-2022-2879",
            "headers of more than",
            |_| one("comment", &vec![b'x'; 1 << 20]),
        ),
        refused(
            "an extended header that says two gibibytes",
            "CVE-2022-2879",
            "headers of more than",
            |_| tar().head(head(b'x', "x").size(2 << 30)).end(),
        ),
        refused("an extended header of 2^62 bytes", "CVE-2022-2879", "headers of more than", |_| {
            tar().head(head(b'x', "x").put(124, b"\x80\0\0\0\x40\0\0\0\0\0\0\0")).end()
        }),
        refused("a name that is deleted", "pax(1), Go, Python tarfile", "a name that is none", |_| {
            one("path", b"")
        }),
        refused("a link that is deleted", "pax(1), Go, Python tarfile", "a link to nothing", |_| {
            tar().pax(&[("linkpath", b"")]).head(head(b'2', "a").link("b")).end()
        }),
    ];
    rows.extend(each(
        "CVE-2025-58183, CVE-2026-32288",
        "a sparse file",
        &[
            ("a sparse file, PAX 0.0", |_| {
                raw(pax(&[
                    ("GNU.sparse.size", b"9999"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.offset", b"0"),
                ]))
            }),
            ("a sparse file, PAX 0.1", |_| {
                raw(pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"9999")]))
            }),
            ("a sparse file, PAX 1.0", |_| {
                raw(pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"9999"),
                ]))
            }),
            ("a sparse file's other name", |_| one("GNU.sparse.name", b"../../x")),
        ],
    ));
    rows.extend(each(
        "tar 0.4.46 takes the first, others the last",
        TWICE,
        &[
            ("`path` twice", |_| twice("path", b"a", b"b")),
            ("`linkpath` twice", |_| twice("linkpath", b"a", b"b")),
            ("`size` twice", |_| twice("size", b"0", b"0")),
            ("`uid` twice", |_| twice("uid", b"0", b"1")),
            ("`gid` twice", |_| twice("gid", b"0", b"1")),
            ("`mtime` twice", |_| twice("mtime", b"0", b"1")),
            ("an attribute twice", |_| twice("SCHILY.xattr.user.a", b"0", b"1")),
            ("a key that nobody knows twice", |_| twice("comment", b"0", b"1")),
        ],
    ));
    rows.extend(each(
        "CVE-2026-32766, GNU tar, Go, Python tarfile",
        BROKEN,
        &[
            ("a length that is too small", |_| raw(b"8 path=b\n")),
            ("a length that is too large", |_| raw(b"11 path=b\n")),
            ("a length of nothing", |_| raw(b"0 path=b\n")),
            ("a length below nothing", |_| raw(b"-9 path=b\n")),
            ("a length with a plus sign", |_| raw(b"+10 path=b\n")),
            ("a length beyond 64 bits", |_| raw(b"18446744073709551625 path=b\n")),
            ("a length that is no number", |_| raw(b"x path=b\n")),
            ("no length", |_| raw(b" path=b\n")),
            ("no key", |_| raw(b"5 =b\n")),
            ("no `=`", |_| raw(b"8 pathb\n")),
            ("no newline", |_| raw(b"9 path=bc")),
            ("NULs behind the records", |_| raw(b"9 path=b\n\0\0\0")),
        ],
    ));
    rows.extend(each(
        "tar 0.4.46, Go, Python tarfile",
        "a PAX header with a",
        &[
            ("a size that is no number", |_| one("size", b"1x")),
            ("a size with a plus sign", |_| one("size", b"+1")),
            ("a size below nothing", |_| one("size", b"-1")),
            ("a size with a blank", |_| one("size", b" 1")),
            ("a size of hexadecimal digits", |_| one("size", b"0x1")),
            ("a size that is deleted", |_| one("size", b"")),
            ("a size beyond 64 bits", |_| one("size", b"18446744073709551617")),
            ("an owner below nothing", |_| one("uid", b"-1")),
            ("an owner that is no number", |_| one("uid", b"root")),
            ("a group that is deleted", |_| one("gid", b"")),
            ("a time that is no number", |_| one("mtime", b"nan")),
            ("a time without end", |_| one("mtime", b"inf")),
            ("a time in exponents", |_| one("mtime", b"1e9")),
            ("a time of two points", |_| one("mtime", b"1.2.3")),
            ("a time beyond 64 bits", |_| one("mtime", b"9223372036854775808")),
        ],
    ));
    rows
}
