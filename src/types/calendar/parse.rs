//! From text to a [`Calendar`].

use super::{Calendar, Part};
use crate::types::Invalid;

/// As in systemd: what lies outside is a slip of the pen.
const YEARS: (i64, i64) = (1970, 2199);

/// Microseconds.
const SECOND: i64 = 1_000_000;

/// More elements than anybody writes.
const MAX_PARTS: usize = 240;

/// Longest text.
const MAX_TEXT: usize = 1024;

const WORDS: &[(&str, &str)] = &[
    ("minutely", "*-*-* *:*:00"),
    ("hourly", "*-*-* *:00:00"),
    ("daily", "*-*-* 00:00:00"),
    ("monthly", "*-*-01 00:00:00"),
    ("annually", "*-01-01 00:00:00"),
    ("yearly", "*-01-01 00:00:00"),
    ("weekly", "Mon *-*-* 00:00:00"),
    ("quarterly", "*-01,04,07,10-01 00:00:00"),
    ("biannually", "*-01,07-01 00:00:00"),
    ("bi-annually", "*-01,07-01 00:00:00"),
    ("semiannually", "*-01,07-01 00:00:00"),
    ("semi-annually", "*-01,07-01 00:00:00"),
];

const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// Parses a whole expression.
pub(super) fn calendar(text: &str) -> Result<Calendar, Invalid> {
    let bad = |why: &str| {
        Invalid::new(format!(
            "`{}` is no calendar time{why}: write `daily`, `03:00`, `Mon..Fri 09:30 Europe/Berlin` or `*:0/15`",
            text.chars().take(100).collect::<String>()
        ))
    };
    if text.len() > MAX_TEXT || !text.is_ascii() {
        return Err(bad(""));
    }
    let (spec, zone) = split_zone(text.trim());
    let lower = spec.to_ascii_lowercase();
    let spec = WORDS.iter().find(|(word, _)| *word == lower).map_or(spec, |(_, meaning)| meaning);
    let mut found = parts(spec).ok_or_else(|| bad(""))?;
    for parts in [
        &mut found.year,
        &mut found.month,
        &mut found.day,
        &mut found.hour,
        &mut found.minute,
        &mut found.second,
    ] {
        parts.iter_mut().flatten().for_each(shorten);
    }
    found.text = text.trim().to_owned();
    found.zone = zone.map(str::to_owned);
    check(&found).map_err(|why| bad(&format!(" ({why})")))?;
    Ok(found)
}

/// A zone's name as the tz database spells them: `Europe/Berlin`, `CET`, `Etc/GMT+2`.
pub(in crate::types) fn zone_name(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-'))
    };
    text.len() <= 64 && text.split('/').all(part)
}

/// The last word is the time zone where it cannot be anything else.
fn split_zone(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(' ') {
        Some((spec, "utc")) => (spec.trim_end(), Some("UTC")),
        Some((spec, last)) if zone_name(last) && weekdays(last).is_none() => (spec.trim_end(), Some(last)),
        _ => (text, None),
    }
}

/// `Mon,Wed..Fri` as bits, Monday first; `None`: it is no such list.
pub(in crate::types) fn weekdays(text: &str) -> Option<u8> {
    let day = |name: &str| {
        let name = name.to_ascii_lowercase();
        DAYS.iter().position(|known| *known == name || known.get(..3) == Some(&name))
    };
    let mut bits = 0u8;
    // A comma at the end is allowed.
    for item in text.strip_suffix(',').unwrap_or(text).split(',') {
        let range = item.split_once("..").or_else(|| item.split_once('-'));
        let (first, last) = match range {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(item)?, day(item)?),
        };
        // As in systemd a range does not go round the end of the week.
        if first > last {
            return None;
        }
        (first..=last).for_each(|day| bits |= 1 << day);
    }
    Some(bits)
}

fn parts(spec: &str) -> Option<Calendar> {
    let mut words: Vec<&str> = spec.split(' ').filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        return None;
    }
    let mut found = Calendar {
        text: String::new(),
        weekdays: 0x7f,
        year: None,
        month: None,
        day: None,
        hour: one(0),
        minute: one(0),
        second: one(0),
        from_end: false,
        zone: None,
    };
    let alphabetic = |word: &&str| word.starts_with(|c: char| c.is_ascii_alphabetic());
    if words.first().is_some_and(alphabetic) {
        found.weekdays = weekdays(words.remove(0))?;
    }
    if words.first().is_some_and(|word| !word.contains(':')) {
        date(words.remove(0), &mut found)?;
    }
    if let Some(word) = words.first() {
        let mut fields = word.split(':');
        found.hour = list(fields.next()?, 1)?;
        found.minute = list(fields.next()?, 1)?;
        if let Some(second) = fields.next() {
            found.second = list(second, SECOND)?;
        }
        if fields.next().is_some() {
            return None;
        }
        words.remove(0);
    }
    words.is_empty().then_some(found)
}

