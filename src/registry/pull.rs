//! One pull: what is missing, three layers at a time, and one durable end.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::manifest::{self, Descriptor};
use super::store::Unpacked;
use super::{PullError, Registry, layer};
use crate::types::{Digest, ImageRef, PinnedImage, Reason};

/// Layers at once for one image, as the other engines do.
const AT_ONCE: usize = 3;

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Bytes of missing layers that are here; what broke off and came again counts once.
    pub bytes: u64,
    /// Bytes that all missing layers have together.
    pub total: u64,
}

/// What a pull came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pulled {
    /// Bytes of layers and configuration that came over the network, also those that came twice.
    pub bytes: u64,
    /// Layers of the image.
    pub layers_total: usize,
    /// Of these, layers that were here already.
    pub layers_reused: usize,
}

/// A gate for each layer that is on its way: who comes second waits, and finds it here.
#[derive(Default)]
pub(super) struct Underway {
    gates: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Underway {
    fn gate(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        // Gates that nobody holds any more.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.entry(diff_id.clone()).or_default().clone()
    }
}

pub(super) async fn pull(
    registry: &Registry,
    image: &PinnedImage,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Pulled, PullError> {
    let store = &registry.store;
    if let Some(local) = store.image(&image.digest) {
        return Ok(Pulled { bytes: 0, layers_total: local.layers.len(), layers_reused: local.layers.len() });
    }
    let name = image.reference.to_string();
    let ImageRef::Registry(reference) = &image.reference else {
        return Err(PullError::fatal(Reason::ImageUnsupported, format!("{name} is an archive")));
    };
    let manifest = registry.manifest(image).await?;
    let bytes = registry.client.small_blob(reference, &manifest.config).await?;
    let (config, diff_ids) = manifest::parse_config(&name, &bytes, manifest.layers.len())?;
    let mut missing: Vec<(Digest, Descriptor)> = Vec::new();
    for (diff_id, layer) in diff_ids.iter().zip(&manifest.layers) {
        if !store.has_layer(diff_id) && !missing.iter().any(|(known, _)| known == diff_id) {
            missing.push((diff_id.clone(), layer.clone()));
        }
    }
    // In one order for everybody, so that two pulls that wait for each other's layers cannot lock up.
    missing.sort_by(|a, b| a.0.cmp(&b.0));
    let mut gates = Vec::new();
    for (diff_id, _) in &missing {
        gates.push(registry.underway.gate(diff_id).lock_owned().await);
    }
    missing.retain(|(diff_id, _)| !store.has_layer(diff_id));
    let barrier = store.barrier()?;
    let received = Arc::new(AtomicU64::new(bytes.len() as u64));
    let fetched = fetch_all(registry, reference, &name, &missing, &received, progress).await?;
    let (store, digest, ids) = (store.clone(), image.digest.clone(), diff_ids.clone());
    let done = tokio::task::spawn_blocking(move || {
        store.settle(&ids, &fetched)?;
        store.admit(&barrier, &fetched)?;
        store.record(&digest, &ids, config)
    });
    done.await.map_err(|error| PullError::retry(Reason::Internal, format!("pulling {name}: {error}")))??;
    crate::failpoint::hit("pull::after_record");
    drop(gates);
    let layers_reused = manifest.layers.len() - missing.len();
    let bytes = received.load(Ordering::Relaxed);
    Ok(Pulled { bytes, layers_total: manifest.layers.len(), layers_reused })
}

/// Fetches and unpacks layers into temporary directories; on the first error the others are given up.
async fn fetch_all(
    registry: &Registry,
    reference: &crate::types::RegistryRef,
    name: &str,
    missing: &[(Digest, Descriptor)],
    received: &Arc<AtomicU64>,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<BTreeMap<Digest, Unpacked>, PullError> {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let (counter, mut counts) = tokio::sync::mpsc::unbounded_channel::<u64>();
    let mut tasks = JoinSet::new();
    let (stop, stopped) = watch::channel(false);
    let mut finished = BTreeMap::new();
    let mut trouble = None;
    for (diff_id, descriptor) in missing {
        let target = registry.store.temporary()?;
        let packing = manifest::packing(name, descriptor)?;
        let job = layer::Job {
            image: reference.clone(),
            descriptor: descriptor.clone(),
            diff_id: diff_id.clone(),
            packing,
            target,
            counter: counter.clone(),
            received: received.clone(),
            stopped: stopped.clone(),
        };
        let (slots, client) = (slots.clone(), registry.client.clone());
        tasks.spawn(async move {
            let _slot = slots.acquire().await;
            let (diff_id, place) = (job.diff_id.clone(), job.target.clone());
            let implied = layer::fetch(&client, job).await?;
            Ok((diff_id, Unpacked { place, implied }))
        });
    }
    drop(counter);
    // Sizes are whatever a manifest says.
    let total = missing.iter().fold(0u64, |total, (_, layer)| total.saturating_add(layer.size));
    let mut seen = Progress { bytes: 0, total };
    loop {
        tokio::select! {
            Some(count) = counts.recv() => {
                seen.bytes += count;
                progress(seen);
            }
            Some(ended) = tasks.join_next() => {
                let gone = |error| PullError::retry(Reason::Internal, format!("pulling {name}: {error}"));
                match ended.map_err(gone).flatten() {
                    Ok((diff_id, layer)) => {
                        finished.insert(diff_id, layer);
                    }
                    Err(error) => {
                        trouble.get_or_insert(error);
                        // Nobody listens any more where all have ended.
                        let _ = stop.send(true);
                    }
                }
            }
            else => break,
        }
    }
    match trouble {
        None => Ok(finished),
        Some(error) => {
            // Removing trees takes its time.
            let _ = tokio::task::spawn_blocking(move || drop(finished)).await;
            Err(error)
        }
    }
}
