//! Where a registry is: its own address, and those of its mirrors.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;

use super::PullError;
use super::http::authority;
use crate::config::agent::RegistryConfig;
use crate::types::{Reason, RegistryRef, SafeUrl};

/// A mirror that failed is asked after all others for so long.
const SET_ASIDE: Duration = Duration::from_secs(30);

/// A place that has what a registry has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Address {
    /// As references and sections of the configuration name it.
    pub registry: String,
    /// The registry's own.
    home: Url,
    /// What paths are appended to; ends with a slash.
    api: Url,
    /// Stands before the repository; empty, or ends with a slash.
    prefix: String,
    mirror: bool,
}

impl Address {
    /// The registry's own.
    pub fn home(registry: &str, config: &RegistryConfig) -> Result<Self, PullError> {
        // Docker Hub's registry has another name than its references.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if config.plain_http { "http" } else { "https" };
        let home = parsed(registry, &format!("{scheme}://{host}/"))?;
        let api = joined(registry, &home, "v2/")?;
        Ok(Self { registry: registry.to_owned(), home, api, prefix: String::new(), mirror: false })
    }

    /// A mirror's. Its path is a prefix of all repositories, `/v2/PATH/REPOSITORY`; where it holds `v2` already, it is
    /// the whole of what comes before the repository.
    fn mirror(home: &Self, url: &SafeUrl) -> Result<Self, PullError> {
        let registry = &home.registry;
        let mirror = parsed(registry, url.as_str())?;
        let segments: Vec<&str> = mirror.path().split('/').filter(|segment| !segment.is_empty()).collect();
        let (path, after) = match segments.iter().position(|segment| *segment == "v2") {
            Some(at) => (segments.clone(), segments.get(at + 1..).unwrap_or_default()),
            None => ([&["v2"], segments.as_slice()].concat(), segments.as_slice()),
        };
        let api = joined(registry, &mirror, &format!("/{}/", path.join("/")))?;
        let prefix = after.iter().map(|segment| format!("{segment}/")).collect();
        Ok(Self { registry: registry.clone(), home: home.home.clone(), api, prefix, mirror: true })
    }

    /// All of a registry's: its mirrors in their order, but those that just failed, then its own; then the others after
    /// all, for there is nobody else.
    pub fn all(registry: &str, config: &RegistryConfig, aside: &Aside) -> Result<Vec<Self>, PullError> {
        let home = Self::home(registry, config)?;
        let (mut first, mut last) = (Vec::new(), Vec::new());
        let now = Instant::now();
        for url in &config.mirrors {
            let mirror = Self::mirror(&home, url)?;
            if aside.has(&mirror, now) { &mut last } else { &mut first }.push(mirror);
        }
        first.push(home);
        first.append(&mut last);
        Ok(first)
    }

    /// The URL of something in a repository.
    pub fn url(&self, image: &RegistryRef, path: &str) -> Result<Url, PullError> {
        let path = format!("{}/{path}", image.repository);
        self.api
            .join(&path)
            .map_err(|error| PullError::fatal(Reason::ImageInvalid, format!("{image}: {error}")))
    }

    /// A repository, as this address names it.
    pub fn repository(&self, image: &RegistryRef) -> String {
        format!("{}{}", self.prefix, image.repository)
    }

    /// Its API.
    pub fn api(&self) -> &Url {
        &self.api
    }

    /// `host[:port]`.
    pub fn authority(&self) -> String {
        authority(&self.api)
    }

    /// Whether it is not the registry itself.
    pub fn is_mirror(&self) -> bool {
        self.mirror
    }

    /// Whether a URL is on the registry's own server.
    pub fn is_home(&self, url: &Url) -> bool {
        self.home.origin() == url.origin()
    }

    /// Whether a URL is on the server of this address.
    pub fn has(&self, url: &Url) -> bool {
        self.api.origin() == url.origin()
    }

    /// The name of the section that speaks for it. A registry's own is not for its mirrors: these have their own.
    pub fn section(&self) -> String {
        if self.is_home(&self.api) { self.registry.clone() } else { self.authority() }
    }
}

/// For messages.
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.mirror {
            return write!(f, "registry {}", self.registry);
        }
        let prefix = self.prefix.trim_end_matches('/');
        let slash = if prefix.is_empty() { "" } else { "/" };
        write!(f, "mirror {}{slash}{prefix} of registry {}", self.authority(), self.registry)
    }
}

fn parsed(registry: &str, text: &str) -> Result<Url, PullError> {
    text.parse().map_err(|error| wrong(registry, error))
}

fn joined(registry: &str, url: &Url, path: &str) -> Result<Url, PullError> {
    url.join(path).map_err(|error| wrong(registry, error))
}

fn wrong(registry: &str, error: impl std::fmt::Display) -> PullError {
    PullError::fatal(Reason::ConfigInvalid, format!("an address of registry {registry}: {error}"))
}

