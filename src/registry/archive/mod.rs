//! Images from archives: what `docker save`, OCI tools and `docker export` write, on disk, behind https or in S3.
//!
//! Of an uncompressed image archive only the table of contents and the layers that are missing are read, by ranges of
//! one version of it. A compressed one, or a root file system, is read once, from its begin to its end, and imported
//! at once.

mod image;
mod place;
mod s3;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(super) use image::Image;
pub(super) use place::{Part, Place, Version};
pub(super) use s3::S3;

use super::layer::{LayerWriter, Unpacked};
use super::manifest::{self, Descriptor, Packing};
use super::pull::{Contents, Progress};
use super::source::Source;
use super::{PullError, Registry, pull};
use crate::state::atomic;
use crate::types::{Digest, ImageRef, PinnedImage, Reason, SafeUrl};

/// Bytes by which a format is known.
const MAGIC: u64 = 6;

/// What is remembered of an archive, so that one that stays the same is not read again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    version: Version,
    /// Whether the layers' places are within the archive itself.
    ranged: bool,
    image: Image,
}

/// An archive whose layers can be read.
pub(super) struct Archive {
    place: Place,
    layers: BTreeMap<Digest, (u64, u64)>,
    /// Where a compressed one was unpacked to.
    _spooled: Option<Unpacked>,
}

impl Archive {
    /// Opens a layer at `offset`.
    pub async fn open(&self, layer: &Descriptor, offset: u64) -> Result<Part, PullError> {
        let Some((begins, size)) = self.layers.get(&layer.digest) else {
            let what = format!("{} has no layer {}", self.place.name(), layer.digest);
            return Err(PullError::fatal(Reason::ImageInvalid, what));
        };
        self.place.read(begins + offset, size.saturating_sub(offset)).await
    }
}

impl Registry {
    /// The digest of the image that an archive holds now.
    pub(super) async fn resolve_archive(&self, url: &SafeUrl) -> Result<Digest, PullError> {
        let place = self.place(url).await?;
        if let Some(known) = self.remembered(url, &place) {
            return Ok(known.image.digest);
        }
        let (image, archive, received) = self.read_archive(url, place).await?;
        let digest = image.digest.clone();
        if archive._spooled.is_some() {
            // All of it has come: it is kept now, and not fetched a second time.
            let reference = ImageRef::Archive(url.clone());
            let image = contents(image, archive, received);
            let pinned = PinnedImage { reference, digest: digest.clone() };
            pull::pull_contents(self, &pinned, image, &|_: Progress| {}).await?;
        }
        Ok(digest)
    }

    /// What is in an archive that is to hold `digest`.
    pub(super) async fn archive(&self, url: &SafeUrl, digest: &Digest) -> Result<Contents, PullError> {
        let (image, archive, received) = self.open_archive(url).await?;
        if image.digest != *digest {
            let (name, found) = (archive.place.name(), &image.digest);
            let what = format!(
                "{name} now holds the image {found}, and {digest} is wanted; a new commit takes the new one"
            );
            return Err(PullError::fatal(Reason::DigestMismatch, what));
        }
        Ok(contents(image, archive, received))
    }

    /// An archive in a registry's place: it has to hold the very image, or one whose configuration is the same.
    pub(super) async fn fallback(
        &self,
        url: &SafeUrl,
        digest: &Digest,
        config: Option<&Digest>,
    ) -> Result<Contents, PullError> {
        let (image, archive, received) = self.open_archive(url).await?;
        if image.digest == *digest || config == Some(&image.config_digest) {
            return Ok(contents(image, archive, received));
        }
        let (name, found) = (archive.place.name(), &image.digest);
        let what = format!("the fallback {name} holds the image {found}, and {digest} is wanted");
        Err(PullError::fatal(Reason::DigestMismatch, what))
    }

    async fn open_archive(&self, url: &SafeUrl) -> Result<(Image, Archive, u64), PullError> {
        let place = self.place(url).await?;
        match self.remembered(url, &place).filter(|known| known.ranged) {
            Some(known) => {
                let archive = Archive { layers: places(&known.image), place, _spooled: None };
                Ok((known.image, archive, 0))
            }
            None => self.read_archive(url, place).await,
        }
    }

    async fn place(&self, url: &SafeUrl) -> Result<Place, PullError> {
        Place::open(url, &self.client.http_of(url.as_str()), &self.s3).await
    }

    fn remembered(&self, url: &SafeUrl, place: &Place) -> Option<Remembered> {
        // A server that gives no ETag says nothing of whether it is the same.
        let known: Remembered = atomic::read(&self.store.archive_path(url)).ok().flatten()?;
        (known.version == place.version && place.version.is_telling()).then_some(known)
    }

