//! Manifests, indexes and configurations.

use gitopsd::types::Reason;
use serde_json::{Value, json};

use super::host::{
    Documents, PLAIN, assert_empty, assert_line, config, documents, manifest, pull, serve, sha256,
};
use super::shared::forge::tar;

pub struct Row {
    pub name: &'static str,
    pub source: &'static str,
    pub reason: Reason,
    part: &'static str,
    make: fn() -> Documents,
}

fn layer() -> Vec<u8> {
    tar().file("a", b"x").end()
}

/// A good image whose manifest is then changed.
fn changed(change: fn(&mut Value)) -> Documents {
    let config = config(&layer()).to_string().into_bytes();
    let mut manifest = manifest(&config, &layer(), PLAIN);
    change(&mut manifest);
    documents(manifest.to_string().into_bytes(), &[config, layer()])
}

/// A good image whose configuration is then changed.
fn configured(change: fn(&mut Value)) -> Documents {
    let mut config = config(&layer());
    change(&mut config);
    raw_config(config.to_string().into_bytes())
}

fn raw_config(config: Vec<u8>) -> Documents {
    documents(manifest(&config, &layer(), PLAIN).to_string().into_bytes(), &[config, layer()])
}

fn raw(manifest: impl Into<Vec<u8>>) -> Documents {
    documents(manifest.into(), &[])
}

fn index(entries: &[Value]) -> Documents {
    let mut all = changed(|_| ());
    let index = json!({ "schemaVersion": 2, "manifests": entries }).to_string().into_bytes();
    all.extend(documents(index, &[]));
    all
}

fn entry(digest: &str) -> Value {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    json!({ "digest": digest, "size": 1, "platform": { "os": "linux", "architecture": architecture } })
}

