//! Credentials: basic, and bearer tokens from the realm that a registry names.

use std::path::Path;

use super::PullError;
use crate::config::agent::RegistryConfig;
use crate::types::Reason;

/// Largest file that may hold a password.
const MAX_SECRET: u64 = 64 << 10;

/// What a registry asks for in WWW-Authenticate (RFC 9110 section 11.6.1; distribution's token specification).
#[derive(Debug, PartialEq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Reads a challenge; `None` = of a kind that is not known.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = rest.trim();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').map_or((after, ""), |(value, after)| (value, after)),
        };
        match name.trim().trim_start_matches(',').trim() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = after.trim_start_matches(',').trim();
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// User and password for a registry; `None` = it is used without.
pub(super) fn credentials(
    host: &str,
    config: &RegistryConfig,
) -> Result<Option<(String, String)>, PullError> {
    let (Some(user), Some(file)) = (&config.username, &config.password_file) else { return Ok(None) };
    let read = || -> std::io::Result<String> {
        if std::fs::metadata(file)?.len() > MAX_SECRET {
            return Err(std::io::Error::other("it is too large for a password"));
        }
        std::fs::read_to_string(file)
    };
    let password = read().map_err(|error| unreadable(host, file, &error))?;
    Ok(Some((user.clone(), password.trim_end_matches(['\n', '\r']).to_owned())))
}

fn unreadable(host: &str, file: &Path, error: &std::io::Error) -> PullError {
    PullError::retry(
        Reason::Auth,
        format!("the password file {} of registry {host}: {error}", file.display()),
    )
}

/// Whether a realm may be asked with this registry's credentials: the registry itself, or https on its own domain.
/// Anything else could be anybody, also this machine's own metadata service.
pub(super) fn realm_is_allowed(realm: &reqwest::Url, base: &reqwest::Url) -> bool {
    if realm.origin() == base.origin() {
        return true;
    }
    let (Some(realm_host), Some(host)) = (realm.domain(), base.domain()) else { return false };
    let domain = |name: &str| name.rsplitn(3, '.').take(2).map(str::to_owned).collect::<Vec<_>>();
    realm.scheme() == "https" && realm_host.contains('.') && domain(realm_host) == domain(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = parse(
            r#"Bearer realm="https://auth.example.org/token",service="reg",scope="repository:a/b:pull,push""#,
        );
        let expected = Challenge::Bearer {
            realm: "https://auth.example.org/token".to_owned(),
            service: Some("reg".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        assert_eq!(bearer, Some(expected));
        assert_eq!(parse("Basic realm=x"), Some(Challenge::Basic));
        for odd in ["", "Negotiate", "Bearer", "Bearer service=x", "Bearer realm=\"x"] {
            assert!(!matches!(parse(odd), Some(Challenge::Bearer { .. })), "{odd}");
        }
    }

    #[test]
    fn realms_stay_in_the_family() {
        let url = |text: &str| text.parse::<reqwest::Url>().unwrap();
        assert!(realm_is_allowed(&url("https://auth.docker.io/token"), &url("https://registry-1.docker.io")));
        assert!(realm_is_allowed(&url("http://127.0.0.1:5000/t"), &url("http://127.0.0.1:5000")));
        for realm in
            ["http://auth.docker.io/token", "https://169.254.169.254/x", "https://evil.example.org/token"]
        {
            assert!(!realm_is_allowed(&url(realm), &url("https://registry-1.docker.io")), "{realm}");
        }
    }
}
