//! What a registry asks for before it answers, and whom this host may tell who it is.

/// What a registry asks for in WWW-Authenticate (RFC 9110 section 11.6.1; distribution's token specification).
#[derive(Debug, PartialEq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Reads a header, which may hold several challenges: the first one of a kind that is known; `None` = there is none.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let mut rest = header.trim();
    // A scheme, then its parameters, until a word comes that is followed by no `=`.
    while !rest.is_empty() {
        let (scheme, after) = word(rest);
        let mut parameters = Vec::new();
        let mut after = after.trim_start();
        while let Some((name, value, next)) = parameter(after) {
            parameters.push((name.to_ascii_lowercase(), value));
            after = next.trim_start_matches([',', ' ', '\t']);
        }
        let mut take = |wanted: &str| {
            let at = parameters.iter().position(|(name, _)| name == wanted)?;
            Some(parameters.swap_remove(at).1).filter(|value| !value.is_empty())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = take("realm")
        {
            return Some(Challenge::Bearer { realm, service: take("service"), scope: take("scope") });
        }
        // What is no parameter and no scheme ends it: nothing behind it can be trusted to mean what it seems.
        if scheme.is_empty() {
            return None;
        }
        rest = after.trim_start_matches([',', ' ', '\t']);
    }
    None
}

/// A token (RFC 9110 section 5.6.2), and what follows it.
fn word(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// `name=value` or `name="value"`, and what follows it.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, after) = word(text);
    let after = after.trim_start().strip_prefix('=')?.trim_start();
    if name.is_empty() {
        return None;
    }
    let Some(quoted) = after.strip_prefix('"') else {
        let end = after.find([',', ' ', '\t']).unwrap_or(after.len());
        let (value, after) = after.split_at(end);
        return Some((name, value.to_owned(), after));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((name, value, quoted.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
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
        let realm = |header: &str| match parse(header) {
            Some(Challenge::Bearer { realm, service, scope }) => Some((realm, service, scope)),
            _ => None,
        };
        let some = |text: &str| Some(text.to_owned());
        for header in [
            r#"Bearer realm="https://a/t",service="s",scope="x""#,
            r#"bearer Realm = "https://a/t" , SERVICE=s,scope=x"#,
            r#"Bearer scope="x", realm="https://a/t", error="invalid_token", service="s""#,
            r#"Negotiate, Bearer realm="https://a/t",service="s",scope="x""#,
            r#"Negotiate abc==, Bearer realm="https://a/t",service="s",scope="x""#,
            r#"Digest realm="d, Bearer realm=", nonce="n", Bearer realm="https://a/t",service="s",scope="x""#,
            r#"Bearer realm="https:\/\/a/t",service="s",scope="x",more="y"#,
            r#"Bearer realm="https://a/t",service="s",scope="x", Basic realm="b""#,
        ] {
            assert_eq!(realm(header), Some(("https://a/t".to_owned(), some("s"), some("x"))), "{header}");
        }
        assert_eq!(
            realm(r#"Bearer realm="https://a/t",service="""#),
            Some(("https://a/t".to_owned(), None, None))
        );
        assert_eq!(parse(r#"Bearer service="s", Basic realm="b""#), Some(Challenge::Basic));
        for odd in [
            "",
            ",",
            "=",
            "\"",
            "Negotiate",
            "Bearer",
            "Bearer service=x",
            "Bearer realm=\"x",
            "Bearer realm=\"\"",
            "Bearer realm=",
            "Bearer ,,,=,=\"",
            "Bearer realm=\"x\\",
        ] {
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
