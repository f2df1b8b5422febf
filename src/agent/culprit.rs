//! Which of several containers a candidate is given up for: what that one wrote last says why.

use super::{Agent, clock};
use crate::reconcile::errors::ErrorHistory;
use crate::reconcile::health::Verdict;
use crate::reconcile::record::Deployed;
use crate::reconcile::replicas::verdict_of;
use crate::types::{ContainerState, InstanceId, Reason, ReplicaIndex, ServiceName};

impl Agent {
    /// The first container of a candidate that shows what `reason` says, as it was seen when that was decided; `None`: no
    /// one does, or there is only one.
    pub(super) fn culprit(
        &self,
        service: &ServiceName,
        candidate: &Deployed,
        reason: Reason,
    ) -> Option<ReplicaIndex> {
        if candidate.replicas.is_empty() {
            return None;
        }
        let first = |shows: &dyn Fn(&InstanceId) -> bool| {
            let id = |index| InstanceId::replica(service, candidate.generation, index);
            candidate.indices().find(|index| shows(&id(*index)))
        };
        let verdict = |id: &InstanceId| verdict_of(service, candidate, id.index, &self.seen, clock::now());
        let sick = || first(&|id| matches!(verdict(id), Some(Verdict::Unhealthy(_))));
        match reason {
            Reason::Exited => {
                first(&|id| matches!(self.seen.containers.get(id), Some(ContainerState::Exited(_))))
            }
            Reason::Unhealthy => sick(),
            Reason::DeployTimeout => {
                sick().or_else(|| first(&|id| matches!(verdict(id), Some(Verdict::Undecided { .. }))))
            }
            Reason::OutOfMemory => first(&|id| self.seen.oom_kills.get(id).is_some_and(|kills| *kills > 0)),
            Reason::ErrorRate => {
                first(&|id| self.seen.errors.get(id).and_then(ErrorHistory::verdict).is_some())
            }
            _ => None,
        }
    }
}
