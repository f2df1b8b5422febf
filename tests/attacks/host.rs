//! A host that pulls from a server of ours, and images to order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gitopsd::config::agent::RegistryConfig;
use gitopsd::registry::{PullError, Registry, Store};
use gitopsd::types::{ImageRef, PinnedImage};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::web::{Answer, Web};

pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// What a registry has, by path.
pub type Documents = BTreeMap<String, Vec<u8>>;

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image of one layer: as it is packed, its media type, and what it has to be when it is unpacked.
pub fn image(blob: &[u8], media: &str, tar: &[u8]) -> Documents {
    let config = config(tar).to_string().into_bytes();
    let manifest = manifest(&config, blob, media).to_string().into_bytes();
    documents(manifest, &[config, blob.to_vec()])
}

pub fn config(tar: &[u8]) -> Value {
    json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": [sha256(tar)] } })
}

pub fn manifest(config: &[u8], blob: &[u8], media: &str) -> Value {
    json!({
        "schemaVersion": 2,
        "config": { "digest": sha256(config), "size": config.len() },
        "layers": [{ "mediaType": media, "digest": sha256(blob), "size": blob.len() }],
    })
}

/// A manifest as the tag 1, and blobs.
pub fn documents(manifest: Vec<u8>, blobs: &[Vec<u8>]) -> Documents {
    let mut documents: Documents =
        blobs.iter().map(|blob| (format!("/v2/app/blobs/{}", sha256(blob)), blob.clone())).collect();
    documents.insert(format!("/v2/app/manifests/{}", sha256(&manifest)), manifest.clone());
    documents.insert("/v2/app/manifests/1".to_owned(), manifest);
    documents
}

/// A registry that has these.
pub fn serve(documents: Documents) -> Web {
    Web::new(move |asked| match documents.get(&asked.path) {
        Some(body) => Answer::new(200, body.clone()),
        None => Answer::new(404, ""),
    })
}

/// Without credentials, over http.
pub fn plain() -> RegistryConfig {
    RegistryConfig { plain_http: true, ..RegistryConfig::default() }
}

/// Pulls `app:1` from a server; the trees of its layers.
pub fn pull(state: &Path, web: &Web) -> Result<Vec<PathBuf>, PullError> {
    pull_as(state, &format!("{}/app:1", web.address()), BTreeMap::from([(web.address(), plain())]))
}

pub fn pull_as(
    state: &Path,
    reference: &str,
    registries: BTreeMap<String, RegistryConfig>,
) -> Result<Vec<PathBuf>, PullError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pulled = runtime.block_on(async {
        let store = Arc::new(Store::open(state)?);
        let registry =
            Registry::new(store.clone(), registries)?.with_program(env!("CARGO_BIN_EXE_gitopsd").into());
        let reference: ImageRef = reference.parse().unwrap();
        let digest = registry.resolve(&reference).await?;
        let image = PinnedImage { reference, digest };
        registry.pull(&image, &|_| {}).await?;
        Ok(store.image(&image.digest).expect("the image is here").layers)
    });
    // What was given up is gone by then, or the runtime still sees to it.
    runtime.shutdown_timeout(std::time::Duration::from_secs(30));
    pulled
}

/// Nothing has a final name, and the next start leaves nothing unfinished.
pub fn assert_empty(case: &str, state: &Path) {
    drop(Store::open(state).unwrap_or_else(|error| panic!("{case}: the store does not open again: {error}")));
    for folder in ["layers", "images", "tmp"] {
        let found = std::fs::read_dir(state.join("store").join(folder)).unwrap().count();
        assert_eq!(found, 0, "{case}: something is left in {folder}");
    }
}

/// A message is one line that shows itself.
pub fn assert_line(case: &str, error: &PullError) {
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control) && text.len() < 2100, "{case}: {text:.3000?}");
}
