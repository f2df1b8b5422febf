//! Images from archives: what `docker save`, OCI tools and `docker export` write, on disk, behind https or in S3.
//!
//! Of an uncompressed image archive only the table of contents and the layers that are missing are read, by ranges of
//! one version of it. A compressed one, a root file system, or one whose server gives no ranges, is read once, from its
//! begin to its end, and imported at once.

mod aws;
mod image;
mod place;
mod remote;
mod s3;
mod spool;
mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(super) use image::Image;
pub(super) use place::{Part, Place, Version, Watched};
pub(super) use s3::S3;

use super::layer::Unpacked;
use super::manifest::{self, Descriptor, Packing};
use super::pull::{Contents, Progress};
use super::source::Source;
use super::{PullError, Registry, pull};
use crate::types::{Digest, ImageRef, PinnedImage, Reason, SafeUrl};
use table::{Look, Table};

/// Who hears how far it is.
type Tell<'a> = &'a (dyn Fn(Progress) + Send + Sync);

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
    /// Of the archive itself, also where a copy of it is read.
    watched: Arc<Watched>,
    /// Where one that is read as a whole was put.
    spooled: Option<Unpacked>,
}

impl Archive {
    /// A layer that is a file of its own. `name` is for messages.
    pub fn of_layer(name: &str, file: &Path, layer: &Descriptor) -> Result<Self, PullError> {
        let place = Place::copy(name, file)?;
        let layers = BTreeMap::from([(layer.digest.clone(), (0, layer.size))]);
        Ok(Self { watched: place.watched.clone(), place, layers, spooled: None })
    }

    /// Opens a layer at `offset`.
    pub async fn open(&self, layer: &Descriptor, offset: u64) -> Result<Part, PullError> {
        let Some((begins, size)) = self.layers.get(&layer.digest) else {
            let what = format!("{} has no layer {}", self.place.name(), layer.digest);
            return Err(PullError::fatal(Reason::ImageInvalid, what));
        };
        self.place.read(begins + offset, size.saturating_sub(offset)).await
    }

    /// Whether it was changed while it was read.
    pub fn has_moved(&self) -> bool {
        self.watched.has_moved()
    }
}

impl Registry {
    /// The digest of the image that an archive holds now.
    pub(super) async fn resolve_archive(&self, url: &SafeUrl, tell: Tell<'_>) -> Result<Digest, PullError> {
        // Whoever comes second finds what the first one brought.
        let _gate = self.underway.image(&manifest::sha256(url.as_str().as_bytes())).await;
        let (image, archive, received) = match self.read_steadily(url, tell, false).await? {
            Read::Known(digest) => return Ok(digest),
            Read::Opened(image, archive, received) => (*image, archive, received),
        };
        let digest = image.digest.clone();
        if archive.spooled.is_some() {
            // All of it has come: it is kept now, and not fetched a second time.
            let reference = ImageRef::Archive(url.clone());
            let image = contents(image, archive, received);
            let pinned = PinnedImage { reference, digest: digest.clone() };
            let pulled = pull::pull_contents(self, &pinned, image, tell).await?;
            self.brought(&digest, pulled);
        }
        Ok(digest)
    }

    /// What is in an archive that is to hold `digest`.
    pub(super) async fn archive(
        &self,
        url: &SafeUrl,
        digest: &Digest,
        tell: Tell<'_>,
    ) -> Result<Contents, PullError> {
        let (image, archive, received) = self.open_archive(url, tell).await?;
        if image.digest != *digest {
            let found = &image.digest;
            let what = format!(
                "{url} now holds the image {found}, and {digest} is wanted; a new commit takes the new one"
            );
            return Err(PullError::fatal(Reason::DigestMismatch, what));
        }
        Ok(contents(image, archive, received))
    }

    /// An archive in a registry's place: it has to hold the very image, by its manifest or by the index that it was chosen
    /// from, or one whose configuration is the same.
    pub(super) async fn fallback(
        &self,
        url: &SafeUrl,
        digest: &Digest,
        config: Option<&Digest>,
        tell: Tell<'_>,
    ) -> Result<Contents, PullError> {
        let (image, archive, received) = self.open_archive(url, tell).await?;
        if image.is(digest) || config == Some(&image.config_digest) {
            return Ok(contents(image, archive, received));
        }
        let found = &image.digest;
        let mut what = format!("the fallback {url} holds the image {found}, and {digest} is wanted");
        if config.is_none() {
            what.push_str(", whose configuration is not known here");
        }
        Err(PullError::fatal(Reason::DigestMismatch, what))
    }

    /// What is in an archive, whatever that is.
    pub(super) async fn any_archive(&self, url: &SafeUrl, tell: Tell<'_>) -> Result<Contents, PullError> {
        let (image, archive, received) = self.open_archive(url, tell).await?;
        Ok(contents(image, archive, received))
    }

