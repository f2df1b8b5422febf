//! One layer on its way into the store: whoever has its bytes hands them over in order, a confined process unpacks
//! them, and both digests are checked before anybody may believe it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PullError;
use super::manifest::Packing;
use super::store::{Store, Temporary};
use super::unpack::{Implied, MAX_REMEMBERED};
use super::worker::{self, Done, Order, Outcome, Product, SPOOLED};
use crate::types::{Digest, Reason};

/// Most bytes a layer may unpack to.
const MAX_UNPACKED: u64 = 16 << 30;

/// Largest answer of a worker: implied directories, whose paths are bounded, and room for a message.
const MAX_ANSWER: u64 = MAX_REMEMBERED as u64 + (64 << 10);

/// Bytes that wait between this process and the worker (pipe(7), "Pipe capacity").
const PIPE: i32 = 1 << 20;

/// Longest time in which a worker takes nothing: a disk that stalls for longer is broken.
const PATIENCE: Duration = Duration::from_secs(300);

/// A worker that lives no longer is nobody's burden.
const SHORT: Duration = Duration::from_millis(200);

/// A layer that is unpacked and verified, and has no name yet.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub place: Arc<Temporary>,
    pub implied: Implied,
    /// Digest and bytes of the layer as it was packed.
    pub blob: (Digest, u64),
    pub diff_id: Digest,
    /// Bytes of the tar stream.
    pub size: u64,
}

impl Unpacked {
    /// Of a spooled stream.
    pub fn file(&self) -> PathBuf {
        self.place.tree().join(SPOOLED)
    }
}

/// Steps behind whatever serves that a process unpacks: half of the weight for each 3 or so (sched(7)). The block layer
/// derives its own priority from it (ionice(1)).
const NICE: i32 = 10;

/// The same, for a layer beside a larger one of its image, which decides when the image is there.
pub(super) const BEHIND_ANOTHER: i32 = 16;

/// How processes that unpack are started.
#[derive(Clone)]
pub(super) struct Workers {
    /// What is executed.
    pub program: PathBuf,
    /// Steps of nice(2).
    pub nice: i32,
    /// Whether a layer's bytes are kept as they came, beside its tree.
    pub keep_blobs: bool,
    /// Told of each, to put it behind what serves.
    pub put_behind: Option<PutBehind>,
}

/// Takes the number of a process of this one.
pub(super) type PutBehind = Arc<dyn Fn(u32) + Send + Sync>;

/// The process, and the directory that goes only after it.
struct Worker {
    process: Option<Child>,
    place: Arc<Temporary>,
    present: Present,
}

/// Held by what is unfinished: whoever gave it away learns when all of it is gone.
pub(super) type Present = tokio::sync::mpsc::Sender<std::convert::Infallible>;

impl Worker {
    /// How it ended; to be asked once it has said its last word.
    async fn status(&mut self) -> String {
        let Some(mut process) = self.process.take() else { return String::new() };
        process.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let (Some(mut process), place) = (self.process.take(), self.place.clone()) else { return };
        let present = self.present.clone();
        // It ends with this value in any case; where the runtime ends too, the next start wipes what is left.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let _ = process.kill().await;
            // Removing a tree takes its time.
            let _ = tokio::task::spawn_blocking(move || drop(place)).await;
            drop(present);
        });
    }
}

/// Unpacks a layer whose bytes come part by part. Dropped before its end, it leaves nothing.
pub(super) struct LayerWriter {
    name: String,
    worker: Worker,
    input: ChildStdin,
    answer: JoinHandle<std::io::Result<Vec<u8>>>,
    hash: Sha256,
    written: u64,
    /// The worker takes no more: it will say why.
    closed: bool,
}

