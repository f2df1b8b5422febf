//! Keys that may not sign any more: a file with one a line, as keys of SSH or as fingerprints.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::allowed::key;

/// Reads it: `SHA256:…` or keys of SSH, 40 hex digits of OpenPGP. Gives fingerprints.
///
/// # Errors
/// `LINE: what is wrong`.
pub fn parse(text: &str) -> Result<BTreeSet<String>, String> {
    let mut revoked = BTreeSet::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let word = line.split_whitespace().next().unwrap_or_default();
        let print = if word.starts_with("SHA256:") {
            let print = word.trim_end_matches('=');
            let bytes = STANDARD_NO_PAD.decode(print.trim_start_matches("SHA256:"));
            if !bytes.is_ok_and(|bytes| bytes.len() == 32) {
                return Err(format!("{number}: `{print}` is no fingerprint"));
            }
            print.to_owned()
        } else if word.len() == 40 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            word.to_ascii_uppercase()
        } else {
            let (_, key) = key(line).map_err(|error| format!("{number}: {error}"))?;
            key.fingerprint()
        };
        revoked.insert(print);
    }
    Ok(revoked)
}
