//! An archive behind a server: GET with a range, always of one version (RFC 9110 sections 13.1.1 and 14).

use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_MATCH, RANGE};
use reqwest::{Response, StatusCode, Url};

use super::place::{Version, Watched};
use super::s3::Object;
use crate::registry::http::authority;
use crate::registry::trouble::Way;
use crate::registry::{PullError, retry};
use crate::types::Reason;

/// Where it is.
pub(super) enum Address {
    Url(Url),
    Object(Object),
}

/// A server that has the archive.
pub(super) struct Remote {
    name: String,
    http: reqwest::Client,
    address: Address,
    watched: Arc<Watched>,
    /// The answer to the first request, where it is all of the archive: it is read from it, and not asked for again.
    whole: Option<Mutex<Option<Response>>>,
}

/// What a `Content-Range` says: first and last byte, and how many there are.
#[derive(Debug, PartialEq)]
struct Range {
    first: u64,
    last: u64,
    total: u64,
}

impl Range {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = text(headers, CONTENT_RANGE)?.trim().strip_prefix("bytes")?.trim_start();
        let (range, total) = text.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok());
        Some(Self { first: number(first)??, last: number(last)??, total: number(total)?? })
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

impl Remote {
    /// Asks for the first byte: HEAD is refused by some, and a signature is for one method.
    pub async fn open(
        name: &str,
        http: reqwest::Client,
        address: Address,
        watched: &Arc<Watched>,
    ) -> Result<(Self, Version), PullError> {
        let mut remote = Self { name: name.to_owned(), http, address, watched: watched.clone(), whole: None };
        let nothing = Version { tag: String::new(), size: 0 };
        let asking = &remote;
        let response = retry::patiently(|| asking.send(&nothing, 0, 1)).await?;
        let headers = response.headers();
        let tag = text(headers, ETAG).unwrap_or_default().to_owned();
        let size = match response.status() {
            StatusCode::PARTIAL_CONTENT => Range::of(headers)
                .filter(|range| (range.first, range.last) == (0, 0))
                .map(|range| range.total),
            // Of nothing there is no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE => Some(0),
            _ => text(headers, CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        };
        let Some(size) = size else {
            let what = format!("{name}: its server does not say how long it is");
            return Err(PullError::fatal(Reason::ImageUnsupported, what));
        };
        if response.status() == StatusCode::OK {
            remote.whole = Some(Mutex::new(Some(response)));
        }
        Ok((remote, Version { tag, size }))
    }

    /// Whether it answered with a part when asked for one.
    pub fn has_ranges(&self) -> bool {
        self.whole.is_none()
    }

    /// A range of a version, and how many bytes of the answer come before it.
    pub async fn get(
        &self,
        version: &Version,
        offset: u64,
        length: u64,
    ) -> Result<(Response, u64), PullError> {
        let first = self.whole.as_ref().filter(|_| offset == 0);
        let first = first.and_then(|first| first.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(first) = first {
            return Ok((first, 0));
        }
        let response = self.send(version, offset, length).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // It was long enough.
            return Err(self.watched.changed(&self.name));
        }
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // A server that ignores Range answers with all of it (RFC 9110 section 14.2).
            let length: Option<u64> =
                text(response.headers(), CONTENT_LENGTH).and_then(|length| length.parse().ok());
            return match length {
                Some(length) if length != version.size => Err(self.watched.changed(&self.name)),
                _ => Ok((response, offset)),
            };
        }
        match Range::of(response.headers()) {
            Some(range) if range.total != version.size => Err(self.watched.changed(&self.name)),
            Some(range) if (range.first, range.last) == (offset, offset + length - 1) => Ok((response, 0)),
            _ => {
                let last = offset + length - 1;
                let what = format!("{}: asked for bytes {offset}-{last}, its server sends others", self.name);
                Err(PullError::network(what, None))
            }
        }
    }

    async fn send(&self, version: &Version, offset: u64, length: u64) -> Result<Response, PullError> {
        let url = match &self.address {
            Address::Url(url) => url.clone(),
            Address::Object(object) => object.sign().await?,
        };
        let mut request = self.http.get(url).header(RANGE, format!("bytes={offset}-{}", offset + length - 1));
        if version.is_telling() {
            request = request.header(IF_MATCH, &version.tag);
        }
        let response = request.send().await.map_err(|error| self.lost(&error))?;
        let status = response.status();
        let tag = text(response.headers(), ETAG).unwrap_or_default();
        let moved = !version.tag.is_empty() && status.is_success() && tag != version.tag;
        match status {
            _ if moved => Err(self.watched.changed(&self.name)),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            StatusCode::PRECONDITION_FAILED => Err(self.watched.changed(&self.name)),
            _ if self.region_of(&response).is_some() => {
                let (its, ours) = self.region_of(&response).unwrap_or_default();
                let what = format!(
                    "{}: its bucket is in the region {its}, and {ours} is asked: correct `region` of [s3]",
                    self.name
                );
                Err(PullError::retry(Reason::ConfigInvalid, what))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Err(PullError::fatal(Reason::ImageNotFound, format!("{} is not there", self.name)))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.forget_credentials().await;
                let what = format!("{}: its server does not let this host have it", self.name);
                Err(PullError::retry(Reason::Auth, what))
            }
            // What S3 answers to a token that is no longer good.
            StatusCode::BAD_REQUEST if matches!(self.address, Address::Object(_)) => {
                self.forget_credentials().await;
                let what = format!("{}: its server refuses the request or its credentials (400)", self.name);
                Err(PullError::retry(Reason::Auth, what))
            }
            status => {
                let what = format!("{}: its server answers {}", self.name, status.as_u16());
                let wait = retry::asked_to_wait(response.headers());
                Err(match retry::may_pass(status) {
                    true => PullError::network(what, wait),
                    false => PullError::retry(Reason::RegistryUnreachable, what),
                })
            }
        }
    }

    /// Where the bucket is and where it was looked for, if that is not one (S3, "Redirects and the bucket's region").
    fn region_of(&self, response: &Response) -> Option<(String, String)> {
        let Address::Object(object) = &self.address else { return None };
        let its = response.headers().get("x-amz-bucket-region")?.to_str().ok()?;
        (its != object.region() && !response.status().is_success())
            .then(|| (its.to_owned(), object.region().to_owned()))
    }

    /// A failure below HTTP.
    pub fn lost(&self, error: &reqwest::Error) -> PullError {
        let section = match &self.address {
            Address::Url(url) => format!("[registry.\"{}\"]", authority(url)),
            Address::Object(_) => "[s3]".to_owned(),
        };
        let whom = self.name.clone();
        Way { whom, section, chooses: false, elsewhere: None, proxy: None, certified: false }.trouble(error)
    }

    /// They may have been replaced: the next request looks for them anew.
    async fn forget_credentials(&self) {
        if let Address::Object(object) = &self.address {
            object.forget_credentials().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let range = |text: &str| {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, text.parse().unwrap())]);
            Range::of(&headers).map(|range| (range.first, range.last, range.total))
        };
        assert_eq!(range("bytes 0-0/17"), Some((0, 0, 17)));
        assert_eq!(range("bytes 5-16/17"), Some((5, 16, 17)));
        for bad in [
            "bytes */17",
            "bytes 0-0/*",
            "0-0/17",
            "bytes 0-0",
            "bytes +1-2/3",
            "lines 0-0/17",
            "bytes -1-2/3",
        ] {
            assert_eq!(range(bad), None, "{bad}");
        }
        assert_eq!(Range::of(&HeaderMap::new()), None);
    }
}
