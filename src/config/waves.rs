//! `[[wave]]` of the repo's own file: which hosts act on a commit before which others.

use std::time::Duration;

use super::section::Section;
use crate::types::Wave;

/// Most waves of a repo.
const MOST: usize = 100;

/// Reads them, in order. A wave of which something is wrong is left out, and an error.
pub(super) fn read(top: &Section<'_, '_>) -> Vec<Wave> {
    let findings = top.findings;
    let Some(value) = top.get("wave") else { return Vec::new() };
    let Some(list) = value.get_ref().as_array() else {
        let hint = Some("[[wave]]\n         hosts = [\"web-1\"]".to_owned());
        findings.error(value.span(), "`wave` takes an array of tables", hint);
        return Vec::new();
    };
    if list.len() > MOST {
        findings.error(
            value.span(),
            format!("`wave`: {} are too many; {MOST} is the limit", list.len()),
            None,
        );
        return Vec::new();
    }
    let mut waves = Vec::new();
    for item in list.iter() {
        match item.get_ref().as_table() {
            Some(table) => waves.extend(one(&Section::new(findings, "[[wave]]", table, item.span()))),
            None => findings.error(item.span(), "`wave` takes tables", None),
        }
    }
    waves
}

fn one(section: &Section<'_, '_>) -> Option<Wave> {
    let findings = section.findings;
    let hosts = section.strings("hosts");
    if hosts.as_ref().is_none_or(Vec::is_empty) && (hosts.is_some() || !section.has("hosts")) {
        findings.error(section.key_span("hosts"), "a wave needs `hosts`: names with globs, or labels", None);
    }
    let hosts: Vec<String> = hosts
        .into_iter()
        .flatten()
        .filter_map(|(entry, span)| match (entry.contains('='), glob::Pattern::new(&entry)) {
            (false, Err(error)) => {
                findings.error(span, format!("`hosts`: `{entry}` is not a pattern: {error}"), None);
                None
            }
            _ => Some(entry),
        })
        .collect();
    let wait = section.duration("wait").unwrap_or(Duration::ZERO);
    let min_healthy = match section.string("min_healthy") {
        None => Some(100),
        Some(text) => {
            let percent = percent(&text);
            if percent.is_none() {
                let message = format!("`min_healthy`: `{text}` is not a percentage from 1% to 100%");
                findings.error(section.key_span("min_healthy"), message, None);
            }
            percent
        }
    };
    section.finish(|_| None);
    (!hosts.is_empty()).then_some(Wave { hosts, wait, min_healthy: min_healthy? })
}

fn percent(text: &str) -> Option<u8> {
    let digits = text.strip_suffix('%')?.trim_end();
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|percent| plain && (1..=100).contains(percent))
}
