//! The HTTP clients underneath: authorities, certificates, proxies, time-outs; and which of them is for whom.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Proxy, Url};

use super::PullError;
use super::address::Address;
use super::proxies::{Proxies, Via};
use super::trouble::innermost;
use crate::config::agent::RegistryConfig;
use crate::types::Reason;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest silence within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Redirects of one request.
pub(super) const MAX_REDIRECTS: usize = 5;

/// `host[:port]`, as configuration names registries.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// For archives: at most five redirects, none that gives up TLS, and none that takes this host's certificate elsewhere.
fn redirects(certified: bool) -> Policy {
    Policy::custom(move |attempt| {
        let last = attempt.previous().last();
        let secure = last.is_some_and(|url| url.scheme() == "https");
        let elsewhere = last.is_some_and(|url| url.origin() != attempt.url().origin());
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if secure && attempt.url().scheme() != "https" {
            attempt.error("it redirects from https to http")
        } else if certified && elsewhere {
            attempt.error("it redirects to another host, which client_cert is not for")
        } else {
            attempt.follow()
        }
    })
}

/// What a client needs beside the system's authorities.
#[derive(Default)]
pub(super) struct Tls {
    pub ca_file: Option<PathBuf>,
    /// Certificate and key that this host shows.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The clients for one set of authorities and certificates. Each is made when it is first asked for: the system's
/// authorities are some hundred files, which an archive on this machine or a registry without TLS does not need.
pub(super) struct Door {
    authorities: Vec<Certificate>,
    identity: Option<Identity>,
    proxies: Arc<Proxies>,
    /// For https.
    direct: OnceLock<Client>,
    /// For plain http by no proxy with TLS: without authorities.
    bare: OnceLock<Client>,
    following: OnceLock<Client>,
}

/// All clients.
pub(super) struct Doors {
    plain: Door,
    /// For a registry's own address: with its authorities and this host's certificate.
    own: BTreeMap<String, Door>,
    /// For what it leads to, mirrors, token services and storage: with its authorities alone.
    trusting: BTreeMap<String, Door>,
    proxies: Arc<Proxies>,
}

impl Doors {
    /// Reads the certificates; touches no network.
    pub fn new(hosts: &BTreeMap<String, RegistryConfig>) -> Result<Self, PullError> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let proxies = Arc::new(Proxies::of_environment()?);
        let plain = Door::new("this host", &Tls::default(), &proxies)?;
        let (mut own, mut trusting) = (BTreeMap::new(), BTreeMap::new());
        for (host, config) in hosts {
            let whose = format!("registry {host}");
            let ca_file = config.ca_file.clone();
            let client = config.client_cert.clone().zip(config.client_key.clone());
            if ca_file.is_some() {
                let tls = Tls { ca_file: ca_file.clone(), client: None };
                trusting.insert(host.clone(), Door::new(&whose, &tls, &proxies)?);
            }
            if ca_file.is_some() || client.is_some() {
                own.insert(host.clone(), Door::new(&whose, &Tls { ca_file, client }, &proxies)?);
            }
        }
        Ok(Self { plain, own, trusting, proxies })
    }

    /// For a URL that an address has or leads to. A certificate is for the server whose section names it.
    fn of(&self, address: &Address, url: &Url) -> &Door {
        let section = match address.is_home(url) {
            true => self.own.get(&address.registry),
            false => self.own.get(&authority(url)),
        };
        section.or_else(|| self.trusting.get(&address.registry)).unwrap_or(&self.plain)
    }

    /// The client for a URL that an address has or leads to. It follows no redirect.
    pub fn client(&self, address: &Address, url: &Url) -> Result<&Client, PullError> {
        self.of(address, url).direct(url)
    }

    /// Whether this host shows a certificate there.
    pub fn is_certified(&self, address: &Address, url: &Url) -> bool {
        self.of(address, url).is_certified()
    }

    /// The proxy that a URL is reached by.
    pub fn proxy(&self, url: &Url) -> Option<&Via> {
        self.proxies.of(url)
    }

