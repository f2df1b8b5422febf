//! Manifests and indexes: no panic, and a message that is one line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = gitopsd::registry::fuzz::manifest(bytes) {
        assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
    }
});
