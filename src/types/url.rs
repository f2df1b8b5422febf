//! A URL that never shows a secret.

use std::fmt;
use std::str::FromStr;

use super::Invalid;

/// A URL, or a path or scp-like address as git takes it. `Display` leaves out user info, query and fragment: they
/// may hold a password or a signature. [`SafeUrl::as_str`] is the whole text, for use and never for messages.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SafeUrl(String);

impl FromStr for SafeUrl {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(Invalid::new("a URL must not be empty or hold spaces or control characters"));
        }
        // An address that begins with a dash would be read as an option by any command it is handed to.
        if text.starts_with('-') {
            return Err(Invalid::new("a URL must not begin with `-`"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl SafeUrl {
    /// The whole text, secrets included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The scheme before `://`, if there is one.
    pub fn scheme(&self) -> Option<&str> {
        self.0.split_once("://").map(|(scheme, _)| scheme)
    }
}

impl fmt::Display for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return f.write_str(&self.0);
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let host = authority.rsplit('@').next().unwrap_or_default();
        write!(f, "{scheme}://{host}{path}")
    }
}

impl fmt::Debug for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafeUrl({self})")
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_hides_secrets() {
        let url: SafeUrl =
            "https://bob:hunter2@git.example.org/ops.git?X-Amz-Signature=abc#f".parse().unwrap();
        assert_eq!(url.to_string(), "https://git.example.org/ops.git");
        assert!(!format!("{url:?}").contains("hunter2"));
    }

    #[test]
    fn options_are_no_urls() {
        assert!("-oProxyCommand=x".parse::<SafeUrl>().is_err());
    }
}
