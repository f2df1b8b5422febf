//! When a service may be changed: `Mon..Fri 09:00-17:00 Europe/Berlin`.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;

use super::calendar::{weekdays, zone_name};
use super::{Invalid, Timestamp, serde_through_str};

/// A part of some days of each week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    text: String,
    /// Monday is bit 0; of one that goes over midnight: of the day on which it begins.
    weekdays: u8,
    /// Seconds after midnight.
    from: u32,
    /// The same, of the next day where it is not after `from`.
    to: u32,
    zone: Option<String>,
}

/// Whether a window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// It is.
    Open,
    /// It is not, and opens then.
    Closed(Timestamp),
}

const DAY: u32 = 86_400;

impl Window {
    /// The name of its time zone; `None` = the host's own.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Whether it is open at `now` by the clocks of `zone`.
    pub fn at(&self, now: Timestamp, zone: &TimeZone) -> Opening {
        let today = zone.to_datetime(now).date();
        // Yesterday's may go over midnight; a week later its weekday comes round, and a zone may leave a day out.
        let mut days = (-1..=9).filter_map(|n| today.checked_add(jiff::Span::new().days(n)).ok());
        let span = |date: Date| {
            let weekday = date.weekday().to_monday_zero_offset();
            if self.weekdays & (1 << weekday) == 0 {
                return None;
            }
            let last = if self.to > self.from { date } else { date.tomorrow().ok()? };
            let (start, end) = (instant(date, self.from, zone)?, instant(last, self.to, zone)?);
            // Of one in an hour that clocks leave out nothing is left.
            (start < end).then_some((start, end))
        };
        let next = days.find_map(|date| span(date).filter(|(_, end)| now < *end));
        match next {
            Some((start, _)) if start > now => Opening::Closed(start),
            Some(_) => Opening::Open,
            // A calendar without an end to search: nothing is held for it.
            None => Opening::Open,
        }
    }
}

/// That time of a day. One that clocks leave out is as much later as they go forward; of two the first.
fn instant(date: Date, seconds: u32, zone: &TimeZone) -> Option<Timestamp> {
    let (date, seconds) = if seconds == DAY { (date.tomorrow().ok()?, 0) } else { (date, seconds) };
    let part = |value: u32| i8::try_from(value).ok();
    let time = Time::new(part(seconds / 3600)?, part(seconds / 60 % 60)?, part(seconds % 60)?, 0).ok()?;
    zone.to_ambiguous_timestamp(date.to_datetime(time)).compatible().ok()
}

impl FromStr for Window {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || {
            let shown: String = text.chars().take(100).collect();
            Invalid::new(format!(
                "`{shown}` is no window: write `09:00-17:00`, `Mon..Fri 22:00-04:00` or `Sat 06:00-24:00 Europe/Berlin`"
            ))
        };
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let days = words.first().and_then(|word| weekdays(word));
        if days.is_some() {
            words.remove(0);
        }
        let (span, zone) = match words.as_slice() {
            [span] => (*span, None),
            [span, zone] if zone_name(zone) => (*span, Some((*zone).to_owned())),
            _ => return Err(bad()),
        };
        let (from, to) = span.split_once('-').ok_or_else(bad)?;
        let (from, to) = (clock(from).ok_or_else(bad)?, clock(to).ok_or_else(bad)?);
        // The same twice may mean all day or never.
        if from == to || from == DAY || to == 0 {
            return Err(bad());
        }
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Self { text, weekdays: days.unwrap_or(0x7f), from, to, zone })
    }
}

/// `HH:MM[:SS]` in seconds after midnight, up to 24:00.
fn clock(text: &str) -> Option<u32> {
    let fields: Vec<u32> = text
        .split(':')
        .map(|field| field.parse().ok().filter(|_| (1..=2).contains(&field.len()) && !field.starts_with('+')))
        .collect::<Option<_>>()?;
    let (hour, minute, second) = match fields.as_slice() {
        [hour, minute] => (*hour, *minute, 0),
        [hour, minute, second] => (*hour, *minute, *second),
        _ => return None,
    };
    let total = hour * 3600 + minute * 60 + second;
    (minute < 60 && second < 60 && total <= DAY).then_some(total)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
serde_through_str!(Window);

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        // The rule itself, so that the test needs no database.
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    #[test]
    fn windows_open_and_close() {
        for (window, now, opens) in [
            ("Mon..Fri 09:00-17:00", "2026-11-20T08:59:59+01:00", Some("2026-11-20T09:00:00+01:00")),
            ("Mon..Fri 09:00-17:00", "2026-11-20T09:00:00+01:00", None),
            ("Mon..Fri 09:00-17:00", "2026-11-20T16:59:59+01:00", None),
            // Friday evening to Monday.
            ("Mon..Fri 09:00-17:00", "2026-11-20T17:00:00+01:00", Some("2026-11-23T09:00:00+01:00")),
            ("Sat 06:00-24:00", "2026-11-21T23:59:59+01:00", None),
            ("Sat 06:00-24:00", "2026-11-22T00:00:00+01:00", Some("2026-11-28T06:00:00+01:00")),
            // Over midnight it is that of the day before.
            ("Fri 22:00-04:00", "2026-11-21T03:59:00+01:00", None),
            ("Fri 22:00-04:00", "2026-11-20T03:59:00+01:00", Some("2026-11-20T22:00:00+01:00")),
            // Clocks go forward at 2:00 on 2026-03-29, and back at 3:00 on 2026-10-25.
            ("02:30-03:00", "2026-03-29T01:00:00+01:00", Some("2026-03-30T02:30:00+02:00")),
            ("02:30-05:00", "2026-03-29T01:00:00+01:00", Some("2026-03-29T03:30:00+02:00")),
            ("02:30-03:00", "2026-10-25T02:15:00+02:00", Some("2026-10-25T02:30:00+02:00")),
            ("02:30-03:00", "2026-10-25T02:45:00+01:00", None),
        ] {
            let window: Window = window.parse().unwrap();
            let at = window.at(now.parse().unwrap(), &berlin());
            let expected = opens.map_or(Opening::Open, |at| Opening::Closed(at.parse().unwrap()));
            assert_eq!(at, expected, "{window} at {now}");
        }
    }

    #[test]
    fn windows_parse_back_and_others_are_refused() {
        for text in ["09:00-17:00", "Mon,Wed..Fri 9:00-17:30:15", "Sat 06:00-24:00 Europe/Berlin"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        for bad in
            ["", "Mon", "09:00", "09:00-09:00", "24:00-03:00", "22:00-00:00", "Fri..Mon 09:00-17:00", "9-17"]
        {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
        for bad in ["09:60-17:00", "09:00-25:00", "09:00-17:00 Europe/../x", "+9:00-17:00", "09:00-17:00 A B"]
        {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }
}
