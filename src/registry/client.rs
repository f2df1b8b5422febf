//! The distribution API, the half that reads (OCI distribution-spec, "Pulling").

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
    LOCATION, RANGE, TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode, Url};

use super::address::{Address, Aside};
use super::answer::{Asked, body, checked};
use super::http::{Doors, MAX_REDIRECTS, authority};
use super::manifest::{self, Descriptor, MAX_DOCUMENT, Manifest, Parsed};
use super::retry::{self, Budget, Resume};
use super::session::{Sessions, Ticket};
use super::token::{Asker, Authorization};
use super::trouble::Way;
use super::{PullError, challenge, credentials};
use crate::config::agent::RegistryConfig;
use crate::types::{Digest, Reason, RegistryRef};

/// A document is small: it is here within this time, or broken.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Speaks to registries.
pub(super) struct Client {
    hosts: BTreeMap<String, RegistryConfig>,
    doors: Doors,
    sessions: Sessions,
    aside: Aside,
}

/// A blob that is being sent.
pub(super) struct Blob {
    pub response: Response,
    /// Bytes before those that were asked for.
    pub skip: u64,
    /// Who was asked.
    pub address: Address,
}

/// What is asked of an address.
struct Request<'a> {
    url: Url,
    accept: &'a str,
    /// The first byte that is wanted.
    offset: u64,
}

impl Client {
    pub fn new(hosts: BTreeMap<String, RegistryConfig>) -> Result<Self, PullError> {
        let doors = Doors::new(&hosts)?;
        Ok(Self { hosts, doors, sessions: Sessions::default(), aside: Aside::default() })
    }

    /// The client for an archive's address: a section of its authority has its certificates.
    pub fn http_of(&self, address: &str) -> Result<&reqwest::Client, PullError> {
        self.doors.archive(address)
    }

    fn config(&self, section: &str) -> RegistryConfig {
        self.hosts.get(section).cloned().unwrap_or_default()
    }

    /// Where a registry is, in the order in which to ask.
    fn addresses(&self, registry: &str) -> Result<Vec<Address>, PullError> {
        Address::all(registry, &self.config(registry), &self.aside)
    }

    /// This platform's image manifest. `wanted` is a tag or a digest; of an index the right entry is followed.
    pub async fn manifest(
        &self,
        image: &RegistryRef,
        wanted: &str,
        budget: &Budget,
    ) -> Result<Manifest, PullError> {
        Ok(self.manifest_and_top(image, wanted, budget).await?.0)
    }

    /// The same, and the digest of what `wanted` stands for on every platform: of the index, where it is one.
    pub async fn manifest_and_top(
        &self,
        image: &RegistryRef,
        wanted: &str,
        budget: &Budget,
    ) -> Result<(Manifest, Digest), PullError> {
        let mut wanted = wanted.to_owned();
        let mut top = None;
        for _ in 0..2 {
            let name = image.to_string();
            let bytes = self.document(image, "manifests", &wanted, manifest::ACCEPT, budget).await?;
            let top = top.get_or_insert_with(|| manifest::sha256(&bytes)).clone();
            match manifest::parse(&name, &bytes)? {
                Parsed::Image(manifest) => return Ok((*manifest, top)),
                Parsed::Index(all) => wanted = manifest::choose(&name, all)?.digest.to_string(),
            }
        }
        Err(PullError::fatal(Reason::ImageInvalid, format!("{image} is an index of an index")))
    }

    /// What a tag stands for on every platform: the digest of its index, or of its manifest where it is for one.
    pub async fn top(&self, image: &RegistryRef, tag: &str, budget: &Budget) -> Result<Digest, PullError> {
        let bytes = self.document(image, "manifests", tag, manifest::ACCEPT, budget).await?;
        manifest::parse(&image.to_string(), &bytes)?;
        Ok(manifest::sha256(&bytes))
    }

