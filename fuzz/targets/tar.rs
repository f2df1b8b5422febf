//! Tar: no panic, and whatever is taken, the `tar` crate takes for the same, as far as it comes. Its one known fault,
//! PAX values with newlines, is left out.
#![no_main]

mod mend;

use std::io::Read;

use gitopsd::registry::fuzz::Entry;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bytes = mend::mended(bytes);
    match gitopsd::registry::fuzz::tar(&bytes) {
        Ok(ours) => {
            if mend::is_plain(&bytes) {
                let mut theirs = Vec::new();
                let ended = read(&bytes, &mut theirs).is_ok();
                assert!(
                    ours.starts_with(&theirs) && (!ended || ours == theirs),
                    "{ours:?} is not {theirs:?}"
                );
            }
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    }
});

fn read(bytes: &[u8], entries: &mut Vec<Entry>) -> std::io::Result<()> {
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = match entry.header().entry_type() {
            kind if kind.is_file() || kind.is_contiguous() => '-',
            kind if kind.is_hard_link() => 'h',
            kind if kind.is_symlink() => 'l',
            kind if kind.is_dir() => 'd',
            kind if kind.is_fifo() => 'p',
            kind if kind.is_character_special() || kind.is_block_special() => 'c',
            _ => '?',
        };
        let link = entry.link_name_bytes().filter(|_| matches!(kind, 'h' | 'l'));
        let (path, link) =
            (entry.path_bytes().into_owned(), link.map(|link| link.into_owned()).unwrap_or_default());
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        entries.push((path, kind, link, content));
    }
    Ok(())
}
