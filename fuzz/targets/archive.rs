//! Image archives: the table of contents, manifests and configurations in it. What is none, or is packed, would be
//! spooled by another process, and is given up here.
#![no_main]

mod mend;

use std::collections::BTreeMap;
use std::sync::Arc;

use gitopsd::registry::{Registry, Store};
use gitopsd::types::ImageRef;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let base = tempfile::tempdir().expect("a directory");
    let path = base.path().join("image.tar");
    std::fs::write(&path, mend::mended(bytes)).expect("a file");
    let url: ImageRef = format!("file://{}", path.display()).parse().expect("an address");
    let store = Arc::new(Store::open(&base.path().join("state")).expect("a store"));
    let registry =
        Registry::new(store, BTreeMap::new()).expect("a registry").with_program("/nonexistent".into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let Err(error) = runtime.block_on(registry.resolve(&url)) {
        assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
    }
});
