//! From bytes to manifests, strictly (OCI image-spec, manifest.md and image-index.md; Docker's schema 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::healthcheck;
use super::platform::{Machine, Platform};
use super::{PullError, artifact};
use crate::engine::ImageConfig;
use crate::types::{Digest, Reason};

/// Largest manifest, index or configuration: what the distribution-spec lets registries refuse.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// The kernel's limit on overlay layers is 500 (fs/overlayfs/params.h); images above 127 do not exist in practice.
const MAX_LAYERS: usize = 128;

/// Most bytes that the layers of an image may have together, as they are packed.
const MAX_IMAGE: u64 = 32 << 30;

/// What image manifests call themselves, where they say it.
const IMAGE: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// What the configuration of an image is called; old registries leave it out. Charts, signatures and the like are
/// manifests too (OCI image-spec, "Guidelines for Artifact Usage").
const CONFIG: [&str; 3] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json", ""];

/// What indexes call themselves, where they say it.
const INDEX: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// What a client has to say it takes.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A reference to content: what, and how many bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// A layer that is known from elsewhere than a manifest.
    pub fn of_layer(media_type: String, digest: Digest, size: u64) -> Self {
        Self { media_type, digest, size, platform: None, urls: Vec::new(), annotations: None }
    }
}

impl Descriptor {
    /// What an archive calls the image: with its repository by containerd, else the tag alone (OCI image-layout.md).
    pub fn name(&self) -> Option<&str> {
        let all = self.annotations.as_ref()?;
        let name =
            all.get("io.containerd.image.name").or_else(|| all.get("org.opencontainers.image.ref.name"));
        name.map(String::as_str)
    }

    /// Whether it says for which platform it is.
    pub fn has_platform(&self) -> bool {
        self.platform.is_some()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// An image manifest.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub digest: Digest,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// What a manifest's bytes turned out to be.
pub(super) enum Parsed {
    Image(Box<Manifest>),
    /// What [`choose`] is to choose from.
    Index(Vec<Descriptor>),
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
    /// Of whole archives only.
    Bzip2,
    /// Of whole archives only.
    Xz,
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// Reads a manifest or an index. `name` is for messages.
pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Parsed, PullError> {
    let invalid =
        |why: String| PullError::fatal(Reason::ImageInvalid, format!("the manifest of {name}: {why}"));
    let document: Document = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    let legacy =
        document.media_type.as_deref().is_some_and(|media| media.contains("distribution.manifest.v1"));
    if document.schema_version != 2 || legacy {
        let what =
            format!("{name} has a manifest of schema {}, which is long obsolete", document.schema_version);
        return Err(PullError::fatal(Reason::ImageUnsupported, what));
    }
    let media = document.media_type.as_deref();
    let no_image = |what: &str| {
        let what = format!("{name} is no container image, but {}", artifact::name_of(what));
        PullError::fatal(Reason::ImageUnsupported, what)
    };
    // What it is for comes first: what else is odd about it may belong to that.
    let for_what = document.artifact_type.as_deref().filter(|kind| !CONFIG.contains(kind));
    if let Some(kind) = for_what.or(media.filter(|media| media.contains("artifact.manifest"))) {
        return Err(no_image(kind));
    }
    match (document.config, document.layers, document.manifests) {
        (Some(config), Some(layers), None) if media.is_none_or(|media| IMAGE.contains(&media)) => {
            if !CONFIG.contains(&config.media_type.as_str()) {
                return Err(no_image(&config.media_type));
            }
            // Signatures and attestations call their configuration that of an image.
            if let Some(layer) = layers.iter().find(|layer| artifact::is_known(&layer.media_type)) {
                return Err(no_image(&layer.media_type));
            }
            if layers.is_empty() || layers.len() > MAX_LAYERS {
                return Err(invalid(format!("it has {} layers", layers.len())));
            }
            if config.size > MAX_DOCUMENT {
                return Err(invalid(format!("its configuration has {} bytes", config.size)));
            }
            let total = layers.iter().fold(0u64, |total, layer| total.saturating_add(layer.size));
            if total > MAX_IMAGE {
                return Err(invalid(format!("its layers have {total} bytes")));
            }
            for layer in &layers {
                packing(name, layer)?;
            }
            Ok(Parsed::Image(Box::new(Manifest { digest: sha256(bytes), config, layers })))
        }
        (None, None, Some(manifests)) if media.is_none_or(|media| INDEX.contains(&media)) => {
            Ok(Parsed::Index(manifests))
        }
        // Both at once, or under the other's name, is how one document is made to mean two things (CVE-2021-41190).
        _ => Err(invalid(format!("it is neither an image nor an index ({})", media.unwrap_or_default()))),
    }
}

/// The entry of an index that is best for this machine; of several the first, as others take it.
pub(super) fn choose(name: &str, manifests: Vec<Descriptor>) -> Result<Descriptor, PullError> {
    let none = || PullError::fatal(Reason::ImageUnsupported, format!("{name} has no image for this machine"));
    fitting(name, manifests)?.into_iter().next().ok_or_else(none)
}

/// The entries of an index that this machine runs best: one at least, in their order.
pub(super) fn fitting(name: &str, manifests: Vec<Descriptor>) -> Result<Vec<Descriptor>, PullError> {
    let machine = Machine::this();
    let mut images: Vec<Descriptor> = manifests;
    images.retain(|entry| {
        let media = entry.media_type.as_str();
        media.is_empty() || IMAGE.contains(&media) || INDEX.contains(&media)
    });
    let rank = |entry: &Descriptor| machine.rank(entry.platform.as_ref()?);
    if let Some(best) = images.iter().filter_map(rank).min() {
        images.retain(|entry| rank(entry) == Some(best));
        return Ok(images);
    }
    // Of one that does not say what it is for, its own configuration does; of several nobody knows which.
    let unsaid: Vec<&Descriptor> = images.iter().filter(|entry| entry.platform.is_none()).collect();
    if let [only] = unsaid.as_slice() {
        return Ok(vec![(*only).clone()]);
    }
    let shown: Vec<String> = images
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(Platform::to_string)
        .collect();
    let others = if shown.is_empty() { String::new() } else { format!(", only for {}", shown.join(", ")) };
    let what = format!("{name} has no image for {machine}{others}");
    Err(PullError::fatal(Reason::ImageUnsupported, what))
}

/// How a layer is packed, by its media type; a kind that is not known is refused by name.
pub(super) fn packing(name: &str, layer: &Descriptor) -> Result<Packing, PullError> {
    let media = layer.media_type.as_str();
    if !layer.urls.is_empty() || media.contains("nondistributable") || media.contains("foreign") {
        let what = format!("{name} has a layer that lies outside of its registry, which is not followed");
        return Err(PullError::fatal(Reason::ImageUnsupported, what));
    }
    match media {
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Packing::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Packing::Zstd),
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Packing::Plain)
        }
        other => Err(PullError::fatal(
            Reason::ImageUnsupported,
            format!("{name} has a layer of type {other}, which is not known"),
        )),
    }
}

