//! Times as people type them: `10m` ago, or a date.

use crate::agent::clock;
use crate::types::{Invalid, Timestamp, parse_duration};

/// How the help shows it.
pub const NAME: &str = "TIME";

/// Parses a point in time: `10m` (ago), `now`, `@1767225600`, `2026-01-01T12:00:00Z`, `2026-01-01 12:00`, `2026-01-01`. In
/// UTC where no other zone is said, as everything that is shown.
pub fn parse(text: &str) -> Result<Timestamp, Invalid> {
    at(text.trim(), clock::now()).ok_or_else(|| {
        Invalid::new(format!(
            "`{text}` is not a time: write `10m` (ago), `2026-01-01T12:00:00Z`, `2026-01-01 12:00` or `@1767225600`"
        ))
    })
}

fn at(text: &str, now: Timestamp) -> Option<Timestamp> {
    if text == "now" {
        return Some(now);
    }
    if let Some(seconds) = text.strip_prefix('@') {
        let (whole, part) = seconds.split_once('.').unwrap_or((seconds, ""));
        let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
        return Timestamp::new(whole.parse().ok()?, digits.parse().ok()?).ok();
    }
    if let Ok(ago) = parse_duration(text.strip_prefix('-').unwrap_or(text)) {
        return now.checked_sub(ago).ok();
    }
    if let Ok(exact) = text.parse() {
        return Some(exact);
    }
    let local: jiff::civil::DateTime = text.parse().ok()?;
    Some(local.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_every_spelling() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (text, wanted) in [
            ("now", "2026-01-02T00:00:00Z"),
            ("10m", "2026-01-01T23:50:00Z"),
            ("-1h30m", "2026-01-01T22:30:00Z"),
            ("@1767225600", "2026-01-01T00:00:00Z"),
            ("@1767225600.25", "2026-01-01T00:00:00.25Z"),
            ("2026-01-01T12:00:00+02:00", "2026-01-01T10:00:00Z"),
            ("2026-01-01T12:00:00Z", "2026-01-01T12:00:00Z"),
            ("2026-01-01T12:00", "2026-01-01T12:00:00Z"),
            ("2026-01-01 12:00:30", "2026-01-01T12:00:30Z"),
            ("2026-01-01", "2026-01-01T00:00:00Z"),
        ] {
            assert_eq!(at(text, now), Some(wanted.parse().unwrap()), "{text}");
        }
        for bad in ["", "10", "yesterday-ish", "2026-13-01", "@x", "@1.x", "12:00"] {
            assert_eq!(at(bad, now), None, "{bad}");
        }
    }
}
