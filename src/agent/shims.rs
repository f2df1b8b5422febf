//! Beside the loop: a watch a supervisor. A container whose supervisor was killed goes on, and nobody reads what it
//! writes: the next look at the host gives it another one, so the loop has to look at once.

use std::collections::BTreeMap;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::probes::ended;
use super::wake::{Wake, Waker};
use crate::types::{InstanceId, ObservedContainer};

/// All watches.
pub struct Shims {
    runtime: Handle,
    waker: Waker,
    watched: BTreeMap<InstanceId, (i32, JoinHandle<()>)>,
}

impl Shims {
    /// None yet.
    pub fn new(runtime: Handle, waker: Waker) -> Self {
        Self { runtime, waker, watched: BTreeMap::new() }
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
