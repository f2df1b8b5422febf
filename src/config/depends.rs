//! `depends_on`: names alone, or a table of conditions, as in the Compose Specification.

use std::ops::Range;

use super::section::Section;
use crate::types::{Dependency, ServiceName};

/// What the key says; `None` = nothing. Each with its place.
pub(super) fn depends_on(section: &Section<'_, '_>) -> Option<Vec<(Dependency, Range<usize>)>> {
    let value = section.get("depends_on")?;
    let findings = section.findings;
    let name = |text: &str, span: &Range<usize>| match text.parse::<ServiceName>() {
        Ok(name) => Some(name),
        Err(error) => {
            findings.error(span.clone(), format!("`depends_on`: {error}"), None);
            None
        }
    };
    if value.get_ref().as_table().is_none() {
        let names = section.strings("depends_on")?;
        let all = names.into_iter();
        return Some(
            all.filter_map(|(text, span)| Some((Dependency::started(name(&text, &span)?), span))).collect(),
        );
    }
    let table = section.table("depends_on")?;
    let mut found = Vec::new();
    for (text, span, value) in table.entries() {
        let Some(settings) = value.get_ref().as_table() else {
            let message = format!("`depends_on`: `{text}` takes a table");
            let hint = Some(format!("{text} = {{ condition = \"service_healthy\" }}"));
            findings.error(value.span(), message, hint);
            continue;
        };
        let settings = Section::new(findings, &format!("[depends_on.{text}]"), settings, span.clone());
        let condition = settings.parsed("condition");
        let required = settings.boolean("required").unwrap_or(true);
        if settings.boolean("restart") == Some(true) {
            let message = "`restart` is not supported by this version: the other one's address stays over a swap, \
                           so nothing has to be started again";
            findings.error(settings.key_span("restart"), message, None);
        }
        settings.finish(|_| None);
        if let Some(service) = name(text, &span) {
            let condition = condition.unwrap_or_default();
            found.push((Dependency { service, condition, required }, span));
        }
    }
    Some(found)
}