    async fn open_archive(&self, url: &SafeUrl, tell: Tell<'_>) -> Result<(Image, Archive, u64), PullError> {
        match self.read_steadily(url, tell, true).await? {
            Read::Opened(image, archive, received) => Ok((*image, archive, received)),
            Read::Known(_) => Err(PullError::retry(Reason::Internal, format!("{url} was not opened"))),
        }
    }

    /// Reads one version of an archive. One that changes meanwhile is read anew, once.
    async fn read_steadily(&self, url: &SafeUrl, tell: Tell<'_>, open: bool) -> Result<Read, PullError> {
        let mut begun_anew = false;
        loop {
            let place = Place::open(url, &self.client, &self.s3).await?;
            match self.remembered(url, &place) {
                Some(known) if !open => return Ok(Read::Known(known.image.digest)),
                Some(known) if known.ranged => {
                    let watched = place.watched.clone();
                    let archive = Archive { layers: places(&known.image), place, watched, spooled: None };
                    return Ok(Read::Opened(Box::new(known.image), archive, 0));
                }
                _ => {}
            }
            let watched = place.watched.clone();
            match self.read_archive(url, place, tell).await {
                Err(_) if watched.has_moved() && !begun_anew => begun_anew = true,
                Err(error) if watched.has_moved() => {
                    return Err(error.and("it was read anew once, and changed again"));
                }
                result => return result,
            }
        }
    }

    fn remembered(&self, url: &SafeUrl, place: &Place) -> Option<Remembered> {
        // A server that gives no ETag says nothing of whether it is the same.
        let known: Remembered = self.store.archive_note(url)?;
        (known.version == place.version && place.version.is_telling()).then_some(known)
    }

    /// Reads an archive's table of contents; one that has none to be read by ranges is spooled before.
    async fn read_archive(&self, url: &SafeUrl, place: Place, tell: Tell<'_>) -> Result<Read, PullError> {
        let (version, watched) = (place.version.clone(), place.watched.clone());
        let (origin, mut table) = (place.clone(), None);
        if place.has_ranges() {
            let magic = place.bytes(0, spool::MAGIC.min(version.size)).await?;
            if spool::packing(&magic) == Packing::Plain {
                table = Some(table::read(&place, Look::Short).await?);
            }
        }
        let (image, archive) = match table {
            Some(Table::Image(entries)) => {
                let image = image::read(&place, &entries).await?;
                (image.clone(), Archive { layers: places(&image), place, watched, spooled: None })
            }
            _ => {
                let unpacked = spool::spool(self, &place, tell).await?;
                let copy = Place::copy(place.name(), &unpacked.file())?;
                let image = match table::read(&copy, Look::Whole).await? {
                    Table::Image(entries) => image::read(&copy, &entries).await?,
                    Table::Other => image::of_root(unpacked.diff_id.clone(), unpacked.size),
                };
                let layers = places(&image);
                (image, Archive { layers, place: copy, watched, spooled: Some(unpacked) })
            }
        };
        let known = Remembered { version, ranged: archive.spooled.is_none(), image };
        self.store.note_archive(url, &known);
        Ok(Read::Opened(Box::new(known.image), archive, origin.received()))
    }
}

/// What a look at an archive gave.
enum Read {
    /// It is as it was, and needs no reading.
    Known(Digest),
    /// The image, where its layers are, and bytes that came for that.
    Opened(Box<Image>, Archive, u64),
}

fn places(image: &Image) -> BTreeMap<Digest, (u64, u64)> {
    image.layers.iter().map(|layer| (layer.digest.clone(), (layer.offset, layer.size))).collect()
}

fn contents(image: Image, archive: Archive, received: u64) -> Contents {
    let layers = image.layers.into_iter();
    Contents {
        is_local: archive.spooled.is_some(),
        source: Source::Archive(Arc::new(archive)),
        config: image.config,
        config_digest: image.config_digest,
        config_text: image.config_text.into_bytes(),
        diff_ids: image.diff_ids,
        layers: layers
            .map(|layer| Descriptor::of_layer(layer.media_type, layer.digest, layer.size))
            .collect(),
        received,
    }
}

/// The table of contents of an uncompressed archive: names, and where their bytes begin and how many they are. For the
/// fuzzers alone.
#[cfg(feature = "fuzz")]
pub(super) async fn table_of(place: &Place) -> Result<Option<Vec<(String, u64, u64)>>, PullError> {
    let table::Table::Image(entries) = table::read(place, table::Look::Whole).await? else { return Ok(None) };
    let located = |path: &String| table::locate(&entries, path).map(|(at, size)| (path.clone(), at, size));
    Ok(Some(entries.keys().filter_map(located).collect()))
}
