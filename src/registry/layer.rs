//! One layer: network -> (hash, inflate) -> (hash, tar, write), three stages with bounded channels between them.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use reqwest::Response;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::{UnboundedSender, channel};
use tokio::sync::watch;

use super::PullError;
use super::client::{Client, unreachable};
use super::manifest::{Descriptor, Packing};
use super::store::Temporary;
use super::unpack::{self, Implied};
use crate::types::{Digest, Reason, RegistryRef};

/// Bytes handed from one stage to the next at a time.
const CHUNK: usize = 256 << 10;

/// Chunks that may wait between two stages: bounds the memory of a pull.
const WAITING: usize = 4;

/// Tries without progress before a broken download is given up.
const TRIES: u32 = 5;

/// Progress that makes a further try worth it, however many there were (as podman does).
const WORTH_ANOTHER: u64 = 1 << 20;

/// Most bytes a layer may unpack to.
const MAX_UNPACKED: u64 = 16 << 30;

/// What is to be fetched, and where to.
pub(super) struct Job {
    pub image: RegistryRef,
    pub descriptor: Descriptor,
    pub diff_id: Digest,
    pub packing: Packing,
    pub target: Arc<Temporary>,
    /// Told of each part of the layer that arrives, once.
    pub counter: UnboundedSender<u64>,
    /// All that came over the network, also what came twice.
    pub received: Arc<AtomicU64>,
    /// Turns true when nobody wants the layer any more.
    pub stopped: watch::Receiver<bool>,
}

/// Fetches, checks and unpacks a layer below `target/fs`. Nothing is durable yet.
pub(super) async fn fetch(client: &Client, job: Job) -> Result<Implied, PullError> {
    let (sender, receiver) = channel::<bytes::Bytes>(WAITING);
    let name = format!("layer {} of {}", job.descriptor.digest, job.image);
    let stages = Stages {
        name: name.clone(),
        packing: job.packing,
        target: job.target.tree(),
        most: MAX_UNPACKED,
        _keeps: Some(job.target.clone()),
    };
    let (expected, diff_id) = (job.descriptor.digest.clone(), job.diff_id.clone());
    let unpacking = tokio::task::spawn_blocking(move || stages.run(receiver, &expected, &diff_id));
    let mut stopped = job.stopped.clone();
    let downloaded = tokio::select! {
        result = download(client, &job, &sender) => result,
        _ = stopped.wait_for(|stopped| *stopped) => {
            Err(PullError::retry(Reason::Internal, format!("{name}: given up")))
        }
    };
    drop(sender);
    let unpacked =
        unpacking.await.map_err(|error| PullError::retry(Reason::Internal, format!("{name}: {error}")))?;
    // A broken download also breaks what unpacks it: its own error says more.
    downloaded.and(unpacked)
}

/// Sends the blob's bytes on, in order, each once, however often the connection breaks.
async fn download(
    client: &Client,
    job: &Job,
    to: &tokio::sync::mpsc::Sender<bytes::Bytes>,
) -> Result<(), PullError> {
    let size = job.descriptor.size;
    let (mut offset, mut tries, mut reached) = (0u64, 0u32, 0u64);
    loop {
        let result = match client.blob(&job.image, &job.descriptor, offset).await {
            Ok((response, skip)) => stream(job, response, skip, &mut offset, to).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) if to.is_closed() => return Ok(()),
            Err(error) if !error.is_network() => return Err(error),
            // Nothing is missing, however the connection ended; the digest says whether it is right.
            _ if offset == size => return Ok(()),
            result => {
                if offset >= reached + WORTH_ANOTHER {
                    (reached, tries) = (offset, 0);
                }
                tries += 1;
                if tries >= TRIES {
                    let what = format!(
                        "layer {} of {} broke off after {offset} of {size} bytes",
                        job.descriptor.digest, job.image
                    );
                    return Err(result
                        .err()
                        .unwrap_or_else(|| PullError::retry(Reason::RegistryUnreachable, what)));
                }
                tokio::time::sleep(Duration::from_millis(200 << tries.min(5))).await;
            }
        }
    }
}

