//! Why an image could not be had, and whether that may pass.

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
    what: String,
}

impl PullError {
    /// It may pass.
    pub fn retry(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, disposition: Disposition::Retry, what: what.into() }
    }

    /// It would fail the same way.
    pub fn fatal(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, disposition: Disposition::Fatal, what: what.into() }
    }

    /// An error of the file system below the store.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let full = crate::state::atomic::is_full(error);
        let reason = if full { Reason::DiskSpace } else { Reason::StorageIo };
        Self::retry(reason, format!("{what}: {error}"))
    }

    /// Whether trying again can help.
    pub fn may_pass(&self) -> bool {
        self.disposition == Disposition::Retry
    }

    /// For status and receipts.
    pub fn to_refusal(&self) -> Refusal {
        Refusal::new(self.reason, self.what.clone())
    }

    /// Whether it came from the network: then another try of the same request may do.
    pub(super) fn is_network(&self) -> bool {
        self.reason == Reason::RegistryUnreachable
    }
}
