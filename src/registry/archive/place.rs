//! Where an archive is, read by ranges of one version of it: a file, https, or S3.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::remote::{Address, Remote};
use super::s3::S3;
use crate::registry::client::Client;
use crate::registry::rate::{Rate, SLOWEST};
use crate::registry::{PullError, retry};
use crate::types::{Reason, SafeUrl};

/// Bytes that a file is read in.
const PART: u64 = 256 << 10;

/// One state of an archive: as long as it stays, so do its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::registry) struct Version {
    /// The server's ETag; of a file device, inode and time of change.
    pub tag: String,
    /// Bytes.
    pub size: u64,
}

impl Version {
    /// Whether the same version means the same bytes (RFC 9110 section 8.8.3).
    pub fn is_telling(&self) -> bool {
        !self.tag.is_empty() && !self.tag.starts_with("W/")
    }

    fn of(file: &File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        let (dev, ino, seconds, nanos) = (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec());
        Ok(Self { tag: format!("{dev}-{ino}-{seconds}.{nanos}"), size: meta.len() })
    }
}

/// What is seen of an archive while it is read, by all who read it.
#[derive(Debug, Default)]
pub(in crate::registry) struct Watched {
    moved: AtomicBool,
    received: AtomicU64,
}

impl Watched {
    /// Whether it was found changed while it was read: what was read of it belongs to no one version.
    pub fn has_moved(&self) -> bool {
        self.moved.load(Ordering::Relaxed)
    }

    /// Notes that it was.
    pub fn changed(&self, name: &str) -> PullError {
        self.moved.store(true, Ordering::Relaxed);
        PullError::retry(Reason::DigestMismatch, format!("{name} was changed while it was read"))
    }

    /// Notes bytes that came.
    pub fn count(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// An archive that is there.
#[derive(Clone)]
pub(in crate::registry) struct Place {
    name: String,
    from: From,
    pub version: Version,
    pub watched: Arc<Watched>,
}

#[derive(Clone)]
enum From {
    File(Arc<File>),
    Server(Arc<Remote>),
}

/// Bytes of a range as they come.
pub(in crate::registry) struct Part {
    name: String,
    /// Bytes that are still to come.
    left: u64,
    watched: Arc<Watched>,
    from: Stream,
    /// Of what comes from a server: what is read as a whole has nobody else to look at it.
    rate: Rate,
}

enum Stream {
    File {
        file: Arc<File>,
        at: u64,
        version: Version,
    },
    /// The answer may begin before what was asked for.
    Http {
        server: Arc<Remote>,
        response: reqwest::Response,
        skip: u64,
    },
}

impl Place {
    /// Looks which version is there. One without a byte is none.
    pub async fn open(url: &SafeUrl, client: &Client, s3: &Arc<S3>) -> Result<Self, PullError> {
        let (name, text) = (url.to_string(), url.as_str());
        let watched = Arc::new(Watched::default());
        let (from, version) = match text.strip_prefix("file://") {
            Some(path) => {
                let (file, version) = open_file(&name, Path::new(path))?;
                (From::File(Arc::new(file)), version)
            }
            None => {
                let address = match text.starts_with("s3://") {
                    true => Address::Object(s3.object(text).await?),
                    false => Address::Url(text.parse().map_err(|error| {
                        PullError::fatal(Reason::ConfigInvalid, format!("{name}: {error}"))
                    })?),
                };
                let http = if text.starts_with("s3://") { s3.http()? } else { client.http_of(text)?.clone() };
                let (remote, version) = Remote::open(&name, http, address, &watched).await?;
                (From::Server(Arc::new(remote)), version)
            }
        };
        if version.size == 0 {
            return Err(PullError::fatal(Reason::ImageInvalid, format!("{name} is empty")));
        }
        Ok(Self { name, from, version, watched })
    }

    /// A copy of an archive: messages name the archive.
    pub fn copy(name: &str, file: &Path) -> Result<Self, PullError> {
        let (file, version) = open_file(name, file)?;
        if version.size == 0 {
            return Err(PullError::fatal(Reason::ImageInvalid, format!("{name} holds nothing")));
        }
        Ok(Self { name: name.to_owned(), from: From::File(Arc::new(file)), version, watched: Arc::default() })
    }

    /// Its address, without secrets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that came from it so far.
    pub fn received(&self) -> u64 {
        self.watched.received.load(Ordering::Relaxed)
    }

    /// Whether parts of it can be had; else a look at its middle costs all that is before it.
    pub fn has_ranges(&self) -> bool {
        match &self.from {
            From::File(_) => true,
            From::Server(remote) => remote.has_ranges(),
        }
    }

    /// Opens `length` bytes from `offset`.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Part, PullError> {
        if offset.checked_add(length).is_none_or(|end| end > self.version.size) {
            let what = format!("{}: it ends before byte {}", self.name, offset.saturating_add(length));
            return Err(PullError::fatal(Reason::ImageInvalid, what));
        }
        let from = match &self.from {
            From::File(file) => {
                let now = Version::of(file).map_err(|error| PullError::io(&self.name, &error))?;
                if now != self.version {
                    return Err(self.watched.changed(&self.name));
                }
                Stream::File { file: file.clone(), at: offset, version: now }
            }
            From::Server(remote) => {
                let (response, skip) = remote.get(&self.version, offset, length.max(1)).await?;
                Stream::Http { server: remote.clone(), response, skip }
            }
        };
        let (name, watched) = (self.name.clone(), self.watched.clone());
        Ok(Part { name, left: length, watched, from, rate: Rate::default() })
    }

    /// All of a small range.
    pub async fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, PullError> {
        retry::patiently(|| async move {
            let mut part = self.read(offset, length).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = part.chunk().await? {
                bytes.extend_from_slice(&chunk);
            }
            match bytes.len() as u64 == length {
                true => Ok(bytes),
                false => Err(PullError::network(format!("{}: the connection was lost", self.name), None)),
            }
        })
        .await
    }
}

fn open_file(name: &str, path: &Path) -> Result<(File, Version), PullError> {
    let missing = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => PullError::fatal(Reason::ImageNotFound, format!("{name}: {error}")),
        _ => PullError::io(name, &error),
    };
    let no_file = || PullError::fatal(Reason::ImageInvalid, format!("{name} is no file"));
    // Before it is opened: a pipe would not return, and some devices do things (watchdogs, tapes).
    if !std::fs::metadata(path).map_err(missing)?.is_file() {
        return Err(no_file());
    }
    let file = File::open(path).map_err(missing)?;
    if !file.metadata().map_err(missing)?.is_file() {
        return Err(no_file());
    }
    let version = Version::of(&file).map_err(missing)?;
    Ok((file, version))
}

