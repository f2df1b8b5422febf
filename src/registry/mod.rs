//! Images: from a registry to verified, durable layers on disk.
//!
//! A layer gets its final name after both of its digests were checked and a `syncfs` succeeded, one for its whole image where
//! that comes quickly: a final name means complete and durable, and there is no flag beside it that could disagree.

mod address;
mod ahead;
mod answer;
mod archive;
mod artifact;
mod challenge;
mod client;
mod credential_helper;
mod credentials;
mod docker_config;
mod download;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod healthcheck;
mod http;
mod layer;
mod manifest;
mod pack;
mod platform;
mod proxies;
mod pull;
mod rate;
mod remedy;
mod repair;
mod retry;
mod session;
mod sha256;
mod source;
mod space;
mod stage;
mod store;
mod tags;
mod token;
mod trouble;
mod underway;
mod unpack;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

pub use ahead::{PullProgress, PullResult, Wanted};
pub use error::{Disposition, PullError};
pub(crate) use http::client_for;
pub use pack::{Packed, PackedLayer};
pub use pull::{Progress, Pulled};
pub use remedy::{Remedy, Repaired};
pub use repair::{Known, RepairProgress};
pub use store::{
    Aside, Checked, Collection, Depth, Doomed, Finding, Gone, ImageReport, ImageUsage, LayerReport,
    LayerState, Pressure, Report, Store, Usage,
};
pub use tags::Tags;
pub(crate) use trouble::innermost;
pub(crate) use worker::{COMMAND as UNPACK, main as unpack_main};

use crate::config::agent::{RegistryConfig, S3Config};
use crate::types::{Digest, ImageRef, PinnedImage, Reason, RegistryRef, SafeUrl, fill_fallback};
use client::Client;
use manifest::Manifest;
use retry::Budget;

/// Manifests remembered between resolving a tag and pulling what it stands for.
const REMEMBERED: usize = 64;

/// Where images come from.
pub struct Registry {
    store: Arc<Store>,
    client: Arc<Client>,
    /// What a look-up has fetched already, so that the pull needs no second trip.
    manifests: Mutex<HashMap<Digest, Arc<Manifest>>>,
    /// Where `s3://` is.
    s3: Arc<archive::S3>,
    /// What tags stood for on every platform, by what they stood for on this one.
    tops: Mutex<HashMap<Digest, Digest>>,
    /// What look-ups have brought that no pull was told of yet.
    brought: Mutex<HashMap<Digest, Pulled>>,
    /// How layers are unpacked: by this program.
    workers: layer::Workers,
    /// What is on its way: one download of an image, and of a layer, at a time.
    underway: underway::Underway,
    /// What layers need that did not fit.
    needs: space::Needs,
}

impl Registry {
    /// Prepares the clients; touches no network.
    pub fn new(store: Arc<Store>, hosts: BTreeMap<String, RegistryConfig>) -> Result<Self, PullError> {
        let client = Client::new(hosts)?;
        Ok(Self {
            store,
            s3: Arc::new(archive::S3::new(S3Config::default())),
            tops: Mutex::default(),
            brought: Mutex::default(),
            client: Arc::new(client),
            manifests: Mutex::default(),
            workers: layer::Workers::default(),
            underway: underway::Underway::default(),
            needs: space::Needs::default(),
        })
    }

    /// Where S3 is.
    pub fn with_s3(mut self, config: S3Config) -> Self {
        self.s3 = Arc::new(archive::S3::new(config));
        self
    }

    /// Whether layers are kept as they came, beside what they unpacked to.
    pub fn with_keep_blobs(mut self, keep: bool) -> Self {
        self.workers.keep_blobs = keep;
        self
    }

    /// Another program to unpack with, for those who use this as a library: it has to be a `gitopsd`.
    pub fn with_program(mut self, program: PathBuf) -> Self {
        self.workers.program = program;
        self
    }

    /// Tells of each process that unpacks something, so that it can be put behind what serves. From a thread that may
    /// block.
    pub fn with_put_behind(mut self, put_behind: impl Fn(u32) + Send + Sync + 'static) -> Self {
        self.workers.put_behind = Some(Arc::new(put_behind));
        self
    }

