//! `[status]` of the host's configuration: which forge shows what became of a commit here.

use std::path::PathBuf;

use super::agent::{Forge, ForgeConfig};
use super::load::{path, secret};
use super::section::Section;
use crate::types::SafeUrl;

/// One file's part.
#[derive(Debug, Default)]
pub(super) struct ForgePart {
    forge: Option<Forge>,
    url: Option<SafeUrl>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

impl ForgePart {
    pub fn read(section: &Section<'_, '_>) -> Self {
        let part = Self {
            forge: section.parsed("forge"),
            url: section.parsed("url"),
            token_file: secret(section, "token_file"),
            ca_file: path(section, "ca_file"),
        };
        if let Some(url) = &part.url
            && place(url).is_none()
        {
            let message = "`url` takes the repository's address at the forge, as \"https://git.example.org/ops/config\"";
            section.findings.error(section.key_span("url"), message, None);
        }
        section.finish(|key| {
            (key == "token").then(|| "`token`: a secret is named by its file, as `token_file`".to_owned())
        });
        part
    }

    /// This part, with `over` on top of it.
    pub fn under(self, over: Self) -> Self {
        Self {
            forge: over.forge.or(self.forge),
            url: over.url.or(self.url),
            token_file: over.token_file.or(self.token_file),
            ca_file: over.ca_file.or(self.ca_file),
        }
    }

    /// `repo` is the address of the config repo: the forge's, where nothing else is said.
    pub fn finish(self, repo: &SafeUrl) -> Result<Option<ForgeConfig>, (&'static str, &'static str)> {
        let said = self.forge.is_some() || self.url.is_some() || self.token_file.is_some();
        if !said {
            return Ok(None);
        }
        let Some(forge) = self.forge else {
            return Err(("`status.forge` is missing", "forge = \"github\""));
        };
        let Some(token_file) = self.token_file else {
            return Err(("`status.token_file` is missing", "token_file = \"/etc/gitopsd/forge-token\""));
        };
        let url = self.url.or_else(|| place(repo).is_some().then(|| repo.clone()));
        let Some(url) = url else {
            return Err((
                "`status.url` is missing, and `repo.url` is no address of http",
                "url = \"https://git.example.org/ops/config\"",
            ));
        };
        Ok(Some(ForgeConfig { forge, url, token_file, ca_file: self.ca_file }))
    }
}

/// Scheme and host of an address of http, and its path without `.git`, which has at least an owner and a name.
pub(crate) fn place(url: &SafeUrl) -> Option<(String, String)> {
    let (scheme, rest) = url.as_str().split_once("://")?;
    let (authority, path) = rest.split_once('/')?;
    let host = authority.rsplit('@').next().filter(|host| !host.is_empty())?;
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    let fine = path.split('/').count() >= 2
        && path.chars().all(plain)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (matches!(scheme, "http" | "https") && fine).then(|| (format!("{scheme}://{host}"), path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let of = |text: &str| place(&text.parse().unwrap()).map(|(host, path)| format!("{host} {path}"));
        for (url, expected) in [
            ("https://github.com/ops/config.git", "https://github.com ops/config"),
            ("https://user:pw@git.lan:8443/a/b/c/", "https://git.lan:8443 a/b/c"),
        ] {
            assert_eq!(of(url).as_deref(), Some(expected));
        }
        for url in [
            "https://github.com/ops",
            "git@github.com:ops/config",
            "/srv/a/b",
            "https://h/a//b",
            "https://h/a/../b",
            "https://h/a/b?c",
        ] {
            assert_eq!(of(url), None, "{url}");
        }
    }
}
