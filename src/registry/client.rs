//! The distribution API, the half that reads (OCI distribution-spec, "Pulling").

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode, Url};

use super::PullError;
use super::auth::{self, Challenge};
use super::manifest::{self, Descriptor, MAX_DOCUMENT, Manifest, Parsed};
use crate::config::agent::RegistryConfig;
use crate::types::{Reason, RegistryRef};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest silence within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Tries of one request against a network that fails.
const TRIES: u32 = 3;

/// Largest answer of a token service.
const MAX_TOKEN: u64 = 1 << 20;

/// Speaks to registries.
pub(super) struct Client {
    hosts: BTreeMap<String, RegistryConfig>,
    plain: reqwest::Client,
    /// Clients with an authority of their own, by registry.
    own: BTreeMap<String, reqwest::Client>,
    /// What to send as Authorization, by registry and repository.
    authorizations: Mutex<HashMap<(String, String), HeaderValue>>,
}

impl Client {
    pub fn new(hosts: BTreeMap<String, RegistryConfig>) -> Result<Self, PullError> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = build(None)?;
        let mut own = BTreeMap::new();
        for (host, config) in &hosts {
            if let Some(file) = &config.ca_file {
                let pem = std::fs::read(file).map_err(|error| {
                    PullError::fatal(
                        Reason::Tls,
                        format!("ca_file {} of registry {host}: {error}", file.display()),
                    )
                })?;
                own.insert(host.clone(), build(Some((host, &pem)))?);
            }
        }
        Ok(Self { hosts, plain, own, authorizations: Mutex::default() })
    }

    fn http(&self, registry: &str) -> &reqwest::Client {
        self.own.get(registry).unwrap_or(&self.plain)
    }

    fn config(&self, registry: &str) -> RegistryConfig {
        self.hosts.get(registry).cloned().unwrap_or_default()
    }

    /// Where a registry is: its mirrors in order, then itself.
    fn bases(&self, registry: &str) -> Result<Vec<Url>, PullError> {
        let config = self.config(registry);
        // Docker Hub's registry has another name than its references.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if config.plain_http { "http" } else { "https" };
        let texts =
            config.mirrors.iter().map(|url| url.as_str().to_owned()).chain([format!("{scheme}://{host}")]);
        texts
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

    /// This platform's image manifest. `wanted` is a tag or a digest; of an index the right entry is followed.
    pub async fn manifest(&self, image: &RegistryRef, wanted: &str) -> Result<Manifest, PullError> {
        let mut wanted = wanted.to_owned();
        for _ in 0..2 {
            let name = image.to_string();
            let bytes = self.document(image, &format!("manifests/{wanted}"), manifest::ACCEPT).await?;
            if wanted.starts_with("sha256:") && manifest::sha256(&bytes).to_string() != wanted {
                let what = format!("the manifest of {name} does not have the digest {wanted}");
                return Err(PullError::fatal(Reason::DigestMismatch, what));
            }
            match manifest::parse(&name, &bytes)? {
                Parsed::Image(manifest) => return Ok(manifest),
                Parsed::Index(descriptor) => wanted = descriptor.digest.to_string(),
            }
        }
        Err(PullError::fatal(Reason::ImageInvalid, format!("{image} is an index of an index")))
    }

    /// A small blob, checked.
    pub async fn small_blob(&self, image: &RegistryRef, blob: &Descriptor) -> Result<Vec<u8>, PullError> {
        let bytes = self.document(image, &format!("blobs/{}", blob.digest), "*/*").await?;
        if manifest::sha256(&bytes) != blob.digest {
            let what = format!("{} of {image} does not have its digest", blob.digest);
            return Err(PullError::fatal(Reason::DigestMismatch, what));
        }
        Ok(bytes)
    }

    async fn document(&self, image: &RegistryRef, path: &str, accept: &str) -> Result<Vec<u8>, PullError> {
        let mut last = None;
        for base in self.bases(&image.registry)? {
            for attempt in 0..TRIES {
                let result = match self.get(&base, image, path, accept, 0).await {
                    Ok(response) => body(image, response, MAX_DOCUMENT).await,
                    Err(error) => Err(error),
                };
                match result {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) if error.is_network() && attempt + 1 < TRIES => {
                        last = Some(error);
                        tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                    }
                    Err(error) => {
                        last = Some(error);
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| PullError::fatal(Reason::Internal, "a registry has no address")))
    }

    /// Opens a blob at `offset`. The answer may begin at 0 all the same: its second part says how much to skip.
    pub async fn blob(
        &self,
        image: &RegistryRef,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<(Response, u64), PullError> {
        let mut last = None;
        for base in self.bases(&image.registry)? {
            match self.get(&base, image, &format!("blobs/{}", blob.digest), "*/*", offset).await {
                Ok(response) if response.status() == StatusCode::PARTIAL_CONTENT => {
                    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                    if range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-"))) {
                        return Ok((response, 0));
                    }
                    let what = format!("{image}: the registry sent another range than {offset}-");
                    last = Some(PullError::retry(Reason::RegistryUnreachable, what));
                }
                // A server that ignores Range answers with all of it (RFC 9110 section 14.2).
                Ok(response) => return Ok((response, offset)),
                Err(error) => last = Some(error),
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
        let mut response = self.send(&url, image, accept, offset, self.known(&key)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let authorization = self.authorize(base, image, response.headers()).await?;
            self.authorizations
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(key, authorization.clone());
            response = self.send(&url, image, accept, offset, Some(authorization)).await?;
        }
        checked(image, response)
    }

    fn known(&self, key: &(String, String)) -> Option<HeaderValue> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    async fn send(
        &self,
        url: &Url,
        image: &RegistryRef,
        accept: &str,
        offset: u64,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, PullError> {
        // reqwest drops Authorization when a redirect leads to another host.
        let mut request = self.http(&image.registry).get(url.clone()).header(ACCEPT, accept);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        request.send().await.map_err(|error| unreachable(image, &error))
    }

    /// Answers a challenge.
    async fn authorize(
        &self,
        base: &Url,
        image: &RegistryRef,
        headers: &HeaderMap,
    ) -> Result<HeaderValue, PullError> {
        let refuse = |what: String| PullError::retry(Reason::Auth, what);
        let challenge =
            headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).and_then(auth::parse);
        let host = base.host_str().unwrap_or_default();
        let credentials = auth::credentials(host, &self.config(&image.registry))?;
        let header = match challenge {
            None => {
                return Err(refuse(format!(
                    "registry {host} asks for credentials in a way that is not known"
                )));
            }
            Some(Challenge::Basic) => {
                let (user, password) =
                    credentials.ok_or_else(|| refuse(format!("registry {host} asks for a password")))?;
                basic(&user, &password)
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let mut url: Url = realm
                    .parse()
                    .map_err(|_| refuse(format!("registry {host} names a token service that is no URL")))?;
                if !auth::realm_is_allowed(&url, base) {
                    let shown = url.host_str().unwrap_or_default().to_owned();
                    return Err(refuse(format!(
                        "registry {host} sends its clients to {shown} for tokens, which is not its own"
                    )));
                }
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", image.repository));
                url.query_pairs_mut().append_pair("scope", &scope);
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", &service);
                }
                let mut request = self.http(&image.registry).get(url);
                if let Some((user, password)) = credentials {
                    request = request.basic_auth(user, Some(password));
                }
                let response =
                    checked(image, request.send().await.map_err(|error| unreachable(image, &error))?)?;
                let answer: serde_json::Value =
                    serde_json::from_slice(&body(image, response, MAX_TOKEN).await?).map_err(|_| {
                        refuse(format!("the token service of registry {host} does not answer in JSON"))
                    })?;
                let token = answer["token"].as_str().or_else(|| answer["access_token"].as_str());
                format!(
                    "Bearer {}",
                    token.ok_or_else(|| refuse(format!(
                        "the token service of registry {host} gives no token"
                    )))?
                )
            }
        };
        let mut value = HeaderValue::from_str(&header)
            .map_err(|_| refuse(format!("odd credentials for registry {host}")))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn basic(user: &str, password: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("Basic ");
    // RFC 4648 section 4.
    for chunk in format!("{user}:{password}").as_bytes().chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]);
            text.push(if place <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

fn build(authority: Option<(&str, &[u8])>) -> Result<reqwest::Client, PullError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("gitopsd/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(reqwest::redirect::Policy::limited(5));
    if let Some((host, pem)) = authority {
        let invalid = |error| PullError::fatal(Reason::Tls, format!("ca_file of registry {host}: {error}"));
        for certificate in reqwest::Certificate::from_pem_bundle(pem).map_err(invalid)? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder
        .build()
        .map_err(|error| PullError::fatal(Reason::Internal, format!("making an http client: {error}")))
}

/// Sorts a status into what it means here.
fn checked(image: &RegistryRef, response: Response) -> Result<Response, PullError> {
    let status = response.status();
    let registry = &image.registry;
    match status {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => {
            Err(PullError::fatal(Reason::ImageNotFound, format!("registry {registry} has no {image}")))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(PullError::retry(
            Reason::Auth,
            format!("registry {registry} does not let this host have {image}"),
        )),
        status => {
            let what = format!("registry {registry} answers {} for {image}", status.as_u16());
            Err(PullError::retry(Reason::RegistryUnreachable, what))
        }
    }
}

/// A failure below HTTP, without the URL: it may carry a signature.
pub(super) fn unreachable(image: &RegistryRef, error: &reqwest::Error) -> PullError {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    let reason = if text.contains("certificate") { Reason::Tls } else { Reason::RegistryUnreachable };
    let text = if text.is_empty() { "the connection was lost".to_owned() } else { text };
    PullError::retry(reason, format!("registry {}: {text}", image.registry))
}

async fn body(image: &RegistryRef, mut response: Response, limit: u64) -> Result<Vec<u8>, PullError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(image, &error))? {
        if bytes.len() as u64 + chunk.len() as u64 > limit {
            return Err(PullError::fatal(
                Reason::ImageInvalid,
                format!("{image}: a document of more than {limit} bytes"),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn basic_is_base64() {
        assert_eq!(super::basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(super::basic("ab", "c"), "Basic YWI6Yw==");
    }
}