async fn stream(
    job: &Job,
    mut response: Response,
    mut skip: u64,
    offset: &mut u64,
    to: &tokio::sync::mpsc::Sender<bytes::Bytes>,
) -> Result<(), PullError> {
    while let Some(mut chunk) = response.chunk().await.map_err(|error| unreachable(&job.image, &error))? {
        job.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= skipped as u64;
        let _ = chunk.split_to(skipped);
        if chunk.is_empty() {
            continue;
        }
        *offset += chunk.len() as u64;
        if *offset > job.descriptor.size {
            let what =
                format!("layer {} of {} is longer than its manifest says", job.descriptor.digest, job.image);
            return Err(PullError::retry(Reason::DigestMismatch, what));
        }
        // The counter's reader may be gone, the unpacking may have failed: the latter has its own error.
        let _ = job.counter.send(chunk.len() as u64);
        if to.send(chunk).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The blocking stages.
struct Stages {
    name: String,
    packing: Packing,
    target: PathBuf,
    /// Most bytes that it may unpack to.
    most: u64,
    /// The directory goes with its last user: these stages may outlive the pull.
    _keeps: Option<Arc<Temporary>>,
}

impl Stages {
    fn run(
        &self,
        compressed: tokio::sync::mpsc::Receiver<bytes::Bytes>,
        expected: &Digest,
        diff_id: &Digest,
    ) -> Result<Implied, PullError> {
        let (sender, receiver) = sync_channel::<Vec<u8>>(WAITING);
        std::thread::scope(|scope| {
            let inflating = scope.spawn(|| self.inflate(compressed, sender, expected));
            let written = self.write(receiver, diff_id);
            let inflated = inflating.join().unwrap_or_else(|_| {
                Err(PullError::fatal(
                    Reason::Internal,
                    format!("{}: its inflating stage panicked", self.name),
                ))
            });
            // What was received wrongly also unpacks wrongly: the first error says more.
            inflated.and(written)
        })
    }

    /// First stage: the digest of what came, and its content.
    fn inflate(
        &self,
        compressed: tokio::sync::mpsc::Receiver<bytes::Bytes>,
        to: SyncSender<Vec<u8>>,
        expected: &Digest,
    ) -> Result<(), PullError> {
        let mut source = Hashing {
            inner: Compressed { chunks: compressed, rest: bytes::Bytes::new() },
            hash: Sha256::new(),
        };
        let (copied, open) = match self.packing {
            Packing::Plain => copy(&mut source, &to),
            Packing::Gzip => {
                copy(&mut MultiGzDecoder::new(io::BufReader::with_capacity(CHUNK, &mut source)), &to)
            }
        };
        if !open {
            return Ok(());
        }
        // What follows the last gzip member belongs to the blob, and so to its digest.
        let drained = io::copy(&mut source, &mut io::sink());
        let found = Digest::from_sha256(&source.hash.finalize().into());
        if found != *expected {
            // Mostly the way here did it, and a further try gets the right ones.
            return Err(PullError::retry(
                Reason::DigestMismatch,
                format!("{}: the bytes received have digest {found}", self.name),
            ));
        }
        copied
            .and(drained.map(|_| ()))
            .map_err(|error| PullError::fatal(Reason::ImageInvalid, format!("{}: {error}", self.name)))
    }

    /// Second stage: the digest of the content, and the tree.
    fn write(&self, chunks: Receiver<Vec<u8>>, diff_id: &Digest) -> Result<Implied, PullError> {
        let inner = Inflated { chunks, rest: Vec::new(), at: 0, total: 0, most: self.most };
        let mut source = Hashing { inner, hash: Sha256::new() };
        let implied = match unpack::unpack(&mut source, &self.target) {
            Ok(implied) => implied,
            Err(error) => {
                if !matches!(error, unpack::Error::Disk(..)) {
                    // Whether the image is to blame, or the way here, only the digest over all of it tells.
                    let _ = io::copy(&mut source, &mut io::sink());
                }
                return Err(error.into_pull_error(&self.name));
            }
        };
        let found = Digest::from_sha256(&source.hash.finalize().into());
        if found != *diff_id {
            let what =
                format!("{}: its content has digest {found}, and the image names {diff_id}", self.name);
            return Err(PullError::fatal(Reason::DigestMismatch, what));
        }
        Ok(implied)
    }
}

/// Sends all of a reader on in chunks; also whether somebody still takes them.
fn copy(from: &mut impl Read, to: &SyncSender<Vec<u8>>) -> (io::Result<()>, bool) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match from.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), true),
            }
        }
        if filled == 0 {
            return (Ok(()), true);
        }
        chunk.truncate(filled);
        if to.send(chunk).is_err() {
            return (Ok(()), false);
        }
    }
}

/// Counts every byte that passes into a digest.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

struct Compressed {
    chunks: tokio::sync::mpsc::Receiver<bytes::Bytes>,
    rest: bytes::Bytes,
}

impl Read for Compressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let part = self.rest.split_to(buffer.len().min(self.rest.len()));
        buffer[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}

struct Inflated {
    chunks: Receiver<Vec<u8>>,
    rest: Vec<u8>,
    at: usize,
    total: u64,
    most: u64,
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() {
            match self.chunks.recv() {
                Ok(chunk) => {
                    self.total += chunk.len() as u64;
                    if self.total > self.most {
                        return Err(io::Error::other(format!("it unpacks to more than {} bytes", self.most)));
                    }
                    (self.rest, self.at) = (chunk, 0);
                }
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len() - self.at);
        buffer[..count].copy_from_slice(&self.rest[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Runs the stages on a gzip'd tar with one file of `size` zeros.
    fn run(size: u64, most: u64) -> Result<Implied, PullError> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_data(&mut header, "zeros", io::repeat(0).take(size)).unwrap();
        let tar = tar.into_inner().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&tar).unwrap();
        let blob = gzip.finish().unwrap();
        assert!(blob.len() as u64 <= size / 500 + 500, "it is a bomb");
        let digest = |bytes: &[u8]| Digest::from_sha256(&Sha256::digest(bytes).into());
        let dir = tempfile::tempdir().unwrap();
        let (sender, receiver) = channel(1);
        sender.try_send(bytes::Bytes::from(blob.clone())).unwrap();
        drop(sender);
        let target = dir.path().to_owned();
        let stages =
            Stages { name: "a layer".to_owned(), packing: Packing::Gzip, target, most, _keeps: None };
        let result = stages.run(receiver, &digest(&blob), &digest(&tar));
        let written = std::fs::metadata(dir.path().join("zeros")).map_or(0, |file| file.len());
        assert!(written <= most, "{written} bytes on disk");
        result
    }

    #[test]
    fn a_bomb_goes_off_within_its_limit() {
        let error = run(64 << 20, 8 << 20).unwrap_err();
        assert_eq!(error.reason, Reason::ImageInvalid, "{error}");
        assert_eq!(error.to_string(), "a layer: it unpacks to more than 8388608 bytes");
        run(4 << 20, 8 << 20).unwrap();
    }
}
