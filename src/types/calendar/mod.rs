//! Times that come round, in the words of systemd: `Mon..Fri 03:00 Europe/Berlin`.
//!
//! Pure: a time zone is a value that the caller brings ([`Zones`]). Source: systemd.time(7), "Calendar Events"; held
//! against `systemd-analyze calendar` by `tests/calendar.rs`.

mod parse;
mod search;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;

use super::{Invalid, serde_through_str};
pub(super) use parse::{weekdays, zone_name};

/// The time zones that are known, by name; `""` = the host's own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Zones(pub BTreeMap<String, TimeZone>);

impl Zones {
    /// The zone of that name; `None` = the host's own.
    ///
    /// UTC is always known, and stands in where the host's own is not.
    pub fn get(&self, name: Option<&str>) -> Option<TimeZone> {
        match (name, self.0.get(name.unwrap_or(""))) {
            (_, Some(zone)) => Some(zone.clone()),
            (None | Some("UTC"), None) => Some(TimeZone::UTC),
            (Some(_), None) => None,
        }
    }
}

/// A calendar expression. Two that are written in different ways are different ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    /// As it was written.
    text: String,
    /// Monday is bit 0.
    weekdays: u8,
    /// Each list: `None` = any.
    year: Option<Vec<Part>>,
    month: Option<Vec<Part>>,
    day: Option<Vec<Part>>,
    hour: Option<Vec<Part>>,
    minute: Option<Vec<Part>>,
    /// In microseconds.
    second: Option<Vec<Part>>,
    /// Days are counted from the end of the month: 1 is its last.
    from_end: bool,
    zone: Option<String>,
}

/// One element of a list: `7`, `1..5`, `0/15`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: i64,
    stop: Option<i64>,
    /// 0 = only `start`.
    repeat: i64,
}

impl Calendar {
    /// The name of its time zone; `None` = the host's own.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }
}

impl FromStr for Calendar {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        parse::calendar(text)
    }
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
serde_through_str!(Calendar);
