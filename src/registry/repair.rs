//! Damaged layers, had again: from what the host keeps of them packed, else pulled by digest; unpacked, verified, put in
//! the damaged one's place while containers run. A layer that cannot be had again is taken out of use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::archive::Archive;
use super::manifest::Descriptor;
use super::remedy::{Remedy, Repaired};
use super::retry::Budget;
use super::source::Source;
use super::store::record::ImageRecord;
use super::worker::Product;
use super::{Depth, PullError, Registry, download};
use crate::reconcile::uses::Use;
use crate::types::{Digest, ImageRef, PinnedImage, Reason, SafeUrl};

/// How far a repair is: a layer of the list, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairProgress {
    /// The layer.
    pub layer: Digest,
    /// Bytes of it that are here.
    pub bytes: u64,
    /// Bytes that it has, as it is packed.
    pub total: u64,
}

/// An image as a service has it.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its name and its digest.
    pub image: PinnedImage,
    /// The archives that may stand in for it.
    pub fallback: Vec<String>,
}

impl From<Use> for Known {
    fn from(used: Use) -> Self {
        Self { image: used.image, fallback: used.fallback }
    }
}

/// What messages call the place of what is kept packed.
const KEPT: &str = "what this host keeps";

/// Who hears of the progress.
type Tell<'a> = &'a (dyn Fn(RepairProgress) + Send + Sync);

/// What of a layer is damaged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Its tree, for all that is known.
    Tree,
    /// What is kept of it packed, and nothing else.
    Blob,
}

/// A layer on its way back.
struct Work<'a> {
    layer: &'a Digest,
    part: Part,
    /// The image that it is put together for.
    inherits_from: &'a ImageRecord,
    received: &'a Arc<AtomicU64>,
    tell: Tell<'a>,
}

/// A place that may have a layer.
struct Place<'a> {
    /// Whose it is.
    reference: &'a ImageRef,
    source: Source,
    descriptor: Descriptor,
}

/// A layer that could not be had again, and what of it is damaged.
struct Lost(PullError, Part);

impl From<PullError> for Lost {
    fn from(error: PullError) -> Self {
        Self(error, Part::Tree)
    }
}

impl Registry {
    /// Has layers and image records again. `known`: images by the names that services have for them.
    pub async fn repair(
        &self,
        layers: Vec<Digest>,
        images: Vec<Digest>,
        known: &[Known],
        tell: Tell<'_>,
    ) -> Vec<Repaired> {
        let mut results = self.repair_layers(layers, Some(known), tell).await;
        for image in images {
            let begun = Instant::now();
            let received = Arc::new(AtomicU64::new(0));
            let result = self.repair_image(&image, known, &received).await;
            results.push(repaired(image, result, Remedy::Left, &received, begun));
        }
        results
    }

    /// Has layers again from what is kept of them packed, and from nobody else.
    pub async fn repair_alone(&self, layers: Vec<Digest>) -> Vec<Repaired> {
        self.repair_layers(layers, None, &|_| {}).await
    }

    async fn repair_layers(
        &self,
        mut layers: Vec<Digest>,
        known: Option<&[Known]>,
        tell: Tell<'_>,
    ) -> Vec<Repaired> {
        let records = self.store.image_records();
        // Lower ones first: what a layer only implies it takes from those below.
        let place = |layer: &Digest| {
            let places =
                records.iter().filter_map(|record| record.diff_ids.iter().position(|id| id == layer));
            places.min().unwrap_or(usize::MAX)
        };
        layers.sort_by_key(|layer| place(layer));
        layers.dedup();
        let mut results = Vec::new();
        for layer in layers {
            let begun = Instant::now();
            let received = Arc::new(AtomicU64::new(0));
            let result = self.repair_layer(&layer, (&records, known), &received, tell).await;
            results.push(self.conclude(layer, result, &received, begun));
        }
        results
    }