pub fn rows() -> Vec<Row> {
    let row = |name, source, reason, part, make| Row { name, source, reason, part, make };
    let (invalid, unsupported, digest) =
        (Reason::ImageInvalid, Reason::ImageUnsupported, Reason::DigestMismatch);
    vec![
        row(
            "an image and an index in one",
            "CVE-2021-41190",
            invalid,
            "neither an image nor an index",
            || changed(|m| m["manifests"] = json!([entry(&sha256(b"x"))])),
        ),
        row(
            "an image that says it is an index",
            "CVE-2021-41190",
            invalid,
            "neither an image nor an index",
            || changed(|m| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json")),
        ),
        row(
            "an index that says it is an image",
            "CVE-2021-41190",
            invalid,
            "neither an image nor an index",
            || {
                raw(json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "manifests": [] }).to_string())
            },
        ),
        row("schema 1", "CVE-2021-41190", unsupported, "schema 1", || {
            raw(r#"{"schemaVersion":1,"fsLayers":[]}"#)
        }),
        row("a key twice", "CVE-2021-41190 class", invalid, "duplicate field", || {
            raw(changed(|_| ())["/v2/app/manifests/1"].iter().copied().skip(1).fold(
                b"{\"layers\":[],".to_vec(),
                |mut all, byte| {
                    all.push(byte);
                    all
                },
            ))
        }),
        row("something behind the document", "CVE-2021-41190 class", invalid, "trailing", || {
            raw([changed(|_| ())["/v2/app/manifests/1"].as_slice(), b"{}"].concat())
        }),
        row("an index of an index", "CVE-2023-25153 class", invalid, "an index of an index", || {
            let inner =
                json!({ "schemaVersion": 2, "manifests": [entry(&sha256(b"x"))] }).to_string().into_bytes();
            let mut all = documents(inner.clone(), &[]);
            let outer =
                json!({ "schemaVersion": 2, "manifests": [entry(&sha256(&inner))] }).to_string().into_bytes();
            all.extend(documents(outer, &[]));
            all
        }),
        row(
            "an index whose entry is another manifest",
            "CVE-2026-50195",
            digest,
            "do not have its digest",
            || {
                let mut all = index(&[entry(&sha256(b"wanted"))]);
                all.insert(format!("/v2/app/manifests/{}", sha256(b"wanted")), b"given".to_vec());
                all
            },
        ),
        row("a document of more than 4 MiB", "CVE-2023-25153", invalid, "a document of more than", || {
            raw(vec![b' '; (4 << 20) + 1])
        }),
        row("a document nested without end", "CVE-2023-25153 class", invalid, "EOF while parsing", || {
            raw(format!("{{\"schemaVersion\":2,\"x\":{}", "[".repeat(100_000)))
        }),
        row("a digest that is a path", "CVE-2024-3727, CVE-2014-9358", invalid, "is not a digest", || {
            changed(|m| m["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd"))
        }),
        row("a configuration's digest that is a path", "CVE-2024-3727", invalid, "is not a digest", || {
            changed(|m| m["config"]["digest"] = json!(format!("sha256:{}/../../x", "a".repeat(64))))
        }),
        row("a diff_id that is a path", "CVE-2024-3727", invalid, "is not a digest", || {
            configured(|c| c["rootfs"]["diff_ids"] = json!(["../../../../etc"]))
        }),
        row("an index entry whose digest is a path", "CVE-2024-3727", invalid, "is not a digest", || {
            index(&[entry("sha256:../../x")])
        }),
        row("a digest of a weak kind", "CVE-2024-3727 class", invalid, "is not a digest", || {
            changed(|m| m["layers"][0]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e"))
        }),
        row("a digest in upper case", "CVE-2024-3727 class", invalid, "is not a digest", || {
            changed(|m| m["layers"][0]["digest"] = json!(format!("sha256:{}", "A".repeat(64))))
        }),
        row("a digest that writes to terminals", "log injection", invalid, "is not a digest", || {
            changed(|m| m["layers"][0]["digest"] = json!("\u{1b}]0;x\u{7}\n<0>forged\u{202e}"))
        }),
        row(
            "a media type that writes to terminals",
            "log injection",
            unsupported,
            "has a layer of type",
            || {
                changed(|m| {
                    m["layers"][0]["mediaType"] =
                        json!(format!("\u{1b}[2J\n<0>forged{}", "x".repeat(100_000)))
                })
            },
        ),
        row("a platform that writes to terminals", "log injection", unsupported, "has no image for", || {
            raw(json!({ "schemaVersion": 2, "manifests": [{ "digest": sha256(b"x"), "size": 1,
                "platform": { "os": "\u{1b}[2J\n", "architecture": "y".repeat(100_000) } }] })
            .to_string())
        }),
        row("a size below nothing", "Go's int64", invalid, "manifest", || {
            changed(|m| m["layers"][0]["size"] = json!(-1))
        }),
        row("a size that is no whole number", "JSON", invalid, "manifest", || {
            changed(|m| m["layers"][0]["size"] = json!(1e30))
        }),
        row("a size that is too small", "endless blobs", digest, "", || {
            changed(|m| m["layers"][0]["size"] = json!(10))
        }),
        row("a size that is too large", "endless blobs", Reason::RegistryUnreachable, "", || {
            changed(|m| m["layers"][0]["size"] = json!(1 << 20))
        }),
        row("sizes whose sum is beyond 64 bits", "overflow", invalid, "its layers have", || {
            changed(|m| m["layers"][0]["size"] = json!(u64::MAX))
        }),
        row("a configuration of more than 4 MiB", "CVE-2023-25153 class", invalid, "bytes", || {
            changed(|m| m["config"]["size"] = json!(5 << 20))
        }),
        row("no layers", "CVE-2026-24054", invalid, "0 layers", || changed(|m| m["layers"] = json!([]))),
        row("129 layers", "overlayfs", invalid, "129 layers", || {
            changed(|m| m["layers"] = json!(vec![m["layers"][0].clone(); 129]))
        }),
        row("layers that the configuration does not know", "CVE-2026-24054 class", invalid, "names", || {
            changed(|m| m["layers"] = json!(vec![m["layers"][0].clone(); 2]))
        }),
        row("a layer that lies elsewhere", "CVE-2020-15157", unsupported, "outside of its registry", || {
            changed(|m| m["layers"][0]["urls"] = json!(["http://127.0.0.1:1/steal"]))
        }),
        row(
            "a layer that is not to be distributed",
            "CVE-2020-15157",
            unsupported,
            "outside of its registry",
            || {
                changed(|m| {
                    m["layers"][0]["mediaType"] =
                        json!("application/vnd.oci.image.layer.nondistributable.v1.tar")
                })
            },
        ),
        row("an encrypted layer", "ocicrypt", unsupported, "which is not known", || {
            changed(|m| {
                m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted")
            })
        }),
        row("an artifact that is no image", "oci artifacts", Reason::ImageUnsupported, "artifact", || {
            changed(|m| m["config"] = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2 }))
                .into_iter().chain([(format!("/v2/app/blobs/{}", sha256(b"{}")), b"{}".to_vec())]).collect()
        }),
        row(
            "a configuration that is another one",
            "CVE-2026-50195",
            digest,
            "do not have its digest",
            || {
                let mut all = changed(|_| ());
                let config = config(&layer()).to_string();
                all.insert(
                    format!("/v2/app/blobs/{}", sha256(config.as_bytes())),
                    config.replace("linux", "linuX").into_bytes(),
                );
                all
            },
        ),
        row("a configuration for another platform", "confusion", unsupported, "this host is", || {
            configured(|c| c["architecture"] = json!("s390x"))
        }),
        row("a configuration with a key twice", "CVE-2021-41190 class", invalid, "duplicate field", || {
            let text = config(&layer()).to_string();
            raw_config(text.replacen('{', r#"{"rootfs":{"diff_ids":[]},"#, 1).into_bytes())
        }),
        row("a configuration that is no JSON", "fuzzing", invalid, "configuration", || {
            raw_config(b"\0\xff".to_vec())
        }),
    ]
}

#[test]
fn each_document_is_refused() {
    let mut wrong = Vec::new();
    for row in rows() {
        let state = tempfile::tempdir().unwrap();
        match pull(state.path(), &serve((row.make)())) {
            Ok(_) => wrong.push(format!("{}: it was pulled", row.name)),
            Err(error) => {
                assert_line(row.name, &error);
                if error.reason != row.reason || !error.to_string().contains(row.part) {
                    wrong.push(format!("{}: {error} ({})", row.name, error.reason));
                }
            }
        }
        assert_empty(row.name, state.path());
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_good_one_is_good() {
    let state = tempfile::tempdir().unwrap();
    assert_eq!(pull(state.path(), &serve(changed(|_| ()))).unwrap().len(), 1);
}

/// What an image says, and the host does not do: it is pulled, and nothing comes of it.
pub const IGNORED: &[(&str, &str, &str)] = &[
    ("labels that name programs", "CVE-2026-53488", "no label is read"),
    ("volumes that are links out", "CVE-2022-23648", "volumes of images are not read"),
    ("health checks and commands of a build", "CVE-2026-53488 class", "neither is read"),
];

#[test]
fn what_an_image_says_of_its_host_is_not_read() {
    let state = tempfile::tempdir().unwrap();
    let layers = pull(
        state.path(),
        &serve(configured(|c| {
            c["config"] = json!({
                "Labels": { "io.containerd.runtime": "binary:///bin/touch?/tmp/pwned", "x": { "not": "text" } },
                "Volumes": { "/../../etc": {}, "../../../root": "odd" },
                // Read, as the command is: it runs inside the container.
                "Healthcheck": { "Test": ["CMD-SHELL", "touch /tmp/inside"] },
                "OnBuild": ["RUN touch /tmp/pwned"],
            });
        })),
    )
    .unwrap();
    let record = std::fs::read_dir(state.path().join("store/images")).unwrap().next().unwrap().unwrap();
    let text = std::fs::read_to_string(record.path()).unwrap();
    assert!(!text.contains("pwned") && !text.contains("root"), "{text}");
    assert_eq!(std::fs::read_dir(&layers[0]).unwrap().count(), 1);
}
