//! An error or warning with its place: `file:line:column: error: message`, the line, a caret, a hint.

use std::fmt;
use std::ops::Range;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot be acted on.
    Error,
    /// It can, and somebody should know.
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Path of the file, as it was given.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong, in one line.
    pub message: String,
    /// The line that it is about.
    #[serde(skip)]
    pub source_line: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Whether it stops something.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `file:line:column: message`, for a status that has one line.
    pub fn one_line(&self) -> String {
        format!("{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.is_error() { "error" } else { "warning" };
        write!(f, "{}:{}:{}: {severity}: {}", self.file, self.line, self.column, self.message)?;
        if !self.source_line.trim().is_empty() {
            let number = self.line.to_string();
            let blank = " ".repeat(number.len());
            // A tab before the caret keeps it below its character.
            let pad: String = self
                .source_line
                .chars()
                .take(self.column.saturating_sub(1))
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            write!(f, "\n {number} | {}\n {blank} | {pad}^", self.source_line)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n   hint: {hint}")?;
        }
        Ok(())
    }
}

/// A file's text, to find places in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl Source<'_> {
    /// A finding at a span of bytes.
    pub fn at(
        &self,
        severity: Severity,
        span: Range<usize>,
        message: String,
        hint: Option<String>,
    ) -> Diagnostic {
        let mut start = span.start.min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Diagnostic {
            severity,
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
            source_line: self.text[line_start..].lines().next().unwrap_or_default().to_owned(),
            hint,
        }
    }
}

/// The known word that was probably meant.
pub(crate) fn did_you_mean(word: &str, known: &[&str]) -> Option<String> {
    let alike = |candidate: &&&str| {
        strsim::osa_distance(word, candidate) <= 1 + word.len() / 6
            || strsim::jaro_winkler(word, candidate) > 0.85
    };
    let best = known.iter().filter(alike).min_by_key(|candidate| strsim::osa_distance(word, candidate));
    best.map(|candidate| format!("did you mean `{candidate}`?"))
}

/// The first error of a file, for a status that has one line.
pub(super) fn first_error(found: &[Diagnostic]) -> Option<&Diagnostic> {
    found.iter().find(|diagnostic| diagnostic.is_error())
}