#[derive(Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<ConfigSection>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigSection {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    /// Docker's; builders write it into OCI images too.
    healthcheck: serde_json::Value,
    shell: serde_json::Value,
}

/// Reads an image's configuration: what running it needs, and the digest of each unpacked layer.
pub(super) fn parse_config(
    name: &str,
    bytes: &[u8],
    layers: usize,
) -> Result<(ImageConfig, Vec<Digest>), PullError> {
    let invalid =
        |why: String| PullError::fatal(Reason::ImageInvalid, format!("the configuration of {name}: {why}"));
    let document: ConfigDocument =
        serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    // An image without an index says its platform here alone. Old ones leave it out.
    let platform =
        Platform { architecture: document.architecture, os: document.os, variant: document.variant };
    let machine = Machine::this();
    if !machine.runs(&platform) {
        let what = format!("{name} is for {platform}, and this host is {machine}");
        return Err(PullError::fatal(Reason::ImageUnsupported, what));
    }
    // An archive of `docker save` has no manifest that says so before.
    if layers == 0 || layers > MAX_LAYERS {
        return Err(invalid(format!("its image has {layers} layers")));
    }
    let diff_ids = document.rootfs.diff_ids;
    if diff_ids.len() != layers {
        return Err(invalid(format!("it names {} layers, and the manifest {layers}", diff_ids.len())));
    }
    let section = document.config.unwrap_or_default();
    let config = ImageConfig {
        env: section.env.unwrap_or_default(),
        entrypoint: section.entrypoint.unwrap_or_default(),
        cmd: section.cmd.unwrap_or_default(),
        user: section.user.unwrap_or_default(),
        working_dir: section.working_dir.unwrap_or_default(),
        stop_signal: section.stop_signal.unwrap_or_default(),
        healthcheck: healthcheck::read(section.healthcheck, section.shell),
    };
    Ok((config, diff_ids))
}
