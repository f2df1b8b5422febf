//! Finished layers get their names before the rest of their image is here: a pull that takes long, or fails, keeps what it
//! has, and nobody waits for more of it than the layers that he needs.
//!
//! A quick pull has one stage, its end: all of its layers become durable by one sync.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::PullError;
use super::layer::Unpacked;
use super::manifest::Descriptor;
use super::store::Store;
use super::underway::Claim;
use crate::types::{Digest, ImageRef, Reason};

/// So long finished layers wait for others of their image, to become durable with them.
const STAGE: Duration = Duration::from_secs(5);

/// What is the same for all stages of a pull.
struct Plan {
    store: Arc<Store>,
    /// What is synced by, opened before the first write.
    barrier: File,
    /// Of the image, lowest first.
    diff_ids: Vec<Digest>,
    /// What is to be fetched, with its type.
    media_types: BTreeMap<Digest, String>,
    reference: ImageRef,
}

/// Layers that get their names together. Their claims go with them, and not before.
struct Stage {
    plan: Arc<Plan>,
    layers: BTreeMap<Digest, Unpacked>,
    _claims: Vec<Claim>,
}

impl Stage {
    /// Gives them their names, once all of them is on the disk.
    fn admit(&self) -> Result<(), PullError> {
        let Plan { store, barrier, diff_ids, media_types, reference } = &*self.plan;
        store.settle(diff_ids, &self.layers)?;
        for (diff_id, layer) in &self.layers {
            if let Some(media_type) = media_types.get(diff_id) {
                store.describe(layer, media_type, reference)?;
            }
        }
        store.admit(barrier, &self.layers)?;
        // They may have been missing to other images, too.
        if !self.layers.is_empty()
            && let Err(error) = store.dress_users(self.layers.keys())
        {
            // This image is none the worse for it; `fsck` tells of it.
            tracing::warn!("{error}");
        }
        Ok(())
    }
}

/// The missing layers of one pull, on their way to their names.
pub(super) struct Stages {
    plan: Arc<Plan>,
    /// Of those that have no name yet.
    claims: BTreeMap<Digest, Claim>,
    /// Unpacked and verified, without a name.
    finished: BTreeMap<Digest, Unpacked>,
    named: BTreeSet<Digest>,
    /// When the last stage was over, or the pull began.
    last: Instant,
    /// One failed, and its sync may have: what the next one hears is not all that went wrong.
    broken: bool,
    /// One at a time.
    under_way: JoinSet<Result<Vec<Digest>, PullError>>,
}

impl Stages {
    /// To be had before the first write: a sync tells only of errors that came after that.
    pub fn begin(
        store: Arc<Store>,
        reference: ImageRef,
        diff_ids: Vec<Digest>,
        missing: &[(Digest, Descriptor)],
        claims: BTreeMap<Digest, Claim>,
    ) -> Result<Self, PullError> {
        let barrier = store.barrier()?;
        let media_types = missing.iter().map(|(id, layer)| (id.clone(), layer.media_type.clone())).collect();
        let plan = Arc::new(Plan { store, barrier, diff_ids, media_types, reference });
        let (finished, named, under_way) = (BTreeMap::new(), BTreeSet::new(), JoinSet::new());
        Ok(Self { plan, claims, finished, named, last: Instant::now(), broken: false, under_way })
    }

    /// How many layers of the image these are: it may have one more than once.
    pub fn places<'a>(&self, layers: impl IntoIterator<Item = &'a Digest>) -> usize {
        let of = |layer| self.plan.diff_ids.iter().filter(|known| *known == layer).count();
        layers.into_iter().map(of).sum()
    }

    /// A layer is unpacked and verified.
    pub fn finished(&mut self, layer: Unpacked) {
        self.finished.insert(layer.diff_id.clone(), layer);
    }

    /// Layers that got their names before the end of the pull.
    pub fn named(&self) -> &BTreeSet<Digest> {
        &self.named
    }

    /// Begins a stage when it is time.
    pub fn tend(&mut self) {
        // A test of kills has no time for it.
        let short = crate::failpoint::is_set("pull::short_stages");
        let due = self.last.elapsed() >= if short { STAGE / 100 } else { STAGE };
        if due && self.under_way.is_empty() {
            self.begin_stage();
        }
    }

    /// What came of a stage; `None`: none is under way.
    pub async fn ended(&mut self) -> Option<Result<(), PullError>> {
        let ended = self.under_way.join_next().await?;
        self.last = Instant::now();
        let broken = |error| PullError::retry(Reason::Internal, format!("naming layers: {error}"));
        let ended = ended.map_err(broken).flatten();
        self.broken |= ended.is_err();
        Some(ended.map(|named| self.named.extend(named)))
    }

    /// The pull failed, and not for the disk's sake: what is finished stays, for the next one.
    pub async fn rescue(&mut self) {
        self.begin_stage();
        if let Some(Err(error)) = self.ended().await {
            tracing::debug!("finished layers are not kept: {error}");
        }
    }

    /// The pull failed: what is finished and has no name. To be dropped where that may take its time.
    pub fn give_up(&mut self) -> BTreeMap<Digest, Unpacked> {
        std::mem::take(&mut self.finished)
    }

    /// All is here: the last stage, and then `record`. What fails is told to `explain`, with what was to get its name then. From
    /// a thread that may block.
    pub fn finish(
        mut self,
        record: impl FnOnce(&Store) -> Result<(), PullError>,
        explain: impl FnOnce(PullError, &BTreeSet<Digest>, &BTreeMap<Digest, Unpacked>) -> PullError,
    ) -> Result<(), PullError> {
        let all = self.finished.keys().cloned().collect();
        let stage = self.stage(all);
        let done = stage.admit().and_then(|()| {
            self.named.extend(stage.layers.keys().cloned());
            record(&stage.plan.store)
        });
        done.map_err(|error| explain(error, &self.named, &stage.layers))
    }

    fn begin_stage(&mut self) {
        let ready = self.ready();
        if ready.is_empty() || self.broken {
            return;
        }
        let stage = self.stage(ready);
        self.under_way.spawn_blocking(move || stage.admit().map(|()| stage.layers.keys().cloned().collect()));
    }

    fn stage(&mut self, layers: Vec<Digest>) -> Stage {
        let claims = layers.iter().filter_map(|layer| self.claims.remove(layer)).collect();
        let layers = layers.iter().filter_map(|layer| self.finished.remove_entry(layer)).collect();
        Stage { plan: self.plan.clone(), layers, _claims: claims }
    }

    /// Finished layers that can be settled: those that imply nothing, and those below which nothing is missing.
    fn ready(&self) -> Vec<Digest> {
        let is_missing =
            |layer: &Digest| self.claims.contains_key(layer) && !self.finished.contains_key(layer);
        let is_ready = |layer: &Unpacked| {
            let diff_ids = &self.plan.diff_ids;
            // An image may have it twice.
            let place = diff_ids.iter().rposition(|id| *id == layer.diff_id).unwrap_or_default();
            layer.implied.is_empty()
                || !diff_ids[..place].iter().any(|below| *below != layer.diff_id && is_missing(below))
        };
        self.finished.iter().filter(|(_, layer)| is_ready(layer)).map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
