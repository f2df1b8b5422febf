//! What the journal remembers of a service: what was intended, what came of it. One durable file a service.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::jobs::Jobs;
use super::world::DesiredService;
use crate::types::{
    CommitId, CommitInfo, Exit, Generation, InstanceId, PinnedImage, Reason, Refusal, ReplicaIndex,
    SecretFile, ServiceName, ServiceSpec, Timestamp,
};

/// A spec as it runs on hosts: its image is pinned.
pub type Spec = ServiceSpec<PinnedImage>;

/// The whole memory of one service on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceRecord {
    /// Its stable address; given once, kept for life.
    pub service_address: Ipv4Addr,
    /// The highest generation ever begun; 0 before the first. Never goes down, so that no name is used twice.
    pub last_generation: Generation,
    /// The generation that has traffic.
    pub incumbent: Option<Deployed>,
    /// The good one before it: what `rollback` goes back to.
    pub previous: Option<Deployed>,
    /// The candidate under way.
    pub rollout: Option<Rollout>,
    /// The former incumbent on its way out.
    pub retiring: Option<Retiring>,
    /// Why the last candidate did not make it. Blocks another try until the commit changes or an operator asks.
    pub failure: Option<Failure>,
    /// An operator's word to stay put.
    pub hold: Option<Hold>,
    /// The repo no longer wants it: when its new connections were led away, so that those that it has may end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving_since: Option<Timestamp>,
    /// The repo no longer wants it, and its removal has begun.
    pub removing: Option<Removing>,
    /// Its one-shots.
    #[serde(default, skip_serializing_if = "Jobs::is_empty")]
    pub jobs: Jobs,
}

impl ServiceRecord {
    /// A service that has never run.
    pub fn new(service_address: Ipv4Addr) -> Self {
        Self {
            service_address,
            last_generation: Generation(0),
            incumbent: None,
            previous: None,
            rollout: None,
            retiring: None,
            failure: None,
            hold: None,
            leaving_since: None,
            removing: None,
            jobs: Jobs::default(),
        }
    }

    /// What is remembered of a service that was taken off this host: its address and its last number, so that neither
    /// is given to anything else if it comes back.
    pub fn removed(&self) -> Self {
        Self { last_generation: self.last_generation, ..Self::new(self.service_address) }
    }

    /// Whether there is nothing of it on this host, nor about to be: it was removed, or never begun.
    pub fn is_absent(&self) -> bool {
        self.live_generations().next().is_none() && self.removing.is_none()
    }

    /// Whether its removal has begun: an earlier commit took it away.
    pub fn is_leaving(&self) -> bool {
        self.removing.is_some() || self.leaving_since.is_some()
    }

    /// Whether there is something of it, or something that keeps it from being begun.
    pub fn is_known(&self) -> bool {
        !self.is_absent() || self.hold.is_some() || self.failure.is_some()
    }

    /// The generations that may have a container: everything else under this service's name is debris.
    pub fn live_generations(&self) -> impl Iterator<Item = &Deployed> {
        let candidate = self.rollout.as_ref().map(|rollout| &rollout.to);
        let retiring = self.retiring.as_ref().map(|retiring| &retiring.old);
        self.incumbent.iter().chain(candidate).chain(retiring)
    }

    /// The generation that has traffic, whose network others share.
    pub fn serving(&self) -> Option<&Deployed> {
        let baking = self.rollout.as_ref().filter(|rollout| rollout.phase == Phase::Baking);
        baking.map(|rollout| &rollout.to).or(self.incumbent.as_ref())
    }

    /// The record of one generation, if it may have a container.
    pub fn live(&self, generation: Generation) -> Option<&Deployed> {
        self.live_generations().find(|deployed| deployed.generation == generation)
    }
}

