//! The file: an OCI image layout in a plain tar (OCI image-layout.md). What is read first is in front, within one
//! request of whoever reads it; owners, times and modes are the same for everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{LAYER, PackedLayer};
use crate::registry::manifest;
use crate::registry::pull::Contents;
use crate::registry::store::Temporary;
use crate::types::Digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Writes it durably; the manifest's digest, and the file's bytes.
pub(super) fn write(
    file: &Path,
    contents: &Contents,
    layers: &[PackedLayer],
    packed: &BTreeMap<Digest, (PackedLayer, Arc<Temporary>)>,
) -> io::Result<(Digest, u64)> {
    let config = &contents.config_text;
    let manifest = manifest_of(&contents.config_digest, config, layers).to_string();
    let digest = manifest::sha256(manifest.as_bytes());
    let index = index_of(&digest, manifest.len(), config).to_string();
    let mut tar = tar::Builder::new(BufWriter::with_capacity(256 << 10, File::create_new(file)?));
    add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut tar, "index.json", index.as_bytes())?;
    add(&mut tar, &path(&digest), manifest.as_bytes())?;
    add(&mut tar, &path(&contents.config_digest), config)?;
    let mut written = BTreeSet::new();
    for (layer, place) in layers.iter().filter_map(|layer| packed.get(&layer.diff_id)) {
        // A layer may be in an image twice.
        if written.insert(&layer.digest) {
            let content = File::open(place.path().join(LAYER))?;
            append(&mut tar, &path(&layer.digest), layer.bytes, content)?;
        }
    }
    let file = tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok((digest, file.metadata()?.len()))
}

fn manifest_of(digest: &Digest, config: &[u8], layers: &[PackedLayer]) -> Value {
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| json!({ "mediaType": ZSTD, "digest": layer.digest, "size": layer.bytes }))
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": digest, "size": config.len() },
        "layers": layers,
    })
}

/// One image, with its platform, as its configuration has it.
fn index_of(digest: &Digest, size: usize, config: &[u8]) -> Value {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let mut entry = json!({ "mediaType": MANIFEST, "digest": digest, "size": size });
    let part = |key: &str| config[key].as_str().filter(|text| !text.is_empty());
    if let Some((architecture, os)) = part("architecture").zip(part("os")) {
        entry["platform"] = json!({ "architecture": architecture, "os": os });
        if let Some(variant) = part("variant") {
            entry["platform"]["variant"] = json!(variant);
        }
    }
    json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry] })
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn add(tar: &mut tar::Builder<impl Write>, path: &str, bytes: &[u8]) -> io::Result<()> {
    append(tar, path, bytes.len() as u64, bytes)
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, size: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    tar.append(&header, content)
}
