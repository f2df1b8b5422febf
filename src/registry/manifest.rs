//! From bytes to manifests, strictly (OCI image-spec, manifest.md and image-index.md; Docker's schema 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::PullError;
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

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
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
    match (document.config, document.layers, document.manifests) {
        (Some(config), Some(layers), None) if media.is_none_or(|media| IMAGE.contains(&media)) => {
            if !CONFIG.contains(&config.media_type.as_str()) {
                let what =
                    format!("{name} is no container image, but an artifact of type {}", config.media_type);
                return Err(PullError::fatal(Reason::ImageUnsupported, what));
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

/// The architecture that this program was built for, in the words of images (Go's), and the variants that this machine
/// runs, best first.
pub(super) fn platform() -> (&'static str, &'static [&'static str]) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", amd64_variants()),
        "aarch64" => ("arm64", &["v8", ""]),
        "arm" => ("arm", &["v7", "v6", "v5", ""]),
        other => (other, &[""]),
    }
}

/// The levels of the x86-64 psABI. An entry without a variant is for every machine, and comes before the level that says
/// the same.
fn amd64_variants() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt");
        let v3 = v2
            && has!("avx2")
            && has!("bmi1")
            && has!("bmi2")
            && has!("fma")
            && has!("f16c")
            && has!("movbe");
        if v3 && has!("lzcnt") {
            return &["v3", "v2", "", "v1"];
        }
        if v2 {
            return &["v2", "", "v1"];
        }
    }
    &["", "v1"]
}

/// The entry of an index for the platform that this program was built for; of several the first, as others take it.
pub(super) fn choose(name: &str, manifests: Vec<Descriptor>) -> Result<Descriptor, PullError> {
    let none = || PullError::fatal(Reason::ImageUnsupported, format!("{name} has no image for this machine"));
    fitting(name, manifests)?.into_iter().next().ok_or_else(none)
}

/// The entries of an index that fit this machine best: one at least, in their order.
pub(super) fn fitting(name: &str, manifests: Vec<Descriptor>) -> Result<Vec<Descriptor>, PullError> {
    let (architecture, variants) = platform();
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture;
    let variant = |descriptor: &Descriptor| {
        let platform = descriptor.platform.as_ref().filter(|platform| fits(platform))?;
        variants.iter().position(|known| *known == platform.variant.as_deref().unwrap_or_default())
    };
    let shown: Vec<String> = manifests
        .iter()
        .filter_map(|m| m.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    let ranked: Vec<_> = manifests.into_iter().filter_map(|m| Some((variant(&m)?, m))).collect();
    let Some(best) = ranked.iter().map(|(rank, _)| *rank).min() else {
        let what = format!("{name} has no image for linux/{architecture}, only for {}", shown.join(", "));
        return Err(PullError::fatal(Reason::ImageUnsupported, what));
    };
    Ok(ranked.into_iter().filter(|(rank, _)| *rank == best).map(|(_, descriptor)| descriptor).collect())
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
    let (architecture, _) = platform();
    let (its_os, its) = (document.os.as_str(), document.architecture.as_str());
    if (!its.is_empty() && its != architecture) || (!its_os.is_empty() && its_os != "linux") {
        let what = format!("{name} is for {its_os}/{its}, and this host is linux/{architecture}");
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
    };
    Ok((config, diff_ids))
}
