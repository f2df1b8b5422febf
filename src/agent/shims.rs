//! Beside the loop: a watch a supervisor. A container whose supervisor was killed goes on, and nobody reads what it
//! writes: the loop has to look at once, and have it given another one. That may take long (a start of a process, systemd's
//! answer), so it is done beside the loop too, for one container after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::probes::ended;
use super::wake::{Wake, Waker};
use crate::engine::Engine;
use crate::reconcile::{later, pending};
use crate::types::{InstanceId, ObservedContainer, Timestamp};

/// A container that could not be given another supervisor is let be for as long.
const PAUSE: Duration = Duration::from_secs(5);

/// All watches.
pub struct Shims {
    runtime: Handle,
    waker: Waker,
    engine: Arc<dyn Engine>,
    watched: BTreeMap<InstanceId, (i32, JoinHandle<()>)>,
    /// Whether containers are being given supervisors now.
    adopts: bool,
    /// Those that could not, and when that is tried again.
    pauses: Pauses,
}

#[derive(Default)]
struct Pauses(BTreeMap<InstanceId, Timestamp>);

impl Shims {
    /// None yet.
    pub fn new(runtime: Handle, engine: Arc<dyn Engine>, waker: Waker) -> Self {
        Self { runtime, waker, engine, watched: BTreeMap::new(), adopts: false, pauses: Pauses::default() }
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        !self.adopts
    }

    /// Has those given another supervisor that have lost theirs; the end of it is a wake.
    pub fn adopt(&mut self, containers: &[ObservedContainer], now: Timestamp) {
        if self.adopts {
            return;
        }
        let alone = containers.iter().filter(|seen| seen.unsupervised).map(|seen| seen.id.clone());
        let alone = self.pauses.due(alone.collect(), now);
        if alone.is_empty() {
            return;
        }
        self.adopts = true;
        let (engine, waker) = (self.engine.clone(), self.waker.clone());
        let all = alone.clone();
        let adopting = self.runtime.spawn_blocking(move || adopt_all(&*engine, alone));
        self.runtime.spawn(async move {
            let failed = adopting.await.unwrap_or(all);
            // The loop may be gone: the next agent finds who still has none.
            let _ = waker.send(Wake::Adopted { failed });
        });
    }

    /// That is over; `failed`: those that have none yet.
    pub fn adopted(&mut self, failed: Vec<InstanceId>, now: Timestamp) {
        self.adopts = false;
        self.pauses.failed(failed, now);
    }

    /// When it is tried again.
    pub fn next_try(&self) -> Option<Timestamp> {
        self.pauses.first().filter(|_| !self.adopts)
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

impl Pauses {
    /// Those of `alone` whose turn it is. All others that are known have a supervisor, or need none any more.
    fn due(&mut self, alone: BTreeSet<InstanceId>, now: Timestamp) -> Vec<InstanceId> {
        self.0.retain(|id, at| alone.contains(id) && pending(now, *at, PAUSE));
        alone.into_iter().filter(|id| !self.0.contains_key(id)).collect()
    }

    fn failed(&mut self, ids: Vec<InstanceId>, now: Timestamp) {
        self.0.extend(ids.into_iter().map(|id| (id, later(now, PAUSE))));
    }

    fn first(&self) -> Option<Timestamp> {
        self.0.values().min().copied()
    }
}

/// Gives those that still have none.
fn adopt_all(engine: &dyn Engine, mut alone: Vec<InstanceId>) -> Vec<InstanceId> {
    alone.retain(|id| match engine.adopt(id) {
        Ok(()) => {
            tracing::warn!(instance = %id, "its supervisor had died, and has a successor");
            false
        }
        Err(error) => {
            tracing::warn!(instance = %id, "{}", error.to_refusal());
            true
        }
    });
    alone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_cannot_be_adopted_delays_no_other() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let ids =
            |names: &[&str]| -> Vec<InstanceId> { names.iter().map(|it| it.parse().unwrap()).collect() };
        let mut pauses = Pauses::default();
        let due =
            |pauses: &mut Pauses, names: &[&str], now| pauses.due(ids(names).into_iter().collect(), at(now));
        assert_eq!(due(&mut pauses, &["web.1"], 100), ids(&["web.1"]));
        pauses.failed(ids(&["web.1"]), at(101));
        assert_eq!(pauses.first(), Some(at(106)));
        assert_eq!(due(&mut pauses, &["db.1", "web.1"], 102), ids(&["db.1"]));
        pauses.failed(ids(&["db.1"]), at(103));
        assert_eq!(due(&mut pauses, &["db.1", "web.1"], 106), ids(&["web.1"]));
        assert_eq!(pauses.first(), Some(at(108)));
        // It ended; and the clock was set back.
        assert_eq!(due(&mut pauses, &["web.1"], 107), ids(&["web.1"]));
        assert_eq!(pauses.first(), None);
        pauses.failed(ids(&["web.1"]), at(107));
        assert_eq!(due(&mut pauses, &["web.1"], 50), ids(&["web.1"]));
    }
}