    /// Reads an archive's table of contents; one that has none to be read by ranges is spooled before.
    async fn read_archive(&self, url: &SafeUrl, place: Place) -> Result<(Image, Archive, u64), PullError> {
        let version = place.version.clone();
        let packing = packing(&place.bytes(0, MAGIC.min(version.size)).await?);
        let (mut read_from, mut spooled) = (place, None);
        if packing != Packing::Plain {
            let unpacked = self.spool(&read_from, packing).await?;
            read_from = self.spooled(&unpacked).await?;
            spooled = Some(unpacked);
        }
        let image = match table::read(&read_from).await? {
            Some(entries) => image::read(&read_from, &entries).await?,
            None => {
                if spooled.is_none() {
                    let unpacked = self.spool(&read_from, Packing::Plain).await?;
                    read_from = self.spooled(&unpacked).await?;
                    spooled = Some(unpacked);
                }
                let known = spooled.as_ref().map(|spooled| (spooled.diff_id.clone(), spooled.size));
                let (diff_id, size) = known.unwrap_or_else(|| (manifest::sha256(b""), 0));
                image::of_root(diff_id, size)
            }
        };
        let received = if spooled.is_some() { version.size } else { 0 };
        let known = Remembered { version, ranged: spooled.is_none(), image };
        // Only a saving: the next look reads it again.
        let _ = atomic::write(&self.store.archive_path(url), &known);
        let archive = Archive { layers: places(&known.image), place: read_from, _spooled: spooled };
        Ok((known.image, archive, received))
    }

    async fn spooled(&self, unpacked: &Unpacked) -> Result<Place, PullError> {
        let path = format!("file://{}", unpacked.file().display());
        let url = path.parse().map_err(|_| PullError::fatal(Reason::Internal, "an odd state directory"))?;
        self.place(&url).await
    }

    /// All of it into one file of the store's own, inflated by a confined process.
    async fn spool(&self, place: &Place, packing: Packing) -> Result<Unpacked, PullError> {
        let (present, mut gone) = tokio::sync::mpsc::channel(1);
        let name = place.name().to_owned();
        let mut to = LayerWriter::spool(&self.store, &self.program, name, packing, present)?;
        let copy = async {
            let (mut resume, budget) = (super::retry::Resume::default(), super::retry::Budget::default());
            while to.written() < place.version.size {
                let part = async {
                    let mut part = place.read(to.written(), place.version.size - to.written()).await?;
                    while let Some(chunk) = part.chunk().await? {
                        to.write(&chunk).await?;
                    }
                    Err(PullError::network(format!("{}: the connection was lost", place.name()), None))
                };
                let result: Result<(), PullError> = part.await;
                if to.written() == place.version.size {
                    break;
                }
                let Err(error) = result else { continue };
                let Some(asked) = error.again else { return Err(error) };
                match resume.broke(to.written(), std::time::Instant::now(), &budget) {
                    Some(attempt) => tokio::time::sleep(super::retry::pause(attempt, asked)).await,
                    None => return Err(error),
                }
            }
            to.finish(None, None).await
        };
        match copy.await {
            Ok(unpacked) => Ok(unpacked),
            Err(error) => {
                // Whoever hears of the error finds nothing half done.
                let _ = gone.recv().await;
                Err(error)
            }
        }
    }
}

fn places(image: &Image) -> BTreeMap<Digest, (u64, u64)> {
    image.layers.iter().map(|layer| (layer.digest.clone(), (layer.offset, layer.size))).collect()
}

fn contents(image: Image, archive: Archive, received: u64) -> Contents {
    let layers = image.layers.into_iter();
    Contents {
        source: Source::Archive(Arc::new(archive)),
        config: image.config,
        diff_ids: image.diff_ids,
        layers: layers
            .map(|layer| Descriptor::of_layer(layer.media_type, layer.digest, layer.size))
            .collect(),
        received,
    }
}

/// By the first bytes, whatever the name says.
fn packing(magic: &[u8]) -> Packing {
    match magic {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        [b'B', b'Z', b'h', ..] => Packing::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Packing::Xz,
        _ => Packing::Plain,
    }
}

/// The table of contents of an uncompressed archive: names, and where their bytes begin and how many they are. For the
/// fuzzers alone.
#[cfg(feature = "fuzz")]
pub(super) async fn table_of(place: &Place) -> Result<Option<Vec<(String, u64, u64)>>, PullError> {
    let Some(entries) = table::read(place).await? else { return Ok(None) };
    let located = |path: &String| table::locate(&entries, path).map(|(at, size)| (path.clone(), at, size));
    Ok(Some(entries.keys().filter_map(located).collect()))
}
