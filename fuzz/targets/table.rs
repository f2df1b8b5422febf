//! The table of contents of image archives: no panic, and where the reader of layers takes the archive, too, each file's
//! bytes are where the table says.
#![no_main]

mod mend;

use std::cell::RefCell;

use gitopsd::types::SafeUrl;
use libfuzzer_sys::fuzz_target;

thread_local! {
    /// One for all runs: making it takes longer than one.
    static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    );
}

fuzz_target!(|bytes: &[u8]| {
    let bytes = mend::mended(bytes);
    let Ok(file) = tempfile::NamedTempFile::new() else { return };
    std::fs::write(file.path(), &bytes).expect("a file");
    let url: SafeUrl = format!("file://{}", file.path().display()).parse().expect("an address");
    let table = RUNTIME.with_borrow(|runtime| runtime.block_on(gitopsd::registry::fuzz::table(&url)));
    let found = match table {
        Ok(Some(found)) => found,
        Ok(None) => return,
        Err(error) => {
            assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
            return;
        }
    };
    let Ok(entries) = gitopsd::registry::fuzz::tar(&bytes) else { return };
    for (name, at, size) in found {
        let at = usize::try_from(at).expect("a place");
        let content = bytes.get(at..at + usize::try_from(size).expect("a size")).expect("within the archive");
        let (path, bytes) = (name.as_bytes(), content);
        // A link's bytes are those of the file that it leads to.
        let same = |entry: &gitopsd::registry::fuzz::Entry| {
            let plain = String::from_utf8_lossy(&entry.0).trim_start_matches("./").as_bytes() == path;
            plain && (entry.1 != '-' || entry.3 == bytes)
        };
        assert!(entries.iter().any(same), "{name}: {at} {size}, {entries:?}");
    }
});