/// One generation and where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployed {
    /// Its number.
    pub generation: Generation,
    /// Its address inside the instance's subnet: its own, the host's, or that of what it has joined.
    pub address: Ipv4Addr,
    /// What it runs.
    pub spec: Spec,
    /// The commit that asked for it.
    pub commit: CommitInfo,
    /// When it got traffic; when it was begun, until then.
    pub since: Timestamp,
    /// Starts after the first, in a row: see [`super::repair`].
    pub restarts: u32,
    /// The last start after the first.
    pub restarted_at: Option<Timestamp>,
    /// Under `network_mode = "service:x"`: the generation of x whose network it shares, for as long as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Generation>,
    /// The first start of a row of them, for as long as its receipt is not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untold: Option<Timestamp>,
    /// How its container ended last. Of an incumbent that is started again: before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    /// How often in a row it ended by itself and was started again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ends: u32,
    /// Why its container does not run, where that is as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<Down>,
    /// A change in place that has begun: its container and its rules may have some of it, and `spec` has none. Crash: it
    /// is made again, whole, from what is wanted then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amending: Option<Amending>,
    /// Its containers beside the first, by their index: those that it has or is about to have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replicas: BTreeMap<ReplicaIndex, Replica>,
    /// How many containers it has for now, where that is less than its spec says: while a candidate takes the places of
    /// an incumbent's containers some at a time, its own number goes up and the other one's down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u32>,
}

impl Deployed {
    /// How many containers it is to have now.
    pub fn size(&self) -> u32 {
        let replicas = self.spec.deploy.replicas;
        self.quota.map_or(replicas, |quota| quota.clamp(1, replicas))
    }

    /// The indices of its containers.
    pub fn indices(&self) -> impl Iterator<Item = ReplicaIndex> {
        std::iter::once(ReplicaIndex::FIRST).chain(self.replicas.keys().copied())
    }

    /// The names of its containers.
    pub fn instances(&self, service: &ServiceName) -> impl Iterator<Item = InstanceId> {
        self.indices().map(move |index| InstanceId::replica(service, self.generation, index))
    }

    /// Whether it has, or is about to have, a container of this index.
    pub fn has(&self, index: ReplicaIndex) -> bool {
        index == ReplicaIndex::FIRST || self.replicas.contains_key(&index)
    }

    /// The addresses of its containers.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        std::iter::once(self.address).chain(self.replicas.values().map(|replica| replica.address))
    }

    /// The address of one of its containers.
    pub fn address_of(&self, index: ReplicaIndex) -> Option<Ipv4Addr> {
        match index {
            ReplicaIndex::FIRST => Some(self.address),
            index => self.replicas.get(&index).map(|replica| replica.address),
        }
    }
}

/// A container of a generation beside its first one. What is remembered of that one stands in [`Deployed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// Its address inside the instance's subnet.
    pub address: Ipv4Addr,
    /// Starts after the first, in a row.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// The last start; of an incumbent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// The first start of a row of them after the first, for as long as its receipt is not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untold: Option<Timestamp>,
    /// It is one too many, and has had no new connections since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving_since: Option<Timestamp>,
    /// It was told to end, and takes no new connections any more: it goes, also if one of its number is wanted again by now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_ending: bool,
}

impl Replica {
    /// One that has never run.
    pub fn new(address: Ipv4Addr) -> Self {
        Self { address, restarts: 0, started_at: None, untold: None, leaving_since: None, is_ending: false }
    }
}

/// A change in place that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amending {
    /// When. It names the receipt.
    pub since: Timestamp,
    /// The commit that asks for it.
    pub commit: CommitId,
    /// Why the running container did not take it: a new generation has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Why the container of an incumbent does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Down {
    /// It ended by itself and its restart policy leaves it so, also over a reboot.
    Ended,
    /// It was stopped for a candidate, or somebody wants it back: it is started whatever its policy says.
    Wanted,
    /// It was stopped for a candidate that did not make it, and may not come back by itself: see
    /// `reconcile::irreversible`.
    Barred,
}

