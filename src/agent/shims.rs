//! Beside the loop: a watch a supervisor. A container whose supervisor was killed goes on, and nobody reads what it
//! writes: the loop has to look at once, and have it given another one. That may take long (a start of a process, systemd's
//! answer), so it is done beside the loop too, for one container after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::probes::ended;
use super::wake::{Wake, Waker};
use crate::engine::Engine;
use crate::types::{InstanceId, ObservedContainer};

/// After a container could not be given another supervisor, none is for as long.
const PAUSE: Duration = Duration::from_secs(5);

/// All watches.
pub struct Shims {
    runtime: Handle,
    waker: Waker,
    engine: Arc<dyn Engine>,
    watched: BTreeMap<InstanceId, (i32, JoinHandle<()>)>,
    /// Whether containers are being given supervisors now.
    adopts: bool,
    /// When that is tried again.
    not_before: Option<Instant>,
}

impl Shims {
    /// None yet.
    pub fn new(runtime: Handle, engine: Arc<dyn Engine>, waker: Waker) -> Self {
        Self { runtime, waker, engine, watched: BTreeMap::new(), adopts: false, not_before: None }
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        !self.adopts
    }

    /// Has those given another supervisor that have lost theirs; the end of it is a wake.
    pub fn adopt(&mut self, containers: &[ObservedContainer]) {
        let alone = containers.iter().filter(|seen| seen.unsupervised).map(|seen| seen.id.clone());
        let alone: Vec<InstanceId> = alone.collect();
        let pauses = self.not_before.is_some_and(|time| Instant::now() < time);
        if alone.is_empty() || self.adopts || pauses {
            return;
        }
        self.adopts = true;
        let (engine, waker) = (self.engine.clone(), self.waker.clone());
        let adopting = self.runtime.spawn_blocking(move || adopt_all(&*engine, &alone));
        self.runtime.spawn(async move {
            let all = adopting.await.unwrap_or(false);
            // The loop may be gone: the next agent finds who still has none.
            let _ = waker.send(Wake::Adopted { all });
        });
    }

    /// That is over; `all`: each has one.
    pub fn adopted(&mut self, all: bool) {
        self.adopts = false;
        self.not_before = (!all).then(|| Instant::now() + PAUSE);
    }

    /// Watches exactly the supervisors of these from now on.
    pub fn follow(&mut self, containers: &[ObservedContainer]) {
        let wanted: BTreeMap<&InstanceId, i32> =
            containers.iter().filter_map(|seen| Some((&seen.id, seen.supervisor?))).collect();
        self.watched.retain(|id, (pid, watch)| {
            let keep = wanted.get(id) == Some(pid);
            if !keep {
                watch.abort();
            }
            keep
        });
        for (id, pid) in wanted {
            if !self.watched.contains_key(id) {
                self.watched.insert(id.clone(), (pid, self.watch(pid)));
            }
        }
    }

    fn watch(&self, pid: i32) -> JoinHandle<()> {
        let waker = self.waker.clone();
        self.runtime.spawn(async move {
            if let Ok(()) = ended(pid).await {
                // The loop may be gone: then nobody is left to tell.
                let _ = waker.send(Wake::Look("a supervisor ended"));
            }
        })
    }
}

fn adopt_all(engine: &dyn Engine, alone: &[InstanceId]) -> bool {
    let mut all = true;
    for id in alone {
        match engine.adopt(id) {
            Ok(()) => tracing::warn!(instance = %id, "its supervisor had died, and has a successor"),
            Err(error) => {
                all = false;
                tracing::warn!(instance = %id, "{}", error.to_refusal());
            }
        }
    }
    all
}
