//! `[registry."host:port"]` of the host's configuration: how to talk to a registry, and as whom.

use std::ops::Range;

use super::agent::RegistryConfig;
use super::load::{path, secret};
use super::section::Section;
use crate::types::SafeUrl;

/// Reads a section; what does not go together is refused, for one of both would be without effect.
pub(super) fn read(section: &Section<'_, '_>) -> RegistryConfig {
    let mirrors = section.strings("mirrors").unwrap_or_default();
    let config = RegistryConfig {
        plain_http: section.boolean("plain_http").unwrap_or(false),
        mirrors: mirrors.into_iter().filter_map(|(text, span)| mirror(section, &text, span)).collect(),
        ca_file: path(section, "ca_file"),
        username: section.string("username"),
        password_file: secret(section, "password_file"),
        token_file: secret(section, "token_file"),
        docker_config: secret(section, "docker_config"),
        client_cert: path(section, "client_cert"),
        client_key: secret(section, "client_key"),
        realms: section.strings("realms").unwrap_or_default().into_iter().map(|(text, _)| text).collect(),
    };
    for (one, other) in [("client_cert", "client_key"), ("username", "password_file")] {
        if section.has(one) != section.has(other) {
            let (here, missing) = if section.has(one) { (one, other) } else { (other, one) };
            let message = format!("`{here}` needs `{missing}` beside it");
            section.findings.error(section.key_span(here), message, None);
        }
    }
    if section.has("token_file") {
        for other in ["username", "password_file"].into_iter().filter(|other| section.has(other)) {
            let message =
                format!("`token_file` and `{other}` exclude each other: it is one or the other that is sent");
            section.findings.error(section.key_span("token_file"), message, None);
        }
    }
    section.finish(|key| {
        matches!(key, "password" | "token")
            .then(|| format!("`{key}`: a secret is named by its file, as `{key}_file`"))
    });
    config
}

/// The address of a mirror. What is wrong with it may be a secret, and is not shown.
fn mirror(section: &Section<'_, '_>, text: &str, span: Range<usize>) -> Option<SafeUrl> {
    let url = text.parse::<SafeUrl>().ok().filter(|url| matches!(url.scheme(), Some("http" | "https")));
    let parsed = url.and_then(|url| Some((reqwest::Url::parse(url.as_str()).ok()?, url)));
    let Some((parsed, url)) = parsed else {
        let message = "`mirrors`: this is not an http:// or https:// address".to_owned();
        section.findings.error_unseen(
            span,
            message,
            Some("mirrors = [\"https://mirror.example.org\"]".to_owned()),
        );
        return None;
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        let message = format!("`mirrors`: credentials for {url} belong in a section of its own");
        section.findings.error_unseen(span, message, Some("[registry.\"mirror.example.org\"]".to_owned()));
        return None;
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        section.findings.error_unseen(span, format!("`mirrors`: {url} takes no `?` and no `#`"), None);
        return None;
    }
    Some(url)
}
