//! Durations and sizes as people write them, in the Compose Specification's spelling.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Invalid, serde_through_str};

/// Parses `90s`, `1m30s`, `2h`, `500ms`, `1.5s`, `2d`. The unit is required, as a bare number leaves room for a guess.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    let bad =
        || Invalid::new(format!("`{text}` is not a duration: write `500ms`, `10s`, `1m30s`, `2h` or `7d`"));
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_len] {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(bad()),
        };
        rest = &rest[unit_len..];
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        total = total.checked_add(part).ok_or_else(bad)?;
    }
    // Longer than a year is a slip of the pen, and would overflow arithmetic on timestamps further on.
    if total > Duration::from_secs(366 * 86400) {
        return Err(Invalid::new(format!("`{text}` is longer than a year")));
    }
    Ok(total)
}

/// Writes a duration the way [`parse_duration`] reads it, as `1m30s`; below a second in milliseconds.
pub fn format_duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{}ms", duration.as_millis());
    }
    let seconds = duration.as_secs();
    let parts =
        [(seconds / 86400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect()
}

/// A number of bytes: `512m`, `1.5g`, `64k`, `4096`, also with a trailing `b`. Powers of 1024, as in Compose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new(format!("`{text}` is not a size: write `64k`, `512m` or `1.5g`"));
        let lower = text.to_ascii_lowercase();
        let bare = lower.strip_suffix('b').unwrap_or(&lower);
        let (number, factor) = match bare.chars().last() {
            Some('k') => (&bare[..bare.len() - 1], 1u64 << 10),
            Some('m') => (&bare[..bare.len() - 1], 1 << 20),
            Some('g') => (&bare[..bare.len() - 1], 1 << 30),
            Some('t') => (&bare[..bare.len() - 1], 1 << 40),
            _ => (bare, 1),
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(bad());
        }
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Self).ok_or_else(bad);
        }
        let bytes = number.parse::<f64>().map_err(|_| bad())? * factor as f64;
        if !bytes.is_finite() || bytes >= (1u64 << 60) as f64 {
            return Err(bad());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides it, so that parsing gives the same number back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "t"), (30, "g"), (20, "m"), (10, "k")] {
            if self.0 > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl ByteSize {
    /// For people: one decimal and the largest fitting unit, as `41.3 MiB`.
    pub fn human(self) -> String {
        let mut value = self.0 as f64;
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if value < 1024.0 {
                return if unit == "B" { format!("{value} B") } else { format!("{value:.1} {unit}") };
            }
            value /= 1024.0;
        }
        format!("{value:.1} TiB")
    }
}
serde_through_str!(ByteSize);

/// `1 layer`, `2 layers`.
pub fn plural(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("10s", 10_000), ("1m30s", 90_000), ("500ms", 500), ("1.5s", 1500), ("2h", 7_200_000)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "10", "s", "1x", "-1s", "1e9d", "400d", "1.2.3s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(format_duration(Duration::from_secs(90)), "1m30s");
        assert_eq!(format_duration(Duration::from_millis(250)), "250ms");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("512m", 512 << 20), ("1.5g", 3 << 29), ("64kb", 64 << 10), ("4096", 4096), ("0", 0)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
        for bad in ["", "m", "-1", "1x", "99999999999999999999", "1e5"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(ByteSize(512 << 20).to_string(), "512m");
        assert_eq!(ByteSize(1000).to_string(), "1000");
    }
}
