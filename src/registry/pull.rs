//! One pull: what is missing, three layers of it at a time, and one durable end. What takes long has its finished layers made
//! durable on the way (`stage.rs`), and what fails keeps them; what pulls beside each other share is in `underway.rs`.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::layer::{self, LayerWriter};
use super::manifest::{self, Descriptor};
use super::retry::Budget;
use super::source::Source;
use super::stage::Stages;
use super::store::Store;
use super::worker::Product;
use super::{PullError, Registry, download, space};
use crate::engine::ImageConfig;
use crate::types::{Digest, ImageRef, PinnedImage, Reason, RegistryRef, SafeUrl};

/// Packed bytes after which the disk is given something to do: by what comes, not by the clock, so that a slow network makes
/// nobody else's writes durable more often than they asked for.
const FLUSH_EVERY: u64 = 40 << 20;

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Bytes of missing layers that are here; what broke off and came again counts once.
    pub bytes: u64,
    /// Bytes that all missing layers have together.
    pub total: u64,
    /// Layers of the image.
    pub layers: usize,
    /// Of these, layers that were here before.
    pub layers_here: usize,
    /// Layers that have come, and are unpacked.
    pub layers_done: usize,
}

/// What a pull came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pulled {
    /// Bytes of layers and configuration that came over the network, also those that came twice.
    pub bytes: u64,
    /// Layers of the image.
    pub layers_total: usize,
    /// Of these, layers that were here when it began: also those that an earlier pull left behind, which failed.
    pub layers_reused: usize,
}

/// What an image consists of, and where its layers are.
pub(super) struct Contents {
    pub source: Source,
    /// Whether the source is a copy on this host: its bytes came before, and were counted.
    pub is_local: bool,
    pub config: ImageConfig,
    pub config_digest: Digest,
    /// What the configuration's digest is of.
    pub config_text: Vec<u8>,
    /// Lowest first.
    pub diff_ids: Vec<Digest>,
    /// The same layers.
    pub layers: Vec<Descriptor>,
    /// Bytes that came to find this out.
    pub received: u64,
}

/// What came in one pull, from whichever places.
#[derive(Default)]
struct Came {
    /// Over the network.
    bytes: Arc<AtomicU64>,
    /// Layers that a try which failed has left behind.
    layers: AtomicUsize,
}

/// Where an image is looked for.
pub(super) enum At {
    /// Where its name says.
    Name,
    /// In an archive that stands in for it.
    StandIn(SafeUrl),
}