    /// A small blob, checked.
    pub async fn small_blob(
        &self,
        image: &RegistryRef,
        blob: &Descriptor,
        budget: &Budget,
    ) -> Result<Vec<u8>, PullError> {
        self.document(image, "blobs", &blob.digest.to_string(), "*/*", budget).await
    }

    /// A small document, by its tag or digest.
    async fn document(
        &self,
        image: &RegistryRef,
        kind: &str,
        wanted: &str,
        accept: &str,
        budget: &Budget,
    ) -> Result<Vec<u8>, PullError> {
        let mut resume = Resume::begin(Instant::now());
        loop {
            let mut refusals = Refusals::default();
            for address in self.addresses(&image.registry)? {
                let once = self.document_of(&address, image, kind, wanted, accept);
                let result = tokio::time::timeout(DOCUMENT_TIMEOUT, once).await.unwrap_or_else(|_| {
                    let seconds = DOCUMENT_TIMEOUT.as_secs();
                    Err(PullError::network(format!("{address}: no whole answer within {seconds} s"), None))
                });
                match result {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => refusals.note(&self.aside, &address, error),
                }
                if refusals.is_final() {
                    break;
                }
            }
            let error = refusals.into_error();
            let Some(asked) = error.again else { return Err(error) };
            match resume.broke(0, Instant::now(), budget) {
                Some(attempt) => tokio::time::sleep(retry::pause(attempt, asked)).await,
                None => return Err(error.and(resume.told(Instant::now()))),
            }
        }
    }

    async fn document_of(
        &self,
        address: &Address,
        image: &RegistryRef,
        kind: &str,
        wanted: &str,
        accept: &str,
    ) -> Result<Vec<u8>, PullError> {
        let url = address.url(image, &format!("{kind}/{wanted}"))?;
        let response = self.get(address, image, &Request { url, accept, offset: 0 }).await?;
        let headers = response.headers().clone();
        let page = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if page.is_some_and(|page| page.to_ascii_lowercase().starts_with("text/html")) {
            let what = format!(
                "{address} sends a page of HTML for {image}: is it a registry, or does a proxy ask to log in?"
            );
            return Err(PullError::retry(Reason::RegistryUnreachable, what));
        }
        let lost = |error: &reqwest::Error| self.way(address, &address.api().clone()).trouble(error);
        let bytes = body(Asked::of(address, image), response, MAX_DOCUMENT, &lost).await?;
        let found = manifest::sha256(&bytes).to_string();
        if wanted.starts_with("sha256:") {
            if found != wanted {
                let what =
                    format!("{address}: the bytes of {wanted} ({kind} of {image}) do not have its digest");
                return Err(PullError::retry(Reason::DigestMismatch, what));
            }
            return Ok(bytes);
        }
        // Of a tag nobody knows the digest, but who sends it says it (OCI distribution-spec, "Pulling manifests").
        let said = headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
        if let Some(said) = said.filter(|said| said.starts_with("sha256:") && *said != found) {
            let what =
                format!("{address} says that {image} is {said}, and sends bytes with the digest {found}");
            return Err(PullError::retry(Reason::DigestMismatch, what));
        }
        Ok(bytes)
    }

    /// What this address sent broke, or was wrong: the next try goes on elsewhere, if it was a mirror's.
    pub fn blame(&self, address: &Address) {
        self.aside.put(address, Instant::now());
    }

    /// What it means that a blob broke off.
    pub fn lost(&self, blob: &Blob, error: &reqwest::Error) -> PullError {
        self.way(&blob.address, blob.response.url()).trouble(error)
    }

    /// Opens a blob at `offset`. The answer may begin at 0 all the same.
    pub async fn blob(&self, image: &RegistryRef, blob: &Descriptor, offset: u64) -> Result<Blob, PullError> {
        let mut refusals = Refusals::default();
        for address in self.addresses(&image.registry)? {
            match self.blob_of(&address, image, blob, offset).await {
                Ok((response, skip)) => return Ok(Blob { response, skip, address }),
                Err(error) => refusals.note(&self.aside, &address, error),
            }
            if refusals.is_final() {
                break;
            }
        }
        Err(refusals.into_error())
    }

