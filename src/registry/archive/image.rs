//! Which image an archive holds: OCI layouts, and what `docker save` writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::place::Place;
use super::table::{Found, id_of, locate};
use crate::engine::ImageConfig;
use crate::registry::PullError;
use crate::registry::manifest::{self, Descriptor, MAX_DOCUMENT, Manifest, Parsed};
use crate::types::{Digest, Reason};

/// An uncompressed layer.
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer that go-containerregistry or jib saved.
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What to do about an archive of several images.
const ONE: &str = "an archive has to hold one: write it again with that one alone";

/// An image within an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::registry) struct Image {
    /// The manifest's; of an old `docker save` and a root file system the configuration's.
    pub digest: Digest,
    /// Of the indexes that led to it, which are as much a name of it as its own: each by its bytes, whatever says so.
    pub indexes: Vec<Digest>,
    /// The configuration's.
    pub config_digest: Digest,
    /// Its bytes.
    pub config_text: String,
    pub config: ImageConfig,
    /// Lowest first.
    pub diff_ids: Vec<Digest>,
    pub layers: Vec<Stored>,
}

/// A layer, and where it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::registry) struct Stored {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub offset: u64,
}

/// An entry of `manifest.json`.
#[derive(PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// Reads it.
pub(super) async fn read(place: &Place, entries: &BTreeMap<String, Found>) -> Result<Image, PullError> {
    let archive = Archive { place, entries };
    if entries.contains_key("index.json") {
        archive.layout().await
    } else if entries.contains_key("manifest.json") {
        archive.saved().await
    } else {
        Err(archive.refuse("it is an image archive without index.json and manifest.json"))
    }
}

struct Archive<'a> {
    place: &'a Place,
    entries: &'a BTreeMap<String, Found>,
}

