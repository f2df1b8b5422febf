//! The keys that hold times of day: `schedule`, and `window` of `[deploy]`.

use toml::de::DeValue;

use super::section::{Findings, Section, Value};
use super::zones;
use crate::types::{Calendar, Schedule, Window};

/// `schedule`: the times alone, or a table. The inner `None` = `""`, which sets a default aside.
pub(super) fn schedule(section: &Section<'_, '_>) -> Option<Schedule> {
    let value = section.get("schedule")?;
    if value.get_ref().as_str().is_some() {
        let calendar: Calendar = section.parsed("schedule")?;
        check_zone(section.findings, value, "schedule", calendar.zone());
        return Some(Schedule { calendar, persistent: true, timeout: None });
    }
    let table = section.table("schedule")?;
    let calendar: Option<Calendar> = table.parsed("calendar");
    if let (Some(calendar), Some(value)) = (&calendar, table.get("calendar")) {
        check_zone(section.findings, value, "calendar", calendar.zone());
    }
    if !table.has("calendar") {
        let hint = Some("schedule = { calendar = \"Mon..Fri 03:00\" }".to_owned());
        section.findings.error(table.span.clone(), "`schedule` has no `calendar`", hint);
    }
    let persistent = table.boolean("persistent").unwrap_or(true);
    let timeout = table.duration("timeout");
    table.finish(|_| None);
    Some(Schedule { calendar: calendar?, persistent, timeout })
}

/// `window`: one, or an array of them.
pub(super) fn windows(section: &Section<'_, '_>) -> Option<Vec<Window>> {
    let findings = section.findings;
    let value = section.get("window")?;
    let items: Vec<Value<'_, '_>> = match value.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![value],
    };
    let mut windows = Vec::new();
    for item in items {
        match item.get_ref().as_str().map(str::parse::<Window>) {
            Some(Ok(window)) => {
                check_zone(findings, item, "window", window.zone());
                windows.push(window);
            }
            Some(Err(error)) => findings.error(item.span(), format!("`window`: {error}"), None),
            None => findings.error(item.span(), "`window` takes a string, or an array of strings", None),
        }
    }
    Some(windows)
}

fn check_zone(findings: &Findings<'_>, value: Value<'_, '_>, key: &str, zone: Option<&str>) {
    if let Some(zone) = zone.filter(|zone| !zones::may_be(zone)) {
        let message = format!("`{key}`: `{zone}` is not a time zone of this host's /usr/share/zoneinfo");
        findings.error(value.span(), message, None);
    }
}
