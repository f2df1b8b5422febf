//! The HTTP clients underneath: authorities, certificates, proxies, time-outs; and which of them is for whom.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Proxy, Url};

use super::PullError;
use super::address::Address;
use super::proxies::{Proxies, Via};
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

/// The clients for one set of authorities and certificates.
#[derive(Clone)]
pub(super) struct Door {
    /// A redirect is an answer like any other: who follows it decides what goes along.
    pub direct: reqwest::Client,
    /// Follows them.
    pub following: reqwest::Client,
    /// Whether this host shows a certificate.
    certified: bool,
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
    pub fn client(&self, address: &Address, url: &Url) -> &reqwest::Client {
        &self.of(address, url).direct
    }

    /// Whether this host shows a certificate there.
    pub fn is_certified(&self, address: &Address, url: &Url) -> bool {
        self.of(address, url).certified
    }

    /// The proxy that a URL is reached by.
    pub fn proxy(&self, url: &Url) -> Option<&Via> {
        self.proxies.of(url)
    }

    /// The client for an archive's address: a section of its authority has its certificates.
    pub fn archive(&self, url: &str) -> reqwest::Client {
        let authority = url.parse::<Url>().map(|url| authority(&url)).unwrap_or_default();
        self.own.get(&authority).unwrap_or(&self.plain).following.clone()
    }
}

impl Door {
    /// `whose` is for messages.
    pub fn new(whose: &str, tls: &Tls, proxies: &Arc<Proxies>) -> Result<Self, PullError> {
        let certified = tls.client.is_some();
        Ok(Self {
            direct: build(whose, tls, proxies, Policy::none())?,
            following: build(whose, tls, proxies, redirects(certified))?,
            certified,
        })
    }
}

fn build(
    whose: &str,
    tls: &Tls,
    proxies: &Arc<Proxies>,
    redirects: Policy,
) -> Result<reqwest::Client, PullError> {
    let proxies = proxies.clone();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("gitopsd/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .referer(false)
        .no_proxy()
        .proxy(Proxy::custom(move |url| proxies.of(url).map(|via| via.url.clone())))
        .redirect(redirects);
    let invalid = |what: &str, file: &Path, why: &dyn std::fmt::Display| {
        PullError::fatal(Reason::Tls, format!("{what} {} of {whose}: {why}", file.display()))
    };
    let read = |what: &str, file: &Path| std::fs::read(file).map_err(|error| invalid(what, file, &error));
    if let Some(file) = &tls.ca_file {
        let certificates = reqwest::Certificate::from_pem_bundle(&read("ca_file", file)?)
            .map_err(|error| invalid("ca_file", file, &error))?;
        if certificates.is_empty() {
            return Err(invalid("ca_file", file, &"it holds no certificate in PEM"));
        }
        for certificate in certificates {
            builder = builder.add_root_certificate(certificate);
        }
    }
    if let Some((certificate, key)) = &tls.client {
        let pem = [read("client_cert", certificate)?, b"\n".to_vec(), read("client_key", key)?].concat();
        let identity = reqwest::Identity::from_pem(&pem).map_err(|_| {
            invalid("client_cert", certificate, &"it is no certificate in PEM, or client_key is no key")
        })?;
        builder = builder.identity(identity);
    }
    builder
        .build()
        .map_err(|error| PullError::fatal(Reason::Internal, format!("making an http client: {error}")))
}
