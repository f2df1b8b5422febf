//! Carries a plan out. **The law:** here it is done, and nothing is decided; `reconcile` decides.
//!
//! Each step: the intent is durable, then the effect, then its outcome is durable. Around each of the three stands a
//! failpoint, `<step>::begin`, `<step>::before`, `<step>::after`, `<step>::done`; with the feature `failpoints` and
//! `FAILPOINTS='switch::after=return'` the process kills itself there, as `kill -9` would.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::effects::{Change, Effect};
use super::{Agent, clock};
use crate::engine::{ContainerRequest, EngineError};
use crate::reconcile::drain::Drain;
use crate::reconcile::record::{Deployed, Phase, ServiceRecord, Spec};
use crate::reconcile::replicas;
use crate::reconcile::step::{Amendment, Step};
use crate::reconcile::transition::{self, Addresses, Outcome};
use crate::report::Message;
use crate::report::message::Kind;
use crate::state::StateError;
use crate::types::{
    ContainerState, Generation, InstanceId, Job, NetworkMode, Reason, Refusal, ReplicaIndex, ServiceName,
    plural,
};

/// How an effect is carried out.
enum Way {
    /// Beside the loop.
    Beside(Effect),
    /// At once; this is what came of it.
    AtOnce(Outcome),
}

impl Agent {
    /// Carries one step out, or begins to.
    pub(super) fn execute(&mut self, service: &ServiceName, step: &Step) {
        tracing::debug!("{service}: {step}");
        if !self.is_paced(service, step)
            && !self.spreads(service, step)
            && let Some(refusal) = self.effects.repeated(service, step, clock::now())
        {
            if self.effects.pause(service, &refusal, clock::now()) {
                self.tell(Some(
                    Message::of(Kind::EffectFailed, service, format!("{service}: {}", refusal.message))
                        .because(&refusal),
                ));
            }
            return;
        }
        failpoint(step, "begin");
        self.note_end(service, step);
        let drained = self.drained(service, step);
        self.tell(drained);
        if let Err(error) = self.intend(service, step) {
            // What serves is kept alive all the same: the step is remembered until it can be written down.
            self.note_fault(Some(error.to_refusal()));
            if !self.is_paced(service, step) {
                self.state_trouble(service, &error);
                return;
            }
        }
        failpoint(step, "before");
        match self.way(service, step) {
            Ok(Way::Beside(effect)) => {
                // That it was begun is written down, and its container is found again.
                let yields =
                    matches!(step, Step::Prepare(_) | Step::Start(_)) && !self.is_paced(service, step);
                self.effects.begin(service, step.clone(), effect, yields, clock::now());
            }
            Ok(Way::AtOnce(outcome)) => {
                failpoint(step, "after");
                self.conclude(service, step, &outcome);
            }
            Err(refusal) => self.conclude(service, step, &Outcome::Failed(refusal)),
        }
    }

    /// Makes the intent durable.
    fn intend(&mut self, service: &ServiceName, step: &Step) -> Result<(), StateError> {
        let now = clock::now();
        let addresses = match step {
            Step::Begin { spec, .. } => self.addresses(service, spec),
            _ => None,
        };
        let further = self.further_addresses(service, step);
        let before = self.journal.records.get(service);
        let after = match (addresses, step) {
            (Some(addresses), _) => transition::begin(before, step, addresses, now),
            (None, Step::Scale(generation)) => {
                before.map(|record| replicas::scale(record, *generation, &further, now))
            }
            _ => before.map(|record| {
                let mut after = transition::intend(record, step, self.ends.get(service), now);
                if let (Step::Fail(refusal), Some(rollout)) = (step, &mut after.rollout) {
                    rollout.culprit = self.culprit(service, &rollout.to, refusal.reason);
                }
                after
            }),
        };
        match after {
            Some(after) if before != Some(&after) => {
                let saved = self.state.save_record(service, &after);
                if saved.is_ok() || self.is_paced(service, step) {
                    self.journal.records.insert(service.clone(), after);
                }
                if saved.is_err() && self.is_paced(service, step) {
                    self.unsaved.insert(service.clone());
                }
                saved
            }
            _ => Ok(()),
        }
    }

    /// Keeps how a container ended that is about to be started again, or is given up for it: the start, or the removal,
    /// takes the record of it away.
    fn note_end(&mut self, service: &ServiceName, step: &Step) {
        let rollout = self.journal.records.get(service).and_then(|record| record.rollout.as_ref());
        let (generation, index) = match (step, rollout) {
            (Step::Start(generation), _) => (*generation, ReplicaIndex::FIRST),
            (Step::StartReplica(generation, index), _) => (*generation, *index),
            (Step::Fail(_), Some(rollout)) => {
                let generation = rollout.to.generation;
                let ended = |index: &ReplicaIndex| {
                    let id = InstanceId::replica(service, generation, *index);
                    matches!(self.seen.containers.get(&id), Some(ContainerState::Exited(_)))
                };
                (generation, rollout.to.indices().find(ended).unwrap_or(ReplicaIndex::FIRST))
            }
            _ => return,
        };
        match self.seen.containers.get(&InstanceId::replica(service, generation, index)) {
            Some(ContainerState::Exited(exit)) => self.ends.insert(service.clone(), exit.clone()),
            _ => self.ends.remove(service),
        };
    }