/// A candidate under way. At most one a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The candidate.
    pub to: Deployed,
    /// Who asked for it.
    pub cause: Cause,
    /// How far it has come.
    pub phase: Phase,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When the phase was entered.
    pub phase_since: Timestamp,
    /// When the candidate's container was first started.
    pub candidate_started_at: Option<Timestamp>,
    /// When it first got a part of new connections, where it does not get all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_since: Option<Timestamp>,
    /// When traffic went over.
    pub switched_at: Option<Timestamp>,
    /// Seconds from the candidate's start to healthy.
    pub healthy_seconds: Option<f64>,
    /// What the pull cost.
    pub pull: PullCost,
    /// Attempts at an effect that may be tried again, and the last one's refusal.
    pub attempts: u32,
    /// Not before this is it tried again.
    pub retry_at: Option<Timestamp>,
    /// While trying again: why it did not work. In [`Phase::Abandoning`]: why it is given up.
    pub trouble: Option<Refusal>,
    /// Which of several containers it is given up for, where it is for one: what that one wrote last says more than what
    /// the others did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub culprit: Option<ReplicaIndex>,
    /// Under `recreate`: when the incumbent was stopped for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yielded_at: Option<Timestamp>,
    /// In [`Phase::Abandoning`]: when new connections were last led away from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned_at: Option<Timestamp>,
}

impl Rollout {
    /// Seconds for which nothing served, or has served by `now`.
    pub fn gap(&self, now: Timestamp) -> Option<f64> {
        let until = self.switched_at.unwrap_or(now);
        let gap = std::time::Duration::try_from(until.duration_since(self.yielded_at?)).unwrap_or_default();
        Some(gap.as_secs_f64())
    }
}

/// What a pull has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullCost {
    /// Over the network.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Who asked for a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The config repo.
    Commit,
    /// `gitopsd rollback`.
    Rollback,
}

/// How far a candidate has come. Each variant says what a crash in it means: the next round simply goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its image is being made local. Crash: pulled again, from the layers that are there.
    Pulling,
    /// `deploy.pre` runs. Crash: it goes on, or has ended: it is not run again.
    Preparing,
    /// `recreate` only: the incumbent is being stopped. Crash: stopped again.
    Yielding,
    /// Its container is being started. Crash: the container is found running, or started.
    Starting,
    /// It runs and is asked whether it works. Crash: asked again, from the start.
    Proving,
    /// It was judged healthy, has a part of new connections (`deploy.canary`), and is watched. Crash: the kernel's rule
    /// says whether it has its part yet; its time runs from when that was written down.
    Canary,
    /// Some of its containers have taken the places of as many of the incumbent's, with their part of new connections,
    /// and the next ones do (`deploy.parallelism`). Crash: the record says how many, and the rules are made to fit it.
    Batches,
    /// It was judged healthy and traffic is about to go over. Crash: the kernel's rule says whether it did.
    Switching,
    /// It has traffic; the incumbent is kept, ready to take it back. Crash: goes on.
    Baking,
    /// It is given up: traffic goes back, its container away. Crash: goes on.
    Abandoning,
}

impl Phase {
    /// The word in status and messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pulling => "pulling",
            Self::Preparing => "preparing",
            Self::Yielding => "yielding",
            Self::Starting => "starting",
            Self::Proving => "proving",
            Self::Canary => "canary",
            Self::Batches => "batches",
            Self::Switching => "switching",
            Self::Baking => "baking",
            Self::Abandoning => "abandoning",
        }
    }
}

/// The former incumbent, without new connections, until its old ones have ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retiring {
    /// What is to go.
    pub old: Deployed,
    /// When it lost its traffic.
    pub since: Timestamp,
}

/// A candidate that did not make it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The commit that is not tried again by itself.
    pub commit: CommitInfo,
    /// The generation that failed.
    pub generation: Generation,
    /// Why.
    pub refusal: Refusal,
    /// When.
    pub at: Timestamp,
    /// The secrets that it had: with other contents it is another attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretFile>,
}