    /// A layer that cannot be had again is nobody's to run. Nor one that came whole and lacks another one below it: left as it
    /// is, the damaged one would be believed by the pull that brings the other one.
    fn conclude(
        &self,
        layer: Digest,
        result: Result<Remedy, Lost>,
        received: &AtomicU64,
        begun: Instant,
    ) -> Repaired {
        let (done, remedy) = match &result {
            Ok(remedy) => (Ok(()), *remedy),
            Err(Lost(_, Part::Tree)) => (self.store.quarantine(&layer), Remedy::Quarantined),
            // Nothing runs on that.
            Err(Lost(_, Part::Blob)) => (self.store.remove_blob(&layer), Remedy::BlobRemoved),
        };
        let otherwise = match done {
            Ok(()) => remedy,
            Err(error) => {
                tracing::warn!("{error}");
                Remedy::Left
            }
        };
        repaired(layer, result.map_err(|Lost(error, _)| error), otherwise, received, begun)
    }

    async fn repair_layer(
        &self,
        layer: &Digest,
        (records, known): (&[ImageRecord], Option<&[Known]>),
        received: &Arc<AtomicU64>,
        tell: Tell<'_>,
    ) -> Result<Remedy, Lost> {
        let _claim = self.underway.layer(layer).await;
        let mut users: Vec<&ImageRecord> =
            records.iter().filter(|record| record.diff_ids.contains(layer)).collect();
        // The layer is put together for the first: for one, where there is one, that has all which is below it.
        users.sort_by_key(|record| self.lacks_below(record, layer));
        let Some(inherits_from) = users.first() else {
            return if self.store.discard(layer)? { Ok(Remedy::Removed) } else { Ok(Remedy::Left) };
        };
        let _pins = self.store.pin(&inherits_from.diff_ids);
        let mut work = Work { layer, part: Part::Tree, inherits_from, received, tell };
        let Some(result) = self.rebuild_from_blob(&work).await else {
            return Ok(self.pull_again(&work, &users, known).await.map(|()| Remedy::Rebuilt)?);
        };
        let of_blob = match result {
            Ok(()) => return Ok(Remedy::Rebuilt),
            // From elsewhere it would fare no better. A disk that cannot read the blob may well take another one.
            Err(error) if matches!(error.reason, Reason::DiskSpace | Reason::LayerMissing) => {
                return Err(Lost(error, self.damaged_part(layer).await));
            }
            Err(error) => error,
        };
        work.part = self.damaged_part(layer).await;
        if work.part == Part::Blob && !self.workers.keep_blobs {
            // It was kept by a former configuration.
            return Ok(self.store.remove_blob(layer).map(|()| Remedy::BlobRemoved)?);
        }
        match self.pull_again(&work, &users, known).await {
            Ok(()) if work.part == Part::Blob => Ok(Remedy::BlobRebuilt),
            Ok(()) => Ok(Remedy::Rebuilt),
            Err(error) => Err(Lost(error.and(of_blob), work.part)),
        }
    }

    /// Has a layer again without anybody, from what is kept of it packed; `None`: nothing is, for all that is written down.
    async fn rebuild_from_blob(&self, work: &Work<'_>) -> Option<Result<(), PullError>> {
        let (path, record) = self.store.blob(work.layer)?;
        let blob = record.blob;
        let descriptor = Descriptor::of_layer(blob.media_type, blob.digest, blob.size);
        let archive = match Archive::of_layer(KEPT, &path, &descriptor) {
            Ok(archive) => archive,
            Err(error) => return Some(Err(error)),
        };
        let source = Source::Archive(Arc::new(archive));
        let place = Place { reference: &record.reference, source, descriptor };
        // Nothing of it comes over the network.
        let work = Work { received: &Arc::default(), ..*work };
        Some(self.rebuild(&work, KEPT, place).await)
    }

    /// Reads all of a layer: only where its blob turned out to be damaged.
    async fn damaged_part(&self, layer: &Digest) -> Part {
        let (store, layer) = (self.store.clone(), layer.clone());
        let looking =
            tokio::task::spawn_blocking(move || store.check_layer(&layer, Depth::Full, &mut |_| {}));
        match looking.await {
            Ok(Ok(Some(report))) if report.lacks_its_blob_alone() => Part::Blob,
            _ => Part::Tree,
        }
    }

