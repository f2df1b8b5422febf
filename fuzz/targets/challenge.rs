//! Challenges: no panic, and no realm outside of the registry's own domain, or without TLS where the registry has it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &str| {
    let Ok(base) = "https://registry.example.co.uk:5000".parse() else { return };
    if let Some((realm, true)) = gitopsd::registry::fuzz::realm(header, &base) {
        let host = realm.host_str().unwrap_or_default();
        assert!(realm.scheme() == "https", "{realm}");
        assert!(host == "example.co.uk" || host.ends_with(".example.co.uk"), "{realm}");
    }
});
