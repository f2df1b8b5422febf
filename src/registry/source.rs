//! Where the bytes of layers come from.

use std::sync::Arc;

use super::PullError;
use super::address::Address;
use super::archive::{Archive, Part};
use super::client::{Blob, Client};
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
    Http(Box<Blob>, Server),
    /// A range of an archive.
    Part(Part),
}

/// Who sent a part of a layer.
#[derive(Clone)]
pub(super) struct Server(Arc<Client>, Address);

impl Server {
    /// What it sent broke off, or was wrong: where there is another place, the next try asks there.
    pub fn blame(&self) {
        self.0.blame(&self.1);
    }

    /// Whether it only stands for the registry.
    pub fn is_mirror(&self) -> bool {
        self.1.is_mirror()
    }
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
                let blob = client.blob(image, layer, offset).await?;
                let (skip, server) = (blob.skip, Server(client.clone(), blob.address.clone()));
                Ok((Body::Http(Box::new(blob), server), skip))
            }
            Self::Archive(archive) => Ok((Body::Part(archive.open(layer, offset).await?), 0)),
        }
    }
}

impl Body {
    /// It broke off, or was wrong: where there is another place, the next try asks there.
    pub fn blame(&self) {
        if let Self::Http(_, server) = self {
            server.blame();
        }
    }

    /// Who sends it.
    pub fn server(&self) -> Option<Server> {
        match self {
            Self::Http(_, server) => Some(server.clone()),
            Self::Part(_) => None,
        }
    }

    /// The next part; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, PullError> {
        match self {
            Self::Http(blob, server) => {
                blob.response.chunk().await.map_err(|error| server.0.lost(blob, &error))
            }
            Self::Part(part) => part.chunk().await,
        }
    }
}
