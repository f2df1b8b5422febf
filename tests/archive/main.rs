//! Images from archives: every form and packing on disk, behind https and in S3, what comes of damage, and `pack`.
//! Needs root, and the packages curl, docker-registry, openssl and skopeo; moto as `scripts/install-deps test` makes it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

#[path = "../support/registry/mod.rs"]
#[allow(dead_code, reason = "other tests use all of it")]
mod support;

mod credentials;
mod fallbacks;
mod forms;
mod keep;
mod make;
mod network;
mod pack;
mod roles;
mod s3;
mod server;
mod standins;

use std::collections::BTreeMap;
use std::sync::Arc;

use gitopsd::config::agent::{RegistryConfig, S3Config};
use gitopsd::registry::{PullError, Pulled, Registry, Store};
use gitopsd::types::{Digest, ImageRef, PinnedImage};

pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) registry: Registry,
}

/// A host that knows one registry, which nobody answers for.
pub(crate) fn host(s3: S3Config) -> Host {
    host_of(s3, BTreeMap::from([("127.0.0.1:1".to_owned(), support::plain())]))
}

pub(crate) fn host_of(s3: S3Config, registries: BTreeMap<String, RegistryConfig>) -> Host {
    host_at(tempfile::tempdir().unwrap(), s3, registries)
}

/// What begins anew on a state that is there.
pub(crate) fn host_at(
    dir: tempfile::TempDir,
    s3: S3Config,
    registries: BTreeMap<String, RegistryConfig>,
) -> Host {
    let store = Arc::new(Store::open(&dir.path().join("state")).unwrap());
    let registry = Registry::new(store.clone(), registries)
        .unwrap()
        .with_program(env!("CARGO_BIN_EXE_gitopsd").into())
        .with_s3(s3);
    Host { dir, store, registry }
}

impl Host {
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        format!("file://{}", path.display())
    }

    pub(crate) async fn pull(&self, url: &str) -> Result<(Digest, Pulled), PullError> {
        let reference: ImageRef = url.parse().unwrap();
        let digest = self.registry.resolve(&reference).await?;
        let image = PinnedImage { reference, digest: digest.clone() };
        let pulled = self.registry.pull(&image, &|_| {}).await?;
        Ok((digest, pulled))
    }

    /// A file of an image, from its uppermost layer that has it.
    pub(crate) fn file(&self, digest: &Digest, path: &str) -> Option<Vec<u8>> {
        let image = self.store.image(digest).unwrap();
        image.layers.iter().rev().find_map(|layer| std::fs::read(layer.join(path)).ok())
    }

    pub(crate) fn assert_nothing_unfinished(&self) {
        let tmp = self.dir.path().join("state/store/tmp");
        support::wait_for("what is unfinished to go", || support::names(&tmp).is_empty().then_some(()));
    }
}
