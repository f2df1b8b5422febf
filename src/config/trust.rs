//! The part of `[repo]` in the host's configuration that says which commits are believed.

use std::path::PathBuf;
use std::time::Duration;

use super::agent::{SignatureConfig, TrustConfig};
use super::load::path;
use super::section::Section;
use crate::types::{CommitId, Timestamp};

/// Where they are looked for when the configuration names no file.
const ALLOWED_SIGNERS: &str = "/etc/gitopsd/allowed_signers";
const TRUSTED_KEYS: &str = "/etc/gitopsd/trusted_keys";

/// Which signatures count, by the names that git has for them (git-config(1), gpg.format).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Formats {
    ssh: bool,
    openpgp: bool,
}

/// One file's part of it.
#[derive(Debug, Default)]
pub(super) struct TrustPart {
    formats: Option<Formats>,
    head_only: Option<bool>,
    allowed_signers: Option<PathBuf>,
    trusted_keys: Option<PathBuf>,
    revoked_signers: Option<PathBuf>,
    first_commit: Option<CommitId>,
    min_commit_time: Option<Timestamp>,
    max_age: Option<Duration>,
}

impl TrustPart {
    pub(super) fn read(repo: &Section<'_, '_>) -> Self {
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
            formats: formats(repo),
            head_only,
            allowed_signers: path(repo, "allowed_signers"),
            trusted_keys: path(repo, "trusted_keys"),
            revoked_signers: path(repo, "revoked_signers"),
            first_commit: repo.parsed("first_commit"),
            min_commit_time: repo.parsed("min_commit_time"),
            max_age: repo.duration("max_age").filter(|age| {
                if age.is_zero() {
                    let message =
                        "`max_age` is how old the newest commit may be, and none is younger than that";
                    repo.findings.error(repo.key_span("max_age"), message, None);
                }
                !age.is_zero()
            }),
        }
    }

    /// This part, with `over` on top of it.
    pub(super) fn under(self, over: Self) -> Self {
        Self {
            formats: over.formats.or(self.formats),
            head_only: over.head_only.or(self.head_only),
            allowed_signers: over.allowed_signers.or(self.allowed_signers),
            trusted_keys: over.trusted_keys.or(self.trusted_keys),
            revoked_signers: over.revoked_signers.or(self.revoked_signers),
            first_commit: over.first_commit.or(self.first_commit),
            min_commit_time: over.min_commit_time.or(self.min_commit_time),
            max_age: over.max_age.or(self.max_age),
        }
    }

    /// A file of signers that nothing is checked by would look like safety.
    pub(super) fn contradiction(&self) -> Option<String> {
        let Formats { ssh, openpgp } = self.formats.unwrap_or_default();
        let named = self.revoked_signers.is_some() || self.head_only.is_some();
        if (named && !ssh && !openpgp) || (self.allowed_signers.is_some() && !ssh) {
            return Some(
                "`repo.allowed_signers`, `revoked_signers` and `verify_commits` say how signatures are checked, and \
                 `repo.verify` is not \"ssh\""
                    .to_owned(),
            );
        }
        (self.trusted_keys.is_some() && !openpgp)
            .then(|| "`repo.trusted_keys` are OpenPGP keys, and `repo.verify` is not \"openpgp\"".to_owned())
    }

    pub(super) fn finish(self) -> TrustConfig {
        let formats = self.formats.filter(|formats| *formats != Formats::default());
        let signatures = formats.map(|Formats { ssh, openpgp }| SignatureConfig {
            allowed_signers: ssh.then(|| self.allowed_signers.unwrap_or_else(|| ALLOWED_SIGNERS.into())),
            trusted_keys: openpgp.then(|| self.trusted_keys.unwrap_or_else(|| TRUSTED_KEYS.into())),
            revoked_signers: self.revoked_signers,
            head_only: self.head_only == Some(true),
        });
        TrustConfig {
            signatures,
            first_commit: self.first_commit,
            min_commit_time: self.min_commit_time,
            max_age: self.max_age,
        }
    }
}

/// `verify`: a word, or several in an array. Never silently ignored: who asks for signatures must not run without them.
fn formats(repo: &Section<'_, '_>) -> Option<Formats> {
    let is_array = repo.get("verify").is_some_and(|value| value.get_ref().as_array().is_some());
    let words: Vec<String> = match is_array {
        true => repo.strings("verify")?.into_iter().map(|(word, _)| word).collect(),
        false => vec![repo.string("verify")?],
    };
    let mut formats = Formats::default();
    for word in &words {
        match word.as_str() {
            "ssh" => formats.ssh = true,
            "openpgp" => formats.openpgp = true,
            "off" if words.len() == 1 => {}
            other => {
                let message = match other {
                    "x509" => "`verify`: signatures of X.509 are not supported by this version",
                    _ => "`verify` takes \"off\", \"ssh\", \"openpgp\" or [\"ssh\", \"openpgp\"]",
                };
                let hint = "verify = \"ssh\", and `git config gpg.format ssh` where commits are made";
                repo.findings.error(repo.key_span("verify"), message, Some(hint.to_owned()));
                return None;
            }
        }
    }
    if words.is_empty() {
        // Nobody's signature would count, or everybody's commits would: neither was said.
        let message = "`verify` is an empty list: write \"off\", or which signatures count";
        repo.findings.error(repo.key_span("verify"), message, None);
        return None;
    }
    Some(formats)
}
