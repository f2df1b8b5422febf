//! What the core is told: what is wanted, and what is.

use std::collections::{BTreeMap, BTreeSet};

use super::health::ProbeHistory;
use super::record::Spec;
use crate::types::{
    CommitInfo, ContainerState, Digest, Generation, InstanceId, Refusal, ReplicaIndex, Route, ServiceName,
    Timestamp,
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
    /// Every container of this instance.
    pub containers: BTreeMap<InstanceId, ContainerState>,
    /// Where the kernel sends new connections.
    pub routes: BTreeMap<ServiceName, Route>,
    /// Images whose layers are complete on this host.
    pub images: BTreeSet<Digest>,
    /// What the probes have seen of each running container.
    pub health: BTreeMap<InstanceId, ProbeHistory>,
    /// Of each running container: how often the kernel killed a process in it for want of memory. Without those at 0.
    pub oom_kills: BTreeMap<InstanceId, u64>,
    /// Images on their way: beside everything else, so that a slow pull keeps nothing else of its service waiting.
    pub pulling: BTreeMap<ServiceName, Busy>,
    /// Other long effects under way beside the loop.
    pub busy: BTreeMap<ServiceName, Busy>,
    /// Pauses after an effect that did not work and that no record remembers.
    pub pauses: BTreeMap<ServiceName, Busy>,
    /// Services that want a port which something outside of this instance has.
    pub ports_taken: BTreeMap<ServiceName, Refusal>,
    /// Services whose record cannot be read: nothing of theirs is touched.
    pub frozen: BTreeMap<ServiceName, Refusal>,
    /// Of each retiring container: how often in a row it was seen without a connection.
    pub idle_polls: BTreeMap<InstanceId, u32>,
}

impl Observed {
    /// The containers of one service.
    pub fn containers_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (Generation, &'a ContainerState)> {
        let first = InstanceId::new(service, Generation(0));
        let last = InstanceId::replica(service, Generation(u64::MAX), ReplicaIndex::LAST);
        self.containers.range(first..=last).map(|(id, state)| (id.generation, state))
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
