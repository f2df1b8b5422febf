//! Which image an archive holds: OCI layouts, and what `docker save` writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::place::Place;
use super::table::{Found, locate};
use crate::engine::ImageConfig;
use crate::registry::PullError;
use crate::registry::manifest::{self, Descriptor, MAX_DOCUMENT, Parsed};
use crate::types::{Digest, Reason};

/// An uncompressed layer.
pub(super) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image within an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::registry) struct Image {
    /// The manifest's; of an old `docker save` and a root file system the configuration's.
    pub digest: Digest,
    /// The configuration's.
    pub config_digest: Digest,
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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// Reads it.
pub(super) async fn read(place: &Place, entries: &BTreeMap<String, Found>) -> Result<Image, PullError> {
    let archive = Archive { place, entries };
    if entries.contains_key("index.json") { archive.layout().await } else { archive.saved().await }
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

    /// OCI image-layout.md. One image, perhaps for several platforms.
    async fn layout(&self) -> Result<Image, PullError> {
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<Descriptor>,
        }
        let name = self.place.name();
        let index: Index = serde_json::from_slice(&self.document("index.json").await?)
            .map_err(|error| self.refuse(format_args!("index.json: {error}")))?;
        let mut wanted = match index.manifests.as_slice() {
            [one] => one.digest.clone(),
            _ => {
                // Images for several platforms, or several images: the index is read as one that was pulled.
                let bytes = self.document("index.json").await?;
                match manifest::parse(name, &bytes)? {
                    Parsed::Index(descriptor) => descriptor.digest,
                    Parsed::Image(_) => return Err(self.refuse("index.json is no index")),
                }
            }
        };
        for _ in 0..2 {
            match manifest::parse(name, &self.blob(&wanted).await?)? {
                Parsed::Index(descriptor) => wanted = descriptor.digest,
                Parsed::Image(found) => {
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
                    let (digest, config_digest) = (found.digest, found.config.digest);
                    return Ok(Image { digest, config_digest, config, diff_ids, layers });
                }
            }
        }
        Err(self.refuse("an index of an index"))
    }

    /// moby's image/tarexport: `manifest.json` names a configuration and uncompressed layers, whose digests are those
    /// of their content.
    async fn saved(&self) -> Result<Image, PullError> {
        let name = self.place.name();
        let saved: Vec<Saved> = serde_json::from_slice(&self.document("manifest.json").await?)
            .map_err(|error| self.refuse(format_args!("manifest.json: {error}")))?;
        let [saved] = saved.as_slice() else {
            return Err(self.refuse(format_args!("it holds {} images, and has to hold one", saved.len())));
        };
        let bytes = self.document(&saved.config).await?;
        let digest = manifest::sha256(&bytes);
        let (config, diff_ids) = manifest::parse_config(name, &bytes, saved.layers.len())?;
        let stored = |(path, diff_id): (&String, &Digest)| {
            let (offset, size) = self.locate(path)?;
            Ok(Stored { media_type: PLAIN.to_owned(), digest: diff_id.clone(), size, offset })
        };
        let layers = saved.layers.iter().zip(&diff_ids).map(stored).collect::<Result<_, PullError>>()?;
        Ok(Image { digest: digest.clone(), config_digest: digest, config, diff_ids, layers })
    }
}

/// The image of a root file system without one: it is told by its content alone.
pub(super) fn of_root(diff_id: Digest, size: u64) -> Image {
    let config = serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string()] } });
    let digest = manifest::sha256(config.to_string().as_bytes());
    let layer = Stored { media_type: PLAIN.to_owned(), digest: diff_id.clone(), size, offset: 0 };
    Image {
        digest: digest.clone(),
        config_digest: digest,
        config: ImageConfig::default(),
        diff_ids: vec![diff_id],
        layers: vec![layer],
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
