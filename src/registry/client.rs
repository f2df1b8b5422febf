//! The distribution API, the half that reads (OCI distribution-spec, "Pulling").

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, CONTENT_RANGE, HeaderMap, RANGE, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};

use super::http::{Door, Tls, authority, body, checked, unreachable};
use super::manifest::{self, Descriptor, MAX_DOCUMENT, Manifest, Parsed};
use super::retry::{self, Budget, Resume};
use super::token::{Asker, Authorization};
use super::{PullError, challenge, credentials};
use crate::config::agent::RegistryConfig;
use crate::types::{Reason, RegistryRef};

/// A document is small: it is here within this time, or broken.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A mirror that could not be reached is not asked again for so long.
const SET_ASIDE: Duration = Duration::from_secs(30);

/// Speaks to registries.
pub(super) struct Client {
    hosts: BTreeMap<String, RegistryConfig>,
    plain: Door,
    /// For a registry's own address: with its authorities and this host's certificate.
    own: BTreeMap<String, Door>,
    /// For what it leads to, mirrors and token services: with its authorities alone.
    trusting: BTreeMap<String, Door>,
    /// By address and repository.
    authorizations: Mutex<HashMap<(String, String), Authorization>>,
    /// Mirrors that could not be reached, and when they failed.
    aside: Mutex<HashMap<String, Instant>>,
}

