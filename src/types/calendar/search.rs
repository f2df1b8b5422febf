//! The next time that a [`Calendar`] names.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};

use super::{Calendar, Part};

/// The last year that is searched.
const LAST_YEAR: i16 = 2199;

/// More than the minutes of a day that a zone leaves out, and of an hour that it repeats: what is searched one by one.
const MAX_TRIES: usize = 5000;

/// Microseconds.
const SECOND: i64 = 1_000_000;

impl Calendar {
    /// The first time after `after`, by the clocks of `zone`; `None`: there is none before the year 2200.
    ///
    /// As in systemd, a time that clocks leave out (in spring) is left out, and one that they show twice (in autumn)
    /// comes at the first.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        // Timers of systemd have microseconds; the rest of a nanosecond's count is in the past.
        let mut from = micro(zone.to_datetime(after))?;
        from = from.checked_add(jiff::Span::new().microseconds(1)).ok()?;
        for _ in 0..MAX_TRIES {
            let found = self.at_or_after(from)?;
            let instant = match zone.to_ambiguous_timestamp(found).offset() {
                AmbiguousOffset::Gap { .. } => None,
                AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(found).ok(),
                AmbiguousOffset::Fold { before, .. } => before.to_timestamp(found).ok(),
            };
            match instant.filter(|instant| *instant > after) {
                Some(instant) => return Some(instant),
                // The whole minute is left out, or past.
                None => from = minute_after(found)?,
            }
        }
        None
    }

    /// The first civil time from `from` on that it names.
    fn at_or_after(&self, from: DateTime) -> Option<DateTime> {
        let mut date = from.date();
        let mut earliest = from.time();
        while date.year() <= LAST_YEAR {
            let year = next_of(&self.year, date.year().into())?;
            if year != i64::from(date.year()) {
                date = Date::new(i16::try_from(year).ok()?, 1, 1).ok()?;
                earliest = Time::midnight();
            }
            let Some(month) = next_of(&self.month, date.month().into()).filter(|month| *month <= 12) else {
                date = Date::new(date.year().checked_add(1)?, 1, 1).ok()?;
                earliest = Time::midnight();
                continue;
            };
            if month != i64::from(date.month()) {
                date = Date::new(date.year(), i8::try_from(month).ok()?, 1).ok()?;
                earliest = Time::midnight();
            }
            let day = self.next_day(date);
            let Some(day) = day.filter(|day| *day <= i64::from(date.days_in_month())) else {
                date = date.last_of_month().tomorrow().ok()?;
                earliest = Time::midnight();
                continue;
            };
            if day != i64::from(date.day()) {
                date = Date::new(date.year(), date.month(), i8::try_from(day).ok()?).ok()?;
                earliest = Time::midnight();
            }
            let weekday = date.weekday().to_monday_zero_offset();
            let time = if self.weekdays & (1 << weekday) == 0 { None } else { self.time_from(earliest) };
            match time {
                Some(time) => return Some(date.to_datetime(time)),
                None => {
                    date = date.tomorrow().ok()?;
                    earliest = Time::midnight();
                }
            }
        }
        None
    }

    /// The first day of the month from that of `date` on.
    fn next_day(&self, date: Date) -> Option<i64> {
        let day = i64::from(date.day());
        if !self.from_end {
            return next_of(&self.day, day);
        }
        let last = i64::from(date.days_in_month());
        // The third last day is the one before the two last ones; a range of them turns round.
        let turned = self.day.as_ref().map(|parts| {
            let turn = |part: &Part| {
                let start = last - part.start + 1;
                match part.stop.map(|stop| last - stop + 1) {
                    Some(stop) => Part { start: stop, stop: Some(start), repeat: part.repeat },
                    None => Part { start, ..*part },
                }
            };
            parts.iter().map(turn).collect()
        });
        next_of(&turned, day)
    }

    fn time_from(&self, earliest: Time) -> Option<Time> {
        let (mut hour, mut minute) = (i64::from(earliest.hour()), i64::from(earliest.minute()));
        let mut micros = i64::from(earliest.second()) * SECOND
            + i64::from(earliest.millisecond()) * 1000
            + i64::from(earliest.microsecond());
        loop {
            let found = next_of(&self.hour, hour).filter(|hour| *hour <= 23)?;
            if found != hour {
                (hour, minute, micros) = (found, 0, 0);
            }
            let Some(found) = next_of(&self.minute, minute).filter(|minute| *minute <= 59) else {
                (hour, minute, micros) = (hour + 1, 0, 0);
                continue;
            };
            if found != minute {
                (minute, micros) = (found, 0);
            }
            let Some(found) = next_of(&self.second, micros).filter(|micros| *micros < 60 * SECOND) else {
                (minute, micros) = (minute + 1, 0);
                continue;
            };
            let second = i8::try_from(found / SECOND).ok()?;
            let nanos = i32::try_from(found % SECOND * 1000).ok()?;
            return Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, second, nanos).ok();
        }
    }
}

/// The smallest value of a list that is not below `from`.
fn next_of(parts: &Option<Vec<Part>>, from: i64) -> Option<i64> {
    let Some(parts) = parts else { return Some(from) };
    let next = |part: &Part| {
        if part.start >= from {
            return Some(part.start);
        }
        let steps = (from - part.start).checked_add(part.repeat - 1)?.checked_div(part.repeat)?;
        let value = part.start + steps * part.repeat;
        Some(value).filter(|value| part.repeat > 0 && part.stop.is_none_or(|stop| *value <= stop))
    };
    parts.iter().filter_map(next).min()
}

fn micro(time: DateTime) -> Option<DateTime> {
    let nanos = time.subsec_nanosecond() / 1000 * 1000;
    time.with().subsec_nanosecond(nanos).build().ok()
}

fn minute_after(time: DateTime) -> Option<DateTime> {
    let start = time.with().second(0).subsec_nanosecond(0).build().ok()?;
    start.checked_add(jiff::Span::new().minutes(1)).ok()
}
