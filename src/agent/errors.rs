//! Looks at what the kernel counts of the connections of candidates that have traffic. What it means is decided by
//! `reconcile::errors`.

use std::collections::BTreeMap;

use super::Agent;
use crate::engine::counters::counters;
use crate::reconcile::errors::ErrorHistory;
use crate::reconcile::record::{Deployed, Phase, Rollout};
use crate::reconcile::world::Observed;
use crate::types::{ContainerState, InstanceId, Timestamp};

impl Agent {
    /// Begins to look at candidates that have got their traffic, and goes on with those that have it.
    pub(super) fn look_for_errors(&mut self, seen: &mut Observed, now: Timestamp) {
        let mut former = std::mem::take(&mut self.errors);
        for (service, record) in &self.journal.records {
            // All of it, or a part.
            let has_traffic =
                |rollout: &&Rollout| matches!(rollout.phase, Phase::Canary | Phase::Batches | Phase::Baking);
            let rollout = record.rollout.as_ref().filter(has_traffic);
            let Some((rollout, incumbent)) = rollout.zip(record.incumbent.as_ref()) else { continue };
            let candidate = &rollout.to;
            // What a network counts that is not its own says nothing of it.
            let own = |deployed: &Deployed| !deployed.spec.network_mode().is_shared();
            if !own(candidate) || !own(incumbent) {
                continue;
            }
            for id in candidate.instances(service) {
                let Some((pid, started_at)) = running(seen, &id) else { continue };
                let known = former.remove(&id).filter(|history| history.started_at == started_at);
                let history = match known {
                    Some(mut history) if history.is_due(&candidate.spec.deploy, now) => {
                        if let Ok(counted) = counters(pid) {
                            history.record(&candidate.spec.deploy, now, counted);
                        }
                        history
                    }
                    Some(history) => history,
                    None => {
                        // Any container of the old generation stands for what is usual.
                        let old = incumbent.instances(service).find_map(|id| running(seen, &id));
                        let old = old.and_then(|(pid, _)| counters(pid).ok());
                        let Some((old, new)) = old.zip(counters(pid).ok()) else { continue };
                        ErrorHistory::new(started_at, old, new, now)
                    }
                };
                self.errors.insert(id, history);
            }
        }
        seen.errors.clone_from(&self.errors);
    }
}

fn running(seen: &Observed, id: &InstanceId) -> Option<(i32, Timestamp)> {
    match seen.containers.get(id) {
        Some(ContainerState::Running { pid, started_at }) => Some((*pid, *started_at)),
        _ => None,
    }
}

/// Of each candidate that has traffic.
pub(super) type Errors = BTreeMap<InstanceId, ErrorHistory>;