impl Client {
    pub fn new(hosts: BTreeMap<String, RegistryConfig>) -> Result<Self, PullError> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = Door::new("this host", &Tls::default())?;
        let (mut own, mut trusting) = (BTreeMap::new(), BTreeMap::new());
        for (host, config) in &hosts {
            let whose = format!("registry {host}");
            let ca_file = config.ca_file.clone();
            let client = config.client_cert.clone().zip(config.client_key.clone());
            if ca_file.is_some() {
                let tls = Tls { ca_file: ca_file.clone(), client: None };
                trusting.insert(host.clone(), Door::new(&whose, &tls)?);
            }
            if ca_file.is_some() || client.is_some() {
                own.insert(host.clone(), Door::new(&whose, &Tls { ca_file, client })?);
            }
        }
        let (authorizations, aside) = (Mutex::default(), Mutex::default());
        Ok(Self { hosts, plain, own, trusting, authorizations, aside })
    }

    /// The clients for an address that belongs to a registry. A certificate is for the address whose section names it.
    fn door(&self, registry: &str, base: &Url) -> &Door {
        let is_home = self.home(registry).parse::<Url>().is_ok_and(|home| home.origin() == base.origin());
        let section = if is_home { self.own.get(registry) } else { self.own.get(&authority(base)) };
        section.or_else(|| self.trusting.get(registry)).unwrap_or(&self.plain)
    }

    /// The client for an archive's address: a section of its authority has its certificates.
    pub fn http_of(&self, address: &str) -> reqwest::Client {
        let authority = address.parse::<Url>().map(|url| authority(&url)).unwrap_or_default();
        self.own.get(&authority).unwrap_or(&self.plain).content.clone()
    }

    fn config(&self, registry: &str) -> RegistryConfig {
        self.hosts.get(registry).cloned().unwrap_or_default()
    }

    /// The section that speaks for an address. A registry's own is not for its mirrors: these have their own.
    fn section(&self, registry: &str, base: &Url) -> RegistryConfig {
        let home = self.home(registry).parse::<Url>();
        let is_home = home.is_ok_and(|home| home.origin() == base.origin());
        self.config(if is_home { registry.to_owned() } else { authority(base) }.as_str())
    }

    /// The address that a registry's references name.
    fn home(&self, registry: &str) -> String {
        // Docker Hub's registry has another name than its references.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if self.config(registry).plain_http { "http" } else { "https" };
        format!("{scheme}://{host}")
    }

    /// Where a registry is: its mirrors in order, but those that just failed, then itself.
    fn bases(&self, registry: &str) -> Result<Vec<Url>, PullError> {
        let config = self.config(registry);
        let now = Instant::now();
        let aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        let is_aside =
            |text: &str| aside.get(text).is_some_and(|when| now.saturating_duration_since(*when) < SET_ASIDE);
        let mirrors = config.mirrors.iter().map(|url| url.as_str().to_owned()).filter(|text| !is_aside(text));
        mirrors
            .chain([self.home(registry)])
            .map(|text| {
                text.parse().map_err(|error| {
                    PullError::fatal(
                        Reason::ConfigInvalid,
                        format!("an address of registry {registry}: {error}"),
                    )
                })
            })
            .collect()
    }

    /// A mirror failed: the next requests do without it for a while. Of a registry itself there is no other.
    fn set_aside(&self, registry: &str, base: &Url) {
        let mirrors = self.config(registry).mirrors;
        let mirror = mirrors
            .iter()
            .map(|url| url.as_str())
            .find(|text| text.parse::<Url>().is_ok_and(|url| url.origin() == base.origin()));
        if let Some(mirror) = mirror {
            let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
            aside.insert(mirror.to_owned(), Instant::now());
        }
    }

    /// This platform's image manifest. `wanted` is a tag or a digest; of an index the right entry is followed.
    pub async fn manifest(&self, image: &RegistryRef, wanted: &str) -> Result<Manifest, PullError> {
        let mut wanted = wanted.to_owned();
        for _ in 0..2 {
            let name = image.to_string();
            let bytes = self.document(image, "manifests", &wanted, manifest::ACCEPT).await?;
            match manifest::parse(&name, &bytes)? {
                Parsed::Image(manifest) => return Ok(*manifest),
                Parsed::Index(all) => wanted = manifest::choose(&name, all)?.digest.to_string(),
            }
        }
        Err(PullError::fatal(Reason::ImageInvalid, format!("{image} is an index of an index")))
    }

    /// A small blob, checked.
    pub async fn small_blob(&self, image: &RegistryRef, blob: &Descriptor) -> Result<Vec<u8>, PullError> {
        self.document(image, "blobs", &blob.digest.to_string(), "*/*").await
    }

    /// A small document, by its tag or digest.
    async fn document(
        &self,
        image: &RegistryRef,
        kind: &str,
        wanted: &str,
        accept: &str,
    ) -> Result<Vec<u8>, PullError> {
        let (mut resume, budget) = (Resume::default(), Budget::default());
        loop {
            let error = match self.document_once(image, kind, wanted, accept).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            let Some(asked) = error.again else { return Err(error) };
            match resume.broke(0, Instant::now(), &budget) {
                Some(attempt) => tokio::time::sleep(retry::pause(attempt, asked)).await,
                None => return Err(error),
            }
        }
    }

    /// From the first address that has it, and has the right one.
    async fn document_once(
        &self,
        image: &RegistryRef,
        kind: &str,
        wanted: &str,
        accept: &str,
    ) -> Result<Vec<u8>, PullError> {
        let mut last = None;
        for base in self.bases(&image.registry)? {
            let whole = async {
                let response = self.get(&base, image, &format!("{kind}/{wanted}"), accept, 0).await?;
                let bytes = body(image, response, MAX_DOCUMENT).await?;
                if wanted.starts_with("sha256:") && manifest::sha256(&bytes).to_string() != wanted {
                    let what = format!("{kind} of {image}: the bytes of {wanted} do not have its digest");
                    return Err(PullError::fatal(Reason::DigestMismatch, what));
                }
                Ok(bytes)
            };
            let result = tokio::time::timeout(DOCUMENT_TIMEOUT, whole).await.unwrap_or_else(|_| {
                let (registry, seconds) = (&image.registry, DOCUMENT_TIMEOUT.as_secs());
                Err(PullError::network(
                    format!("registry {registry}: no whole answer within {seconds} s"),
                    None,
                ))
            });
            match result {
                Ok(bytes) => return Ok(bytes),
                Err(error) => {
                    // That it does not have it is no fault.
                    if error.reason != Reason::ImageNotFound {
                        self.set_aside(&image.registry, &base);
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| PullError::fatal(Reason::Internal, "a registry has no address")))
    }

    /// A layer of this address broke or was wrong: the next try goes on elsewhere, if it was a mirror's.
    pub fn blame(&self, image: &RegistryRef, at: &Url) {
        self.set_aside(&image.registry, at);
    }

    /// Opens a blob at `offset`. The answer may begin at 0 all the same: its second part says how much to skip, its third
    /// who gave it.
    pub async fn blob(
        &self,
        image: &RegistryRef,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<(Response, u64, Url), PullError> {
        let mut last = None;
        for base in self.bases(&image.registry)? {
            match self.get(&base, image, &format!("blobs/{}", blob.digest), "*/*", offset).await {
                Ok(response) if response.status() == StatusCode::PARTIAL_CONTENT => {
                    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                    if range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-"))) {
                        return Ok((response, 0, base));
                    }
                    let what = format!("{image}: the registry sent another range than {offset}-");
                    last = Some(PullError::network(what, None));
                }
                // A server that ignores Range answers with all of it (RFC 9110 section 14.2).
                Ok(response) => return Ok((response, offset, base)),
                Err(error) => {
                    if error.reason != Reason::ImageNotFound {
                        self.set_aside(&image.registry, &base);
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| PullError::fatal(Reason::Internal, "a registry has no address")))
    }

    async fn get(
        &self,
        base: &Url,
        image: &RegistryRef,
        path: &str,
        accept: &str,
        offset: u64,
    ) -> Result<Response, PullError> {
        let url = base
            .join(&format!("/v2/{}/{path}", image.repository))
            .map_err(|error| PullError::fatal(Reason::ImageInvalid, format!("{image}: {error}")))?;
        let key = (base.to_string(), image.repository.clone());
        let http = &self.door(&image.registry, base).content;
        let send = |authorization: Option<Authorization>| {
            // reqwest drops Authorization when a redirect leads to another host.
            let mut request = http.get(url.clone()).header(ACCEPT, accept);
            if let Some(authorization) = authorization {
                request = authorization.put(request);
            }
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            async { request.send().await.map_err(|error| unreachable(image, &error)) }
        };
        let mut response = send(self.known(&key)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let authorization = self.authorize(base, image, response.headers()).await?;
            self.remember(key, authorization.clone());
            response = send(Some(authorization)).await?;
        }
        checked(image, response).await
    }

    fn known(&self, key: &(String, String)) -> Option<Authorization> {
        let known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|known| known.holds(Instant::now())).cloned()
    }

    fn remember(&self, key: (String, String), authorization: Authorization) {
        let mut known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key, authorization);
    }

    /// Answers a challenge; of several the first one of a kind that is known.
    async fn authorize(
        &self,
        base: &Url,
        image: &RegistryRef,
        headers: &HeaderMap,
    ) -> Result<Authorization, PullError> {
        let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenge = challenges.map(challenge::parse).find_map(|challenge| challenge);
        let section = self.section(&image.registry, base);
        let asker = Asker {
            door: &|url| self.door(&image.registry, url).tokens.clone(),
            image,
            base,
            realms: &section.realms,
            credentials: credentials::of(&authority(base), &section).await?,
        };
        asker.answer(challenge).await
    }
}