    async fn blob_of(
        &self,
        address: &Address,
        image: &RegistryRef,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<(Response, u64), PullError> {
        let url = address.url(image, &format!("blobs/{}", blob.digest))?;
        let response = self.get(address, image, &Request { url, accept: "*/*", offset }).await?;
        let skip = placed(address, image, blob, offset, &response)?;
        Ok((response, skip))
    }

    fn way(&self, address: &Address, url: &Url) -> Way<'_> {
        Way {
            whom: address.to_string(),
            section: format!("[registry.\"{}\"]", address.section()),
            chooses: true,
            elsewhere: (!address.has(url)).then(|| authority(url)),
            proxy: self.doors.proxy(url),
            certified: self.doors.is_certified(address, url),
        }
    }

    /// Asks, and says who this host is where that is wanted.
    async fn get(
        &self,
        address: &Address,
        image: &RegistryRef,
        request: &Request<'_>,
    ) -> Result<Response, PullError> {
        let session = self.sessions.of(address.api().as_str(), &image.repository);
        let (mut ticket, mut fresh) = (session.ticket(), false);
        loop {
            let response = self.send(address, request, ticket.as_ref()).await?;
            // Only the address itself may ask who this host is.
            let asked = response.status() == StatusCode::UNAUTHORIZED && address.has(response.url());
            if !asked || fresh {
                let known = ticket.as_ref().map(|ticket| &ticket.authorization);
                let asked = Asked::of(address, image);
                return match known {
                    Some(known) => {
                        checked(Asked { origin: known.origin(), hidden: known.hidden(), ..asked }, response)
                            .await
                    }
                    None => checked(asked, response).await,
                };
            }
            let headers = response.headers().clone();
            // The connection is not held while another one is asked.
            drop(response);
            // Who waits for the same has no other limit: a layer may take its time, what lets it be had may not.
            let ask = async {
                let asked = self.authorize(address, image, &headers);
                tokio::time::timeout(DOCUMENT_TIMEOUT, asked).await.unwrap_or_else(|_| {
                    let seconds = DOCUMENT_TIMEOUT.as_secs();
                    let what = format!("{address}: its token service has not answered within {seconds} s");
                    Err(PullError::network(what, None))
                })
            };
            let renewed = session.renew(ticket.as_ref(), ask).await?;
            (ticket, fresh) = (Some(renewed.ticket), renewed.fresh);
        }
    }

    /// Sends a request, and follows where it is led. What says who this host is stays with the address.
    async fn send(
        &self,
        address: &Address,
        request: &Request<'_>,
        ticket: Option<&Ticket>,
    ) -> Result<Response, PullError> {
        let mut url = request.url.clone();
        let mut at_home = true;
        for _ in 0..=MAX_REDIRECTS {
            at_home &= address.has(&url);
            let mut asking = self.doors.client(address, &url)?.get(url.clone());
            asking = asking.header(ACCEPT, request.accept).header(ACCEPT_ENCODING, "identity");
            if let Some(ticket) = ticket.filter(|_| at_home) {
                asking = ticket.authorization.put(asking);
            }
            if request.offset > 0 {
                asking = asking.header(RANGE, format!("bytes={}-", request.offset));
            }
            let response = asking.send().await.map_err(|error| self.way(address, &url).trouble(&error))?;
            let followed = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let next = response.headers().get(LOCATION).and_then(|place| place.to_str().ok());
            let Some(next) = next.filter(|_| followed) else { return Ok(response) };
            // The place may carry a signature: it is not shown.
            let refuse = |why: &str| {
                PullError::retry(Reason::RegistryUnreachable, format!("{address} redirects {why}"))
            };
            let next = url.join(next).map_err(|_| refuse("to what is no URL"))?;
            match (url.scheme(), next.scheme()) {
                ("https", "http") => return Err(refuse("from https to http")),
                (_, "https" | "http") => url = next,
                _ => return Err(refuse("to what is not on the web")),
            }
        }
        let what = format!("{address} redirects more than {MAX_REDIRECTS} times: too many");
        Err(PullError::retry(Reason::RegistryUnreachable, what))
    }

