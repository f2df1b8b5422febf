//! What wakes the loop from outside: signals, the control socket, a watch on a local repo.

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::wake::{Wake, Waker};
use super::{AgentError, control};
use crate::config::agent::AgentConfig;
use crate::git::{RefWatch, watch_paths};

/// Held as long as the agent is to be woken.
pub struct Watches {
    _refs: Option<RefWatch>,
}

/// Begins to listen to all of them.
pub fn begin(config: &AgentConfig, runtime: &Handle, waker: &Waker) -> Result<Watches, AgentError> {
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
    control::listen(&config.run_dir, waker.clone())
        .map_err(|error| AgentError::io(format!("listening in {}", config.run_dir.display()), error))?;
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
    Ok(Watches { _refs: refs })
}