impl Failure {
    /// Whether a candidate that is given up for this has failed: it was neither overtaken nor called back.
    pub fn comes_of(refusal: &Refusal) -> bool {
        !matches!(refusal.reason, Reason::Superseded | Reason::OperatorRollback | Reason::Held)
    }

    /// Whether it is what `wanted` would come to: tried at this commit, and with what the host has for it.
    pub fn is_of(&self, commit: &CommitId, wanted: Option<&DesiredService>) -> bool {
        match wanted {
            Some(DesiredService::Run(spec)) => self.is_at(commit, &spec.secrets),
            _ => self.commit.id == *commit,
        }
    }

    /// Whether it was tried at this commit, with these contents.
    pub fn is_at(&self, commit: &CommitId, secrets: &[SecretFile]) -> bool {
        self.commit.id == *commit && self.secrets == secrets
    }
}

/// An operator's word that a service stays as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// In the operator's words.
    pub reason: String,
    /// Who said it.
    pub by: String,
    /// When.
    pub since: Timestamp,
    /// It ends by itself, but not before then.
    pub until: Option<Timestamp>,
    /// It ends by itself, but not before the branch is no longer at this commit. With neither, only `resume` ends it.
    pub while_commit: Option<CommitId>,
}

impl Hold {
    /// Whether it has ended by itself. `head`: the commit in force.
    pub fn is_over(&self, head: Option<&CommitId>, now: Timestamp) -> bool {
        let moved = |commit: &CommitId| head.is_some_and(|head| head != commit);
        match (&self.until, &self.while_commit) {
            (None, None) => false,
            (until, commit) => until.is_none_or(|until| now >= until) && commit.as_ref().is_none_or(moved),
        }
    }
}

/// A removal that has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removing {
    /// The commit that no longer names the service.
    pub commit: CommitInfo,
    /// When it began.
    pub since: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 0.1.0 wrote is read by this one, and what it would have written is what this one writes: no service
    /// gets a new generation by an upgrade.
    #[test]
    fn records_of_the_first_version_are_read_and_written_as_they_are() {
        let text = r#"{
            "service_address": "10.98.191.255", "last_generation": 1,
            "incumbent": {
                "generation": 1, "address": "10.98.0.2",
                "spec": {
                    "image": {
                        "reference": "registry.local/shop:1",
                        "digest": "sha256:5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"
                    },
                    "fallback": [], "entrypoint": null, "command": ["serve"], "environment": {"LOG": "info"},
                    "user": null, "working_dir": null, "ports": [], "volumes": [], "depends_on": [],
                    "stop_grace_period": {"secs": 10, "nanos": 0},
                    "mem_limit": null, "milli_cpus": null, "pids_limit": null, "healthcheck": null,
                    "deploy": {
                        "strategy": null, "drain": {"secs": 30, "nanos": 0}, "bake": {"secs": 60, "nanos": 0},
                        "timeout": {"secs": 300, "nanos": 0}, "pre": []
                    }
                },
                "commit": {
                    "id": "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff", "subject": "shop 1", "author": "Ada",
                    "committed_at": "2026-01-01T00:00:00Z"
                },
                "since": "2026-01-01T00:00:00Z", "restarts": 0, "restarted_at": null
            },
            "previous": null, "rollout": null, "retiring": null, "failure": null, "hold": null, "removing": null
        }"#;
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let record: ServiceRecord = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&record).unwrap(), value);
        let incumbent = record.incumbent.unwrap();
        let mut declared = ServiceSpec::new(incumbent.spec.image.clone());
        declared.command = Some(vec!["serve".to_owned()]);
        declared.environment.insert("LOG".to_owned(), "info".to_owned());
        assert_eq!(incumbent.spec, declared, "not even new settings");
    }
}
