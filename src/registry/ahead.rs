//! Pulling what an operator asks for, by an agent or without one: one image after the other, each told of.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::pull::Progress;
use super::{PullError, Registry};
use crate::types::{Digest, ImageRef, PinnedImage, Reason, Refusal};

/// From one word on progress to the next.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// An image that is to be made local.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// As an operator names it.
    Named(ImageRef),
    /// As a commit pinned it, with the archives that may stand in for it.
    Pinned(PinnedImage, Vec<String>),
    /// It cannot be had, as is known already.
    Refused(String, Refusal),
}

/// How far an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Which image.
    pub reference: ImageRef,
    /// Bytes of missing layers that are here.
    pub bytes: u64,
    /// Bytes that all missing layers have, as they are packed.
    pub total: u64,
    /// Layers of the image; 0 while an archive is read as a whole.
    pub layers: usize,
    /// Of these, layers that were here before.
    pub layers_here: usize,
    /// Layers that have come.
    pub layers_done: usize,
}

/// What became of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PullResult {
    /// As it was asked for; a service's name where it has no image.
    pub reference: String,
    /// Of its manifest for this platform.
    pub digest: Option<Digest>,
    /// Whether it is here.
    pub ok: bool,
    /// Bytes that came over the network.
    pub pulled_bytes: u64,
    /// Layers of the image.
    pub layers: usize,
    /// Of these, layers that were here before.
    pub layers_here: usize,
    /// Wall time.
    pub seconds: f64,
    /// Why it is not here.
    pub reason: Option<Reason>,
    /// The same, for people.
    pub message: Option<String>,
}

impl Registry {
    /// Pulls images, one after the other: one that cannot be had does not keep the others from coming.
    pub async fn pull_all(
        &self,
        wanted: Vec<Wanted>,
        tell: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Vec<PullResult> {
        let mut results = Vec::new();
        for wanted in wanted {
            results.push(self.pull_wanted(wanted, tell).await);
        }
        results
    }

    /// [`Registry::pack`], told of as pulls are.
    pub async fn pack_telling(
        &self,
        image: &ImageRef,
        file: &std::path::Path,
        tell: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<super::Packed, PullError> {
        let paced = Paced { last: Mutex::default(), reference: image.clone(), tell };
        self.pack(image, file, &|progress| paced.tell(progress)).await
    }

    async fn pull_wanted(&self, wanted: Wanted, tell: &(dyn Fn(PullProgress) + Send + Sync)) -> PullResult {
        let begun = Instant::now();
        let mut result = PullResult {
            reference: String::new(),
            digest: None,
            ok: false,
            pulled_bytes: 0,
            layers: 0,
            layers_here: 0,
            seconds: 0.0,
            reason: None,
            message: None,
        };
        let pinned = match wanted {
            Wanted::Refused(name, refusal) => {
                return PullResult {
                    reference: name,
                    reason: Some(refusal.reason),
                    message: Some(refusal.message),
                    ..result
                };
            }
            Wanted::Named(reference) => {
                result.reference = reference.to_string();
                let paced = Paced { last: Mutex::default(), reference: reference.clone(), tell };
                let digest = self.resolve_telling(&reference, &[], &|progress| paced.tell(progress)).await;
                digest.map(|digest| (PinnedImage { reference, digest }, Vec::new()))
            }
            Wanted::Pinned(image, fallback) => {
                result.reference = image.reference.to_string();
                Ok((image, fallback))
            }
        };
        let pulled = match pinned {
            Ok((image, fallback)) => {
                result.digest = Some(image.digest.clone());
                let paced = Paced { last: Mutex::default(), reference: image.reference.clone(), tell };
                self.pull_or(&image, &fallback, &|progress| paced.tell(progress)).await
            }
            Err(error) => Err(error),
        };
        result.seconds = begun.elapsed().as_secs_f64();
        match pulled {
            Ok(pulled) => PullResult {
                ok: true,
                pulled_bytes: pulled.bytes,
                layers: pulled.layers_total,
                layers_here: pulled.layers_reused,
                ..result
            },
            Err(error) => failed(result, &error),
        }
    }
}

fn failed(result: PullResult, error: &PullError) -> PullResult {
    PullResult { reason: Some(error.reason), message: Some(error.to_string()), ..result }
}

/// Tells of progress ten times a second, and of each layer that is complete.
struct Paced<'a> {
    last: Mutex<Option<(Instant, usize)>>,
    reference: ImageRef,
    tell: &'a (dyn Fn(PullProgress) + Send + Sync),
}

impl Paced<'_> {
    fn tell(&self, progress: Progress) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let soon = last.is_some_and(|(at, done)| at.elapsed() < TELL_EVERY && done == progress.layers_done);
        if soon && progress.bytes < progress.total {
            return;
        }
        *last = Some((Instant::now(), progress.layers_done));
        drop(last);
        (self.tell)(PullProgress {
            reference: self.reference.clone(),
            bytes: progress.bytes,
            total: progress.total,
            layers: progress.layers,
            layers_here: progress.layers_here,
            layers_done: progress.layers_done,
        });
    }
}
