//! What wakes the loop from outside: signals, the control socket, a watch on a local repo.

use std::path::Path;
use std::sync::Arc;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::wake::{Wake, Waker};
use super::{AgentError, control};
use crate::config::agent::AgentConfig;
use crate::engine::Traffic;
use crate::engine::native::net::names::Names;
use crate::engine::traffic::watch::{self, Heard};
use crate::git::{RefWatch, watch_paths};
use crate::webhook::Webhook;

/// Held as long as the agent is to be woken.
pub struct Watches {
    _refs: Option<RefWatch>,
    _socket: Option<RecommendedWatcher>,
    /// Where forges may say that the repo has moved.
    pub webhook: Option<Webhook>,
}

/// Begins to listen to all of them.
pub fn begin(
    config: &AgentConfig,
    runtime: &Handle,
    waker: &Waker,
    traffic: Arc<dyn Traffic>,
) -> Result<Watches, AgentError> {
    let _context = runtime.enter();
    for (kind, wake) in [
        (SignalKind::terminate(), (|| Wake::Stop) as fn() -> Wake),
        (SignalKind::interrupt(), || Wake::Stop),
        (SignalKind::hangup(), || Wake::RepoMoved("SIGHUP")),
    ] {
        let mut signals = signal(kind).map_err(|error| AgentError::io("listening to signals", error))?;
        let waker = waker.clone();
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                if waker.send(wake()).is_err() {
                    return;
                }
            }
        });
    }
    let rules = waker.clone();
    let told = move |heard| {
        if heard == Heard::Changed {
            match traffic.restore() {
                Ok(false) => return true,
                Ok(true) => tracing::warn!(
                    "somebody took rules of nftables away that containers need, or changed them"
                ),
                Err(error) => tracing::warn!("{}", error.to_refusal()),
            }
        }
        rules.send(Wake::Look("rules of nftables changed")).is_ok()
    };
    // Without it the loop sees a loss at its next turn.
    if let Err(error) = watch::begin(&Names::new(&config.instance).table, told) {
        tracing::warn!("changes of nftables cannot be listened to: {error}");
    }
    let socket = watch_socket(&config.run_dir, waker.clone());
    let moved = waker.clone();
    let watch = |paths| {
        RefWatch::new(paths, move || {
            // The loop may be gone: then nobody is left to tell.
            let _ = moved.send(Wake::RepoMoved("its refs changed"));
        })
    };
    let refs = watch_paths(&config.repo.url).map(watch).transpose();
    // Without a watch the repo is polled, as one on another machine is.
    let refs = refs.unwrap_or_else(|error| {
        tracing::warn!("{}", error.to_refusal());
        None
    });
    let told = waker.clone();
    let webhook = config.webhook.as_ref().map(|webhook| {
        // The loop may be gone: then nobody is left to tell.
        Webhook::begin(webhook, runtime, move || drop(told.send(Wake::RepoMoved("a webhook said so"))))
    });
    Ok(Watches { _refs: refs, _socket: socket, webhook })
}

/// Wakes the loop when somebody takes the control socket away. Without this watch the loop sees it at its next turn.
fn watch_socket(run_dir: &Path, waker: Waker) -> Option<RecommendedWatcher> {
    let socket = control::socket_path(run_dir);
    let told = move |event: notify::Result<Event>| {
        let gone = event.is_ok_and(|event| {
            (event.kind.is_remove() || event.kind.is_modify()) && event.paths.contains(&socket)
        });
        if gone {
            // The loop may be gone: then nobody is left to tell.
            let _ = waker.send(Wake::Look("the control socket changed"));
        }
    };
    let mut watcher = notify::recommended_watcher(told).ok()?;
    watcher.watch(run_dir, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}
