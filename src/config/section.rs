//! Reads a TOML table key by key. What is wrong is collected, never the end: the next key is read all the same.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Severity, Source, did_you_mean};
use crate::types::parse_duration;

/// What was found wrong so far, in one file.
pub(super) struct Findings<'a> {
    pub source: Source<'a>,
    found: RefCell<Vec<Diagnostic>>,
    /// How many of them, from the first on, are errors of syntax.
    syntax: Cell<usize>,
}

impl<'a> Findings<'a> {
    /// Nothing yet.
    pub fn new(file: &'a str, text: &'a str) -> Self {
        Self { source: Source { file, text }, found: RefCell::default(), syntax: Cell::new(0) }
    }

    pub fn error(&self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        self.found.borrow_mut().push(self.source.at(Severity::Error, span, message.into(), hint));
    }

    /// The same, without the line itself: there is a secret in it.
    pub fn error_unseen(&self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        let mut found = self.source.at(Severity::Error, span, message.into(), hint);
        found.source_line.clear();
        self.found.borrow_mut().push(found);
    }

    /// Where a value of this file is.
    pub fn place(&self, value: Value<'_, '_>) -> Place {
        Place { file: self.source.file.to_owned(), span: value.span() }
    }

    /// An error about what a layer says: at its place where that is in this file, else with the file's name.
    pub fn error_of(&self, place: &Place, message: &str, hint: Option<String>) {
        if place.file == self.source.file {
            self.error(place.span.clone(), message, hint);
        } else {
            self.error(0..0, format!("{message} (as {} has it)", place.file), hint);
        }
    }

    pub fn warn(&self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        self.found.borrow_mut().push(self.source.at(Severity::Warning, span, message.into(), hint));
    }

    pub fn has_errors(&self) -> bool {
        self.found.borrow().iter().any(Diagnostic::is_error)
    }

    /// Whether what the file does not have may stand where its syntax is broken.
    pub fn is_guessed(&self) -> bool {
        self.syntax.get() > 0
    }

    /// All of them, in the order of the file. From the line on where its syntax is broken the file was only guessed
    /// at, and so was what else is wrong with it: that is left out.
    pub fn into_sorted(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        let mut others = found.split_off(self.syntax.get());
        if let Some(broken) = found.iter().map(|diagnostic| diagnostic.line).min() {
            found.retain(|diagnostic| diagnostic.line == broken);
            others.retain(|diagnostic| diagnostic.line < broken);
        }
        found.append(&mut others);
        found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        found
    }
}

/// Where a layer says something.
#[derive(Debug, Clone)]
pub(super) struct Place {
    file: String,
    span: Range<usize>,
}

/// Parses a file before anything else is found in it; syntax errors are findings, and what could be read is read.
pub(super) fn parse<'a>(findings: &Findings<'a>) -> Spanned<DeTable<'a>> {
    let (table, errors) = DeTable::parse_recoverable(findings.source.text);
    for error in errors {
        let end = findings.source.text.len();
        findings.error(error.span().unwrap_or(end..end), error.message().to_owned(), None);
    }
    findings.syntax.set(findings.found.borrow().len());
    table
}

/// A table being read.
pub(super) struct Section<'f, 'a> {
    pub findings: &'f Findings<'a>,
    /// For messages: `[healthcheck]`; empty at the top.
    name: String,
    table: &'f DeTable<'a>,
    /// Where to point when a key is missing.
    pub span: Range<usize>,
    read: RefCell<BTreeSet<&'static str>>,
}

/// A value with its place.
pub(super) type Value<'f, 'a> = &'f Spanned<DeValue<'a>>;

impl<'f, 'a> Section<'f, 'a> {
    pub fn new(findings: &'f Findings<'a>, name: &str, table: &'f DeTable<'a>, span: Range<usize>) -> Self {
        Self { findings, name: name.to_owned(), table, span, read: RefCell::default() }
    }

    /// The value of a key; notes that the key is known.
    pub fn get(&self, key: &'static str) -> Option<Value<'f, 'a>> {
        self.read.borrow_mut().insert(key);
        self.table.get(key)
    }

