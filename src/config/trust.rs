//! The part of `[repo]` in the host's configuration that says which commits are believed.

use std::path::PathBuf;

use super::agent::{SignatureConfig, TrustConfig};
use super::load::path;
use super::section::Section;
use crate::types::{CommitId, Timestamp};

/// Where it is looked for when the configuration names no file.
const ALLOWED_SIGNERS: &str = "/etc/gitopsd/allowed_signers";

/// One file's part of it.
#[derive(Debug, Default)]
pub(super) struct TrustPart {
    signatures: Option<bool>,
    head_only: Option<bool>,
    allowed_signers: Option<PathBuf>,
    revoked_signers: Option<PathBuf>,
    first_commit: Option<CommitId>,
    min_commit_time: Option<Timestamp>,
}

impl TrustPart {
    pub(super) fn read(repo: &Section<'_, '_>) -> Self {
        let signatures = repo.string("verify").and_then(|word| match word.as_str() {
            "off" => Some(false),
            "ssh" => Some(true),
            other => {
                // Never silently ignored: who asks for signatures must not run without them.
                let message = match other {
                    "openpgp" => "`verify`: signatures of OpenPGP are not supported by this version",
                    _ => "`verify` takes \"off\" or \"ssh\"",
                };
                let hint = "verify = \"ssh\", and `git config gpg.format ssh` where commits are made";
                repo.findings.error(repo.key_span("verify"), message, Some(hint.to_owned()));
                None
            }
        });
        let head_only = repo.string("verify_commits").and_then(|word| match word.as_str() {
            "strict" => Some(false),
            "head" => Some(true),
            _ => {
                let message = "`verify_commits` takes \"strict\" or \"head\"";
                repo.findings.error(repo.key_span("verify_commits"), message, None);
                None
            }
        });
        Self {
            signatures,
            head_only,
            allowed_signers: path(repo, "allowed_signers"),
            revoked_signers: path(repo, "revoked_signers"),
            first_commit: repo.parsed("first_commit"),
            min_commit_time: repo.parsed("min_commit_time"),
        }
    }

    /// This part, with `over` on top of it.
    pub(super) fn under(self, over: Self) -> Self {
        Self {
            signatures: over.signatures.or(self.signatures),
            head_only: over.head_only.or(self.head_only),
            allowed_signers: over.allowed_signers.or(self.allowed_signers),
            revoked_signers: over.revoked_signers.or(self.revoked_signers),
            first_commit: over.first_commit.or(self.first_commit),
            min_commit_time: over.min_commit_time.or(self.min_commit_time),
        }
    }

    /// A file of signers that nothing is checked by would look like safety.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
        let asked = self.signatures == Some(true);
        let named =
            self.allowed_signers.is_some() || self.revoked_signers.is_some() || self.head_only.is_some();
        (named && !asked).then_some(
            "`repo.allowed_signers`, `revoked_signers` and `verify_commits` say how signatures are checked, and \
             `repo.verify` is not \"ssh\"",
        )
    }

    pub(super) fn finish(self) -> TrustConfig {
        let signatures = (self.signatures == Some(true)).then(|| SignatureConfig {
            allowed_signers: self.allowed_signers.unwrap_or_else(|| ALLOWED_SIGNERS.into()),
            revoked_signers: self.revoked_signers,
            head_only: self.head_only == Some(true),
        });
        TrustConfig { signatures, first_commit: self.first_commit, min_commit_time: self.min_commit_time }
    }
}
