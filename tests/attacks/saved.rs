//! Image archives, as `docker save` and others write them, on this host's own disk.

use std::collections::BTreeMap;
use std::path::Path;

use gitopsd::types::Reason;
use serde_json::json;

use super::host::{assert_line, config, pull_as, sha256};
use super::shared::forge::{Tar, head, tar};

pub struct Row {
    pub name: &'static str,
    pub source: &'static str,
    pub reason: Reason,
    part: &'static str,
    make: fn() -> Vec<u8>,
}

fn layer() -> Vec<u8> {
    tar().file("a", b"x").end()
}

/// An archive in the old layout: what its `manifest.json` says, and what else is in it.
fn saved(config_path: &str, layers: &[String], rest: Tar) -> Vec<u8> {
    let manifest = json!([{ "Config": config_path, "RepoTags": ["app:1"], "Layers": layers }]).to_string();
    rest.file("manifest.json", manifest).end()
}

fn id(digit: &str) -> String {
    digit.repeat(64)
}

fn config_path() -> String {
    format!("{}.json", id("c"))
}

fn layer_path() -> String {
    format!("{}/layer.tar", id("a"))
}

/// A layer and a configuration that fit each other.
fn parts() -> Tar {
    tar().named(layer_path(), layer()).named(config_path(), config(&layer()).to_string())
}

