//! `mem_limit` and `memswap_limit`: how much memory a container may have, alone and with swap.

use super::options::one;
use super::section::{Findings, Place, Section};
use crate::types::{ByteSize, Declared, Invalid};

/// Docker's own minimum: less does not hold a process.
const LEAST: u64 = 6 << 20;

/// Reads `mem_limit`.
pub(super) fn limit(section: &Section<'_, '_>) -> Option<ByteSize> {
    let value = section.get("mem_limit")?;
    let size: ByteSize = match value.get_ref().as_integer() {
        Some(number) => ByteSize(u64::from_str_radix(number.as_str(), number.radix()).unwrap_or(0)),
        None => section.parsed("mem_limit")?,
    };
    if size.0 < LEAST {
        section.findings.error(value.span(), "`mem_limit` is at least 6m", None);
        return None;
    }
    Some(size)
}

/// Reads `memswap_limit`.
pub(super) fn swap(section: &Section<'_, '_>) -> Option<i64> {
    one(section, "memswap_limit", |text| {
        if text == "-1" {
            return Ok(-1);
        }
        let size: ByteSize = text.parse()?;
        i64::try_from(size.0).map_err(|_| Invalid::new(format!("`{text}` is too much")))
    })
}

/// Where a layer speaks of either.
pub(super) fn place(section: &Section<'_, '_>) -> Option<Place> {
    let value = ["memswap_limit", "mem_limit"].into_iter().find_map(|key| section.get(key))?;
    Some(section.findings.place(value))
}

/// What no runtime starts: an older container would go on with it, and be refused once it ended. `place`: where the last
/// layer speaks of it.
pub(super) fn check(findings: &Findings<'_>, spec: &Declared, place: Option<&Place>) {
    // What is wrong within a layer has been told with its place.
    if findings.has_errors() {
        return;
    }
    if let (Some(message), Some(place)) = (spec.options.swap_misfit(spec.mem_limit), place) {
        let hint =
            "leave `memswap_limit` out, or give the service a `mem_limit` that is at most as much".to_owned();
        findings.error_of(place, &message, Some(hint));
    }
}
