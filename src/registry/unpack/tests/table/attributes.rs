//! Owners, modes, times and extended attributes: what a container may have, and what is the host's alone.

use std::os::unix::fs::MetadataExt;

use super::super::forge::{GID, MODE, MTIME, THEN, UID, head, tar};
use super::{Row, harmless, refused};

fn xattr(name: &str, value: &[u8]) -> Vec<u8> {
    tar().pax(&[(&format!("SCHILY.xattr.{name}"), value)]).file("a", b"x").end()
}

pub fn rows() -> Vec<Row> {
    vec![
        harmless(
            "set-user-id, set-group-id and sticky",
            "CVE-2021-41091, CVE-2021-41103, CVE-2024-25621",
            "they are kept for the container; the store is closed to everybody else",
            |_| tar().entry(head(b'0', "su").mode(0o6755), b"x").head(head(b'5', "tmp").mode(0o1777)).end(),
            |seen| {
                assert_eq!(seen.meta("su").mode() & 0o7777, 0o6755);
                assert_eq!(seen.meta("tmp").mode() & 0o7777, 0o1777);
            },
        ),
        harmless(
            "a mode with more than twelve bits",
            "old writers",
            "the kind is the header's own",
            |_| tar().entry(head(b'0', "a").put(MODE, "0120644\0"), b"x").end(),
            |seen| assert_eq!((seen.text("a"), seen.meta("a").mode() & 0o7777), ("x".to_owned(), 0o644)),
        ),
        refused("a mode that is no number", "Python tarfile, Go", "a mode that is no number", |_| {
            tar().entry(head(b'0', "a").put(MODE, "rwxr-xr\0"), b"x").end()
        }),
        refused("the highest owner, which chown takes for none", "chown(2)", "an owner or group", |_| {
            tar().pax(&[("uid", b"4294967295")]).file("a", b"x").end()
        }),
        refused("the highest group, in base 256", "chown(2)", "an owner or group", |_| {
            tar().entry(head(b'0', "a").gnu().put(GID, b"\x80\0\0\0\xff\xff\xff\xff"), b"x").end()
        }),
        refused("an owner that would be cut off to 0", "chown(2), Go", "an owner or group", |_| {
            tar().pax(&[("uid", b"4294967296")]).file("a", b"x").end()
        }),
        refused("an owner of -1, in base 256", "chown(2), GNU tar", "an owner or group", |_| {
            tar().entry(head(b'0', "a").gnu().put(UID, [0xff; 8]), b"x").end()
        }),
        refused("an owner that is no number", "Python tarfile, Go", "an owner or group", |_| {
            tar().entry(head(b'0', "a").put(UID, "root\0\0\0\0"), b"x").end()
        }),
        harmless(
            "the highest owner that is one",
            "chown(2)",
            "it is the owner",
            |_| tar().pax(&[("uid", b"4294967294"), ("gid", b"4294967294")]).file("a", b"x").end(),
            |seen| assert_eq!((seen.meta("a").uid(), seen.meta("a").gid()), (u32::MAX - 1, u32::MAX - 1)),
        ),
        harmless(
            "fields of blanks and NULs",
            "GNU tar, Go",
            "they are 0, as those take them",
            |_| {
                tar()
                    .entry(
                        head(b'0', "a").put(UID, "        ").put(GID, [0; 8]).put(MTIME, " ".repeat(12)),
                        b"x",
                    )
                    .end()
            },
            |seen| {
                assert_eq!((seen.meta("a").uid(), seen.meta("a").gid(), seen.meta("a").mtime()), (0, 0, 0))
            },
        ),
        harmless(
            "a time before 1970",
            "Go, old readers",
            "it is the time",
            |_| {
                tar()
                    .pax(&[("mtime", b"-1.25")])
                    .file("a", b"x")
                    .entry(
                        head(b'0', "b").gnu().put(MTIME, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"),
                        b"x",
                    )
                    .end()
            },
            |seen| {
                assert_eq!((seen.meta("a").mtime(), seen.meta("a").mtime_nsec()), (-2, 750_000_000));
                assert_eq!(seen.meta("b").mtime(), -2);
            },
        ),
        harmless(
            "the last time that there is",
            "utimensat(2)",
            "the last one that file systems keep is set, and listed",
            |_| tar().pax(&[("mtime", b"9223372036854775807.999999999")]).file("a", b"x").dir("d").end(),
            |seen| {
                assert_eq!((seen.meta("a").mtime(), seen.meta("d").mtime()), (15_032_385_535, THEN as i64))
            },
        ),
        refused("a time that is no number", "Python tarfile, Go", "a time that is no number", |_| {
            tar().entry(head(b'0', "a").put(MTIME, "yesterday\0\0\0"), b"x").end()
        }),
        refused("a time beyond 64 bits", "Go", "a time that is no number", |_| {
            tar()
                .entry(
                    head(b'0', "a").gnu().put(MTIME, b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
                    b"x",
                )
                .end()
        }),
        harmless(
            "labels and measurements of the host's policy",
            "umoci, overlayfs.rst",
            "`security.ima`, `.evm`, `.selinux`, `.apparmor`, ACLs and `trusted.*` are left out",
            |_| {
                tar()
                    .pax(&[
                        ("SCHILY.xattr.security.ima", b"\x03x"),
                        ("SCHILY.xattr.security.evm", b"\x03x"),
                        ("SCHILY.xattr.security.selinux", b"system_u:object_r:shadow_t:s0"),
                        ("SCHILY.xattr.security.apparmor", b"x"),
                        ("SCHILY.xattr.security.SMACK64EXEC", b"_"),
                        ("SCHILY.xattr.system.posix_acl_access", b"x"),
                        ("SCHILY.acl.access", b"user::rwx"),
                        ("RHT.security.selinux", b"system_u:object_r:shadow_t:s0"),
                        ("SCHILY.xattr.trusted.md5sum", b"x"),
                        ("SCHILY.xattr.btrfs.compression", b"x"),
                        ("SCHILY.xattr.", b"x"),
                        ("SCHILY.fflags", b"immutable"),
                    ])
                    .file("a", b"x")
                    .end()
            },
            |seen| {
                let mut names = vec![0; 4096];
                let count = rustix::fs::llistxattr(seen.at("a"), &mut names[..]).unwrap();
                let names = String::from_utf8_lossy(&names[..count]).into_owned();
                // The host's policy may label whatever is made.
                assert_eq!(
                    names.split('\0').filter(|name| !name.is_empty() && *name != "security.selinux").count(),
                    0
                );
            },
        ),
        refused("a capability that is none", "cap_get_file(3)", "nvalid argument", |_| {
            xattr("security.capability", b"x")
        }),
        refused("an attribute that has no name", "xattr(7)", "nvalid argument", |_| xattr("user.", b"x")),
        refused("an attribute with a NUL in its name", "xattr(7)", "nvalid argument", |_| {
            xattr("user.a\0b", b"x")
        }),
        refused("an attribute with a long name", "xattr(7)", "is too large", |_| {
            xattr(&format!("user.{}", "n".repeat(251)), b"x")
        }),
        refused("an attribute of more than 64 KiB", "xattr(7)", "is too large", |_| {
            xattr("user.a", &[b'x'; 65_537])
        }),
        refused("more attributes than the file system takes", "ext4", "attribute", |_| {
            let names: Vec<String> = (0..600).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
            let records: Vec<(&str, &[u8])> =
                names.iter().map(|name| (name.as_str(), &[b'x'; 1500][..])).collect();
            tar().pax(&records).file("a", b"x").end()
        }),
        harmless(
            "attributes of the user's",
            "layer.md",
            "they are kept, bit by bit",
            |_| tar().pax(&[("SCHILY.xattr.user.a", b"1\0\n")]).file("a", b"x").end(),
            |seen| assert_eq!(seen.xattr("a", "user.a").as_deref(), Some(&b"1\0\n"[..])),
        ),
        harmless(
            "an attribute without a value",
            "pax(1); Go, umoci and containerd with it; GNU tar sets an empty one",
            "a record without a value takes back what was said: it is no attribute",
            |_| {
                tar()
                    .pax(&[("SCHILY.xattr.user.a", b""), ("SCHILY.xattr.security.capability", b"")])
                    .file("a", b"x")
                    .end()
            },
            |seen| {
                assert_eq!(seen.xattr("a", "user.a"), None);
                assert_eq!(seen.xattr("a", "security.capability"), None);
            },
        ),
    ]
}
