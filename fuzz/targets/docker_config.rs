//! Docker's `config.json`: no panic, and no secret in an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// Names of helpers are told, whatever they are: programs are no secrets.
fn is_a_helper(bytes: &[u8], secret: &str) -> bool {
    let file: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let helpers = file["credHelpers"].as_object().into_iter().flat_map(|all| all.values());
    helpers.chain([&file["credsStore"]]).any(|name| name.as_str().is_some_and(|name| name.contains(secret)))
}

fuzz_target!(
    init: {
        // No helper that happens to be installed here is run.
        // SAFETY: before any other thread is there.
        unsafe { std::env::set_var("PATH", "/nonexistent") };
    },
    |bytes: &[u8]| {
        let Ok(file) = tempfile::NamedTempFile::new() else { return };
        std::fs::write(file.path(), bytes).expect("a file");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let found = runtime.block_on(gitopsd::registry::fuzz::docker_config(file.path(), "r.io"));
        if let Err(error) = found.map_err(|error| error.to_string()) {
            let secrets = ["c2VjcmV0", "s3cr3t"].into_iter().filter(|secret| !is_a_helper(bytes, secret));
            secrets.for_each(|secret| assert!(!error.contains(secret), "{error}"));
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
    }
);