/// Mirrors that failed, and when.
#[derive(Debug, Default)]
pub(super) struct Aside(Mutex<HashMap<Url, Instant>>);

impl Aside {
    /// It failed: the next requests go elsewhere first for a while. A registry itself is never left out.
    pub fn put(&self, address: &Address, now: Instant) {
        if address.mirror {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(address.api.clone(), now);
        }
    }

    /// Whether it failed just now.
    pub fn has(&self, address: &Address, now: Instant) -> bool {
        let aside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        aside.get(&address.api).is_some_and(|when| now.saturating_duration_since(*when) < SET_ASIDE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mirrors: &[&str]) -> RegistryConfig {
        let mirrors = mirrors.iter().map(|url| url.parse().unwrap()).collect();
        RegistryConfig { mirrors, ..RegistryConfig::default() }
    }

    fn image() -> RegistryRef {
        match "r.io/team/app:1".parse().unwrap() {
            crate::types::ImageRef::Registry(reference) => reference,
            crate::types::ImageRef::Archive(_) => unreachable!("it is none"),
        }
    }

    #[test]
    fn a_mirrors_path_stands_before_the_repository() {
        let rows = [
            ("https://m", "https://m/v2/team/app/x", "team/app", "mirror m of registry r.io"),
            ("https://m/", "https://m/v2/team/app/x", "team/app", "mirror m of registry r.io"),
            ("http://m:5000/p", "http://m:5000/v2/p/team/app/x", "p/team/app", "mirror m:5000/p of"),
            ("https://m/p/", "https://m/v2/p/team/app/x", "p/team/app", "mirror m/p of registry"),
            ("https://m/p/q", "https://m/v2/p/q/team/app/x", "p/q/team/app", "mirror m/p/q of"),
            ("https://m/v2", "https://m/v2/team/app/x", "team/app", "mirror m of"),
            ("https://m/v2/p", "https://m/v2/p/team/app/x", "p/team/app", "mirror m/p of"),
            ("https://m/p/v2/", "https://m/p/v2/team/app/x", "team/app", "mirror m of"),
            ("https://m/p/v2/q", "https://m/p/v2/q/team/app/x", "q/team/app", "mirror m/q of"),
        ];
        for (mirror, url, repository, shown) in rows {
            let all = Address::all("r.io", &config(&[mirror]), &Aside::default()).unwrap();
            let [address, home] = all.as_slice() else { panic!("{all:?}") };
            assert_eq!(address.url(&image(), "x").unwrap().as_str(), url, "{mirror}");
            assert_eq!(address.repository(&image()), repository, "{mirror}");
            assert!(address.to_string().starts_with(shown), "{address}");
            assert_eq!(home.url(&image(), "x").unwrap().as_str(), "https://r.io/v2/team/app/x");
            assert_eq!(home.to_string(), "registry r.io");
        }
    }

    #[test]
    fn sections_are_for_their_own_servers() {
        let all =
            |registry: &str, mirror| Address::all(registry, &config(&[mirror]), &Aside::default()).unwrap();
        let sections = |registry: &str, mirror| -> Vec<String> {
            all(registry, mirror).iter().map(Address::section).collect()
        };
        assert_eq!(sections("r.io", "https://m:5000/p"), ["m:5000", "r.io"]);
        assert_eq!(sections("docker.io", "https://m"), ["m", "docker.io"]);
        assert_eq!(sections("r.io", "https://r.io/cache"), ["r.io", "r.io"]);
        assert_eq!(sections("r.io", "http://r.io/cache"), ["r.io", "r.io"]);
        let hub = Address::home("docker.io", &RegistryConfig::default()).unwrap();
        assert_eq!(hub.authority(), "registry-1.docker.io");
    }

    #[test]
    fn what_failed_is_asked_last_and_first_again_later() {
        let (aside, config) = (Aside::default(), config(&["https://a", "https://a/p", "https://b"]));
        let names = || -> Vec<String> {
            let all = Address::all("r.io", &config, &aside).unwrap();
            all.iter().map(|address| address.api.to_string()).collect()
        };
        let [a, p, b, home] =
            ["https://a/v2/", "https://a/v2/p/", "https://b/v2/", "https://r.io/v2/"].map(str::to_owned);
        assert_eq!(names(), [a.clone(), p.clone(), b.clone(), home.clone()]);
        let all = Address::all("r.io", &config, &aside).unwrap();
        let now = Instant::now();
        aside.put(&all[0], now);
        aside.put(&all[3], now);
        assert_eq!(names(), [p, b, home, a], "itself is not set aside, and nothing is left out");
        assert!(aside.has(&all[0], now + SET_ASIDE - Duration::from_millis(1)));
        assert!(!aside.has(&all[0], now + SET_ASIDE), "it is tried again");
        assert!(!aside.has(&all[1], now), "another prefix is another mirror");
    }
}
