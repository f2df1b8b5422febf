//! What the core is told: what is wanted, and what is.

use std::collections::{BTreeMap, BTreeSet};

use super::errors::ErrorHistory;
use super::health::{EffectiveCheck, ProbeHistory};
use super::record::Spec;
use super::secrets::HostSecrets;
use crate::types::{
    CommitInfo, ContainerState, Digest, Generation, HealthCheck, InstanceId, PortMapping, Refusal, Route,
    ServiceName, Timestamp, Zones,
};

/// What the repo wants of this host at one commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The commit that was admitted.
    pub commit: CommitInfo,
    /// How many services the whole repo declares, for any host.
    pub declared_in_repo: usize,
    /// What it says of each service of this host. A service that is not here is not wanted here.
    pub services: BTreeMap<ServiceName, DesiredService>,
    /// The ports of the host that each of them is to publish by its file, its tag looked up or not; of a file that cannot be
    /// read by the one before. Nothing of what only runs at times.
    pub ports: BTreeMap<ServiceName, Vec<PortMapping>>,
    /// Services that it says are meant to go: no brake holds these.
    pub removed: BTreeSet<ServiceName>,
    /// Windows do not count for it: by its message, or an operator's word.
    pub window_waived: bool,
}

/// What the repo wants of one service.
#[derive(Debug, Clone, PartialEq)]
pub enum DesiredService {
    /// Run this.
    Run(Box<Spec>),
    /// Its tag is being looked up; until that is known, it stays as it is.
    Resolving,
    /// It cannot be acted on: a broken file, the policy, an unknown tag. It stays as it is.
    Refused {
        /// Why.
        refusal: Refusal,
        /// When it is looked at again by itself, without a new commit.
        retry_at: Option<Timestamp>,
    },
}

/// What is the case on the host, seen afresh each round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Every container of this instance, those of one-shots too.
    pub containers: BTreeMap<InstanceId, ContainerState>,
    /// Where the kernel sends new connections.
    pub routes: BTreeMap<ServiceName, Route>,
    /// Images whose layers are complete on this host.
    pub images: BTreeSet<Digest>,
    /// What the probes have seen of each running container.
    pub health: BTreeMap<InstanceId, ProbeHistory>,
    /// Of each candidate that has traffic: what the kernel has counted of its connections, where that says something.
    pub errors: BTreeMap<InstanceId, ErrorHistory>,
    /// How often the kernel killed a process in each running container for want of memory, where it did.
    pub oom_kills: BTreeMap<InstanceId, u64>,
    /// The health checks that images have of their own.
    pub image_checks: BTreeMap<Digest, HealthCheck>,
    /// Images on their way: beside everything else, so that a slow pull keeps nothing else of its service waiting.
    pub pulling: BTreeMap<ServiceName, Busy>,
    /// Other long effects under way beside the loop.
    pub busy: BTreeMap<ServiceName, Busy>,
    /// Containers on their way out: beside everything that cannot wait for it. A drain of hours keeps nothing waiting that
    /// serves.
    pub ending: BTreeMap<ServiceName, Ending>,
    /// Pauses after an effect that did not work and that no record remembers.
    pub pauses: BTreeMap<ServiceName, Busy>,
    /// Secrets of the host that services ask for.
    pub secrets: HostSecrets,
    /// Services that want a port which something outside of this instance has.
    pub ports_taken: BTreeMap<ServiceName, Refusal>,
    /// What is left of the host for another container.
    pub room: Room,
    /// Services whose record cannot be read: nothing of theirs is touched.
    pub frozen: BTreeMap<ServiceName, Refusal>,
    /// Of each retiring container: how often in a row it was seen without a connection.
    pub idle_polls: BTreeMap<InstanceId, u32>,
    /// The time zones that schedules and windows name.
    pub zones: Zones,
}

/// What is left of the host for another container. Looked at only where a candidate may be on its way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Room {
    /// Bytes of memory that programs can have without swapping; `None` = memory is not to be asked for.
    pub memory: Option<u64>,
    /// Bytes that containers use, without what the kernel can take back at once.
    pub used: BTreeMap<InstanceId, u64>,
    /// Services for which the instance's subnet has no address left.
    pub no_address: BTreeMap<ServiceName, Refusal>,
}

impl Observed {
    /// The check in force for what a spec runs.
    pub fn check(&self, spec: &Spec) -> EffectiveCheck {
        EffectiveCheck::of(spec, self.image_checks.get(&spec.image.digest))
    }

    /// Whether a container runs.
    pub fn runs(&self, id: &InstanceId) -> bool {
        matches!(self.containers.get(id), Some(ContainerState::Running { .. }))
    }

    /// The containers of one service, without its one-shots.
    pub fn containers_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (Generation, &'a ContainerState)> {
        let own = self.named(service).filter(|(id, _)| id.job.is_none());
        own.map(|(id, state)| (id.generation, state))
    }

    /// The names of the containers of one service, without its one-shots.
    pub fn instances_of<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = &'a InstanceId> {
        self.named(service).filter(|(id, _)| id.job.is_none()).map(|(id, _)| id)
    }

    /// The containers of one-shots of one service.
    pub fn jobs_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a InstanceId, &'a ContainerState)> {
        self.named(service).filter(|(id, _)| id.job.is_some())
    }

    fn named<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a InstanceId, &'a ContainerState)> {
        let first = InstanceId::new(service, Generation(0));
        self.containers.range(first..).take_while(move |(id, _)| id.service == *service)
    }
}

/// A long effect under way beside the loop; its end is a wake.
#[derive(Debug, Clone, PartialEq)]
pub struct Busy {
    /// What is being done, for people: `pulling registry/shop:1.4.2`.
    pub what: String,
    /// When it began; of a pause: when it ends.
    pub since: Timestamp,
    /// Whether it is cut short once its candidate is given up: nothing but that candidate hangs on it.
    pub yields: bool,
}

/// Containers that nothing leads to, on their way out: one after the other they get their signal and their time, and go.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// What is being done, for people: `taking containers away (retire)`.
    pub what: String,
    /// The containers: nothing that goes on beside it is about them.
    pub ids: BTreeSet<InstanceId>,
}