    /// The client for an archive's address: a section of its authority has its certificates.
    pub fn archive(&self, url: &str) -> Result<&Client, PullError> {
        let authority = url.parse::<Url>().map(|url| authority(&url)).unwrap_or_default();
        self.own.get(&authority).unwrap_or(&self.plain).following()
    }
}

impl Door {
    /// Reads its certificates. `whose` is for messages.
    pub fn new(whose: &str, tls: &Tls, proxies: &Arc<Proxies>) -> Result<Self, PullError> {
        let invalid = |what: &str, file: &Path, why: &dyn std::fmt::Display| {
            PullError::fatal(Reason::Tls, format!("{what} {} of {whose}: {why}", file.display()))
        };
        let read = |what: &str, file: &Path| std::fs::read(file).map_err(|error| invalid(what, file, &error));
        let mut authorities = Vec::new();
        if let Some(file) = &tls.ca_file {
            authorities = Certificate::from_pem_bundle(&read("ca_file", file)?)
                .map_err(|error| invalid("ca_file", file, &error))?;
            if authorities.is_empty() {
                return Err(invalid("ca_file", file, &"it holds no certificate in PEM"));
            }
        }
        let mut identity = None;
        if let Some((certificate, key)) = &tls.client {
            let pem = [read("client_cert", certificate)?, b"\n".to_vec(), read("client_key", key)?].concat();
            identity = Some(Identity::from_pem(&pem).map_err(|_| {
                invalid("client_cert", certificate, &"it is no certificate in PEM, or client_key is no key")
            })?);
        }
        let (direct, bare, following) = Default::default();
        let door = Self { authorities, identity, proxies: proxies.clone(), direct, bare, following };
        // What does not fit together is to be heard of now, not at the first pull.
        door.bare()?;
        Ok(door)
    }

    /// A redirect is an answer like any other: who follows it decides what goes along.
    pub fn direct(&self, url: &Url) -> Result<&Client, PullError> {
        let way = self.proxies.of(url).map_or(url, |via| &via.url);
        match way.scheme() == "http" && url.scheme() == "http" {
            true => self.bare(),
            false => once(&self.direct, || self.build(Policy::none(), true)),
        }
    }

    /// Follows redirects.
    pub fn following(&self) -> Result<&Client, PullError> {
        once(&self.following, || self.build(redirects(self.is_certified()), true))
    }

    fn is_certified(&self) -> bool {
        self.identity.is_some()
    }

    fn bare(&self) -> Result<&Client, PullError> {
        once(&self.bare, || self.build(Policy::none(), false))
    }

    fn build(&self, redirects: Policy, system: bool) -> Result<Client, PullError> {
        let proxies = self.proxies.clone();
        let mut builder = Client::builder()
            .user_agent(concat!("gitopsd/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .referer(false)
            .no_proxy()
            .proxy(Proxy::custom(move |url| proxies.of(url).map(|via| via.url.clone())))
            .redirect(redirects);
        let authorities = self.authorities.iter().cloned();
        builder = match system {
            true => builder.tls_certs_merge(authorities),
            false => builder.tls_certs_only(authorities),
        };
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        builder.build().map_err(|error| {
            let why = innermost(&error).unwrap_or_else(|| error.to_string());
            PullError::fatal(Reason::Tls, format!("the certificate authorities of this host are of no use (is ca-certificates installed?): {why}"))
        })
    }
}

/// A client for one URL of something else than a registry, which follows no redirect. `whose` is for messages.
pub(crate) fn client_for(whose: &str, ca_file: Option<PathBuf>, url: &Url) -> Result<Client, PullError> {
    // Fails only when one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let proxies = Arc::new(Proxies::of_environment()?);
    Door::new(whose, &Tls { ca_file, client: None }, &proxies)?.direct(url).cloned()
}

/// What is there, else what can be made.
fn once(
    place: &OnceLock<Client>,
    make: impl FnOnce() -> Result<Client, PullError>,
) -> Result<&Client, PullError> {
    if let Some(client) = place.get() {
        return Ok(client);
    }
    let made = make()?;
    Ok(place.get_or_init(|| made))
}