    /// The digest of this platform's image manifest. A digest in the reference wins over its tag, and is verified.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Digest, PullError> {
        self.resolve_or(image, &[]).await
    }

    /// The same; where the registry cannot say, the first of the archives that can.
    pub async fn resolve_or(&self, image: &ImageRef, fallback: &[String]) -> Result<Digest, PullError> {
        self.resolve_telling(image, fallback, &|_| {}).await
    }

    /// The same; an archive that has to be read as a whole is told of as it comes.
    pub async fn resolve_telling(
        &self,
        image: &ImageRef,
        fallback: &[String],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Digest, PullError> {
        let result = match image {
            ImageRef::Archive(url) => self.resolve_archive(url, progress).await,
            ImageRef::Registry(reference) => self.resolve_tag(reference).await,
        };
        let error = match result {
            Err(error) if error.is_the_registrys() => error,
            Err(error) => return Err(error),
            Ok(digest) => {
                // An archive without a manifest may have to stand in after a restart.
                if let Some(manifest) = self.known(&digest).filter(|_| !fallback.is_empty()) {
                    self.store.note_config(&digest, &manifest.config.digest);
                    // It may be named by the index that it was chosen from, and then nobody says what that holds.
                    if let Some(named) = named_by(image).filter(|named| **named != digest) {
                        self.store.note_config(named, &manifest.config.digest);
                    }
                }
                return Ok(digest);
            }
        };
        // What a digest names is known without anybody.
        if let Some(digest) = named_by(image).filter(|_| !fallback.is_empty()) {
            return Ok(digest.clone());
        }
        let mut also = String::new();
        for url in fallbacks(image, None, fallback) {
            let result = match url {
                Ok(url) => self.resolve_archive(&url, progress).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(digest) => return Ok(digest),
                Err(next) => also.push_str(&format!("; {next}")),
            }
        }
        Err(error.with(&also))
    }

    async fn resolve_tag(&self, reference: &RegistryRef) -> Result<Digest, PullError> {
        let wanted = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => {
                return Err(PullError::fatal(Reason::ImageInvalid, format!("{reference} names no tag")));
            }
        };
        let (manifest, top) = self.client.manifest_and_top(reference, &wanted, &Budget::default()).await?;
        let digest = manifest.digest.clone();
        self.note_top(&digest, top);
        let mut known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(digest.clone(), Arc::new(manifest));
        Ok(digest)
    }

    fn note_top(&self, digest: &Digest, top: Digest) {
        let mut tops = self.tops.lock().unwrap_or_else(PoisonError::into_inner);
        if tops.len() >= REMEMBERED {
            tops.clear();
        }
        tops.insert(digest.clone(), top);
    }

    /// What a tag stood for on every platform that was looked up lately, by what it stood for on this one.
    pub fn top_of(&self, digest: &Digest) -> Option<Digest> {
        self.tops.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// What a tag stands for now on every platform; `None` where it names none, or nobody says.
    pub async fn top(&self, image: &RegistryRef) -> Option<Digest> {
        let tag = image.tag.as_ref()?;
        self.client.top(image, tag, &Budget::default()).await.ok()
    }

    /// Makes an image local. What is here already is not fetched again.
    pub async fn pull(
        &self,
        image: &PinnedImage,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Pulled, PullError> {
        self.pull_or(image, &[], progress).await
    }

    /// The same; where the registry cannot serve, from the first of the archives that holds the very image.
    pub async fn pull_or(
        &self,
        image: &PinnedImage,
        fallback: &[String],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Pulled, PullError> {
        pull::pull(self, image, fallback, progress).await
    }

    /// A look-up made an image local: the next pull of it says so.
    fn brought(&self, digest: &Digest, pulled: Pulled) {
        let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        if brought.len() >= REMEMBERED {
            brought.clear();
        }
        brought.insert(digest.clone(), pulled);
    }

    fn take_brought(&self, digest: &Digest) -> Option<Pulled> {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner).remove(digest)
    }

    /// What an image's configuration is, by which archives without a manifest are known.
    fn config_of(&self, image: &Digest) -> Option<Digest> {
        let known = self.known(image).map(|manifest| manifest.config.digest.clone());
        known.or_else(|| self.store.config_of(image))
    }

    fn known(&self, digest: &Digest) -> Option<Arc<Manifest>> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    async fn manifest(
        &self,
        reference: &RegistryRef,
        digest: &Digest,
        budget: &Budget,
    ) -> Result<Arc<Manifest>, PullError> {
        match self.known(digest) {
            Some(manifest) => Ok(manifest),
            None => Ok(Arc::new(self.client.manifest(reference, &digest.to_string(), budget).await?)),
        }
    }
}

/// The digest that a reference holds.
fn named_by(image: &ImageRef) -> Option<&Digest> {
    match image {
        ImageRef::Registry(reference) => reference.digest.as_ref(),
        ImageRef::Archive(_) => None,
    }
}

/// The archives that may stand in for an image, in order. Those that need a tag or a digest which is not known are left
/// out; one that is no good address once they are filled in is refused.
fn fallbacks(
    image: &ImageRef,
    digest: Option<&Digest>,
    templates: &[String],
) -> Vec<Result<SafeUrl, PullError>> {
    let (tag, its_own) = match image {
        ImageRef::Registry(reference) => (reference.tag.as_deref(), reference.digest.as_ref()),
        ImageRef::Archive(_) => (None, None),
    };
    let filled = templates.iter().map(|template| {
        fill_fallback(template, tag, digest.or(its_own))
            .map_err(|why| PullError::fatal(Reason::ConfigInvalid, format!("fallback {template}: {why}")))
    });
    filled.filter_map(Result::transpose).collect()
}
