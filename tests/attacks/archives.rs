//! Layers: the rows of the unit tests and those about packing, pulled.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use flate2::Compression;
use flate2::write::GzEncoder;
use gitopsd::types::Reason;

use super::host::{PLAIN, assert_empty, assert_line, documents, image, manifest, pull, serve};
use super::shared::canary::Canary;
use super::shared::forge::{head, tar};
use super::shared::table::{self, Seen, Verdict};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

#[test]
fn each_layer_is_refused_or_harmless() {
    let mut wrong = Vec::new();
    for row in table::all().into_iter().flat_map(|(_, rows)| rows) {
        let base = tempfile::Builder::new().prefix("gitopsd-attack-").tempdir().unwrap();
        let canary = Canary::new(base.path());
        let state = base.path().join("state");
        // state/store/tmp/N/fs
        let archive = (row.archive)(&canary.outside(5));
        let result = pull(&state, &serve(image(&archive, PLAIN, &archive)));
        canary.assert_untouched(row.name);
        match (&row.verdict, result) {
            (Verdict::Refused(part), Err(error)) => {
                assert_line(row.name, &error);
                if error.reason != Reason::ImageInvalid
                    || error.may_pass()
                    || !error.to_string().contains(part)
                {
                    wrong.push(format!("{}: {error} ({})", row.name, error.reason));
                }
                assert_empty(row.name, &state);
            }
            (Verdict::Harmless(_, check), Ok(layers)) => {
                assert_eq!(state.join("store").metadata().unwrap().mode() & 0o777, 0o700);
                let tree = layers[0].clone();
                if std::panic::catch_unwind(|| check(&Seen(tree))).is_err() {
                    wrong.push(format!("{}: it is not what it should be, see above", row.name));
                }
            }
            (Verdict::Refused(_), Ok(_)) => wrong.push(format!("{}: it was unpacked", row.name)),
            (Verdict::Harmless(..), Err(error)) => {
                wrong.push(format!("{}: {error} ({})", row.name, error.reason))
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A packed layer, its media type and the tar that it is said to hold.
pub struct Packed {
    pub name: &'static str,
    pub source: &'static str,
    pub reason: Reason,
    part: &'static str,
    make: fn() -> (Vec<u8>, &'static str, Vec<u8>),
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn good() -> Vec<u8> {
    tar().file("a", vec![b'x'; 100_000]).end()
}

/// A file of zeros: the header and its content.
fn zeros(size: usize) -> Vec<u8> {
    tar().entry(head(b'0', "zeros"), vec![0; size]).end()
}

pub fn packed() -> Vec<Packed> {
    let row = |name, source, reason, part, make| Packed { name, source, reason, part, make };
    let invalid = Reason::ImageInvalid;
    vec![
        row(
            "zeros without end, as zstd packs them",
            "CVE-2017-14992 class",
            invalid,
            "it unpacks to more than",
            || {
                let tar = zeros(200 << 20);
                (zstd::encode_all(tar.as_slice(), 19).unwrap(), ZSTD, tar)
            },
        ),
        row("a zstd window of two gibibytes", "RFC 8878, section 3.1.1.1.2", invalid, "", || {
            // Magic, no single segment, window of 2^31 bytes, one raw block of nothing.
            (b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00".to_vec(), ZSTD, Vec::new())
        }),
        row("gzip that ends in the middle", "truncation", invalid, "", || {
            let tar = good();
            let mut blob = gzip(&tar);
            blob.truncate(blob.len() - 20);
            (blob, GZIP, tar)
        }),
        row("something else behind gzip's end", "CVE-2025-62518 class", invalid, "", || {
            let tar = good();
            ([gzip(&tar), b"something else".to_vec()].concat(), GZIP, tar)
        }),
        row("zstd that says it is gzip", "media type confusion", invalid, "", || {
            let tar = good();
            (zstd::encode_all(tar.as_slice(), 1).unwrap(), GZIP, tar)
        }),
        row("gzip that says it is plain", "media type confusion", invalid, "not a tar header", || {
            let tar = good();
            (gzip(&tar), PLAIN, tar)
        }),
        row("gzip within gzip", "media type confusion", invalid, "", || {
            let tar = good();
            (gzip(&gzip(&tar)), GZIP, tar)
        }),
        row(
            "a second layer behind the first, as gzip's second member",
            "CVE-2025-62518 class",
            invalid,
            "behind the archive's end",
            || {
                let (one, two) = (good(), tar().file("hidden", b"x").end());
                ([gzip(&one), gzip(&two)].concat(), GZIP, [one, two].concat())
            },
        ),
        row(
            "a layer that is not the one the configuration names",
            "diff_id",
            Reason::DigestMismatch,
            "",
            || (gzip(&good()), GZIP, tar().file("another", b"x").end()),
        ),
        row("bytes that are not the manifest's", "CVE-2024-3727 class", Reason::DigestMismatch, "", || {
            // The server below gives these for a blob of another digest.
            {
                let mut other = good();
                other[700] ^= 1;
                (other, "swapped", good())
            }
        }),
    ]
}

#[test]
fn each_packing_is_refused() {
    for row in packed() {
        let state = tempfile::tempdir().unwrap();
        let (blob, media, tar) = (row.make)();
        let documents = if media == "swapped" {
            let config = super::host::config(&tar).to_string().into_bytes();
            let manifest = manifest(&config, &tar, PLAIN).to_string().into_bytes();
            let mut documents = documents(manifest, &[config]);
            documents.insert(format!("/v2/app/blobs/{}", super::host::sha256(&tar)), blob);
            documents
        } else {
            image(&blob, media, &tar)
        };
        let error = pull(state.path(), &serve(documents)).expect_err(row.name);
        assert_eq!(error.reason, row.reason, "{}: {error}", row.name);
        assert!(error.to_string().contains(row.part), "{}: {error}", row.name);
        assert_line(row.name, &error);
        assert_empty(row.name, state.path());
    }
}