    /// Whether `step` only spreads a generation's traffic anew over its containers, which come and go at their own times.
    fn spreads(&self, service: &ServiceName, step: &Step) -> bool {
        let Step::Route(generation) = step else { return false };
        let Ok((record, deployed)) = self.live(service, *generation) else { return false };
        let wanted = self.route(service, record, deployed);
        self.seen.routes.get(service).is_some_and(|there| *there != wanted && there.agrees(&wanted))
    }

    /// Whether the record itself says when `step` may be taken again: what brings an incumbent back that does not run.
    /// A pause of the whole service would hold up the newer version that may be the cure.
    pub(super) fn is_paced(&self, service: &ServiceName, step: &Step) -> bool {
        let incumbent = self.journal.records.get(service).and_then(|record| record.incumbent.as_ref());
        match step {
            Step::Start(generation) | Step::Pull(generation) | Step::StartReplica(generation, _) => {
                incumbent.is_some_and(|incumbent| incumbent.generation == *generation)
            }
            _ => false,
        }
    }

    /// The one match over what there is to do.
    fn way(&mut self, service: &ServiceName, step: &Step) -> Result<Way, Refusal> {
        let at_once = |result: Result<(), EngineError>| {
            Ok(Way::AtOnce(match result {
                Ok(()) => Outcome::Done,
                // Another service still publishes the port: its own change of this commit may be under way.
                Err(error) if error.reason == Reason::PortInUse => Outcome::Retry(error.to_refusal()),
                Err(error) => Outcome::Failed(error.to_refusal()),
            }))
        };
        Ok(Way::Beside(match step {
            // The next look sees its end.
            Step::Switch(generation) | Step::Canary(generation) | Step::Batch { generation, .. }
                if self.has_just_ended(service, *generation) =>
            {
                return Ok(Way::AtOnce(Outcome::Dropped));
            }
            Step::Begin { .. }
            | Step::Advance(_)
            | Step::Promote(_)
            | Step::Fail(_)
            | Step::Conclude
            | Step::Report(_)
            | Step::Note(..)
            | Step::Widen { .. }
            | Step::Release => return Ok(Way::AtOnce(Outcome::Done)),
            Step::Scale(generation) => {
                let missing = replicas::missing(self.live(service, *generation)?.1);
                if missing > 0 {
                    let containers = plural(missing, "more container", "more containers");
                    let message =
                        format!("the subnet has no free address left for {containers} (engine.subnet)");
                    let refusal = Refusal::new(Reason::Network, message);
                    // What has begun to take an old generation's places waits for one: it gives them back only for cause.
                    let record = self.live(service, *generation)?.0;
                    let batches = record.rollout.as_ref().is_some_and(|it| it.phase == Phase::Batches);
                    return if batches { Ok(Way::AtOnce(Outcome::Retry(refusal))) } else { Err(refusal) };
                }
                return Ok(Way::AtOnce(Outcome::Done));
            }
            Step::Amend(amendment) if !amendment.touches => return Ok(Way::AtOnce(Outcome::Done)),
            Step::Amend(amendment) => self.amend(service, amendment)?,
            Step::Canary(generation) | Step::Batch { generation, .. } => {
                let record = self.live(service, *generation)?.0;
                let Some(incumbent) = &record.incumbent else {
                    let message = format!("{service} has no generation to share traffic with");
                    return Err(Refusal::new(Reason::Internal, message));
                };
                let route = self.route(service, record, incumbent);
                let result = self.lead(&route);
                self.forget_dead(service);
                return at_once(result);
            }
            Step::Switch(generation) | Step::Route(generation) => {
                let (record, deployed) = self.live(service, *generation)?;
                let route = self.route(service, record, deployed);
                let result = self.lead(&route);
                self.forget_dead(service);
                return at_once(result);
            }
            Step::Return { to: Some(to), from } => {
                let (record, deployed) = self.live(service, *to)?;
                let route = self.route(service, record, deployed);
                let result = self.lead(&route);
                if result.is_ok() {
                    failpoint(step, "effect");
                    self.end_of_sick(service, *from);
                }
                return at_once(result);
            }
            Step::Return { to: None, .. } | Step::Withdraw => {
                return at_once(self.hands.traffic.withdraw(service));
            }
            Step::Pull(generation) => {
                let spec = &self.live(service, *generation)?.1.spec;
                Effect::Pull(spec.image.clone(), spec.fallback.clone())
            }
            Step::Prepare(generation) => self.job(service, *generation, Job::Pre)?,
            Step::Finish(generation) => self.job(service, *generation, Job::Post)?,
            Step::Run(generation) => self.job(service, *generation, Job::Run)?,
            Step::Ended { job, generation, exit, late } => {
                return Ok(Way::AtOnce(self.judge_job(service, (*job, *generation), exit, *late)));
            }
            Step::Clear(generation, job) => Effect::Remove(vec![(
                InstanceId::of_job(service, *generation, *job),
                self.grace(service, *generation),
            )]),
            Step::Start(generation) => {
                let request = self.request(service, *generation)?;
                let record = self.live(service, *generation)?.0;
                // Ports that the incumbent publishes already are its own.
                let held = record.incumbent.as_ref().map_or(&[][..], |incumbent| &incumbent.spec.ports);
                let new = request.spec.ports.iter().filter(|port| !held.contains(port)).cloned().collect();
                Effect::Start(Box::new(request), new)
            }
            Step::StartReplica(generation, index) => {
                Effect::Start(Box::new(self.request_of(service, *generation, *index)?), Vec::new())
            }
            Step::DropReplica(generation, index) => {
                let record = self.live(service, *generation)?.0;
                let drains = record.incumbent.as_ref().is_some_and(|it| it.generation == *generation);
                let drain = Drain::too_many(record, *index).filter(|_| drains);
                let grace = || self.grace(service, *generation);
                let patience = drain.map_or_else(grace, |drain| drain.patience(clock::now()));
                Effect::Remove(vec![(InstanceId::replica(service, *generation, *index), patience)])
            }
            Step::Stop(generation) => {
                Effect::Stop(self.instances(service, *generation), self.grace(service, *generation))
            }
            Step::Retire(generation) => {
                let record = self.journal.records.get(service);
                let patience = record
                    .and_then(Drain::former)
                    .map_or(Duration::ZERO, |drain| drain.patience(clock::now()));
                let all = self.instances(service, *generation).into_iter();
                Effect::Remove(all.map(|id| (id, patience)).collect())
            }
            Step::Sweep(generation) => {
                let (all, grace) = (self.instances(service, *generation), self.grace(service, *generation));
                Effect::Remove(all.into_iter().map(|id| (id, grace)).collect())
            }
            Step::Discard(generation) => {
                let record = self.journal.records.get(service);
                // Once more: an agent may have been ended between a return and this part of it.
                let rollout = record.and_then(|record| record.rollout.as_ref());
                if rollout.is_some_and(|rollout| rollout.returned_at.is_some()) {
                    self.end_of_sick(service, *generation);
                }
                let drain =
                    record.and_then(Drain::given_up).filter(|drain| drain.of().generation == *generation);
                let grace = || self.grace(service, *generation);
                let patience = drain.map_or_else(grace, |drain| drain.patience(clock::now()));
                let all = self.instances(service, *generation).into_iter();
                Effect::Remove(all.map(|id| (id, patience)).collect())
            }
            Step::Remove(_) => {
                let record = self.journal.records.get(service);
                let named = record.into_iter().flat_map(|record| record.live_generations());
                let mut all: BTreeSet<InstanceId> =
                    named.flat_map(|deployed| deployed.instances(service)).collect();
                all.extend(self.seen.instances_of(service).cloned());
                all.extend(self.seen.jobs_of(service).map(|(id, _)| id.clone()));
                let instances = all.into_iter().map(|id| {
                    let grace = self.grace(service, id.generation);
                    (id, grace)
                });
                Effect::RemoveService(service.clone(), instances.collect())
            }
        }))
    }

