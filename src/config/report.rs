//! `[report]` of the host's configuration: where receipts go, and what is shown there.

use std::path::PathBuf;

use super::agent::{RemoteAccess, ReportConfig};
use super::load::{path, program, secret};
use super::section::Section;
use crate::types::SafeUrl;

/// One file's part.
#[derive(Debug, Default)]
pub(super) struct ReportPart {
    push: Option<bool>,
    log_lines: Option<usize>,
    remote: Option<SafeUrl>,
    key: Option<PathBuf>,
    access: RemoteAccess,
}

impl ReportPart {
    pub fn read(section: &Section<'_, '_>) -> Self {
        let part = Self {
            push: section.boolean("push"),
            remote: section.parsed("remote"),
            log_lines: section.integer("log_lines", 0..=100).and_then(|count| usize::try_from(count).ok()),
            key: secret(section, "key"),
            access: RemoteAccess {
                ssh_key: secret(section, "ssh_key"),
                known_hosts: path(section, "known_hosts"),
                username: section.string("username"),
                password_file: secret(section, "password_file"),
                token_file: secret(section, "token_file"),
                credential_helper: program(section, "credential_helper").unwrap_or_default(),
                ca_file: path(section, "ca_file"),
            },
        };
        section.unsupported("commit_status", "it is a section of its own: [status]");
        section.unsupported("metrics", "receipts are pushed as git notes");
        section.finish(|key| {
            let inline = matches!(key, "password" | "token");
            inline.then(|| format!("`{key}`: a secret is named by its file, as `{key}_file`"))
        });
        part
    }

    /// This part, with `over` on top of it.
    pub fn under(self, over: Self) -> Self {
        let helper = match over.access.credential_helper.is_empty() {
            true => self.access.credential_helper,
            false => over.access.credential_helper,
        };
        Self {
            push: over.push.or(self.push),
            log_lines: over.log_lines.or(self.log_lines),
            remote: over.remote.or(self.remote),
            key: over.key.or(self.key),
            access: RemoteAccess {
                ssh_key: over.access.ssh_key.or(self.access.ssh_key),
                known_hosts: over.access.known_hosts.or(self.access.known_hosts),
                username: over.access.username.or(self.access.username),
                password_file: over.access.password_file.or(self.access.password_file),
                token_file: over.access.token_file.or(self.access.token_file),
                credential_helper: helper,
                ca_file: over.access.ca_file.or(self.access.ca_file),
            },
        }
    }

    pub fn finish(self) -> Result<ReportConfig, (&'static str, &'static str)> {
        let access = Some(self.access).filter(|access| *access != RemoteAccess::default());
        if access.is_some() && self.remote.is_none() {
            return Err((
                "`report` names credentials, and no `remote` that they are for",
                "remote = \"https://git.example.org/ops/audit.git\"",
            ));
        }
        Ok(ReportConfig {
            push: self.push.unwrap_or(true),
            remote: self.remote,
            key: self.key,
            access,
            log_lines: self.log_lines.unwrap_or(20),
        })
    }
}