    /// Answers a challenge; of several the first one of a kind that is known.
    async fn authorize(
        &self,
        address: &Address,
        image: &RegistryRef,
        headers: &HeaderMap,
    ) -> Result<Authorization, PullError> {
        let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenge = challenges.map(challenge::parse).find_map(|challenge| challenge);
        let section = address.section();
        let config = self.config(&section);
        let (authority, repository) = (address.authority(), address.repository(image));
        let found = credentials::of(&authority, &repository, &section, &config).await?;
        let asker = Asker { doors: &self.doors, image, address, realms: &config.realms, found };
        asker.answer(challenge).await
    }
}

/// Why nobody has something.
#[derive(Default)]
struct Refusals {
    /// Of the registry itself.
    own: Option<PullError>,
    mirrors: Vec<PullError>,
}

impl Refusals {
    fn note(&mut self, aside: &Aside, address: &Address, error: PullError) {
        // That it does not have it is no fault.
        if error.reason != Reason::ImageNotFound {
            aside.put(address, Instant::now());
        }
        if address.is_mirror() { self.mirrors.push(error) } else { self.own = Some(error) }
    }

    /// The registry knows what it does not have; who only stands for it, and failed before, has no more to say.
    fn is_final(&self) -> bool {
        self.own.as_ref().is_some_and(|error| error.reason == Reason::ImageNotFound)
    }

    /// The registry's own counts; what was wrong with mirrors is told beside it. Where one of these may have it a moment
    /// later, it is worth another try: not every host can reach the registry itself.
    fn into_error(self) -> PullError {
        let none = || PullError::fatal(Reason::Internal, "a registry has no address");
        let mut own = self.own.unwrap_or_else(none);
        if own.reason != Reason::ImageNotFound {
            own.again = own.again.or_else(|| self.mirrors.iter().find_map(|error| error.again));
        }
        let troubles = self.mirrors.into_iter().filter(|error| error.reason != Reason::ImageNotFound);
        troubles.fold(own, PullError::and)
    }
}

/// How many bytes an answer has before those that were asked for; an error where that cannot be told.
fn placed(
    address: &Address,
    image: &RegistryRef,
    blob: &Descriptor,
    offset: u64,
    response: &Response,
) -> Result<u64, PullError> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let digest = &blob.digest;
    let partial = response.status() == StatusCode::PARTIAL_CONTENT;
    // It was asked for as it is. What calls itself packed and has the right length is meant so: stores tell of the file.
    let packed = header(CONTENT_ENCODING).filter(|coding| !coding.eq_ignore_ascii_case("identity"));
    let left = if partial { blob.size.saturating_sub(offset) } else { blob.size };
    let length = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let transfer = header(TRANSFER_ENCODING).filter(|coding| !coding.trim().eq_ignore_ascii_case("chunked"));
    if let Some(coding) = transfer.or(packed.filter(|_| length != Some(left))) {
        let what = format!(
            "{address}: layer {digest} of {image} comes packed once more ({coding}), which was not asked for: does a proxy do that?"
        );
        return Err(PullError::retry(Reason::RegistryUnreachable, what));
    }
    if !partial {
        // A server that ignores Range answers with all of it (RFC 9110 section 14.2).
        return Ok(offset);
    }
    let range = header(CONTENT_RANGE).and_then(|range| range.trim().strip_prefix("bytes "));
    let (first, total) = match range.and_then(|range| range.split_once('/')) {
        Some((range, total)) => (range.split('-').next().unwrap_or_default(), total),
        None => ("", ""),
    };
    let whole = total == "*" || total.parse() == Ok(blob.size);
    if first.parse() == Ok(offset) && whole {
        return Ok(0);
    }
    let what = format!("{address}: layer {digest} of {image} comes with another range than {offset}-");
    Err(PullError::network(what, None))
}