    /// Has a layer again from where it came from.
    async fn pull_again(
        &self,
        work: &Work<'_>,
        users: &[&ImageRecord],
        known: Option<&[Known]>,
    ) -> Result<(), PullError> {
        let layer = work.layer;
        let Some(known) = known else {
            let what = format!("layer {layer}: nobody is asked for it now");
            return Err(PullError::retry(Reason::LayerMissing, what));
        };
        let mut trouble = None;
        // What its own record says needs no further trip; what the images say is as good.
        if let Some(record) = self.store.layer_record(layer)
            // Where it is in an archive, only the archive says.
            && let ImageRef::Registry(place) = &record.reference
        {
            let (reference, blob) = (&record.reference, record.blob);
            let source = Source::Registry(self.client.clone(), place.clone());
            let descriptor = Descriptor::of_layer(blob.media_type, blob.digest, blob.size);
            let place = Place { reference, source, descriptor };
            match self.rebuild(work, &reference.to_string(), place).await {
                Err(error) if !is_final(&error) => trouble = Some(error),
                result => return result,
            }
        }
        for record in users {
            for reference in &record.references {
                let result = match self.find_layer(record, layer, reference).await {
                    Ok(place) => self.rebuild(work, &reference.to_string(), place).await,
                    Err(error) => Err(error),
                };
                match result {
                    Err(error) if !is_final(&error) => trouble = Some(error),
                    result => return result,
                }
            }
        }
        for record in users {
            for url in stand_ins(&record.digest, known) {
                let result = match url {
                    Ok(url) => self.rebuild_from(work, record, &url).await,
                    Err(error) => Err(error),
                };
                match result {
                    Err(error) if !is_final(&error) => {
                        trouble = Some(trouble.map_or(error.clone(), |first: PullError| first.and(error)));
                    }
                    result => return result,
                }
            }
        }
        let what = format!("layer {layer}: nothing says where it came from");
        Err(trouble.unwrap_or_else(|| PullError::fatal(Reason::ImageNotFound, what)))
    }

    /// Whether a layer below this one is not here.
    fn lacks_below(&self, record: &ImageRecord, layer: &Digest) -> bool {
        let below = record.diff_ids.iter().take_while(|id| *id != layer);
        below.into_iter().any(|lower| !self.store.has_layer(lower))
    }

