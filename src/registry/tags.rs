//! What tags stand for, for those who only want to know: no store, no root.

use std::collections::BTreeMap;

use super::client::Client;
use super::retry::Budget;
use super::{PullError, Reason};
use crate::config::agent::RegistryConfig;
use crate::types::{Digest, RegistryRef};

/// Asks registries.
pub struct Tags(Client);

impl Tags {
    /// Prepares the clients; touches no network.
    ///
    /// # Errors
    /// `config-invalid`, `tls`: a file that a section names is not what it should be.
    pub fn new(hosts: BTreeMap<String, RegistryConfig>) -> Result<Self, PullError> {
        Ok(Self(Client::new(hosts)?))
    }

    /// What the tag of a reference stands for on every platform, whatever digest stands beside it.
    ///
    /// # Errors
    /// As a pull: `image-not-found`, `auth`, `registry-unreachable` …
    pub async fn digest(&self, image: &RegistryRef) -> Result<Digest, PullError> {
        let Some(tag) = &image.tag else {
            return Err(PullError::fatal(Reason::ImageInvalid, format!("{image} names no tag")));
        };
        self.0.top(image, tag, &Budget::default()).await
    }
}