impl Part {
    /// The next bytes; `None` at the end, or where the connection ended before it.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, PullError> {
        while self.left > 0 {
            let Some(mut chunk) = self.next().await? else { return Ok(None) };
            chunk.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= chunk.len() as u64;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    async fn next(&mut self) -> Result<Option<bytes::Bytes>, PullError> {
        let Self { name, left, watched, from, rate } = self;
        match from {
            Stream::File { file, at, version } => {
                let (offset, length) = (*at, PART.min(*left));
                let (file, version) = (file.clone(), version.clone());
                let read = tokio::task::spawn_blocking(move || {
                    // At most PART.
                    let mut bytes = vec![0; length as usize];
                    file.read_exact_at(&mut bytes, offset)?;
                    // It is as it was, also after these bytes were read.
                    let same = Version::of(&file)? == version;
                    if same { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
                });
                let bytes = match read.await.map_err(std::io::Error::other).flatten() {
                    Ok(bytes) => bytes,
                    // It was long enough.
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                        return Err(watched.changed(name));
                    }
                    Err(error) => return Err(PullError::io(&*name, &error)),
                };
                *at += length;
                watched.count(length);
                Ok(Some(bytes.into()))
            }
            Stream::Http { server, response, skip } => {
                let begun = Instant::now();
                let chunk = response.chunk().await.map_err(|error| server.lost(&error))?;
                let Some(mut chunk) = chunk else { return Ok(None) };
                if !rate.is_fair(chunk.len() as u64, begun.elapsed()) {
                    let what = format!("{name} comes with less than {SLOWEST} bytes a second");
                    return Err(PullError::network(what, None));
                }
                watched.count(chunk.len() as u64);
                let skipped = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
                *skip -= skipped as u64;
                let _ = chunk.split_to(skipped);
                Ok(Some(chunk))
            }
        }
    }
}
