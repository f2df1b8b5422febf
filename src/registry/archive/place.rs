//! Where an archive is, read by ranges of one version of it: a file, https, or S3.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use reqwest::header::{CONTENT_RANGE, ETAG, IF_MATCH, RANGE};
use reqwest::{Response, StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::s3::S3;
use crate::registry::{PullError, retry};
use crate::types::{Reason, SafeUrl};

/// Bytes that a file is read in.
const PART: u64 = 256 << 10;

/// One state of an archive: as long as it stays, so do its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::registry) struct Version {
    /// The server's ETag; of a file device, inode and time of change.
    tag: String,
    /// Bytes.
    pub size: u64,
}

impl Version {
    /// Whether the same version means the same bytes.
    pub fn is_telling(&self) -> bool {
        !self.tag.is_empty() && !self.tag.starts_with("W/")
    }
}

/// An archive that is there.
#[derive(Clone)]
pub(in crate::registry) struct Place {
    name: String,
    from: From,
    pub version: Version,
}

#[derive(Clone)]
enum From {
    File(Arc<File>),
    Http(reqwest::Client, Url),
    S3(reqwest::Client, Arc<S3>),
}

/// Bytes of a range as they come.
pub(in crate::registry) enum Part {
    File { file: Arc<File>, at: u64, end: u64, name: String },
    Http { response: Response, skip: u64, left: u64, name: String },
}

