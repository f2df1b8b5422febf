//! Where the bytes of layers come from.

use std::sync::Arc;

use super::PullError;
use super::archive::{Archive, Part};
use super::client::Client;
use super::http::unreachable;
use super::manifest::Descriptor;
use crate::types::RegistryRef;

/// A place that has layers.
#[derive(Clone)]
pub(super) enum Source {
    /// A repository of a registry, with its mirrors.
    Registry(Arc<Client>, RegistryRef),
    /// An archive.
    Archive(Arc<Archive>),
}

/// Bytes as they come.
pub(super) enum Body {
    /// An answer, and who gave it.
    Http(reqwest::Response, RegistryRef, Arc<Client>, reqwest::Url),
    /// A range of an archive.
    Part(Part),
}

impl Source {
    /// Whether it was found changed while it was read.
    pub fn has_moved(&self) -> bool {
        match self {
            Self::Registry(..) => false,
            Self::Archive(archive) => archive.has_moved(),
        }
    }

    /// Opens a layer at `offset`. The body may begin before that: the second part says how many bytes to skip.
    pub async fn open(&self, layer: &Descriptor, offset: u64) -> Result<(Body, u64), PullError> {
        match self {
            Self::Registry(client, image) => {
                let (response, skip, at) = client.blob(image, layer, offset).await?;
                Ok((Body::Http(response, image.clone(), client.clone(), at), skip))
            }
            Self::Archive(archive) => Ok((Body::Part(archive.open(layer, offset).await?), 0)),
        }
    }
}

impl Body {
    /// It broke off, or was wrong: where there is another place, the next try asks there.
    pub fn blame(&self) {
        if let Self::Http(_, image, client, at) = self {
            client.blame(image, at);
        }
    }

    /// The next part; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, PullError> {
        match self {
            Self::Http(response, image, ..) => {
                response.chunk().await.map_err(|error| unreachable(image, &error))
            }
            Self::Part(part) => part.chunk().await,
        }
    }
}
