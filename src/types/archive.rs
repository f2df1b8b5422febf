//! Addresses of image archives: only such as mean to every reader what they say.
//!
//! A host's policy matches the text of an address, and whoever fetches it resolves that text: the two have to agree. So
//! nothing may be in it that is resolved, decoded or mapped on the way (RFC 3986 sections 5.2.4 and 6.2.2; the URL
//! Standard takes a backslash for a slash).

use super::image::{is_port, is_registry};
use super::{Digest, ImageRef, Invalid, SafeUrl};

/// Checks what follows `scheme://`.
pub(super) fn check(scheme: &str, rest: &str) -> Result<(), Invalid> {
    let bad = |why: &str| Err(Invalid::new(format!("`{scheme}://{rest}` is no address of an image: {why}")));
    // User info and queries carry passwords and signatures, and a config repo is no place for either.
    if rest.contains(['@', '?', '#']) {
        return Err(Invalid::new("an image address must not hold user info, a query or a fragment"));
    }
    let Some((authority, path)) = rest.split_once('/').filter(|(_, path)| !path.is_empty()) else {
        return bad("it has no path");
    };
    match scheme {
        "file" if !authority.is_empty() => return bad("a file is file:///path"),
        "s3" if !is_bucket(authority) => return bad("an object is s3://bucket/key"),
        "https" if !is_host(authority) => return bad("a host is a name or an address, and perhaps a port"),
        _ => {}
    }
    if path.contains('\\') {
        return bad("a backslash is a slash to some");
    }
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return bad("it has a part `.` or `..`, which leads elsewhere than it says");
    }
    let lower = path.to_ascii_lowercase();
    if ["%2e", "%2f", "%5c", "%25", "%00"].iter().any(|code| lower.contains(code)) {
        return bad("it hides a dot, slash, backslash or percent sign behind a %");
    }
    Ok(())
}

/// docs.aws.amazon.com, "General purpose bucket naming rules", and what was allowed before them.
fn is_bucket(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.len() <= 255 && text.bytes().all(fine)
}

/// Plain ASCII: other names are mapped to it, and are another text then.
fn is_host(text: &str) -> bool {
    match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let port = port.strip_prefix(':').map_or(port.is_empty(), is_port);
            port && address.parse::<std::net::Ipv6Addr>().is_ok()
        }
        None => is_registry(text),
    }
}

/// The archive that a `fallback` means for an image: `{tag}` and `{digest}` (64 hex digits) are filled in, and what
/// comes of it is checked like any other address. `Ok(None)`: it needs what the image does not have.
pub fn fill_fallback(
    template: &str,
    tag: Option<&str>,
    digest: Option<&Digest>,
) -> Result<Option<SafeUrl>, Invalid> {
    // A placeholder in the authority would let a tag choose the host.
    let authority =
        template.split_once("://").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
    if authority.contains('{') {
        return Err(Invalid::new(format!("`{template}`: a placeholder belongs into the path")));
    }
    if (template.contains("{tag}") && tag.is_none()) || (template.contains("{digest}") && digest.is_none()) {
        return Ok(None);
    }
    let filled = template.replace("{tag}", tag.unwrap_or_default());
    let filled = filled.replace("{digest}", digest.map(Digest::hex).unwrap_or_default());
    match filled.parse()? {
        ImageRef::Archive(url) => Ok(Some(url)),
        ImageRef::Registry(_) => {
            Err(Invalid::new(format!("`{template}` is not an s3://, https:// or file:/// address")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_mean_what_they_say() {
        for good in [
            "s3://images/team/app-1.2.tar",
            "s3://images//odd/..key/a...b",
            "https://example.org/a/b%20c.tar",
            "https://example.org:8443/app.tar",
            "https://[::1]:8443/app.tar",
            "file:///srv/images/.hidden/app.tar",
        ] {
            assert_eq!(good.parse::<ImageRef>().unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("s3://images/../other/app.tar", "`.` or `..`"),
            ("s3://images/./app.tar", "`.` or `..`"),
            ("s3://images/a/..", "`.` or `..`"),
            ("s3://../app.tar", "s3://bucket/key"),
            ("s3:///app.tar", "s3://bucket/key"),
            ("s3://images", "no path"),
            ("s3://images/", "no path"),
            ("https://example.org/public/../secret.tar", "`.` or `..`"),
            ("https://example.org/public/%2e%2e/secret.tar", "behind a %"),
            ("https://example.org/public/%2E./secret.tar", "behind a %"),
            ("https://example.org/public%2F..%2fsecret.tar", "behind a %"),
            ("https://example.org/public/%252e%252e/secret.tar", "behind a %"),
            ("https://example.org/public\\..\\secret.tar", "backslash"),
            ("https://evil.org\\.example.org/app.tar", "a host is"),
            ("https:///evil.org/app.tar", "a host is"),
            ("https://%65xample.org/app.tar", "a host is"),
            ("https://exämple.org/app.tar", "a host is"),
            ("https://example.org:/app.tar", "a host is"),
            ("https://[::1]x/app.tar", "a host is"),
            ("https://u@example.org/app.tar", "user info"),
            ("file:///srv/images/../../etc/shadow", "`.` or `..`"),
            ("file://srv/images/app.tar", "file:///path"),
            ("file:///", "no path"),
        ] {
            let error = bad.parse::<ImageRef>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_filled_in_leads_nowhere_else() {
        let digest = format!("sha256:{}", "a".repeat(64)).parse::<Digest>().unwrap();
        let fill = |template: &str, tag| fill_fallback(template, tag, Some(&digest));
        let shown = |template: &str, tag| fill(template, tag).unwrap().map(|url| url.to_string());
        assert_eq!(shown("s3://a/b-{tag}.tar", Some("1.2")).as_deref(), Some("s3://a/b-1.2.tar"));
        let by_digest = shown("file:///a/{digest}.tar", None).unwrap();
        assert_eq!(by_digest, format!("file:///a/{}.tar", "a".repeat(64)));
        assert_eq!(shown("s3://a/b-{tag}.tar", None), None, "no tag, no archive");
        assert_eq!(fill_fallback("s3://a/{digest}.tar", Some("1"), None).unwrap(), None);
        for bad in
            ["https://a/%2{tag}/x", "https://{tag}.org/x", "s3://{digest}/x", "s3://a/../{tag}", "a/b:{tag}"]
        {
            assert!(fill(bad, Some("e")).is_err(), "{bad}");
        }
    }
}