impl Archive<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> PullError {
        PullError::fatal(Reason::ImageInvalid, format!("{}: {why}", self.place.name()))
    }

    fn locate(&self, path: &str) -> Result<(u64, u64), PullError> {
        locate(self.entries, path).ok_or_else(|| self.refuse(format_args!("it has no {path}")))
    }

    async fn document(&self, path: &str) -> Result<Vec<u8>, PullError> {
        let (offset, size) = self.locate(path)?;
        if size > MAX_DOCUMENT {
            return Err(self.refuse(format_args!("{path} has {size} bytes")));
        }
        self.place.bytes(offset, size).await
    }

    /// A small blob, checked.
    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, PullError> {
        let path = blob_path(digest);
        let bytes = self.document(&path).await?;
        if manifest::sha256(&bytes) != *digest {
            let what = format!("{}: {path} does not have its digest", self.place.name());
            return Err(PullError::fatal(Reason::DigestMismatch, what));
        }
        Ok(bytes)
    }

    /// OCI image-layout.md. One image, perhaps for several platforms, perhaps with several names.
    async fn layout(&self) -> Result<Image, PullError> {
        let mut name = format!("index.json of {}", self.place.name());
        let mut bytes = self.document("index.json").await?;
        let mut indexes = Vec::new();
        // An index of indexes of manifests: what containerd writes.
        for _ in 0..3 {
            bytes = match manifest::parse(&name, &bytes)? {
                Parsed::Image(found) => return self.image(*found, indexes).await,
                Parsed::Index(all) => {
                    let wanted = self.choose(all)?;
                    indexes.push(manifest::sha256(&bytes));
                    name = format!("{wanted} of {}", self.place.name());
                    self.blob(&wanted).await?
                }
            };
        }
        Err(self.refuse("an index of an index of an index"))
    }

    /// The one image of an index for this platform. Entries that name no platform are images that nobody told apart.
    fn choose(&self, all: Vec<Descriptor>) -> Result<Digest, PullError> {
        let plain: Vec<Descriptor> = all.iter().filter(|entry| !entry.has_platform()).cloned().collect();
        let fitting = match manifest::fitting(self.place.name(), all) {
            Ok(fitting) => fitting,
            Err(error) if plain.is_empty() => return Err(error),
            Err(_) => plain,
        };
        let mut images: BTreeMap<&Digest, Vec<&str>> = BTreeMap::new();
        for entry in &fitting {
            images.entry(&entry.digest).or_default().extend(entry.name());
        }
        match images.keys().next() {
            Some(one) if images.len() == 1 => Ok((*one).clone()),
            None => Err(self.refuse("its index names no image")),
            _ => {
                let named: Vec<String> = images.iter().map(|(digest, names)| called(names, digest)).collect();
                Err(self.several(&named))
            }
        }
    }

    fn several(&self, images: &[String]) -> PullError {
        let shown = images.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if images.len() > 5 { ", …" } else { "" };
        let count = images.len();
        self.refuse(format_args!("it holds {count} images for this platform ({shown}{more}), and {ONE}"))
    }

    async fn image(&self, found: Manifest, indexes: Vec<Digest>) -> Result<Image, PullError> {
        let name = self.place.name();
        let bytes = self.blob(&found.config.digest).await?;
        let (config, diff_ids) = manifest::parse_config(name, &bytes, found.layers.len())?;
        let stored = |layer: Descriptor| {
            let (offset, size) = self.locate(&blob_path(&layer.digest))?;
            if size != layer.size {
                return Err(self.refuse(format_args!("layer {} has another size", layer.digest)));
            }
            Ok(Stored { media_type: layer.media_type, digest: layer.digest, size, offset })
        };
        let layers = found.layers.into_iter().map(stored).collect::<Result<_, _>>()?;
        let (digest, config_digest, config_text) = (found.digest, found.config.digest, self.text(bytes)?);
        Ok(Image { digest, indexes, config_digest, config_text, config, diff_ids, layers })
    }

    /// moby's image/tarexport: `manifest.json` names a configuration and uncompressed layers, whose digests are those
    /// of their content. Others save the layers as they are in a registry, by their digests.
    async fn saved(&self) -> Result<Image, PullError> {
        let name = self.place.name();
        let all: Vec<Saved> = serde_json::from_slice(&self.document("manifest.json").await?)
            .map_err(|error| self.refuse(format_args!("manifest.json: {error}")))?;
        let Some(saved) = all.first() else { return Err(self.refuse("its manifest.json names no image")) };
        // One image with several names may be there once for each.
        if all.iter().any(|other| (&other.config, &other.layers) != (&saved.config, &saved.layers)) {
            let named = |saved: &Saved| {
                let tags: Vec<&str> = saved.repo_tags.iter().flatten().map(String::as_str).collect();
                called(&tags, &saved.config)
            };
            return Err(self.several(&all.iter().map(named).collect::<Vec<_>>()));
        }
        let bytes = self.document(&saved.config).await?;
        let digest = manifest::sha256(&bytes);
        let (config, diff_ids) = manifest::parse_config(name, &bytes, saved.layers.len())?;
        let stored = |(path, diff_id): (&String, &Digest)| {
            let (offset, size) = self.locate(path)?;
            let packed = Some(path).filter(|path| path.ends_with(".tar.gz")).and_then(|path| id_of(path));
            let packed: Option<Digest> = packed.and_then(|id| format!("sha256:{id}").parse().ok());
            let media_type = if packed.is_some() { GZIP } else { PLAIN }.to_owned();
            Ok(Stored { media_type, digest: packed.unwrap_or_else(|| diff_id.clone()), size, offset })
        };
        let layers = saved.layers.iter().zip(&diff_ids).map(stored).collect::<Result<_, PullError>>()?;
        let (config_digest, config_text) = (digest.clone(), self.text(bytes)?);
        Ok(Image { digest, indexes: Vec::new(), config_digest, config_text, config, diff_ids, layers })
    }

    fn text(&self, config: Vec<u8>) -> Result<String, PullError> {
        String::from_utf8(config).map_err(|_| self.refuse("its configuration is no text"))
    }
}

/// An image by its names, else by its digest.
fn called(names: &[&str], digest: &dyn std::fmt::Display) -> String {
    if names.is_empty() { digest.to_string() } else { names.join(" = ") }
}

/// The image of a root file system without one: it is told by its content alone.
pub(super) fn of_root(diff_id: Digest, size: u64) -> Image {
    let config = serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string()] } });
    let config_text = config.to_string();
    let digest = manifest::sha256(config_text.as_bytes());
    let layer = Stored { media_type: PLAIN.to_owned(), digest: diff_id.clone(), size, offset: 0 };
    Image {
        digest: digest.clone(),
        indexes: Vec::new(),
        config_digest: digest,
        config_text,
        config: ImageConfig::default(),
        diff_ids: vec![diff_id],
        layers: vec![layer],
    }
}

impl Image {
    /// Whether the digest of a manifest, or of an index for several platforms, is this image's.
    pub fn is(&self, digest: &Digest) -> bool {
        self.digest == *digest || self.indexes.contains(digest)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
