//! Images: from a registry to verified, durable layers on disk.
//!
//! A layer gets its final name after both of its digests were checked and one `syncfs` for its whole image succeeded:
//! a final name means complete and durable, and there is no flag beside it that could disagree.

mod auth;
mod client;
mod error;
mod layer;
mod manifest;
mod pull;
mod store;
mod unpack;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

pub use error::{Disposition, PullError};
pub use pull::{Progress, Pulled};
pub use store::Store;

use crate::config::agent::RegistryConfig;
use crate::types::{Digest, ImageRef, PinnedImage, Reason};
use client::Client;
use manifest::Manifest;

/// Manifests remembered between resolving a tag and pulling what it stands for.
const REMEMBERED: usize = 64;

/// Where images come from.
pub struct Registry {
    store: Arc<Store>,
    client: Arc<Client>,
    /// What a look-up has fetched already, so that the pull needs no second trip.
    manifests: Mutex<HashMap<Digest, Arc<Manifest>>>,
    /// Layers on their way: one download of a layer at a time.
    underway: pull::Underway,
}

impl Registry {
    /// Prepares the clients; touches no network.
    pub fn new(store: Arc<Store>, hosts: BTreeMap<String, RegistryConfig>) -> Result<Self, PullError> {
        Ok(Self {
            store,
            client: Arc::new(Client::new(hosts)?),
            manifests: Mutex::default(),
            underway: pull::Underway::default(),
        })
    }

    /// The digest of this platform's image manifest. A digest in the reference wins over its tag, and is verified.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Digest, PullError> {
        let ImageRef::Registry(reference) = image else {
            let what = format!("{image} is an archive, and this version takes images from registries only");
            return Err(PullError::fatal(Reason::ImageUnsupported, what));
        };
        let wanted = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => {
                return Err(PullError::fatal(Reason::ImageInvalid, format!("{image} names no tag")));
            }
        };
        let manifest = self.client.manifest(reference, &wanted).await?;
        let digest = manifest.digest.clone();
        let mut known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(digest.clone(), Arc::new(manifest));
        Ok(digest)
    }

    /// Makes an image local. What is here already is not fetched again.
    pub async fn pull(
        &self,
        image: &PinnedImage,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Pulled, PullError> {
        pull::pull(self, image, progress).await
    }

    async fn manifest(&self, image: &PinnedImage) -> Result<Arc<Manifest>, PullError> {
        let ImageRef::Registry(reference) = &image.reference else {
            let what = format!(
                "{} is an archive, and this version takes images from registries only",
                image.reference
            );
            return Err(PullError::fatal(Reason::ImageUnsupported, what));
        };
        let known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner).get(&image.digest).cloned();
        match known {
            Some(manifest) => Ok(manifest),
            None => Ok(Arc::new(self.client.manifest(reference, &image.digest.to_string()).await?)),
        }
    }
}
