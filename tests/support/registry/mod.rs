//! What the registry tests stand on: Debian's docker-registry, a proxy that does damage, images to order.

pub mod certificates;
pub mod command;
pub mod image;
pub mod proxy;
pub mod server;
pub mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gitopsd::config::agent::RegistryConfig;
use gitopsd::registry::{PullError, Pulled, Registry, Store};
use gitopsd::types::{Digest, ImageRef, PinnedImage};

/// How long anything may take here. Generous: these machines are shared.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for something; fails the test when it does not come.
#[track_caller]
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(begun.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A host that pulls: a state directory, and the registries it knows.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub store: Arc<Store>,
    pub registry: Registry,
}

/// Over http, without credentials.
pub fn plain() -> RegistryConfig {
    RegistryConfig { plain_http: true, ..RegistryConfig::default() }
}

impl Host {
    /// A host that talks http to the registries at these addresses.
    pub fn new(addresses: &[&str]) -> Self {
        Self::with(addresses.iter().map(|address| ((*address).to_owned(), plain())).collect())
    }

    pub fn with(registries: BTreeMap<String, RegistryConfig>) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-pull-").tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let registry = Registry::new(store.clone(), registries)
            .unwrap()
            .with_program(env!("CARGO_BIN_EXE_gitopsd").into());
        Self { dir, store, registry }
    }

    pub async fn resolve(&self, reference: &str) -> Result<PinnedImage, PullError> {
        let reference: ImageRef = reference.parse().unwrap();
        let digest = self.registry.resolve(&reference).await?;
        Ok(PinnedImage { reference, digest })
    }

    pub async fn pull(&self, reference: &str) -> Result<(Digest, Pulled), PullError> {
        let image = self.resolve(reference).await?;
        let pulled = self.registry.pull(&image, &|_| {}).await?;
        Ok((image.digest, pulled))
    }

    /// The trees of an image that was pulled, lowest first.
    pub fn layers(&self, digest: &Digest) -> Vec<PathBuf> {
        self.store.image(digest).expect("the image is here").layers
    }

    /// Names below a folder of the store.
    pub fn names(&self, folder: &str) -> Vec<String> {
        names(&self.dir.path().join("store").join(folder))
    }

    /// Checks that a pull which did not succeed left nothing.
    #[track_caller]
    pub fn assert_empty(&self) {
        self.assert_nothing_but(&[]);
    }

    /// The same where these layers may have been finished before: then they stay.
    #[track_caller]
    pub fn assert_nothing_but(&self, finished: &[&image::Blob]) {
        // First: what a thread is about to name is there until then.
        self.assert_tmp_clean();
        assert_eq!(self.names("images"), Vec::<String>::new());
        let mut layers = self.names("layers");
        layers.retain(|name| !finished.iter().any(|layer| layer.diff_id.ends_with(name)));
        assert_eq!(layers, Vec::<String>::new());
    }

    /// What is unfinished goes with its last user, which may be a thread that is about to end.
    #[track_caller]
    pub fn assert_tmp_clean(&self) {
        wait_for("tmp to be empty", || self.names("tmp").is_empty().then_some(()));
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
