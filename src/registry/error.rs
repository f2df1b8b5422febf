//! Why an image could not be had, and whether that may pass.

use std::time::Duration;

use crate::types::{Reason, Refusal};

/// What the loop is to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try again later.
    Retry,
    /// It would fail the same way.
    Fatal,
}

/// One line for people, its code, and what to do. Never holds a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub struct PullError {
    /// The stable code.
    pub reason: Reason,
    /// Whether it may pass.
    pub disposition: Disposition,
    /// The same request may do after so long: it was the network, or the server asked to wait.
    pub(super) again: Option<Option<Duration>>,
    what: String,
}

/// Longest message, in characters: names of files and types are as long as an image makes them.
const LONGEST: usize = 1000;

/// One line that can be shown: registries and images write parts of messages, and could write to terminals and journals.
fn line(text: &str) -> String {
    let turns =
        |c: char| matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == LONGEST {
            line.push('…');
            break;
        }
        if c.is_control() || turns(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

impl PullError {
    /// It may pass.
    pub fn retry(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, disposition: Disposition::Retry, again: None, what: line(&what.into()) }
    }

    /// It would fail the same way.
    pub fn fatal(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, disposition: Disposition::Fatal, again: None, what: line(&what.into()) }
    }

    /// Another try of the same request may do; the server may have said after how long.
    pub(super) fn network(what: impl Into<String>, wait: Option<Duration>) -> Self {
        Self { again: Some(wait), ..Self::retry(Reason::RegistryUnreachable, what) }
    }

    /// An error of the file system below the store.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let full = crate::state::atomic::is_full(error);
        let reason = if full { Reason::DiskSpace } else { Reason::StorageIo };
        Self::retry(reason, format!("{what}: {error}"))
    }

    /// Says more of it.
    pub(super) fn and(mut self, more: impl std::fmt::Display) -> Self {
        self.what = line(&format!("{}; {more}", self.what));
        self
    }

    /// Whether trying again can help.
    pub fn may_pass(&self) -> bool {
        self.disposition == Disposition::Retry
    }

    /// Whether another source of the same image could do better.
    pub(super) fn is_the_registrys(&self) -> bool {
        matches!(
            self.reason,
            Reason::RegistryUnreachable | Reason::Auth | Reason::Tls | Reason::ImageNotFound
        )
    }

    /// The same for a pull: layers that came with other bytes than they should have may be right elsewhere.
    pub(super) fn another_place_may_do(&self) -> bool {
        self.is_the_registrys() || (self.reason == Reason::DigestMismatch && self.may_pass())
    }

    /// Whether a disk has no room, or fails.
    pub(super) fn is_the_disks(&self) -> bool {
        matches!(self.reason, Reason::DiskSpace | Reason::StorageIo)
    }

    /// Whether it is about this host, and no other source can do better.
    pub(super) fn is_the_hosts(&self) -> bool {
        self.is_the_disks() || self.reason == Reason::Internal
    }

    /// With more to say.
    pub(super) fn with(mut self, more: &str) -> Self {
        self.what.push_str(&line(more));
        self
    }

    /// For status and receipts.
    pub fn to_refusal(&self) -> Refusal {
        Refusal::new(self.reason, self.what.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_that_shows_itself() {
        let shown = |text: &str| PullError::fatal(Reason::ImageInvalid, text).to_string();
        assert_eq!(shown("a \u{1b}[2J\n<0>b\u{202e}c\u{7f}é"), "a \\u{1b}[2J\\n<0>b\\u{202e}c\\u{7f}é");
        assert_eq!(shown(&"x".repeat(5000)), format!("{}…", "x".repeat(1000)));
    }
}
