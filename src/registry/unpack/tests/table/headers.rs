//! Headers that two readers of tar take for two archives: one could be shown to a scanner, the other to this host. The
//! first nine were tried against three crates, GNU tar and Python's `tarfile`, and no two of these agree on all.

use super::super::forge::{MAGIC, PREFIX, SIZE, SUM, Tar, head, pax, tar};
use super::{Row, harmless, refused};

/// An archive of one entry, to be hidden in the content of another.
fn inner() -> Vec<u8> {
    Tar::default().file("hidden", b"").0
}

pub fn rows() -> Vec<Row> {
    vec![
        refused("A: an extended size over a size of nothing", "CVE-2026-33055", "two of `size`", |_| {
            tar().pax(&[("size", b"512")]).file("a", b"").raw(inner()).end()
        }),
        refused("B: an extended size of nothing over a size", "CVE-2025-62518", "two of `size`", |_| {
            tar().pax(&[("size", b"0")]).entry(head(b'0', "a"), inner()).end()
        }),
        harmless(
            "C: a long name between extended header and file, of one mind",
            "CVE-2025-62518, GHSA-fp55-jw48-c537, GHSA-3cv2-h65g-fgmm",
            "the size is the file's, never the long name's",
            |_| tar().pax(&[("size", b"512")]).long(b'L', "b").entry(head(b'0', "a"), inner()).end(),
            |seen| assert_eq!((seen.names(), seen.meta("b").len()), (vec!["b".to_owned()], 512)),
        ),
        refused(
            "C: the same, and they differ",
            "CVE-2025-62518, GHSA-fp55-jw48-c537, GHSA-3cv2-h65g-fgmm",
            "two of `size`",
            |_| tar().pax(&[("size", b"1024")]).long(b'L', "b").entry(head(b'0', "a"), inner()).end(),
        ),
        refused("D: a link with a size", "Python tarfile", "with content", |_| {
            tar().entry(head(b'2', "a").link("b"), inner()).end()
        }),
        refused("E: a block of zeros in the middle", "tar-core 0.1.0", "behind the archive's end", |_| {
            tar().file("a", b"").raw([0; 512]).file("b", b"").end()
        }),
        refused("F: two extended sizes", "tar 0.4.46", "`size` twice", |_| {
            tar().pax(&[("size", b"0"), ("size", b"512")]).entry(head(b'0', "a"), inner()).end()
        }),
        refused("G: an extended size of 2^64 - 1", "tar-core 0.1.0, GNU tar", "end of file", |_| {
            tar().pax(&[("size", b"18446744073709551615")]).file("a", b"").raw(inner()).end()
        }),
        refused("H: a size for all entries", "tar 0.4.46, astral-tokio-tar", "a global header", |_| {
            tar().entry(head(b'g', "g"), pax(&[("size", b"512")])).file("a", b"").raw(inner()).end()
        }),
        refused("I: a hard link with a size", "GNU tar, Python tarfile", "with content", |_| {
            tar().file("a", b"").entry(head(b'1', "b").link("a"), inner()).end()
        }),
        refused("a global header that says nothing", "git archive", "a global header", |_| {
            tar().entry(head(b'g', "g"), pax(&[("comment", b"x")])).file("a", b"").end()
        }),
        refused("a directory with a size", "Python tarfile, Go", "with content", |_| {
            tar().entry(head(b'5', "d"), inner()).end()
        }),
        refused("a pipe with a size", "Python tarfile, Go", "with content", |_| {
            tar().entry(head(b'6', "p"), inner()).end()
        }),
        refused(
            "a file whose name ends like a directory's",
            "GNU tar, Python tarfile",
            "readers differ",
            |_| tar().entry(head(b'0', "d/"), inner()).end(),
        ),
        refused("the same in the oldest form", "GNU tar, Python tarfile", "readers differ", |_| {
            tar().entry(head(0, "d/").v7(), inner()).end()
        }),
        refused("the same in a long name", "GNU tar, Python tarfile", "readers differ", |_| {
            tar().long(b'L', "d/").entry(head(b'0', "d"), inner()).end()
        }),
        refused("data behind the end", "CVE-2025-62518 class", "behind the archive's end", |_| {
            tar().file("a", b"").raw([0; 1024]).file("b", b"").end()
        }),
        refused("one byte far behind the end", "CVE-2025-62518 class", "behind the archive's end", |_| {
            tar().file("a", b"").raw([0; 100_000]).raw(b"\x01").0
        }),
        harmless(
            "zeros behind the end",
            "GNU tar's blocking factor",
            "they are passed over, also where the last block is not whole",
            |_| tar().file("a", b"x").raw([0; 10_240 + 77]).0,
            |seen| assert_eq!(seen.names(), ["a"]),
        ),
        harmless(
            "no end at all",
            "GNU tar, many writers",
            "the stream's end is the end, and the layer's digest vouches for it",
            |_| tar().file("a", b"x").0,
            |seen| assert_eq!(seen.names(), ["a"]),
        ),
        harmless(
            "no end, and a last content that is not filled up to a block",
            "umoci insert",
            "the content is whole, and the stream's end is the end",
            |_| tar().file("a", b"x").head(head(b'0', "b").size(3)).raw(b"abc").0,
            |seen| assert_eq!(seen.text("a") + &seen.text("b"), "xabc"),
        ),
        harmless(
            "no end, and half of the zeros behind the last content",
            "writers that are cut off",
            "the content is whole, and the stream's end is the end",
            |_| tar().head(head(b'0', "a").size(3)).raw(b"abc").raw([0; 200]).0,
            |seen| assert_eq!(seen.text("a"), "abc"),
        ),
        refused("a last content that is one byte short", "truncation", "end of file", |_| {
            tar().head(head(b'0', "a").size(3)).raw(b"ab").0
        }),
        refused(
            "an extended header that is not filled up to a block",
            "truncation",
            "fill whole buffer",
            |_| tar().head(head(b'x', "x").size(8)).raw(b"8 a=bcd\n").0,
        ),
        harmless(
            "nothing",
            "CVE-2026-24054",
            "an empty layer",
            |_| Vec::new(),
            |seen| assert!(seen.names().is_empty()),
        ),
        harmless(
            "an end, and nothing before it",
            "docker",
            "an empty layer",
            |_| tar().end(),
            |seen| {
                assert!(seen.names().is_empty());
            },
        ),
        refused("something that is no archive", "fuzzing", "not a tar header", |_| vec![b'x'; 2048]),
        refused("less than a block", "fuzzing", "fill whole buffer", |_| vec![b'x'; 511]),
        refused("a checksum that is wrong", "pax(1)", "its checksum does not match", |_| {
            tar().head(head(b'0', "a").put(SUM, "000000\0 ").unsummed()).end()
        }),
        refused(
            "a checksum over signed bytes",
            "old Sun tar; GNU tar takes it",
            "its checksum does not match",
            |_| {
                let head = head(b'0', b"caf\xe9");
                let sum = head.sum() - 256;
                tar().head(head.put(SUM, format!("{sum:06o}\0 ")).unsummed()).end()
            },
        ),
        refused("a size below nothing", "GNU tar, Go", "a size that is no number", |_| {
            tar().head(head(b'0', "a").gnu().put(SIZE, [0xff; 12])).end()
        }),
        refused("a size with a minus sign", "GNU tar, Python tarfile", "a size that is no number", |_| {
            tar().head(head(b'0', "a").put(SIZE, "-0000000001\0")).end()
        }),
        refused("a size beyond 64 bits", "GNU tar, Go", "a size that is no number", |_| {
            tar()
                .head(head(b'0', "a").gnu().put(SIZE, b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
                .end()
        }),
        refused("a size of 2^63 in 12 bytes", "GNU tar, Go", "a size that is no number", |_| {
            tar().head(head(b'0', "a").gnu().put(SIZE, b"\x80\0\0\0\x80\0\0\0\0\0\0\0")).end()
        }),
        refused("a size of more than there is", "truncation", "end of file", |_| {
            tar().head(head(b'0', "a").size(0o777_7777_7777)).data(b"x").end()
        }),
        refused("a size with letters", "Python tarfile, Go", "a size that is no number", |_| {
            tar().head(head(b'0', "a").put(SIZE, "0000000001x\0")).data(b"x").end()
        }),
        refused("a size of two numbers", "GNU tar, Python tarfile", "a size that is no number", |_| {
            tar().head(head(b'0', "a").put(SIZE, "00001 00002\0")).data(b"x").end()
        }),
        refused("a size in decimal digits", "Python tarfile, Go", "a size that is no number", |_| {
            tar().head(head(b'0', "a").put(SIZE, "00000000008\0")).data(b"x").end()
        }),
        harmless(
            "a size in base 256, of blanks and digits, without an end",
            "GNU tar, Go",
            "forms that all readers take the same way",
            |_| {
                tar()
                    .head(head(b'0', "a").gnu().put(SIZE, b"\x80\0\0\0\0\0\0\0\0\0\0\x01"))
                    .data(b"1")
                    .head(head(b'0', "b").put(SIZE, "          1 "))
                    .data(b"2")
                    .head(head(b'0', "c").put(SIZE, "000000000001"))
                    .data(b"3")
                    .end()
            },
            |seen| assert_eq!(seen.text("a") + &seen.text("b") + &seen.text("c"), "123"),
        ),
        refused("an extended header without a mark", "tar 0.4.46", "without a mark", |_| {
            tar().entry(head(b'x', "x").v7(), pax(&[("path", b"b")])).file("a", b"").end()
        }),
        refused("an extended header with half a mark", "tar 0.4.46", "without a mark", |_| {
            tar()
                .entry(head(b'x', "x").put(MAGIC, "ustar\0\0\0"), pax(&[("path", b"b")]))
                .file("a", b"")
                .end()
        }),
        refused("a long name without a mark", "tar 0.4.46", "without a mark", |_| {
            tar().entry(head(b'L', "././@LongLink").v7(), b"b\0").file("a", b"").end()
        }),
        refused("GNU's mark, and a prefix", "Go, Python tarfile", "readers", |_| {
            tar().entry(head(b'0', "a").gnu().put(PREFIX, "outside"), b"x").end()
        }),
        refused("no mark, and a prefix", "Python tarfile", "readers", |_| {
            tar().entry(head(b'0', "a").v7().put(PREFIX, "outside"), b"x").end()
        }),
        refused("a mark of its own, and a prefix", "libarchive, Python tarfile", "readers", |_| {
            tar().entry(head(b'0', "a").put(MAGIC, "ustar123").put(PREFIX, "outside"), b"x").end()
        }),
        refused("a mark without a version, and a prefix", "tar 0.4.46", "readers", |_| {
            tar().entry(head(b'0', "a").put(MAGIC, "ustar\0\0\0").put(PREFIX, "outside"), b"x").end()
        }),
        refused("star's mark behind the prefix", "star, Go", "readers", |_| {
            let prefix = [b'p'; 140];
            tar().entry(head(b'0', "a").put(PREFIX, prefix).put(508, "tar\0"), b"x").end()
        }),
        harmless(
            "a prefix as POSIX has it",
            "pax(1)",
            "it is the front of the name",
            |_| tar().entry(head(b'0', "a").put(PREFIX, "p/q"), b"x").end(),
            |seen| assert_eq!(seen.text("p/q/a"), "x"),
        ),
        refused("a sparse file as GNU writes it", "CVE-2025-58183", "a sparse file", |_| {
            tar().head(head(b'S', "a").gnu().put(483, "00000001000\0")).end()
        }),
        refused("a sparse map without end", "CVE-2026-32288, CVE-2025-58183", "a sparse file", |_| {
            tar().head(head(b'S', "a").gnu().put(482, [1])).raw([0xff; 4096]).end()
        }),
        refused("two long names", "Python tarfile, Go", "two long names", |_| {
            tar().long(b'L', "a").long(b'L', "b").file("c", b"").end()
        }),
        refused(
            "a long name without its NUL",
            "Python tarfile, GNU tar",
            "a long name that does not end",
            |_| tar().entry(head(b'L', "././@LongLink").gnu(), b"name").file("a", b"").end(),
        ),
        refused("a long name of nothing", "Python tarfile, GNU tar", "a long name that does not end", |_| {
            tar().entry(head(b'L', "././@LongLink").gnu(), b"\0").file("a", b"").end()
        }),
        refused("a long name at the end", "Go, Python tarfile", "a header that nothing follows", |_| {
            tar().long(b'L', "a").end()
        }),
        refused("a long name of two gibibytes", "CVE-2022-2879", "headers of more than", |_| {
            tar().head(head(b'L', "././@LongLink").gnu().size(2 << 30)).end()
        }),
        refused("a long link and an extended one that differ", "Go, tar 0.4.46", "two of its names", |_| {
            tar().pax(&[("linkpath", b"a")]).long(b'K', "b").head(head(b'2', "l").link("c")).end()
        }),
        refused("a long name and an extended one that differ", "Go, tar 0.4.46", "two of its names", |_| {
            tar().pax(&[("path", b"a")]).long(b'L', "b").file("c", b"").end()
        }),
    ]
}