    /// Every entry, for tables whose keys are names.
    pub fn entries(&self) -> impl Iterator<Item = (&'f str, Range<usize>, Value<'f, 'a>)> {
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
    }

    /// Whether a key is there.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Where a key is.
    pub fn key_span(&self, key: &str) -> Range<usize> {
        self.table.get_key_value(key).map_or_else(|| self.span.clone(), |(key, _)| key.span())
    }

    fn wrong_type(&self, key: &str, value: Value<'_, '_>, wanted: &str) {
        let found = value.get_ref().type_str();
        self.findings.error(value.span(), format!("`{key}` takes {wanted}, not {}", article(found)), None);
    }

    /// A string that a parser takes.
    pub fn parsed<T>(&self, key: &'static str) -> Option<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let value = self.get(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a string");
            return None;
        };
        text.parse()
            .map_err(|error: T::Err| self.findings.error(value.span(), format!("`{key}`: {error}"), None))
            .ok()
    }

    /// A string, as it is.
    pub fn string(&self, key: &'static str) -> Option<String> {
        self.parsed::<String>(key)
    }

    /// A duration as a string.
    pub fn duration(&self, key: &'static str) -> Option<Duration> {
        let value = self.get(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a duration in quotes, as \"10s\"");
            return None;
        };
        parse_duration(text)
            .map_err(|error| self.findings.error(value.span(), format!("`{key}`: {error}"), None))
            .ok()
    }

    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, value, "true or false");
        }
        found
    }

    /// A whole number within a range.
    pub fn integer(&self, key: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let value = self.get(key)?;
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "a number");
            return None;
        };
        let parsed =
            i64::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| range.contains(number));
        if parsed.is_none() {
            let message = format!("`{key}` takes a number from {} to {}", range.start(), range.end());
            self.findings.error(value.span(), message, None);
        }
        parsed
    }

    /// A number with or without a fraction.
    pub fn number(&self, key: &'static str) -> Option<(f64, Range<usize>)> {
        let value = self.get(key)?;
        let parsed = match value.get_ref() {
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number as f64)
            }
            DeValue::Float(number) => number.as_str().parse().ok().filter(|number: &f64| number.is_finite()),
            _ => None,
        };
        if parsed.is_none() {
            self.wrong_type(key, value, "a number");
        }
        parsed.map(|number| (number, value.span()))
    }

    /// An array of strings, each with its place.
    pub fn strings(&self, key: &'static str) -> Option<Vec<(String, Range<usize>)>> {
        let value = self.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "an array of strings");
            return None;
        };
        let mut strings = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_str() {
                Some(text) => strings.push((text.to_owned(), item.span())),
                None => self.wrong_type(key, item, "strings"),
            }
        }
        Some(strings)
    }

    /// A table.
    pub fn table(&self, key: &'static str) -> Option<Section<'f, 'a>> {
        let value = self.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table");
            return None;
        };
        Some(Section::new(self.findings, &format!("[{key}]"), table, self.key_span(key)))
    }

    /// The keys that were asked for so far.
    pub fn known(&self) -> Vec<&'static str> {
        self.read.borrow().iter().copied().collect()
    }

    /// Refuses a key that is known and not supported, by name.
    pub fn unsupported(&self, key: &'static str, what: &str) {
        if let Some(value) = self.get(key) {
            let message = format!("`{key}` is not supported by this version: {what}");
            self.findings.error(self.key_span(key), message, None);
            let _ = value;
        }
    }

    /// Refuses all keys that nobody asked for. `elsewhere` says of a key that it is known to others, and what of it.
    pub fn finish(&self, elsewhere: impl Fn(&str) -> Option<String>) {
        let known = self.known();
        for key in self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref().as_ref();
            let place = if self.name.is_empty() { String::new() } else { format!(" in {}", self.name) };
            match elsewhere(name) {
                Some(what) if matches!(name, "password" | "token" | "secret") => {
                    self.findings.error_unseen(key.span(), what, None);
                }
                Some(what) => self.findings.error(key.span(), what, None),
                None => {
                    let message = format!("unknown key `{name}`{place}");
                    self.findings.error(key.span(), message, did_you_mean(name, &known));
                }
            }
        }
    }
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}
