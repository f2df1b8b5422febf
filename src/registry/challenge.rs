//! What a registry asks for before it answers, and whom this host may tell who it is.

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

/// Whether a realm may be asked with this registry's credentials: the registry's own host, https within its own domain,
/// or https at a host that the configuration allows. Anything else could be anybody, also this machine's own metadata
/// service (CVE-2026-48978).
pub(super) fn realm_is_allowed(realm: &reqwest::Url, base: &reqwest::Url, allowed: &[String]) -> bool {
    let secure = realm.scheme() == "https";
    if secure && allowed.iter().any(|host| *host == super::http::authority(realm)) {
        return true;
    }
    if realm.host() == base.host() && (secure || base.scheme() == "http") {
        return true;
    }
    let (Some(realm_host), Some(host)) = (realm.domain(), base.domain()) else { return false };
    let family = family(host);
    secure && family.contains('.') && (realm_host == family || realm_host.ends_with(&format!(".{family}")))
}

/// The part of a name that one owner has: its last two labels, or three below the likes of `co.uk`.
fn family(host: &str) -> String {
    let labels: Vec<&str> = host.split('.').collect();
    let below = matches!(labels.as_slice(), [.., second, top] if top.len() == 2 && second.len() <= 3);
    let kept = if below { 3 } else { 2 };
    labels[labels.len().saturating_sub(kept)..].join(".")
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
        let realm_is_allowed = |realm: &reqwest::Url, base: &reqwest::Url| realm_is_allowed(realm, base, &[]);
        assert!(realm_is_allowed(&url("https://auth.docker.io/token"), &url("https://registry-1.docker.io")));
        assert!(realm_is_allowed(&url("http://127.0.0.1:5000/t"), &url("http://127.0.0.1:5000")));
        assert!(realm_is_allowed(&url("http://127.0.0.1:5001/t"), &url("http://127.0.0.1:5000")));
        assert!(realm_is_allowed(&url("https://gitlab.com/jwt/auth"), &url("https://registry.gitlab.com")));
        assert!(realm_is_allowed(&url("https://a.shop.co.uk/t"), &url("https://r.shop.co.uk")));
        assert!(!realm_is_allowed(&url("https://evil.co.uk/t"), &url("https://r.shop.co.uk")));
        assert!(!realm_is_allowed(&url("http://r.io/t"), &url("https://r.io")), "out of https");
        assert!(!realm_is_allowed(&url("https://xdocker.io/t"), &url("https://registry-1.docker.io")));
        for realm in
            ["http://auth.docker.io/token", "https://169.254.169.254/x", "https://evil.example.org/token"]
        {
            assert!(!realm_is_allowed(&url(realm), &url("https://registry-1.docker.io")), "{realm}");
        }
    }

    #[test]
    fn realms_can_be_allowed() {
        let url = |text: &str| text.parse::<reqwest::Url>().unwrap();
        let allowed = ["auth.example.net".to_owned(), "127.0.0.1:9".to_owned()];
        let base = url("https://r.example.org");
        assert!(realm_is_allowed(&url("https://auth.example.net/t"), &base, &allowed));
        assert!(realm_is_allowed(&url("https://127.0.0.1:9/t"), &base, &allowed));
        assert!(!realm_is_allowed(&url("http://auth.example.net/t"), &base, &allowed), "in the clear");
        assert!(!realm_is_allowed(&url("https://auth.example.net:8443/t"), &base, &allowed));
    }
}
