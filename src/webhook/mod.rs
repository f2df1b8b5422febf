//! The webhook listener: a forge says that the repo has moved, and the agent looks at it.
//!
//! A delivery only wakes. Nothing of its body is ever parsed, so that the worst that a stolen secret can do is a look too
//! many; and a delivery that is lost costs one poll interval, never a deploy. What is not signed is counted, answered and
//! forgotten. Everything a stranger can make the listener spend is bounded: connections, seconds, bytes, lines of log.

mod listen;
mod pace;
mod request;
mod signature;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::config::agent::WebhookConfig;
use pace::Pace;
use request::Answer;

/// Between two wakes: what comes meanwhile is told of once, at its end.
const PAUSE: Duration = Duration::from_secs(1);

/// Between two lines about requests that were refused.
const QUIET: Duration = Duration::from_secs(60);

/// Bytes of bodies, of all connections together: a second's worth, and how many may be saved up. A delivery is at most
/// 25 MB (docs.github.com, "Webhook events and payloads").
const RATE: u64 = 16 << 20;
const BURST: u64 = 32 << 20;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Webhook {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    secret_file: PathBuf,
    /// Told of each delivery that counts.
    wanted: Notify,
    deliveries: AtomicU64,
    refused: AtomicU64,
    /// When a refusal was last written to the log, and how many had been counted by then.
    told: Mutex<Option<(Instant, u64)>>,
    address: Mutex<Option<SocketAddr>>,
    pace: Pace,
}

impl Webhook {
    /// Begins to listen; where that does not work (the address is not there yet, or taken), it is tried again, and said.
    /// `wake` is called at most once a second, and at least once after each delivery that counts.
    pub fn begin(config: &WebhookConfig, runtime: &Handle, wake: impl Fn() + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            secret_file: config.secret_file.clone(),
            wanted: Notify::new(),
            deliveries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            told: Mutex::new(None),
            address: Mutex::new(None),
            pace: Pace::new(RATE, BURST),
        });
        // A secret that cannot be read is said now, not at the first push.
        if let Err(why) = signature::secrets(&shared.secret_file) {
            tracing::warn!("webhook: {why}; deliveries are refused until it can be read");
        }
        let waking = {
            let shared = shared.clone();
            runtime.spawn(async move {
                loop {
                    // One that comes during the pause is kept: `Notify` holds one permit.
                    shared.wanted.notified().await;
                    wake();
                    tokio::time::sleep(PAUSE).await;
                }
            })
        };
        let _context = runtime.enter();
        let first = listen::bind(&config.listen);
        if let Ok(listener) = &first {
            shared.listens(listener);
        }
        let listening = runtime.spawn(listen::run(config.listen.clone(), first, shared.clone()));
        Self { shared, tasks: [waking.abort_handle(), listening.abort_handle()] }
    }

    /// Where it listens; `None` while it cannot.
    pub fn address(&self) -> Option<SocketAddr> {
        *self.shared.address.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Deliveries whose signature was right, since the start.
    pub fn deliveries(&self) -> u64 {
        self.shared.deliveries.load(Ordering::Relaxed)
    }

    /// Requests that were refused, since the start.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Shared {
    fn listens(&self, listener: &tokio::net::TcpListener) {
        let address = listener.local_addr().ok();
        *self.address.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = address;
        if let Some(address) = address {
            tracing::info!("webhook: listens at {address}");
        }
    }

    /// Counts a request, and wakes where it counts.
    fn judged(&self, answer: Answer, peer: SocketAddr) {
        if answer == Answer::Accepted {
            self.deliveries.fetch_add(1, Ordering::Relaxed);
            self.wanted.notify_one();
            return;
        }
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = match *told {
            Some((at, _)) if at.elapsed() < QUIET => return,
            Some((_, before)) => before,
            None => 0,
        };
        *told = Some((Instant::now(), count));
        drop(told);
        let others = match count - before {
            0 | 1 => String::new(),
            new => format!(" ({} more since this was last said)", new - 1),
        };
        tracing::warn!("webhook: a request from {} is refused: {}{others}", peer.ip(), answer.why());
    }
}