    /// What a layer is in an image, and where it can be had.
    async fn find_layer<'a>(
        &self,
        record: &ImageRecord,
        layer: &Digest,
        reference: &'a ImageRef,
    ) -> Result<Place<'a>, PullError> {
        let (source, layers) = match reference {
            ImageRef::Registry(place) => {
                let manifest = self.manifest(place, &record.digest, &Budget::default()).await?;
                (Source::Registry(self.client.clone(), place.clone()), manifest.layers.clone())
            }
            ImageRef::Archive(url) => {
                let contents = self.archive(url, &record.digest, &|_| {}).await?;
                (contents.source, contents.layers)
            }
        };
        Ok(Place { reference, source, descriptor: descriptor_of(record, layer, layers, reference)? })
    }

    /// Has a layer again from an archive that stands in for its image.
    async fn rebuild_from(
        &self,
        work: &Work<'_>,
        record: &ImageRecord,
        url: &SafeUrl,
    ) -> Result<(), PullError> {
        let config = self.config_of(&record.digest);
        let contents = self.fallback(url, &record.digest, config.as_ref(), &|_| {}).await?;
        let reference = ImageRef::Archive(url.clone());
        let descriptor = descriptor_of(record, work.layer, contents.layers, &reference)?;
        let place = Place { reference: &reference, source: contents.source, descriptor };
        self.rebuild(work, &reference.to_string(), place).await
    }

    /// Fetches one layer and puts it in its place, with what it only implies as it is in the image that it inherits from.
    /// `name` is for messages.
    async fn rebuild(&self, work: &Work<'_>, name: &str, place: Place<'_>) -> Result<(), PullError> {
        let Work { layer, part, inherits_from, received, tell } = *work;
        let Place { reference, source, descriptor } = place;
        let barrier = self.store.barrier()?;
        let (media_type, total) = (descriptor.media_type.clone(), descriptor.size);
        let tell = |bytes| tell(RepairProgress { layer: layer.clone(), bytes, total });
        let wanted = (layer, &descriptor);
        let unpacked =
            download::fetch_alone(self, &source, name, wanted, received, Product::Tree, &tell).await?;
        let (store, ids) = (self.store.clone(), inherits_from.diff_ids.clone());
        let (reference, layer) = (reference.clone(), layer.clone());
        let placed = tokio::task::spawn_blocking(move || {
            let one = BTreeMap::from([(layer.clone(), unpacked)]);
            if part == Part::Tree {
                store.settle(&ids, &one)?;
            }
            one.values().try_for_each(|unpacked| {
                store.describe(unpacked, &media_type, &reference)?;
                match part {
                    Part::Tree => store.replace(&barrier, &layer, unpacked),
                    Part::Blob => store.replace_blob(&barrier, &layer, unpacked),
                }
            })?;
            // It looks as the one image has it.
            if part == Part::Tree { store.dress_users(one.keys()) } else { Ok(()) }
        });
        placed.await.map_err(|error| PullError::retry(Reason::Internal, format!("repairing: {error}")))?
    }

    async fn repair_image(
        &self,
        image: &Digest,
        known: &[Known],
        received: &AtomicU64,
    ) -> Result<Remedy, PullError> {
        let former = self.store.image_record(image);
        if let Some(record) = &former {
            self.store.rewrite(record)?;
            let (store, id) = (self.store.clone(), image.clone());
            let dressed = tokio::task::spawn_blocking(move || store.dress(&id)).await;
            dressed.map_err(|error| PullError::retry(Reason::Internal, format!("repairing: {error}")))??;
            if self.store.image(image).is_some() {
                return Ok(Remedy::Rebuilt);
            }
        }
        let names = former.iter().flat_map(|record| &record.references);
        let names = names.map(|reference| Known {
            image: PinnedImage { reference: reference.clone(), digest: image.clone() },
            fallback: Vec::new(),
        });
        let mut trouble = None;
        for known in known.iter().filter(|known| known.image.digest == *image).cloned().chain(names) {
            match self.pull_or(&known.image, &known.fallback, &|_| {}).await {
                Ok(pulled) => {
                    received.fetch_add(pulled.bytes, Ordering::Relaxed);
                    return Ok(Remedy::Rebuilt);
                }
                Err(error) => trouble = Some(error),
            }
        }
        match trouble {
            Some(error) => Err(error),
            // Nobody has a name for it.
            None => self.store.forget_image(image).map(|()| Remedy::Removed),
        }
    }
}

/// Whether the same layer from another place would fare no better.
fn is_final(error: &PullError) -> bool {
    error.is_the_hosts() || error.reason == Reason::LayerMissing
}

/// The archives that may stand in for an image, each once.
fn stand_ins(image: &Digest, known: &[Known]) -> Vec<Result<SafeUrl, PullError>> {
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    for known in known.iter().filter(|known| known.image.digest == *image) {
        let urls = super::fallbacks(&known.image.reference, Some(image), &known.fallback);
        all.extend(
            urls.into_iter().filter(|url| url.as_ref().map_or(true, |url| seen.insert(url.to_string()))),
        );
    }
    all
}

/// A layer as a place has it.
fn descriptor_of(
    record: &ImageRecord,
    layer: &Digest,
    mut layers: Vec<Descriptor>,
    place: &ImageRef,
) -> Result<Descriptor, PullError> {
    let position = record.diff_ids.iter().position(|id| id == layer);
    position
        .filter(|position| *position < layers.len())
        .map(|position| layers.swap_remove(position))
        .ok_or_else(|| PullError::fatal(Reason::ImageInvalid, format!("{place} does not have layer {layer}")))
}

fn repaired(
    digest: Digest,
    result: Result<Remedy, PullError>,
    otherwise: Remedy,
    received: &AtomicU64,
    begun: Instant,
) -> Repaired {
    let (remedy, trouble) = match result {
        Ok(remedy) => (remedy, None),
        Err(error) => (otherwise, Some(error)),
    };
    Repaired {
        digest,
        remedy,
        pulled_bytes: received.load(Ordering::Relaxed),
        seconds: begun.elapsed().as_secs_f64(),
        reason: trouble.as_ref().map(|error| error.reason),
        message: trouble.map(|error| error.to_string()),
    }
}
