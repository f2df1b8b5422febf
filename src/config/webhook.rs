//! `[webhook]` of the host's configuration: where forges may say that the repo has moved.

use std::path::PathBuf;

use super::agent::{Listen, WebhookConfig};
use super::load::secret;
use super::section::Section;

/// One file's part.
#[derive(Debug, Default)]
pub(super) struct WebhookPart {
    listen: Option<Listen>,
    secret_file: Option<PathBuf>,
}

impl WebhookPart {
    pub fn read(section: &Section<'_, '_>) -> Self {
        let part = Self { listen: section.parsed("listen"), secret_file: secret(section, "secret_file") };
        section.finish(|key| {
            let inline = matches!(key, "secret" | "token");
            inline.then(|| format!("`{key}`: a secret is named by its file, as `secret_file`"))
        });
        part
    }

    /// This part, with `over` on top of it.
    pub fn under(self, over: Self) -> Self {
        Self { listen: over.listen.or(self.listen), secret_file: over.secret_file.or(self.secret_file) }
    }

    /// Both keys, or neither: a listener without a secret would be anybody's.
    pub fn finish(self) -> Result<Option<WebhookConfig>, (&'static str, &'static str)> {
        match (self.listen, self.secret_file) {
            (None, None) => Ok(None),
            (Some(listen), Some(secret_file)) => Ok(Some(WebhookConfig { listen, secret_file })),
            (Some(_), None) => {
                Err(("`webhook.secret_file` is missing", "secret_file = \"/etc/gitopsd/webhook-secret\""))
            }
            (None, Some(_)) => Err(("`webhook.listen` is missing", "listen = \"127.0.0.1:9000\"")),
        }
    }
}
