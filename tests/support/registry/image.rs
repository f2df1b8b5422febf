//! Images to order: layers entry by entry, manifests as JSON, pushed over the registry's own API.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::server::Server;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layer's archive that grows.
#[derive(Default)]
pub struct Layer {
    tar: Vec<u8>,
}

/// What an entry says of itself, where it is not the usual.
pub struct With<'a> {
    pub mode: u32,
    pub owner: (u64, u64),
    pub mtime: u64,
    pub pax: &'a [(&'a str, &'a [u8])],
}

impl Default for With<'_> {
    fn default() -> Self {
        Self { mode: 0o644, owner: (0, 0), mtime: 1_700_000_000, pax: &[] }
    }
}

impl Layer {
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Directory, "", b"", &With { mode, ..With::default() })
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, "", content, &With::default())
    }

    pub fn link(self, path: &str, kind: EntryType, to: &str) -> Self {
        self.entry(path, kind, to, b"", &With { mode: 0o777, ..With::default() })
    }

    pub fn entry(mut self, path: &str, kind: EntryType, link: &str, content: &[u8], with: &With<'_>) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        if !with.pax.is_empty() {
            builder.append_pax_extensions(with.pax.iter().copied()).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(with.mode);
        header.set_uid(with.owner.0);
        header.set_gid(with.owner.1);
        header.set_mtime(with.mtime);
        header.set_cksum();
        builder.append(&header, content).unwrap();
        let bytes = builder.into_inner().unwrap();
        // Without the end of the archive, which comes last.
        self.tar.extend_from_slice(&bytes[..bytes.len() - 1024]);
        self
    }

    pub fn tar(&self) -> Vec<u8> {
        let mut tar = self.tar.clone();
        tar.extend_from_slice(&[0; 1024]);
        tar
    }

    pub fn gzip(&self) -> Blob {
        let tar = self.tar();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar).unwrap();
        let media = "application/vnd.oci.image.layer.v1.tar+gzip";
        Blob { media, diff_id: sha256(&tar), bytes: gzip.finish().unwrap() }
    }

    pub fn plain(&self) -> Blob {
        let tar = self.tar();
        Blob { media: "application/vnd.oci.image.layer.v1.tar", diff_id: sha256(&tar), bytes: tar }
    }
}

/// A layer as it is pushed.
#[derive(Clone)]
pub struct Blob {
    pub media: &'static str,
    pub diff_id: String,
    pub bytes: Vec<u8>,
}

impl Blob {
    pub fn digest(&self) -> String {
        sha256(&self.bytes)
    }

    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media, "digest": self.digest(), "size": self.bytes.len() })
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Bytes that do not get smaller, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 32);
    let mut state = Sha256::digest(seed.to_le_bytes());
    while bytes.len() < length {
        bytes.extend_from_slice(&state);
        state = Sha256::digest(state);
    }
    bytes.truncate(length);
    bytes
}

/// The architecture of this machine, as images call it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn config(layers: &[Blob]) -> Value {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    json!({
        "architecture": architecture(), "os": "linux",
        "config": { "Env": ["A=b"], "Cmd": ["/bin/true"], "User": "7", "WorkingDir": "/srv" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

pub fn manifest(config: &str, layers: &[Blob]) -> Value {
    let layers: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": sha256(config.as_bytes()), "size": config.len(),
        },
        "layers": layers,
    })
}

fn client() -> reqwest::Client {
    // Fails only when one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

impl Server {
    /// Pushes an image as `app:TAG`, and gives its manifest's descriptor.
    pub async fn push(&self, tag: &str, layers: &[Blob]) -> Value {
        self.push_with(tag, layers, config(layers)).await
    }

    pub async fn push_with(&self, tag: &str, layers: &[Blob], config: Value) -> Value {
        for layer in layers {
            self.push_blob(&layer.bytes).await;
        }
        let config = config.to_string();
        self.push_blob(config.as_bytes()).await;
        self.push_manifest(tag, MANIFEST, &manifest(&config, layers)).await
    }

    pub async fn push_blob(&self, bytes: &[u8]) {
        let client = client();
        let url = format!("http://{}/v2/app/blobs/uploads/", self.address());
        let answer = client.post(url).send().await.unwrap();
        let place = answer.headers()["location"].to_str().unwrap().to_owned();
        let place = if place.starts_with('/') { format!("http://{}{place}", self.address()) } else { place };
        let and = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{and}digest={}", sha256(bytes));
        let answer = client.put(url).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(answer.status(), 201);
    }

    pub async fn push_manifest(&self, tag: &str, media: &str, document: &Value) -> Value {
        let text = document.to_string();
        let url = format!("http://{}/v2/app/manifests/{tag}", self.address());
        let request = client().put(url).header("content-type", media).body(text.clone());
        let answer = request.send().await.unwrap();
        let status = answer.status();
        assert_eq!(status, 201, "{}", answer.text().await.unwrap());
        json!({ "mediaType": media, "digest": sha256(text.as_bytes()), "size": text.len() })
    }
}