impl Place {
    /// Looks which version is there.
    pub async fn open(url: &SafeUrl, http: &reqwest::Client, s3: &S3) -> Result<Self, PullError> {
        let name = url.to_string();
        let text = url.as_str();
        if let Some(path) = text.strip_prefix("file://") {
            let missing = |error: std::io::Error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    PullError::fatal(Reason::ImageNotFound, format!("{name}: {error}"))
                }
                _ => PullError::io(&name, &error),
            };
            let no_file = || PullError::fatal(Reason::ImageInvalid, format!("{name} is no file"));
            // Before it is opened: a pipe would not return, and some devices do things (watchdogs, tapes).
            if !std::fs::metadata(path).map_err(missing)?.is_file() {
                return Err(no_file());
            }
            let file = File::open(path).map_err(missing)?;
            let meta = file.metadata().map_err(missing)?;
            if !meta.is_file() {
                return Err(no_file());
            }
            let (dev, ino, seconds, nanos) = (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec());
            let version = Version { tag: format!("{dev}-{ino}-{seconds}.{nanos}"), size: meta.len() };
            return Ok(Self { name, from: From::File(Arc::new(file)), version });
        }
        let from = if text.starts_with("s3://") {
            From::S3(http.clone(), Arc::new(s3.of(text).await?))
        } else {
            let url = text
                .parse()
                .map_err(|error| PullError::fatal(Reason::ConfigInvalid, format!("{name}: {error}")))?;
            From::Http(http.clone(), url)
        };
        // The first byte: HEAD is refused by some, and a signature is for one method.
        let mut place = Self { name, from, version: Version { tag: String::new(), size: 0 } };
        let response = place.send(0, 1).await?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let tag = header(ETAG).unwrap_or_default().to_owned();
        let size = match response.status() {
            StatusCode::PARTIAL_CONTENT => header(CONTENT_RANGE)
                .and_then(|range| range.rsplit_once('/'))
                .and_then(|(_, size)| size.parse().ok()),
            _ => response.content_length(),
        };
        let Some(size) = size else {
            let what = format!("{}: its server does not say how long it is", place.name);
            return Err(PullError::fatal(Reason::ImageUnsupported, what));
        };
        place.version = Version { tag, size };
        Ok(place)
    }

    /// Its address, without secrets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens `length` bytes from `offset`.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Part, PullError> {
        let end = offset.checked_add(length).filter(|end| *end <= self.version.size);
        let Some(end) = end else {
            let what = format!("{}: it ends before byte {}", self.name, offset.saturating_add(length));
            return Err(PullError::fatal(Reason::ImageInvalid, what));
        };
        let name = self.name.clone();
        if let From::File(file) = &self.from {
            return Ok(Part::File { file: file.clone(), at: offset, end, name });
        }
        let response = self.send(offset, length.max(1)).await?;
        // A server that ignores Range answers with all of it (RFC 9110 section 14.2).
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { offset };
        Ok(Part::Http { response, skip, left: length, name })
    }

    /// All of a small range.
    pub async fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, PullError> {
        let (mut resume, budget) = (retry::Resume::default(), retry::Budget::default());
        loop {
            let read = async {
                let mut part = self.read(offset, length).await?;
                let mut bytes = Vec::new();
                while let Some(chunk) = part.chunk().await? {
                    bytes.extend_from_slice(&chunk);
                }
                if bytes.len() as u64 == length {
                    return Ok(bytes);
                }
                Err(PullError::network(format!("{}: the connection was lost", self.name), None))
            };
            let error = match read.await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            let Some(asked) = error.again else { return Err(error) };
            match resume.broke(0, std::time::Instant::now(), &budget) {
                Some(attempt) => tokio::time::sleep(retry::pause(attempt, asked)).await,
                None => return Err(error),
            }
        }
    }

    async fn send(&self, offset: u64, length: u64) -> Result<Response, PullError> {
        let (http, url) = match &self.from {
            From::Http(http, url) => (http, url.clone()),
            From::S3(http, s3) => (http, s3.sign()),
            // Read by itself.
            From::File(_) => return Err(PullError::fatal(Reason::Internal, "a file has no server")),
        };
        let mut request = http.get(url).header(RANGE, format!("bytes={offset}-{}", offset + length - 1));
        if !self.version.tag.is_empty() && !self.version.tag.starts_with("W/") {
            request = request.header(IF_MATCH, &self.version.tag);
        }
        let lost = |error: reqwest::Error| lost(&self.name, &error);
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        let tag = response.headers().get(ETAG).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let moved = !self.version.tag.is_empty() && status.is_success() && tag != self.version.tag;
        match status {
            _ if moved => Err(self.changed()),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::PRECONDITION_FAILED => Err(self.changed()),
            StatusCode::NOT_FOUND => {
                Err(PullError::fatal(Reason::ImageNotFound, format!("{} is not there", self.name)))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let what = format!("{}: its server does not let this host have it", self.name);
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

    fn changed(&self) -> PullError {
        PullError::retry(Reason::DigestMismatch, format!("{} was changed while it was read", self.name))
    }
}

impl Part {
    /// The next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, PullError> {
        match self {
            Self::File { file, at, end, name } => {
                if at == end {
                    return Ok(None);
                }
                let (from, length) = (*at, PART.min(*end - *at));
                let file = file.clone();
                let read = tokio::task::spawn_blocking(move || {
                    // At most PART.
                    let mut bytes = vec![0; length as usize];
                    file.read_exact_at(&mut bytes, from).map(|()| bytes)
                });
                let bytes = read
                    .await
                    .map_err(std::io::Error::other)
                    .flatten()
                    .map_err(|error| PullError::io(&*name, &error))?;
                *at += length;
                Ok(Some(bytes.into()))
            }
            Self::Http { response, skip, left, name } => loop {
                if *left == 0 {
                    return Ok(None);
                }
                let Some(mut chunk) = response.chunk().await.map_err(|error| lost(name, &error))? else {
                    return Ok(None);
                };
                let skipped = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
                *skip -= skipped as u64;
                let _ = chunk.split_to(skipped);
                chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= chunk.len() as u64;
                if !chunk.is_empty() {
                    return Ok(Some(chunk));
                }
            },
        }
    }
}

/// Without the URL: it may carry a signature.
fn lost(name: &str, error: &reqwest::Error) -> PullError {
    let mut text = "the connection was lost".to_owned();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    PullError::network(format!("{name}: {text}"), None)
}