    /// Whether a container has ended since it was seen to run: to write down what is meant takes milliseconds, and whoever is led to it
    /// after that is refused.
    fn has_just_ended(&self, service: &ServiceName, generation: Generation) -> bool {
        let ran =
            |id: &&InstanceId| matches!(self.seen.containers.get(*id), Some(ContainerState::Running { .. }));
        self.instances(service, generation).iter().filter(ran).any(|id| !self.hands.engine.runs(id))
    }

    /// A change in place, with the ports that have to be free on the host first.
    fn amend(&self, service: &ServiceName, amendment: &Amendment) -> Result<Effect, Refusal> {
        let (record, deployed) = self.live(service, amendment.generation)?;
        let (held, spec) = (&deployed.spec.ports, &amendment.spec);
        let new = spec.ports.iter().filter(|port| !held.contains(port)).cloned().collect();
        let route = self.route(service, record, &Deployed { spec: spec.clone(), ..deployed.clone() });
        Ok(Effect::Amend(Box::new(Change {
            ids: deployed.instances(service).collect(),
            former: deployed.spec.clone(),
            spec: spec.clone(),
            givers: self.givers(&route),
            route,
            new,
        })))
    }

    /// The containers of a generation: those that its record names, and those that are there. The first one in any case.
    pub(super) fn instances(&self, service: &ServiceName, generation: Generation) -> Vec<InstanceId> {
        let mut all = BTreeSet::from([InstanceId::new(service, generation)]);
        all.extend(self.seen.instances_of(service).filter(|id| id.generation == generation).cloned());
        if let Ok((_, deployed)) = self.live(service, generation) {
            all.extend(deployed.instances(service));
        }
        all.into_iter().collect()
    }

