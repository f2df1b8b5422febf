//! One service as the core sees it.

use std::collections::BTreeMap;

use super::errors::ErrorHistory;
use super::health::{EffectiveCheck, Verdict};
use super::record::{Deployed, ServiceRecord};
use super::world::{Busy, Desired, DesiredService, Ending, Observed};
use super::{batches, canary, handover, later, replicas};
use crate::types::{
    ContainerState, Generation, InstanceId, Refusal, ReplicaIndex, Route, ServiceName, Timestamp,
};

/// What there is to know of one service, and the little that it needs of the others.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub name: &'a ServiceName,
    pub desired: Option<&'a Desired>,
    pub record: Option<&'a ServiceRecord>,
    pub records: &'a BTreeMap<ServiceName, ServiceRecord>,
    pub observed: &'a Observed,
    /// Why services that the repo no longer names stay all the same.
    pub removal_refusal: Option<&'a Refusal>,
    pub now: Timestamp,
}

impl<'a> View<'a> {
    /// Another service, seen as this one is.
    pub fn of(self, name: &'a ServiceName) -> Self {
        Self { name, record: self.records.get(name), ..self }
    }

    /// Another service, by a name from elsewhere; `None` = nothing is known of it.
    pub fn known(self, name: &ServiceName) -> Option<Self> {
        let recorded = self.records.get_key_value(name).map(|(name, _)| name);
        let wanted = || Some(self.desired?.services.get_key_value(name)?.0);
        recorded.or_else(wanted).map(|name| self.of(name))
    }

    /// What the repo wants of it; `None` = it is not wanted, or nothing is known yet.
    pub fn wanted(&self) -> Option<&'a DesiredService> {
        self.desired.and_then(|desired| desired.services.get(self.name))
    }

    /// The long effect under way for it.
    pub fn busy(&self) -> Option<&'a Busy> {
        self.observed.busy.get(self.name)
    }

    /// Its containers that are on their way out.
    pub fn ending(&self) -> Option<&'a Ending> {
        self.observed.ending.get(self.name)
    }

    /// The pause after an effect that did not work.
    pub fn pause(&self) -> Option<&'a Busy> {
        self.observed.pauses.get(self.name)
    }

    /// What the kernel does with new connections to it.
    pub fn route(&self) -> Option<&'a Route> {
        self.observed.routes.get(self.name)
    }

    /// What its container of `generation` does; `None` = there is nothing of that name.
    pub fn container(&self, generation: Generation) -> Option<&'a ContainerState> {
        self.observed.containers.get(&InstanceId::new(self.name, generation))
    }

    /// Whether the container of `generation` runs.
    pub fn runs(&self, generation: Generation) -> bool {
        self.observed.runs(&InstanceId::new(self.name, generation))
    }

    /// Whether a container of `deployed` runs that new connections may go to: none that is one too many.
    pub fn serves(&self, deployed: &Deployed) -> bool {
        let id = |index| InstanceId::replica(self.name, deployed.generation, index);
        replicas::serving(deployed).map(id).any(|id| self.observed.runs(&id))
    }

    /// Whether any container of `deployed` runs.
    pub fn any_runs(&self, deployed: &Deployed) -> bool {
        deployed.instances(self.name).any(|id| self.observed.runs(&id))
    }

    /// Whether the image of `deployed` is complete on this host.
    pub fn has_image(&self, deployed: &Deployed) -> bool {
        self.observed.images.contains(&deployed.spec.image.digest)
    }

    /// The check in force for a generation.
    pub fn check(&self, deployed: &Deployed) -> EffectiveCheck {
        self.observed.check(&deployed.spec)
    }

    /// The verdict on a generation that runs; one that does not run, or not with all of its containers, has none.
    pub fn verdict(&self, deployed: &Deployed) -> Option<Verdict> {
        match replicas::is_several(deployed) {
            true => replicas::verdict(self, deployed),
            false => self.verdict_of(deployed, ReplicaIndex::FIRST),
        }
    }

    /// The verdict on one container of a generation; one that does not run has none.
    pub fn verdict_of(&self, deployed: &Deployed, index: ReplicaIndex) -> Option<Verdict> {
        replicas::verdict_of(self.name, deployed, index, self.observed, self.now)
    }

    /// When time alone decides about a running container without probes: after the second that a process has to run.
    pub fn steady_at(&self, deployed: &Deployed) -> Option<Timestamp> {
        let check = self.check(deployed);
        let of = |id: InstanceId| match self.observed.containers.get(&id) {
            Some(ContainerState::Running { started_at, .. }) if check.probes.is_empty() => {
                Some(later(*started_at, check.steady)).filter(|at| *at > self.now)
            }
            _ => None,
        };
        deployed.instances(self.name).filter_map(of).min()
    }

    /// Whether the deadline may count against a running container: a probe of this start of it has failed, or there is
    /// nothing to probe.
    pub fn is_asked(&self, deployed: &Deployed) -> bool {
        let unprobed = self.check(deployed).probes.is_empty();
        let asked = |id: InstanceId| {
            let Some(ContainerState::Running { started_at, .. }) = self.observed.containers.get(&id) else {
                return false;
            };
            let history = self.observed.health.get(&id).filter(|history| history.started_at == *started_at);
            unprobed || history.is_some_and(|history| matches!(history.last, Some((_, Err(_)))))
        };
        deployed.instances(self.name).any(asked)
    }

    /// What the kernel has counted of a generation's connections since it has traffic; of this start of it. Each of its
    /// containers has counters of its own.
    pub fn errors(&self, deployed: &Deployed) -> impl Iterator<Item = &'a ErrorHistory> {
        let observed = self.observed;
        let of = move |id: InstanceId| match observed.containers.get(&id) {
            Some(ContainerState::Running { started_at, .. }) => {
                observed.errors.get(&id).filter(|history| history.started_at == *started_at)
            }
            _ => None,
        };
        deployed.instances(self.name).filter_map(of)
    }

    /// How often the kernel killed a process of a generation for want of memory.
    pub fn oom_kills(&self, deployed: &Deployed) -> u64 {
        let of = |id: InstanceId| self.observed.oom_kills.get(&id).copied();
        deployed.instances(self.name).filter_map(of).fold(0, u64::saturating_add)
    }

    /// The route that `deployed` should have.
    pub fn route_for(&self, record: &ServiceRecord, deployed: &Deployed) -> Route {
        route_for(self.name, record, deployed, self.desired, self.observed, self.now)
    }
}

/// The route by which `deployed` gets the service's traffic, over those of its containers that `observed` shows as well; for
/// as long as a candidate has a part of it, with that. A port that another service is to have stays until that one takes it.
pub(crate) fn route_for(
    name: &ServiceName,
    record: &ServiceRecord,
    deployed: &Deployed,
    desired: Option<&Desired>,
    observed: &Observed,
    now: Timestamp,
) -> Route {
    let mut ports = handover::published(name, deployed, desired, observed);
    ports.sort();
    let (address, also) = replicas::lanes(name, deployed, observed, now);
    let part = canary::branch(record, deployed);
    let lanes = also.len().saturating_add(1);
    Route {
        service: name.clone(),
        service_address: record.service_address,
        generation: deployed.generation,
        address,
        also,
        ports,
        canary: part.or_else(|| batches::branch(name, record, deployed, lanes, observed, now)),
    }
}
