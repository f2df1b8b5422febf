//! Configurations of images: no panic, and a message that is one line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = gitopsd::registry::fuzz::config(bytes, 1) {
        assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
    }
});
