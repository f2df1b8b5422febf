//! The proxies of the environment, as in all that speaks http (curl(1), "ENVIRONMENT"; golang.org/x/net/http/httpproxy,
//! by which the other engines go). Never for this host itself.

use std::net::IpAddr;

use reqwest::Url;

use super::PullError;
use crate::types::Reason;

/// Which proxy a URL goes by.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    https: Option<Via>,
    http: Option<Via>,
    never: Vec<Rule>,
}

/// A proxy, and the variable that names it.
#[derive(Clone)]
pub(super) struct Via {
    /// It may hold a password.
    pub url: Url,
    variable: &'static str,
}

/// Without its password.
impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the proxy {} of {}", super::http::authority(&self.url), self.variable)
    }
}

impl std::fmt::Debug for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// An entry of NO_PROXY, and the port that it is for.
#[derive(Debug, Clone)]
struct Rule(Hosts, Option<u16>);

#[derive(Debug, Clone)]
enum Hosts {
    All,
    /// This name, unless only those below it are meant, and all names below it.
    Domain {
        name: String,
        itself: bool,
    },
    /// An address and the length of its prefix.
    Network(IpAddr, u8),
}

impl Proxies {
    /// Those of this process.
    pub fn of_environment() -> Result<Self, PullError> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// In lower case first, as curl does: that is how `http_proxy` came to be.
    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, PullError> {
        let variable = |name: &str| {
            let set = |name: &str| variable(name).filter(|text| !text.trim().is_empty());
            set(&name.to_ascii_lowercase()).or_else(|| set(name))
        };
        let via = |name: &'static str| variable(name).map(|text| Via::parse(name, text.trim())).transpose();
        let all = via("ALL_PROXY")?;
        let never = variable("NO_PROXY").unwrap_or_default();
        let never = never.split(|c: char| c == ',' || c.is_whitespace()).filter_map(Rule::parse).collect();
        Ok(Self {
            https: via("HTTPS_PROXY")?.or_else(|| all.clone()),
            http: via("HTTP_PROXY")?.or(all),
            never,
        })
    }

    /// The proxy for a URL; `None` = it is reached directly.
    pub fn of(&self, url: &Url) -> Option<&Via> {
        let via = match url.scheme() {
            "https" => self.https.as_ref()?,
            "http" => self.http.as_ref()?,
            _ => return None,
        };
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        let own = host.eq_ignore_ascii_case("localhost")
            || host.to_ascii_lowercase().ends_with(".localhost")
            || address.is_some_and(|address| address.is_loopback());
        let port = url.port_or_known_default();
        let fits =
            |rule: &Rule| rule.1.is_none_or(|wanted| Some(wanted) == port) && rule.0.fits(host, address);
        (!own && !self.never.iter().any(fits)).then_some(via)
    }
}

impl Via {
    fn parse(variable: &'static str, text: &str) -> Result<Self, PullError> {
        // The address may hold a password: nothing of it is shown.
        let wrong = |why: &str| {
            PullError::fatal(Reason::ConfigInvalid, format!("{variable} in the environment {why}"))
        };
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url: Url = text.parse().map_err(|_| wrong("is no address of a proxy"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("names a proxy of a kind that is not supported: http:// and https:// are"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("is no address of a proxy"));
        }
        Ok(Self { url, variable })
    }
}

impl Rule {
    /// `None` = it says nothing.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self(Hosts::All, None));
        }
        if let Some((address, length)) = text.split_once('/')
            && let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u8>())
        {
            return Some(Self(Hosts::Network(address, length), None));
        }
        let whole = |address: IpAddr| Hosts::Network(address, if address.is_ipv4() { 32 } else { 128 });
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Some(Self(whole(address), None));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Some(Self(whole(address), port));
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        // `*.name` is for what is below it, as in Go; `.name` for both, as in curl.
        let (name, itself) = match host.strip_prefix("*.") {
            Some(name) => (name, false),
            None => (host.strip_prefix('.').unwrap_or(&host), true),
        };
        (!name.is_empty()).then(|| Self(Hosts::Domain { name: name.to_owned(), itself }, port))
    }
}

