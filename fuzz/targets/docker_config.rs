//! Docker's `config.json`: no panic, and no secret in an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

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
            assert!(!error.contains("c2VjcmV0") && !error.contains("s3cr3t"), "{error}");
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
    }
);