    pub(super) fn live(
        &self,
        service: &ServiceName,
        generation: Generation,
    ) -> Result<(&ServiceRecord, &Deployed), Refusal> {
        let record = self.journal.records.get(service);
        record.and_then(|record| record.live(generation).map(|deployed| (record, deployed))).ok_or_else(
            || {
                Refusal::new(
                    Reason::Internal,
                    format!("no record names generation {generation} of {service}"),
                )
            },
        )
    }

    fn grace(&self, service: &ServiceName, generation: Generation) -> Duration {
        self.live(service, generation).map_or(Duration::ZERO, |(_, deployed)| deployed.spec.stop_grace_period)
    }

    pub(super) fn request(
        &self,
        service: &ServiceName,
        generation: Generation,
    ) -> Result<ContainerRequest, Refusal> {
        self.request_of(service, generation, ReplicaIndex::FIRST)
    }

    fn request_of(
        &self,
        service: &ServiceName,
        generation: Generation,
        index: ReplicaIndex,
    ) -> Result<ContainerRequest, Refusal> {
        let (_, deployed) = self.live(service, generation)?;
        let image = self.store.image(&deployed.spec.image.digest).ok_or_else(|| {
            Refusal::new(
                Reason::ImageNotFound,
                format!("{} is not on this host", deployed.spec.image.reference),
            )
        })?;
        Ok(ContainerRequest {
            id: InstanceId::replica(service, generation, index),
            spec: deployed.spec.clone(),
            image,
            address: deployed.address_of(index).ok_or_else(|| {
                let message =
                    format!("no record names replica {index} of generation {generation} of {service}");
                Refusal::new(Reason::Internal, message)
            })?,
            joins: deployed
                .spec
                .joins()
                .zip(deployed.joined)
                .map(|(host, joined)| InstanceId::new(host, joined)),
            hosts: self.hosts(service, &deployed.spec),
            commit: deployed.commit.id.clone(),
            one_shot: None,
        })
    }

    /// The addresses that somebody has.
    pub(super) fn used_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let records = self.journal.records.values();
        let mut used: BTreeSet<Ipv4Addr> = records
            .flat_map(|record| {
                let own = record.live_generations().flat_map(Deployed::addresses);
                own.chain([record.service_address])
            })
            .collect();
        let routes = self.seen.routes.values();
        used.extend(routes.flat_map(|route| route.addresses().chain([route.service_address])));
        used
    }

    pub(super) fn addresses(&mut self, service: &ServiceName, spec: &Spec) -> Option<Addresses> {
        let used = self.used_addresses();
        let known = self.journal.records.get(service).map(|record| record.service_address);
        let service = known.or_else(|| self.pool.service(&used))?;
        let (generation, joined) = match spec.network_mode() {
            NetworkMode::Host => (self.pool.gateway(), None),
            NetworkMode::Service(host) => {
                let serving = self.journal.records.get(host)?.serving()?;
                (serving.address, Some(serving.generation))
            }
            NetworkMode::Bridge | NetworkMode::None => (self.pool.container(&used)?, None),
        };
        Some(Addresses { service, generation, joined })
    }

    /// Addresses for the containers that a generation has not yet: as many as can be had.
    fn further_addresses(&mut self, service: &ServiceName, step: &Step) -> Vec<Ipv4Addr> {
        let Step::Scale(generation) = step else { return Vec::new() };
        let missing = self.live(service, *generation).map_or(0, |(_, deployed)| replicas::missing(deployed));
        let mut used = if missing > 0 { self.used_addresses() } else { BTreeSet::new() };
        let mut found = Vec::new();
        while found.len() < missing
            && let Some(address) = self.pool.container(&used)
        {
            used.insert(address);
            found.push(address);
        }
        found
    }
}

/// A place where a test can kill the agent.
pub(super) fn failpoint(step: &Step, place: &str) {
    crate::failpoint::hit(&format!("{}::{place}", step.word()));
}
