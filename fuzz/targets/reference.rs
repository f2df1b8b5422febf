//! References to images: what is taken is written as it is read, and is safe in a path, a URL and a line.
#![no_main]

use gitopsd::types::ImageRef;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<ImageRef>() else { return };
    let shown = reference.to_string();
    assert_eq!(shown.parse::<ImageRef>().as_ref(), Ok(&reference), "{shown}");
    if let ImageRef::Registry(parts) = &reference {
        let safe = |c: char| c.is_ascii_alphanumeric() || "/._-:@".contains(c);
        assert!(shown.chars().all(safe), "{shown}");
        assert!(
            !parts.repository.split('/').any(|part| part.is_empty() || part == "." || part == ".."),
            "{shown}"
        );
    }
});
