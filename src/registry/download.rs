//! A layer from where it is to the process that unpacks it: in order, each byte once, however often the way breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::layer::{LayerWriter, Unpacked};
use super::manifest::{self, Descriptor, Packing};
use super::rate::{Rate, SLOWEST};
use super::retry::{self, Budget, Resume};
use super::source::{Server, Source};
use super::worker::Product;
use super::{PullError, Registry};
use crate::types::{Digest, Reason};

/// What is to be fetched.
pub(super) struct Job {
    /// Of the image, for messages.
    pub image: String,
    pub descriptor: Descriptor,
    pub diff_id: Digest,
    pub packing: Packing,
    /// Told of each part of the layer that arrives, once.
    pub counter: UnboundedSender<u64>,
    /// All that came over the network, also what came twice.
    pub received: Arc<AtomicU64>,
    /// Further tries that all layers of the image have together.
    pub budget: Arc<Budget>,
}

/// Fetches a layer that comes by itself, with a budget of its own, and tells how many bytes of it are here. Whoever hears
/// of an error finds nothing half done.
pub(super) async fn fetch_alone(
    registry: &Registry,
    source: &Source,
    image: &str,
    (diff_id, descriptor): (&Digest, &Descriptor),
    received: &Arc<AtomicU64>,
    product: Product,
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<Unpacked, PullError> {
    let packing = manifest::packing(image, descriptor)?;
    let (counter, mut counts) = tokio::sync::mpsc::unbounded_channel();
    let (present, mut gone) = tokio::sync::mpsc::channel(1);
    let job = Job {
        image: image.to_owned(),
        descriptor: descriptor.clone(),
        diff_id: diff_id.clone(),
        packing,
        counter,
        received: received.clone(),
        budget: Arc::default(),
    };
    let name = format!("layer {} of {image}", descriptor.digest);
    let (store, workers) = (&registry.store, &registry.workers);
    let start = move || LayerWriter::start(store, workers, name.clone(), packing, product, present.clone());
    let fetch = async {
        let unpacked = fetch(source, &job, start).await;
        // Ends the count.
        drop(job);
        unpacked
    };
    let count = async {
        let mut bytes = 0;
        while let Some(part) = counts.recv().await {
            bytes += part;
            tell(bytes);
        }
    };
    let (unpacked, ()) = tokio::join!(fetch, count);
    if unpacked.is_err() {
        let _ = gone.recv().await;
    }
    unpacked
}

/// Fetches, checks and unpacks a layer. Nothing is durable yet. `start` begins with it: once, and anew where a mirror
/// sent all of another one, which only the end of it tells.
pub(super) async fn fetch(
    source: &Source,
    job: &Job,
    start: impl Fn() -> Result<LayerWriter, PullError>,
) -> Result<Unpacked, PullError> {
    let mut told = 0;
    loop {
        let mut servers = Vec::new();
        let error = match fetch_once(source, job, start()?, &mut told, &mut servers).await {
            Ok(unpacked) => return Ok(unpacked),
            Err(error) => error,
        };
        // Who sent a part of it is asked last from now on; a registry without mirrors has nobody else.
        let wrong = error.reason == Reason::DigestMismatch && error.may_pass();
        let elsewhere = servers.iter().any(Server::is_mirror);
        if !wrong || !elsewhere || !job.budget.take() {
            return Err(error);
        }
        servers.iter().for_each(Server::blame);
    }
}

async fn fetch_once(
    source: &Source,
    job: &Job,
    mut to: LayerWriter,
    told: &mut u64,
    servers: &mut Vec<Server>,
) -> Result<Unpacked, PullError> {
    let size = job.descriptor.size;
    let mut resume = Resume::begin(Instant::now());
    while to.written() < size {
        let result = stream(source, job, &mut to, told, servers).await;
        // Nothing is missing, however the connection ended; the digest says whether it is right.
        if to.written() == size {
            break;
        }
        let error = result.err().unwrap_or_else(|| {
            let (digest, image, here) = (&job.descriptor.digest, &job.image, to.written());
            let what = format!("layer {digest} of {image} broke off after {here} of {size} bytes");
            PullError::network(what, None)
        });
        let Some(asked) = error.again else { return Err(error) };
        match resume.broke(to.written(), Instant::now(), &job.budget) {
            Some(attempt) => tokio::time::sleep(retry::pause(attempt, asked)).await,
            None => return Err(error.and(resume.told(Instant::now()))),
        }
    }
    to.finish(Some(&job.descriptor.digest), Some(&job.diff_id)).await
}

/// One connection's worth of it.
async fn stream(
    source: &Source,
    job: &Job,
    to: &mut LayerWriter,
    told: &mut u64,
    servers: &mut Vec<Server>,
) -> Result<(), PullError> {
    let (mut body, mut skip) = source.open(&job.descriptor, to.written()).await?;
    servers.extend(body.server());
    let mut rate = Rate::default();
    loop {
        let begun = Instant::now();
        let next = body.chunk().await;
        if next.is_err() {
            body.blame();
        }
        let Some(mut chunk) = next? else {
            // Whoever ends before the end is asked last from now on.
            if to.written() < job.descriptor.size {
                body.blame();
            }
            break;
        };
        if !rate.is_fair(chunk.len() as u64, begun.elapsed()) {
            body.blame();
            let (digest, image) = (&job.descriptor.digest, &job.image);
            let what = format!("layer {digest} of {image} comes with less than {SLOWEST} bytes a second");
            return Err(PullError::network(what, None));
        }
        job.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= skipped as u64;
        let _ = chunk.split_to(skipped);
        if chunk.is_empty() {
            continue;
        }
        if chunk.len() as u64 > job.descriptor.size - to.written() {
            let (digest, image) = (&job.descriptor.digest, &job.image);
            let what = format!("layer {digest} of {image} is longer than its manifest says");
            return Err(PullError::retry(Reason::DigestMismatch, what));
        }
        to.write(&chunk).await?;
        // What came before, and was wrong, counts once.
        let new = to.written().saturating_sub(*told);
        if new > 0 {
            *told += new;
            // Whoever counts may be gone.
            let _ = job.counter.send(new);
        }
    }
    Ok(())
}
