//! The HTTP underneath: clients, redirects, and what answers mean here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{NoProxy, Proxy, Response, StatusCode, Url};

use super::{PullError, retry};
use crate::types::{Reason, RegistryRef};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest silence within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

const MAX_REDIRECTS: usize = 5;

/// Largest error document that is read.
const MAX_ERROR: usize = 1 << 20;

/// Characters of it that are shown.
const MAX_SAID: usize = 200;

/// `host[:port]`, as configuration names registries.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// At most five redirects, and none that gives up TLS.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if secure && attempt.url().scheme() != "https" {
            attempt.error("it redirects from https to http")
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
    /// For content: follows redirects.
    pub content: reqwest::Client,
    /// For secrets: a redirect would carry them on, and is an answer like any other.
    pub tokens: reqwest::Client,
}

impl Door {
    /// `whose` is for messages.
    pub fn new(whose: &str, tls: &Tls) -> Result<Self, PullError> {
        Ok(Self { content: build(whose, tls, redirects())?, tokens: build(whose, tls, Policy::none())? })
    }
}

/// The proxies of the environment, as in all that speaks http (curl(1), "ENVIRONMENT"); never for this host itself.
fn proxies() -> Result<Vec<Proxy>, PullError> {
    let variable = |name: &str| {
        let found = std::env::var(name.to_ascii_lowercase()).or_else(|_| std::env::var(name));
        found.ok().filter(|text| !text.is_empty())
    };
    let never = format!("{},localhost,127.0.0.0/8,::1", variable("NO_PROXY").unwrap_or_default());
    let mut proxies = Vec::new();
    type Make = fn(String) -> reqwest::Result<Proxy>;
    let kinds: [(&str, Make); 3] =
        [("HTTPS_PROXY", Proxy::https), ("HTTP_PROXY", Proxy::http), ("ALL_PROXY", Proxy::all)];
    for (name, make) in kinds {
        if let Some(url) = variable(name) {
            // The address may hold a password.
            let proxy = make(url).map_err(|_| {
                PullError::fatal(
                    Reason::ConfigInvalid,
                    format!("{name} in the environment is no address of a proxy"),
                )
            })?;
            proxies.push(proxy.no_proxy(NoProxy::from_string(&never)));
        }
    }
    Ok(proxies)
}

fn build(whose: &str, tls: &Tls, redirects: Policy) -> Result<reqwest::Client, PullError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("gitopsd/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .referer(false)
        .no_proxy()
        .redirect(redirects);
    for proxy in proxies()? {
        builder = builder.proxy(proxy);
    }
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

/// Sorts a status into what it means here, with the registry's own words where it has some.
pub(super) async fn checked(image: &RegistryRef, response: Response) -> Result<Response, PullError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let registry = &image.registry;
    let wait = retry::asked_to_wait(response.headers());
    let said = said(response).await;
    Err(match status {
        StatusCode::NOT_FOUND => {
            PullError::fatal(Reason::ImageNotFound, format!("registry {registry} has no {image}{said}"))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let what = format!("registry {registry} does not let this host have {image}{said}");
            PullError::retry(Reason::Auth, what)
        }
        status => {
            let what = format!("registry {registry} answers {} for {image}{said}", status.as_u16());
            if retry::may_pass(status) {
                PullError::network(what, wait)
            } else {
                PullError::retry(Reason::RegistryUnreachable, what)
            }
        }
    })
}

/// What a registry says of a refusal: `: CODE: message` (OCI distribution-spec, "Error Codes"); empty where it says
/// nothing that is understood.
async fn said(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if bytes.len() + chunk.len() > MAX_ERROR {
            return String::new();
        }
        bytes.extend_from_slice(&chunk);
    }
    let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let error = &document["errors"][0];
    let part = |key: &str| error[key].as_str().unwrap_or_default();
    let text =
        [part("code"), part("message")].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
    if text.is_empty() {
        return String::new();
    }
    // It is the registry's, and goes to logs and terminals.
    let shown: String = text.join(": ").chars().take(MAX_SAID).flat_map(char::escape_debug).collect();
    format!(" ({shown})")
}

/// A failure below HTTP, without the URL: it may carry a signature.
pub(super) fn unreachable(image: &RegistryRef, error: &reqwest::Error) -> PullError {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    let is_tls = ["certificate", "Certificate", "UnknownCA", "HandshakeFailure"]
        .iter()
        .any(|word| text.contains(word));
    let text = if text.is_empty() { "the connection was lost".to_owned() } else { text };
    let what = format!("registry {}: {text}", image.registry);
    if is_tls { PullError::retry(Reason::Tls, what) } else { PullError::network(what, None) }
}

/// All of an answer, up to a limit.
pub(super) async fn body(
    image: &RegistryRef,
    mut response: Response,
    limit: u64,
) -> Result<Vec<u8>, PullError> {
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
