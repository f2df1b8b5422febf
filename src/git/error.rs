//! Why the config repo could not be read, believed or written to.

use std::error::Error;
use std::fmt;

use git2::{ErrorClass, ErrorCode};

use crate::types::{Reason, Refusal};

/// One failure. `Display` is one line, cause included; it never holds user info of a URL.
#[derive(Debug)]
pub struct GitError {
    /// The stable code.
    pub reason: Reason,
    what: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl GitError {
    /// An error that is its own cause. `what` names the nouns.
    pub(super) fn plain(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, what: what.into(), cause: None }
    }

    /// An error with a cause.
    pub(super) fn with(
        reason: Reason,
        what: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { reason, what: what.into(), cause: Some(cause.into()) }
    }

    /// A failure of the agent's own copy, or of something else on this host's disk.
    pub(super) fn disk(what: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let cause = cause.into();
        let full = cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| matches!(e.raw_os_error(), Some(nix::libc::ENOSPC | nix::libc::EDQUOT)))
            || is_disk_full(&cause.to_string());
        let reason = if full { Reason::DiskSpace } else { Reason::StorageIo };
        Self { reason, what: what.into(), cause: Some(cause) }
    }

    /// A failure while talking to a remote: libgit2's classes and codes, as reasons.
    pub(super) fn remote(what: impl Into<String>, cause: git2::Error) -> Self {
        let reason = remote_reason(&cause);
        Self { reason, what: what.into(), cause: Some(cause.into()) }
    }

    /// The same line with its reason, for status and receipts.
    pub fn to_refusal(&self) -> Refusal {
        Refusal::new(self.reason, self.to_string())
    }
}

impl fmt::Display for GitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Servers write into these messages: no line breaks, nothing that a terminal would obey.
        let mut line = self.what.clone();
        if let Some(cause) = &self.cause {
            line.push_str(": ");
            // libgit2's own form adds the numbers of its classes and codes, which tell nobody anything.
            match cause.downcast_ref::<git2::Error>() {
                Some(error) => line.push_str(error.message()),
                None => line.push_str(&cause.to_string()),
            }
        }
        for c in line.trim().chars().take(600) {
            if c.is_control() { f.write_str(" ")? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

impl Error for GitError {
    /// `Display` shows the cause already: this is what lies behind it.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().and_then(|cause| cause.source())
    }
}

fn is_disk_full(message: &str) -> bool {
    message.contains("No space left on device") || message.contains("Disk quota exceeded")
}

/// libgit2 gives HTTP statuses only inside its message: `unexpected http status code: 403`.
fn remote_reason(error: &git2::Error) -> Reason {
    let message = error.message();
    match (error.code(), error.class()) {
        _ if is_disk_full(message) => Reason::DiskSpace,
        (ErrorCode::Auth, _) => Reason::Auth,
        (_, ErrorClass::Http) if message.ends_with(": 401") || message.ends_with(": 403") => Reason::Auth,
        (ErrorCode::Certificate, ErrorClass::Ssh) => Reason::HostKey,
        (ErrorCode::Certificate, _) | (_, ErrorClass::Ssl) => Reason::Tls,
        _ => Reason::GitUnreachable,
    }
}

/// Whether an error means that the agent's own copy is damaged, rather than that somebody else is at fault.
pub(super) fn is_damage(error: &git2::Error) -> bool {
    matches!(
        error.class(),
        ErrorClass::Odb
            | ErrorClass::Zlib
            | ErrorClass::Object
            | ErrorClass::Reference
            | ErrorClass::Repository
            | ErrorClass::Config
            | ErrorClass::Sha1
    ) && !is_disk_full(error.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_reasons() {
        for (status, reason) in [
            (401, Reason::Auth),
            (403, Reason::Auth),
            (404, Reason::GitUnreachable),
            (502, Reason::GitUnreachable),
        ] {
            let cause = git2::Error::new(
                ErrorCode::GenericError,
                ErrorClass::Http,
                format!("unexpected http status code: {status}"),
            );
            assert_eq!(GitError::remote("x", cause).reason, reason, "{status}");
        }
    }

    #[test]
    fn a_message_is_one_line() {
        let error = GitError::with(Reason::Auth, "push to x", "refused\n\x1b[31mred".to_owned());
        assert_eq!(error.to_string(), "push to x: refused  [31mred");
    }
}