impl Hosts {
    fn fits(&self, host: &str, address: Option<IpAddr>) -> bool {
        match (self, address) {
            (Self::All, _) => true,
            (Self::Domain { name, itself }, None) => {
                let host = host.to_ascii_lowercase();
                match host.strip_suffix(name.as_str()) {
                    Some("") => *itself,
                    Some(before) => before.ends_with('.'),
                    None => false,
                }
            }
            (Self::Network(IpAddr::V4(network), length), Some(IpAddr::V4(address))) => {
                let shift = 32u32.saturating_sub((*length).into());
                let part = |address: u32| address.checked_shr(shift).unwrap_or(0);
                part(network.to_bits()) == part(address.to_bits())
            }
            (Self::Network(IpAddr::V6(network), length), Some(IpAddr::V6(address))) => {
                let shift = 128u32.saturating_sub((*length).into());
                let part = |address: u128| address.checked_shr(shift).unwrap_or(0);
                part(network.to_bits()) == part(address.to_bits())
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, PullError> {
        Proxies::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_scheme_has_its_own() {
        let via = |variables: &[(&str, &str)], url: &str| {
            proxies(variables).unwrap().of(&url.parse().unwrap()).map(|via| via.url.to_string())
        };
        let (s, p, a) = (("HTTPS_PROXY", "http://s:1"), ("HTTP_PROXY", "http://p:1"), ("ALL_PROXY", "a:1"));
        assert_eq!(via(&[s, p], "https://r.io").as_deref(), Some("http://s:1/"));
        assert_eq!(via(&[s, p], "http://r.io").as_deref(), Some("http://p:1/"));
        assert_eq!(via(&[s], "http://r.io"), None);
        assert_eq!(
            via(&[s, a], "http://r.io").as_deref(),
            Some("http://a:1/"),
            "without a scheme it is http"
        );
        assert_eq!(via(&[], "https://r.io"), None);
        assert_eq!(via(&[("HTTPS_PROXY", " ")], "https://r.io"), None);
        let both = [s, ("https_proxy", "https://low:1")];
        assert_eq!(via(&both, "https://r.io").as_deref(), Some("https://low:1/"), "in lower case first");
    }

    #[test]
    fn what_goes_without() {
        let rows: &[(&str, &str, bool)] = &[
            ("", "https://r.io", false),
            // This host, whatever is set.
            ("", "http://localhost:5000", true),
            ("", "http://a.localhost:5000", true),
            ("", "http://127.0.0.1:5000", true),
            ("", "http://127.9.9.9", true),
            ("", "http://[::1]:5000", true),
            ("", "http://[::ffff:127.0.0.1]", true),
            ("*", "https://r.io", true),
            ("r.io", "https://r.io", true),
            ("r.io", "https://r.io:5000", true),
            ("R.IO", "https://r.io", true),
            ("r.io.", "https://r.io", true),
            ("r.io", "https://a.r.io", true),
            ("r.io", "https://ar.io", false),
            ("r.io", "https://r.io.example", false),
            (".r.io", "https://a.r.io", true),
            (".r.io", "https://r.io", true),
            (".r.io", "https://ar.io", false),
            ("*.r.io", "https://a.b.r.io", true),
            ("*.r.io", "https://r.io", false),
            ("r.io:5000", "https://r.io:5000", true),
            ("r.io:5000", "https://r.io", false),
            ("r.io:443", "https://r.io", true),
            ("10.1.2.3", "https://10.1.2.3:5000", true),
            ("10.1.2.3:5000", "https://10.1.2.3:5000", true),
            ("10.1.2.3:5000", "https://10.1.2.3", false),
            ("10.1.2.3", "https://10.1.2.4", false),
            ("10.0.0.0/8", "https://10.1.2.3", true),
            ("10.0.0.0/8", "https://11.1.2.3", false),
            ("10.1.2.0/23", "https://10.1.3.255", true),
            ("10.1.2.0/23", "https://10.1.4.0", false),
            ("0.0.0.0/0", "https://10.1.4.0", true),
            ("0.0.0.0/0", "https://r.io", false),
            ("10.0.0.0/99", "https://10.0.0.0", true),
            ("fd00::/8", "https://[fd12::1]:5000", true),
            ("fd00::/8", "https://[fe80::1]", false),
            ("[fd12::1]:5000", "https://[fd12::1]:5000", true),
            ("fd12::1", "https://[fd12::1]", true),
            ("::/0", "https://[fd12::1]", true),
            ("a.example, ,r.io", "https://r.io", true),
            ("a.example r.io", "https://r.io", true),
            ("r.io:port,.,:,/8,10.0.0.0/x", "https://r.io", false),
        ];
        for (never, url, directly) in rows {
            let known = proxies(&[("ALL_PROXY", "http://p:1"), ("NO_PROXY", never)]).unwrap();
            assert_eq!(known.of(&url.parse().unwrap()).is_none(), *directly, "{never:?}: {url}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        for wrong in
            ["socks5://u:secret@p:1", "http://u:secret@", "http://u:secret@p:port", "ftp://u:secret@p"]
        {
            let error = proxies(&[("HTTPS_PROXY", wrong)]).unwrap_err();
            assert_eq!(error.reason, Reason::ConfigInvalid);
            let text = format!("{error} {error:?}");
            assert!(text.contains("HTTPS_PROXY") && !text.contains("secret"), "{text}");
        }
        let known = proxies(&[("HTTPS_PROXY", "u:secret@p:1")]).unwrap();
        let via = known.of(&"https://r.io".parse().unwrap()).unwrap();
        assert_eq!(via.to_string(), "the proxy p:1 of HTTPS_PROXY");
        assert_eq!((via.url.username(), via.url.password()), ("u", Some("secret")));
        assert!(!format!("{known:?}").contains("secret"));
    }
}