impl LayerWriter {
    /// Begins in a fresh directory of the store. `name` is for messages. What comes of a stream
    /// that is kept as one file is at [`Unpacked::file`].
    pub fn start(
        store: &Store,
        workers: &Workers,
        name: String,
        packing: Packing,
        product: Product,
        present: Present,
    ) -> Result<Self, PullError> {
        let place = store.temporary()?;
        let failed =
            |error: std::io::Error| PullError::io(format_args!("{name}: starting to unpack"), &error);
        let order = Order {
            tree: place.tree(),
            listing: place.listing(),
            blob: (workers.keep_blobs && product == Product::Tree).then(|| place.blob()),
            packing,
            product,
            most: MAX_UNPACKED,
            parent: std::process::id(),
            nice: workers.nice,
        };
        let order = serde_json::to_string(&order).map_err(|error| failed(error.into()))?;
        let mut worker = Command::new(&workers.program)
            .args([worker::COMMAND, &order])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let (Some(put_behind), Some(pid)) = (workers.put_behind.clone(), worker.id()) {
            // Most are over before that is worth the asking.
            tokio::spawn(async move {
                tokio::time::sleep(SHORT).await;
                // Best effort.
                let _ = tokio::task::spawn_blocking(move || put_behind(pid)).await;
            });
        }
        let (input, output) = (worker.stdin.take(), worker.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        // A small pipe is only slower.
        let _ = nix::fcntl::fcntl(&input, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE));
        let answer = tokio::spawn(async move {
            let mut text = Vec::new();
            output.take(MAX_ANSWER).read_to_end(&mut text).await?;
            Ok(text)
        });
        let worker = Worker { process: Some(worker), place, present };
        Ok(Self { name, worker, input, answer, hash: Sha256::new(), written: 0, closed: false })
    }

    /// Hands a part over; returns once the worker has room for more.
    pub async fn write(&mut self, part: &[u8]) -> Result<(), PullError> {
        self.hash.update(part);
        self.written += part.len() as u64;
        if self.closed {
            return Ok(());
        }
        match timeout(PATIENCE, self.input.write_all(part)).await {
            Ok(Ok(())) => Ok(()),
            // What is behind it, `finish` says; whether the layer or the way here is to blame, its digest tells.
            Ok(Err(_)) => {
                self.closed = true;
                Ok(())
            }
            Err(_) => Err(self.stuck()),
        }
    }

    /// Where it is being unpacked.
    pub fn place(&self) -> Arc<Temporary> {
        self.worker.place.clone()
    }

    /// Bytes that were handed over.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// That was all. `blob` and `diff_id` are what the layer has to be, where that is known.
    pub async fn finish(
        self,
        blob: Option<&Digest>,
        diff_id: Option<&Digest>,
    ) -> Result<Unpacked, PullError> {
        let stuck = self.stuck();
        let Self { name, mut worker, input, answer, hash, written, .. } = self;
        drop(input);
        let answer = timeout(PATIENCE, answer).await.map_err(|_| stuck)?;
        let found = Digest::from_sha256(&hash.finalize().into());
        if blob.is_some_and(|blob| *blob != found) {
            // Mostly the way here did it, and a further try gets the right ones.
            let what = format!("{name}: the bytes received have digest {found}");
            return Err(PullError::retry(Reason::DigestMismatch, what));
        }
        let answer = answer.map_err(std::io::Error::other).flatten();
        let answer = answer.map_err(|error| PullError::io(format_args!("{name}: unpacking it"), &error))?;
        let Ok(outcome) = serde_json::from_slice::<Outcome>(&answer) else {
            let status = worker.status().await;
            let what = format!("{name}: the process that unpacks it ended before its work: {status}");
            return Err(PullError::retry(Reason::Internal, what));
        };
        let Done { diff_id: content, size, implied } = outcome.into_result(&name)?;
        if let Some(expected) = diff_id.filter(|expected| **expected != content) {
            let what = format!("{name}: its content has digest {content}, and the image names {expected}");
            return Err(PullError::fatal(Reason::DigestMismatch, what));
        }
        worker.status().await;
        Ok(Unpacked { place: worker.place.clone(), implied, blob: (found, written), diff_id: content, size })
    }

    fn stuck(&self) -> PullError {
        let what = format!("{}: the disk took nothing for {} s", self.name, PATIENCE.as_secs());
        PullError::retry(Reason::StorageIo, what)
    }
}

// This program, also when its package was replaced meanwhile (proc(5), "/proc/pid/exe").
impl Default for Workers {
    fn default() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), nice: NICE, keep_blobs: false, put_behind: None }
    }
}