pub(super) async fn pull(
    registry: &Registry,
    image: &PinnedImage,
    fallback: &[String],
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Pulled, PullError> {
    let store = &registry.store;
    let _gate = registry.underway.image(&image.digest).await;
    mend_dirs(store, &image.digest).await;
    if let Some(record) = store.image(&image.digest).and_then(|_| store.image_record(&image.digest))
        && store.note_pull(&image.digest, &image.reference)
    {
        // A look-up may have brought it, and nobody was told of that yet.
        let layers = record.diff_ids.len();
        let here = Pulled { bytes: 0, layers_total: layers, layers_reused: layers };
        return Ok(registry.take_brought(&image.digest).unwrap_or(here));
    }
    let came = Came::default();
    let error = match pull_from(registry, image, &At::Name, &came, progress).await {
        Err(error) if error.another_place_may_do() => error,
        result => return result,
    };
    let mut also = String::new();
    for url in super::fallbacks(&image.reference, Some(&image.digest), fallback) {
        let result = match url {
            Ok(url) => pull_from(registry, image, &At::StandIn(url), &came, progress).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(pulled) => return Ok(pulled),
            Err(next) if next.is_the_hosts() => return Err(next.and(error)),
            Err(next) => also.push_str(&format!("; {next}")),
        }
    }
    Err(error.with(&also))
}

/// An image that lost its own directories alone has them again from its layers.
async fn mend_dirs(store: &Arc<Store>, image: &Digest) {
    if store.image(image).is_none() && store.image_record(image).is_some_and(|record| record.dirs) {
        let (store, image) = (store.clone(), image.clone());
        // Where that fails, pulling it says why.
        let _ = tokio::task::spawn_blocking(move || store.dress(&image)).await;
    }
}

/// Pulls from one place.
async fn pull_from(
    registry: &Registry,
    image: &PinnedImage,
    at: &At,
    came: &Came,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Pulled, PullError> {
    // One for all of it: a registry that is ill is not asked by every part of an image anew.
    let budget = Arc::new(Budget::default());
    let once = async || {
        let contents = match find(registry, image, at, &budget, progress).await {
            Ok(contents) => contents,
            Err(error) => return (Err(error), false),
        };
        let source = contents.source.clone();
        let pulled = pull_within(registry, image, contents, (came, &budget), progress).await;
        (pulled, source.has_moved())
    };
    match once().await {
        // What is there by now may be the same image, written anew.
        (Err(error), true) => once().await.0.map_err(|next| next.and(error)),
        (result, _) => result,
    }
}

/// What an image consists of, by what is at a place.
pub(super) async fn find(
    registry: &Registry,
    image: &PinnedImage,
    at: &At,
    budget: &Budget,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Contents, PullError> {
    match (at, &image.reference) {
        (At::StandIn(url), _) => {
            // A `docker save` archive has no manifest: it is known by its configuration.
            let config = registry.config_of(&image.digest);
            registry.fallback(url, &image.digest, config.as_ref(), progress).await
        }
        (At::Name, ImageRef::Archive(url)) => registry.archive(url, &image.digest, progress).await,
        (At::Name, ImageRef::Registry(reference)) => of_registry(registry, image, reference, budget).await,
    }
}

async fn of_registry(
    registry: &Registry,
    image: &PinnedImage,
    reference: &RegistryRef,
    budget: &Budget,
) -> Result<Contents, PullError> {
    let name = image.reference.to_string();
    let manifest = registry.manifest(reference, &image.digest, budget).await?;
    let bytes = registry.client.small_blob(reference, &manifest.config, budget).await?;
    let (config, diff_ids) = manifest::parse_config(&name, &bytes, manifest.layers.len())?;
    Ok(Contents {
        source: Source::Registry(registry.client.clone(), reference.clone()),
        is_local: false,
        config,
        config_digest: manifest.config.digest.clone(),
        diff_ids,
        layers: manifest.layers.clone(),
        received: bytes.len() as u64,
        config_text: bytes,
    })
}

/// Makes an image local whose contents are known.
pub(super) async fn pull_contents(
    registry: &Registry,
    image: &PinnedImage,
    contents: Contents,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Pulled, PullError> {
    pull_within(registry, image, contents, (&Came::default(), &Arc::default()), progress).await
}

async fn pull_within(
    registry: &Registry,
    image: &PinnedImage,
    contents: Contents,
    (came, budget): (&Came, &Arc<Budget>),
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Pulled, PullError> {
    let store = &registry.store;
    let name = image.reference.to_string();
    let Contents { source, is_local, config, config_digest, diff_ids, layers: descriptors, .. } = contents;
    came.bytes.fetch_add(contents.received, Ordering::Relaxed);
    let _pins = store.pin(&diff_ids);
    let claims = registry.underway.layers(&diff_ids, |layer| store.has_layer(layer)).await;
    let mut missing: Vec<(Digest, Descriptor)> = Vec::new();
    for (diff_id, layer) in diff_ids.iter().zip(&descriptors) {
        if claims.contains_key(diff_id) && !missing.iter().any(|(known, _)| known == diff_id) {
            missing.push((diff_id.clone(), layer.clone()));
        }
    }
    let keep_blobs = registry.workers.keep_blobs;
    let watch = space::Watch::begin(store.root(), &name, &missing, keep_blobs, &registry.needs)?;
    let (ids, reference) = (diff_ids.clone(), image.reference.clone());
    let mut stages = Stages::begin(store.clone(), reference.clone(), ids, &missing, claims)?;
    let (layers, done) = (descriptors.len(), came.layers.load(Ordering::Relaxed));
    let to_come = stages.places(missing.iter().map(|(diff_id, _)| diff_id));
    let layers_here = layers.saturating_sub(to_come + done);
    let seen = Progress { layers, layers_here, layers_done: done, ..Progress::default() };
    let counted = if is_local { Arc::default() } else { came.bytes.clone() };
    let to_fetch = (missing.as_slice(), &mut stages);
    let fetched = fetch_all(registry, &source, &watch, to_fetch, (&counted, budget), seen, progress).await;
    if let Err(error) = fetched {
        came.layers.fetch_add(stages.places(stages.named()), Ordering::Relaxed);
        return Err(error);
    }
    let (digest, needs) = (image.digest.clone(), registry.needs.clone());
    let finishing = tokio::task::spawn_blocking(move || {
        stages.finish(
            |store| store.record(&digest, &diff_ids, config, Some(config_digest), &reference),
            |error, named, finished| {
                let places: Vec<_> = finished.values().map(|layer| layer.place.clone()).collect();
                watch.explain(error, (&missing, named), &places, 0, &needs)
            },
        )
    });
    finishing
        .await
        .map_err(|error| PullError::retry(Reason::Internal, format!("pulling {name}: {error}")))??;
    crate::failpoint::hit("pull::after_record");
    let bytes = came.bytes.load(Ordering::Relaxed);
    Ok(Pulled { bytes, layers_total: layers, layers_reused: layers_here })
}

/// Fetches and unpacks layers, and hands them to `stages`; on the first error those that are not finished are given up.
async fn fetch_all(
    registry: &Registry,
    source: &Source,
    watch: &space::Watch,
    (missing, stages): (&[(Digest, Descriptor)], &mut Stages),
    (received, budget): (&Arc<AtomicU64>, &Arc<Budget>),
    mut seen: Progress,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(), PullError> {
    let name = watch.name();
    let first = Arc::new(Semaphore::new(1));
    let (counter, mut counts) = tokio::sync::mpsc::unbounded_channel::<u64>();
    let (present, mut gone) = tokio::sync::mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let mut trouble = None;
    // Kept to the end, so that what was written can be measured before it goes.
    let places = Arc::new(Mutex::new(Vec::new()));
    // The largest first: what is begun last then takes little time by itself.
    let mut largest_first: Vec<_> = missing.iter().collect();
    largest_first.sort_by_key(|(_, descriptor)| Reverse(descriptor.size));
    let largest = largest_first.first().map(|(diff_id, _)| diff_id);
    let mut queue = VecDeque::new();
    for (diff_id, descriptor) in largest_first {
        queue.push_back(download::Job {
            image: name.to_owned(),
            descriptor: descriptor.clone(),
            diff_id: diff_id.clone(),
            packing: manifest::packing(name, descriptor)?,
            counter: counter.clone(),
            received: received.clone(),
            budget: budget.clone(),
        });
    }
    // Tasks come to their slots in no order: each takes what is next only there.
    let queue = Arc::new(Mutex::new(queue));
    for _ in missing {
        let (first, slots, queue) = (first.clone(), registry.underway.slots.clone(), queue.clone());
        let (source, store, largest) = (source.clone(), registry.store.clone(), largest.cloned());
        let (mut workers, present, places) = (registry.workers.clone(), present.clone(), places.clone());
        tasks.spawn(async move {
            let _slot = slots.take(&first).await;
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            // There are as many as tasks.
            let Some(job) = next else { return Ok(None) };
            if Some(&job.diff_id) != largest.as_ref() {
                workers.nice = layer::BEHIND_ANOTHER;
            }
            let layer = format!("layer {} of {}", job.descriptor.digest, job.image);
            let start = || {
                let (layer, present) = (layer.clone(), present.clone());
                let to = LayerWriter::start(&store, &workers, layer, job.packing, Product::Tree, present)?;
                places.lock().unwrap_or_else(PoisonError::into_inner).push(to.place());
                Ok(to)
            };
            download::fetch(&source, &job, start).await.map(Some)
        });
    }
    drop((counter, present, queue));
    // Sizes are whatever a manifest says.
    seen.total = missing.iter().fold(0u64, |total, (_, layer)| total.saturating_add(layer.size));
    let mut ticks = tokio::time::interval(space::LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut flushing, mut flushed) = (JoinSet::new(), 0);
    loop {
        tokio::select! {
            _ = ticks.tick(), if !tasks.is_empty() && trouble.is_none() => {
                match watch.look() {
                    Ok(()) => stages.tend(),
                    Err(error) => {
                        trouble = Some(error);
                        tasks.abort_all();
                    }
                }
            }
            Some(ended) = stages.ended() => if let Err(error) = ended {
                trouble.get_or_insert(error);
                tasks.abort_all();
            },
            Some(count) = counts.recv() => {
                seen.bytes += count;
                progress(seen);
                // One at a time: it is done when it is done.
                while flushing.try_join_next().is_some() {}
                if seen.bytes - flushed >= FLUSH_EVERY && flushing.is_empty() {
                    flushed = seen.bytes;
                    let store = registry.store.clone();
                    flushing.spawn_blocking(move || store.flush());
                }
            }
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(layer))) => {
                    seen.layers_done += stages.places([&layer.diff_id]);
                    stages.finished(layer);
                    progress(seen);
                }
                Ok(Err(error)) => {
                    trouble.get_or_insert(error);
                    tasks.abort_all();
                }
                // Given up because of the error above.
                Err(error) if error.is_cancelled() => {}
                Err(error) => {
                    let what = format!("pulling {name}: {error}");
                    trouble.get_or_insert(PullError::retry(Reason::Internal, what));
                    tasks.abort_all();
                }
            },
            else => break,
        }
    }
    // Nothing is under way once the pull is over.
    while flushing.join_next().await.is_some() {}
    let Some(error) = trouble else { return Ok(()) };
    // What a disk took that fails, or is full, is not to be believed, or is in the way. What comes again is to find the rest.
    if !error.is_the_disks() && (error.may_pass() || error.another_place_may_do()) {
        stages.rescue().await;
    }
    let rest = seen.total.saturating_sub(seen.bytes);
    let (watch, missing, needs) = (watch.clone(), missing.to_vec(), registry.needs.clone());
    let (named, nameless) = (stages.named().clone(), stages.give_up());
    // Measuring and removing trees takes its time.
    let explained = tokio::task::spawn_blocking(move || {
        let places = std::mem::take(&mut *places.lock().unwrap_or_else(PoisonError::into_inner));
        let error = watch.explain(error, (&missing, &named), &places, rest, &needs);
        drop((nameless, places));
        error
    });
    let error = explained
        .await
        .unwrap_or_else(|error| PullError::retry(Reason::Internal, format!("pulling {name}: {error}")));
    // Whoever hears of the error finds nothing half done.
    let _ = gone.recv().await;
    Err(error)
}