fn one(value: i64) -> Option<Vec<Part>> {
    Some(vec![Part { start: value, stop: None, repeat: 0 }])
}

/// `[year-]month-day`, with `~` before a day that is counted from the end.
fn date(word: &str, found: &mut Calendar) -> Option<()> {
    found.from_end = word.contains('~');
    let fields: Vec<&str> = word.split(['-', '~']).collect();
    // Only the last of the separators may be one.
    let tilde = word.rfind('~');
    if tilde.is_some() && (tilde != word.rfind(['-', '~']) || word.matches('~').count() > 1) {
        return None;
    }
    let (year, month, day) = match fields.as_slice() {
        [month, day] => ("*", *month, *day),
        [year, month, day] => (*year, *month, *day),
        _ => return None,
    };
    found.year = list(year, 1)?;
    for part in found.year.iter_mut().flatten() {
        part.start = century(part.start);
        part.stop = part.stop.map(century);
    }
    found.month = list(month, 1)?;
    found.day = list(day, 1)?;
    Some(())
}

/// 12 is 2012, 89 is 1989.
fn century(year: i64) -> i64 {
    match year {
        0..70 => year + 2000,
        70..100 => year + 1900,
        _ => year,
    }
}

/// A list, or `*`. `unit`: what a whole number stands for. The outer `None`: it is none.
fn list(text: &str, unit: i64) -> Option<Option<Vec<Part>>> {
    if text == "*" {
        // Every second, not every microsecond.
        return Some((unit > 1).then(|| vec![Part { start: 0, stop: None, repeat: unit }]));
    }
    let items: Vec<&str> = text.split(',').collect();
    if items.len() > MAX_PARTS {
        return None;
    }
    let parts: Option<Vec<Part>> = items.into_iter().map(|item| part(item, unit)).collect();
    Some(Some(parts?))
}

fn part(item: &str, unit: i64) -> Option<Part> {
    let (range, repeat) = match item.split_once('/') {
        Some((range, repeat)) => (range, Some(number(repeat, unit).filter(|repeat| *repeat > 0)?)),
        None => (item, None),
    };
    let (start, stop) = match range.split_once("..") {
        Some((start, stop)) => (number(start, unit)?, Some(number(stop, unit)?)),
        None => (number(range, unit)?, None),
    };
    Some(Part { start, stop, repeat: repeat.unwrap_or(if stop.is_some() { unit } else { 0 }) })
}

/// A whole number; of seconds also with a fraction, of which microseconds count.
fn number(text: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 9 || !digits(whole) || !digits(fraction) {
        return None;
    }
    if text.contains('.') && (unit == 1 || fraction.is_empty()) {
        return None;
    }
    let fraction: String = fraction.chars().chain("000000".chars()).take(6).collect();
    let fraction: i64 = if unit == 1 { 0 } else { fraction.parse().ok()? };
    Some(whole.parse::<i64>().ok()?.checked_mul(unit)? + fraction)
}

/// Lets a range end at the last value that its steps reach.
fn shorten(part: &mut Part) {
    let Some(stop) = part.stop.filter(|stop| *stop >= part.start && part.repeat > 0) else { return };
    let last = stop - (stop - part.start) % part.repeat;
    (part.stop, part.repeat) = if last > part.start { (Some(last), part.repeat) } else { (None, 0) };
}

fn check(found: &Calendar) -> Result<(), String> {
    let fields = [
        ("year", &found.year, YEARS, 1),
        ("month", &found.month, (1, 12), 1),
        ("hour", &found.hour, (0, 23), 1),
        ("minute", &found.minute, (0, 59), 1),
        ("second", &found.second, (0, 60 * SECOND - 1), SECOND),
    ];
    for (name, parts, (from, to), unit) in fields {
        for part in parts.iter().flatten() {
            let last = part.stop.unwrap_or(to);
            let fits = (from..=to).contains(&part.start) && last <= to;
            if !fits || part.repeat > to - from || part.start + part.repeat > last {
                return Err(format!("{name} {} to {}", from / unit, to / unit));
            }
        }
    }
    for part in found.day.iter().flatten() {
        // What is counted from the end has to be there in February too.
        let to = if found.from_end { 28 } else { 31 };
        let fits = (1..=to).contains(&part.start) && part.stop.is_none_or(|stop| (1..=to).contains(&stop));
        let repeats = match (part.stop, found.from_end) {
            (Some(stop), _) => part.start + part.repeat <= stop,
            (None, true) => part.start - part.repeat >= 1,
            (None, false) => part.start + part.repeat <= to,
        };
        if !fits || part.repeat > to - 1 || !repeats {
            return Err(format!("day 1 to {to}"));
        }
    }
    Ok(())
}