pub fn rows() -> Vec<Row> {
    let row = |name, source, reason, part, make| Row { name, source, reason, part, make };
    let (invalid, digest) = (Reason::ImageInvalid, Reason::DigestMismatch);
    vec![
        row("a configuration that is a file of the host", "CVE-2014-9358", invalid, "it has no", || {
            saved("../../../../etc/passwd", &[layer_path()], parts())
        }),
        row("a layer that is a file of the host", "CVE-2014-9358", invalid, "it has no", || {
            saved(&config_path(), &["/etc/passwd".to_owned()], parts())
        }),
        row("a layer that is a link to a file of the host", "CVE-2014-9356", invalid, "it has no", || {
            let link = format!("{}/layer.tar", id("b"));
            let rest = parts().pax(&[("path", link.as_bytes())]).head(head(b'2', "l").link("/etc/passwd"));
            saved(&config_path(), &[link], rest)
        }),
        row("layers that are links to each other", "path_resolution(7)", invalid, "it has no", || {
            let (one, two) = (format!("{}/layer.tar", id("1")), format!("{}/layer.tar", id("2")));
            let rest = parts()
                .pax(&[("path", one.as_bytes()), ("linkpath", format!("../{two}").as_bytes())])
                .head(head(b'2', "l").link("x"))
                .pax(&[("path", two.as_bytes()), ("linkpath", format!("../{one}").as_bytes())])
                .head(head(b'2', "l").link("x"));
            saved(&config_path(), &[one], rest)
        }),
        row("links of a mebibyte each, well packed", "found here", invalid, "more than 4096 bytes", || {
            let links = (0..40).fold(parts(), |tar, n: u64| {
                let tar = tar.long(b'L', format!("{n:064}/layer.tar")).long(b'K', vec![b'x'; 1_000_000]);
                tar.head(head(b'2', "l").gnu().link("l"))
            });
            zstd::encode_all(&*saved(&config_path(), &[layer_path()], links), 1).unwrap()
        }),
        row("names of a mebibyte each, well packed", "found here", invalid, "more than 4096 bytes", || {
            let names = (0..40).fold(parts(), |tar, n: usize| {
                let name = format!("repositories{}", "/".repeat(1_000_000 + n));
                tar.long(b'L', name).head(head(b'2', "l").gnu().link("l"))
            });
            zstd::encode_all(&*saved(&config_path(), &[layer_path()], names), 1).unwrap()
        }),
        row("two images", "CVE-2026-50195 class", invalid, "has to hold one", || {
            let one = json!({ "Config": config_path(), "Layers": [layer_path()] });
            let other = format!("{}.json", id("d"));
            let two = json!({ "Config": other, "Layers": [layer_path()] });
            let rest = parts().named(other, config(&layer()).to_string());
            rest.file("manifest.json", json!([one, two]).to_string()).end()
        }),
        row(
            "a stray that makes it a root file system",
            "found here",
            invalid,
            "does not belong there",
            || saved(&config_path(), &[layer_path()], parts().file("README", b"x")),
        ),
        row("the same, in front", "found here", invalid, "does not belong there", || {
            let rest = tar().file("bin/sh", b"x").named(layer_path(), layer());
            saved(&config_path(), &[layer_path()], rest.named(config_path(), config(&layer()).to_string()))
        }),
        row("an archive of nothing", "found here", invalid, "holds nothing", || tar().end()),
        row("two manifests", "CVE-2025-62518 class", invalid, "is there twice", || {
            saved(&config_path(), &[layer_path()], parts().file("manifest.json", b"[]"))
        }),
        row("no layers", "CVE-2026-24054", invalid, "0 layers", || {
            let mut config = config(&layer());
            config["rootfs"]["diff_ids"] = json!([]);
            saved(&config_path(), &[], tar().named(config_path(), config.to_string()))
        }),
        row("a thousand layers", "overlayfs", invalid, "1000 layers", || {
            let mut config = config(&layer());
            config["rootfs"]["diff_ids"] = json!(vec![sha256(&layer()); 1000]);
            let rest = tar().named(layer_path(), layer()).named(config_path(), config.to_string());
            saved(&config_path(), &vec![layer_path(); 1000], rest)
        }),
        row("a layer that is not the one the configuration names", "diff_id", digest, "", || {
            let rest = tar()
                .named(layer_path(), tar().file("another", b"x").end())
                .named(config_path(), config(&layer()).to_string());
            saved(&config_path(), &[layer_path()], rest)
        }),
        row("a layer that is a pipe", "fifo(7)", invalid, "is no file", || {
            let path = layer_path();
            saved(
                &config_path(),
                std::slice::from_ref(&path),
                tar().pax(&[("path", path.as_bytes())]).head(head(b'6', "p")),
            )
        }),
        row("a manifest of more than 4 MiB", "CVE-2023-25153", invalid, "bytes", || {
            parts().file("manifest.json", vec![b' '; (4 << 20) + 1]).end()
        }),
        row("an index of more than 4 MiB", "CVE-2023-25153", invalid, "bytes", || {
            tar().file("oci-layout", b"{}").file("index.json", vec![b' '; (4 << 20) + 1]).end()
        }),
        row(
            "an index whose manifest is not the one it names",
            "CVE-2026-50195",
            digest,
            "does not have its digest",
            || {
                let wanted = sha256(b"wanted");
                let path = format!("blobs/sha256/{}", wanted.trim_start_matches("sha256:"));
                let index = json!({ "schemaVersion": 2, "manifests": [{ "digest": wanted, "size": 6 }] });
                tar()
                    .file("oci-layout", b"{}")
                    .named(path, b"wrong")
                    .file("index.json", index.to_string())
                    .end()
            },
        ),
        row("an index whose digest is a path", "CVE-2024-3727", invalid, "is not a digest", || {
            let index =
                json!({ "schemaVersion": 2, "manifests": [{ "digest": "sha256:../../x", "size": 6 }] });
            tar().file("oci-layout", b"{}").file("index.json", index.to_string()).end()
        }),
        row("an archive that is cut off", "truncation", invalid, "", || {
            let mut bytes = saved(&config_path(), &[layer_path()], parts());
            bytes.truncate(1800);
            bytes
        }),
        row("a size that leads beyond the archive", "overflow", invalid, "", || {
            let huge =
                head(b'0', "manifest.json").gnu().put(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
            parts().head(huge).end()
        }),
    ]
}

fn pull_file(state: &Path, path: &Path) -> Result<usize, gitopsd::registry::PullError> {
    pull_as(state, &format!("file://{}", path.display()), BTreeMap::new()).map(|layers| layers.len())
}

#[test]
fn each_archive_is_refused() {
    let mut wrong = Vec::new();
    for row in rows() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("image.tar");
        std::fs::write(&path, (row.make)()).unwrap();
        match pull_file(&base.path().join("state"), &path) {
            Ok(_) => wrong.push(format!("{}: it was pulled", row.name)),
            Err(error) => {
                assert_line(row.name, &error);
                if error.reason != row.reason || !error.to_string().contains(row.part) {
                    wrong.push(format!("{}: {error} ({})", row.name, error.reason));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_good_one_is_good() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("image.tar");
    std::fs::write(&path, saved(&config_path(), &[layer_path()], parts())).unwrap();
    assert_eq!(pull_file(&base.path().join("state"), &path).unwrap(), 1);
}

/// Opening some of these does something, or never returns.
#[test]
fn what_is_no_file_is_not_opened() {
    let base = tempfile::tempdir().unwrap();
    let pipe = base.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for path in [pipe.as_path(), base.path(), Path::new("/dev/zero")] {
        let error = pull_file(&base.path().join("state"), path).unwrap_err();
        assert_eq!(error.reason, Reason::ImageInvalid, "{error}");
        assert!(error.to_string().contains("is no file"), "{error}");
    }
}
