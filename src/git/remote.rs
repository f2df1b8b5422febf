//! Where a remote is: its address taken apart, once, into what each transport needs.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use super::GitError;
use crate::types::{Reason, SafeUrl};

/// How a remote is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remote {
    /// A directory on this host: bare, or with a `.git` in it.
    Local(PathBuf),
    /// http or https; `origin` is `scheme://host:port`, the place that credentials belong to.
    Http { origin: String },
    /// ssh, by URL or as `user@host:path`.
    Ssh { user: Option<String>, host: String, port: u16 },
}

impl Remote {
    /// Takes an address apart. Only these kinds are allowed: no helper programs (`ext::`), no unauthenticated `git://`.
    pub(super) fn parse(url: &SafeUrl) -> Result<Self, GitError> {
        let bad = |why: &str| GitError::plain(Reason::ConfigInvalid, format!("repo.url {url}: {why}"));
        let text = url.as_str();
        match text.split_once("://") {
            Some(("file", path)) => {
                let path = path.strip_prefix("localhost").unwrap_or(path);
                let bytes: Vec<u8> = percent_decode_str(path).collect();
                let path = String::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?;
                if !path.starts_with('/') || path.contains('\0') {
                    return Err(bad("file:// needs an absolute path"));
                }
                Ok(Self::Local(path.into()))
            }
            Some((scheme @ ("http" | "https"), rest)) => {
                let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
                let host = authority.rsplit('@').next().unwrap_or_default();
                if host.is_empty() {
                    return Err(bad("it names no host"));
                }
                let standard = if scheme == "https" { ":443" } else { ":80" };
                let host = host.strip_suffix(standard).unwrap_or(host).to_ascii_lowercase();
                Ok(Self::Http { origin: format!("{scheme}://{host}") })
            }
            Some(("ssh", rest)) => {
                let authority = rest.split('/').next().unwrap_or_default();
                let (user, place) = split_user(authority);
                let (host, port) = match place.strip_prefix('[').and_then(|p| p.split_once(']')) {
                    Some((host, rest)) => (host, rest.strip_prefix(':')),
                    None => match place.split_once(':') {
                        Some((host, port)) => (host, Some(port)),
                        None => (place, None),
                    },
                };
                let port = match port {
                    Some(port) => port.parse().map_err(|_| bad("the port is not a number"))?,
                    None => 22,
                };
                ssh(user, host, port).ok_or_else(|| bad("it names no host"))
            }
            Some((scheme, _)) => Err(bad(&format!("`{scheme}://` is not https, ssh, file or a path"))),
            None if text.starts_with('/') => Ok(Self::Local(text.into())),
            None => match text.split_once(':') {
                Some((place, path)) if !place.contains('/') && !path.is_empty() && !path.starts_with(':') => {
                    let (user, host) = split_user(place);
                    ssh(user, host, 22).ok_or_else(|| bad("it names no host"))
                }
                _ => Err(bad("expected https://…, ssh://…, user@host:path, file:///… or an absolute path")),
            },
        }
    }
}

fn split_user(authority: &str) -> (Option<String>, &str) {
    match authority.rsplit_once('@') {
        // A password in an ssh address is not used: keys only.
        Some((user, place)) => (user.split(':').next().map(str::to_owned), place),
        None => (None, authority),
    }
}

fn ssh(user: Option<String>, host: &str, port: u16) -> Option<Remote> {
    let fine = !host.is_empty() && !host.starts_with('-');
    fine.then(|| Remote::Ssh { user: user.filter(|u| !u.is_empty()), host: host.to_ascii_lowercase(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Remote, GitError> {
        Remote::parse(&text.parse().unwrap())
    }

    fn ssh_to(user: Option<&str>, host: &str, port: u16) -> Remote {
        Remote::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port }
    }

    #[test]
    fn addresses_are_taken_apart() {
        for (text, expected) in [
            ("/srv/git/config.git", Remote::Local("/srv/git/config.git".into())),
            ("file:///srv/a%20b.git", Remote::Local("/srv/a b.git".into())),
            ("https://u:p@Git.Example.org/x.git", Remote::Http { origin: "https://git.example.org".into() }),
            ("https://git.example.org:443/x", Remote::Http { origin: "https://git.example.org".into() }),
            ("http://127.0.0.1:8080/x", Remote::Http { origin: "http://127.0.0.1:8080".into() }),
            ("ssh://git@host:2222/x", ssh_to(Some("git"), "host", 2222)),
            ("ssh://host/x", ssh_to(None, "host", 22)),
            ("ssh://[::1]:2222/x", ssh_to(None, "::1", 2222)),
            ("git@github.com:o/r.git", ssh_to(Some("git"), "github.com", 22)),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn other_kinds_are_refused() {
        for text in [
            "git://host/x",
            "ext::sh",
            "relative/path",
            "ssh:///x",
            "https:///x",
            "file://host/x",
            "ssh://-oProxyCommand=x/y",
            "ssh://h:99999/x",
            "host:",
        ] {
            assert_eq!(parse(text).unwrap_err().reason, Reason::ConfigInvalid, "{text}");
        }
    }
}
