//! Carries a plan out. **The law:** here it is done, and nothing is decided; `reconcile` decides.
//!
//! Each step: the intent is durable, then the effect, then its outcome is durable. Around each of the three stands a
//! failpoint, `<step>::begin`, `<step>::before`, `<step>::after`, `<step>::done`; with the feature `failpoints` and
//! `FAILPOINTS='switch::after=return'` the process kills itself there, as `kill -9` would.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::effects::Effect;
use super::{Agent, clock, news};
use crate::engine::{ContainerRequest, EngineError};
use crate::reconcile::record::{Deployed, ServiceRecord};
use crate::reconcile::step::Step;
use crate::reconcile::transition::{self, Addresses, Outcome};
use crate::reconcile::view::route_for;
use crate::report::Message;
use crate::report::message::Kind;
use crate::state::StateError;
use crate::state::receipts::Receipt;
use crate::types::{ContainerState, Generation, InstanceId, Reason, Refusal, ServiceName};

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
        if let Err(error) = self.intend(service, step) {
            self.state_trouble(service, &error);
            return;
        }
        self.note_end(service, step);
        failpoint(step, "before");
        match self.way(service, step) {
            Ok(Way::Beside(effect)) => self.effects.begin(service, step.clone(), effect, clock::now()),
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
            Step::Begin { .. } => self.addresses(service),
            _ => None,
        };
        let before = self.journal.records.get(service);
        let after = match addresses {
            Some(addresses) => transition::begin(before, step, addresses, now),
            None => before.map(|record| transition::intend(record, step, now)),
        };
        match after {
            Some(after) if before != Some(&after) => {
                self.state.save_record(service, &after)?;
                self.journal.records.insert(service.clone(), after);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Writes down what came of a step: the receipt first, so that no end of a rollout is without one.
    pub(super) fn conclude(&mut self, service: &ServiceName, step: &Step, outcome: &Outcome) {
        let now = clock::now();
        let before = self.journal.records.get(service).cloned();
        if let Step::Begin { .. } = step {
            if before.as_ref().is_none_or(|record| record.rollout.is_none()) {
                let refusal = Refusal::new(Reason::Network, "the subnet has no free address left");
                self.effects.pause(service, &refusal, now);
                return self.refuse(service, Some(&refusal));
            }
            self.effects.clear(service);
            self.introduce(service);
            self.tell(news::of(service, before.as_ref(), step, outcome, None));
            return failpoint(step, "done");
        }
        let Some(record) = before else {
            // What no record names: only that it is away is worth a word.
            return self.conclude_unrecorded(service, step, outcome);
        };
        let mut applied = transition::conclude(service, &record, step, outcome, now);
        let end = self.ends.remove(service).filter(|_| matches!(step, Step::Start(_)));
        if let (Some(end), Some(receipt)) = (&end, &mut applied.receipt) {
            let generation = receipt.to.as_ref().map_or(Generation(0), |to| to.generation);
            receipt.message = format!("generation {generation} {end} and was started again");
        }
        let saved = self.save(service, &record, &applied);
        if let Err(error) = saved {
            return self.state_trouble(service, &error);
        }
        self.garbage.after(step, outcome);
        let remembered = applied.record.as_ref() != Some(&record);
        match outcome {
            Outcome::Failed(refusal) | Outcome::Retry(refusal) if !remembered => {
                let news = match self.is_paced(service, step) {
                    true => self.effects.note(service, refusal, now),
                    false => self.effects.pause(service, refusal, now),
                };
                if news {
                    self.tell(news::of(service, Some(&record), step, outcome, None));
                }
            }
            _ => {
                self.effects.clear(service);
                let mut news = news::of(service, Some(&record), step, outcome, applied.receipt.as_ref());
                if let (Some(end), Step::Start(generation), Some(news)) = (&end, step, &mut news)
                    && news.kind == Kind::Restarted
                {
                    news.text = format!("{service}: generation {generation} {end} and is started again");
                }
                self.tell(news);
            }
        }
        match applied.record {
            Some(after) => {
                self.journal.records.insert(service.clone(), after);
            }
            None => {
                self.journal.records.remove(service);
            }
        }
        failpoint(step, "done");
    }

    /// Keeps how a container ended that is about to be started again: the start takes the record of it away.
    fn note_end(&mut self, service: &ServiceName, step: &Step) {
        let Step::Start(generation) = step else { return };
        match self.seen.containers.get(&InstanceId::new(service, *generation)) {
            Some(ContainerState::Exited(exit)) => self.ends.insert(service.clone(), exit.clone()),
            _ => self.ends.remove(service),
        };
    }

    /// Whether the record itself says when `step` may be taken again: what brings an incumbent back that does not run.
    /// A pause of the whole service would hold up the newer version that may be the cure.
    fn is_paced(&self, service: &ServiceName, step: &Step) -> bool {
        let incumbent = self.journal.records.get(service).and_then(|record| record.incumbent.as_ref());
        match step {
            Step::Start(generation) | Step::Pull(generation) => {
                incumbent.is_some_and(|incumbent| incumbent.generation == *generation)
            }
            _ => false,
        }
    }

    fn conclude_unrecorded(&mut self, service: &ServiceName, step: &Step, outcome: &Outcome) {
        match outcome {
            Outcome::Failed(refusal) | Outcome::Retry(refusal) => {
                if self.effects.pause(service, refusal, clock::now()) {
                    self.tell(news::of(service, None, step, outcome, None));
                }
            }
            Outcome::Done | Outcome::Pulled(_) => {
                self.effects.clear(service);
                self.tell(news::of(service, None, step, outcome, None));
            }
        }
    }

    fn save(
        &mut self,
        service: &ServiceName,
        before: &ServiceRecord,
        applied: &transition::Applied,
    ) -> Result<(), StateError> {
        if let Some(transition) = &applied.receipt {
            let receipt = Receipt::new(transition.clone(), &self.config.host.name);
            self.state.save_receipt(&receipt, self.config.report.push)?;
            self.outbox_changed = true;
        }
        match &applied.record {
            Some(after) if after != before => self.state.save_record(service, after),
            Some(_) => Ok(()),
            None => self.state.forget_record(service),
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
        let traffic = self.hands.traffic.clone();
        Ok(Way::Beside(match step {
            Step::Begin { .. }
            | Step::Advance(_)
            | Step::Promote(_)
            | Step::Fail(_)
            | Step::Conclude
            | Step::Amend(_)
            | Step::Release => return Ok(Way::AtOnce(Outcome::Done)),
            Step::Switch(generation) | Step::Route(generation) => {
                let (record, deployed) = self.live(service, *generation)?;
                return at_once(traffic.point(&route_for(service, record, deployed)));
            }
            Step::Return { to: Some(to), from } => {
                let (record, deployed) = self.live(service, *to)?;
                let result = traffic.point(&route_for(service, record, deployed));
                if result.is_ok() {
                    // Their clients come back at once, and reach the generation that works.
                    if let Err(error) = traffic.reset_connections(&InstanceId::new(service, *from)) {
                        tracing::warn!("{service}: {}", error.to_refusal());
                    }
                }
                return at_once(result);
            }
            Step::Return { to: None, .. } | Step::Withdraw => return at_once(traffic.withdraw(service)),
            Step::Pull(generation) => {
                let spec = &self.live(service, *generation)?.1.spec;
                Effect::Pull(spec.image.clone(), spec.fallback.clone())
            }
            Step::Prepare(generation) => {
                let mut request = self.request(service, *generation)?;
                request.one_shot = Some(request.spec.deploy.pre.clone());
                let timeout = request.spec.deploy.timeout;
                Effect::Prepare(Box::new(request), timeout)
            }
            Step::Start(generation) => {
                let request = self.request(service, *generation)?;
                let record = self.live(service, *generation)?.0;
                // Ports that the incumbent publishes already are its own.
                let held = record.incumbent.as_ref().map_or(&[][..], |incumbent| &incumbent.spec.ports);
                let new = request.spec.ports.iter().filter(|port| !held.contains(port)).cloned().collect();
                Effect::Start(Box::new(request), new)
            }
            Step::Stop(generation) => {
                Effect::Stop(InstanceId::new(service, *generation), self.grace(service, *generation))
            }
            Step::Discard(generation) | Step::Retire(generation) | Step::Sweep(generation) => Effect::Remove(
                vec![(InstanceId::new(service, *generation), self.grace(service, *generation))],
            ),
            Step::Remove(_) => {
                let record = self.journal.records.get(service);
                let named = record.into_iter().flat_map(|record| record.live_generations());
                let mut generations: BTreeSet<Generation> =
                    named.map(|deployed| deployed.generation).collect();
                generations.extend(self.seen.containers_of(service).map(|(generation, _)| generation));
                let instances = generations.into_iter().map(|generation| {
                    (InstanceId::new(service, generation), self.grace(service, generation))
                });
                Effect::RemoveService(service.clone(), instances.collect())
            }
        }))
    }

    /// Tells the running containers the address of a service that begins for the first time.
    fn introduce(&self, service: &ServiceName) {
        if self.journal.records.get(service).is_none_or(|record| record.last_generation != Generation(1)) {
            return;
        }
        let hosts = self.hosts();
        for id in self.seen.containers.keys() {
            // It still works by address, and the next generation gets the name anyway.
            if let Err(error) = self.hands.engine.write_hosts(id, &hosts) {
                tracing::warn!("{}", error.to_refusal());
            }
        }
    }

    /// Every service of this host by its stable address.
    fn hosts(&self) -> BTreeMap<ServiceName, Ipv4Addr> {
        let records = self.journal.records.iter().filter(|(_, record)| !record.is_absent());
        records.map(|(name, record)| (name.clone(), record.service_address)).collect()
    }

    fn live(
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

    fn request(&self, service: &ServiceName, generation: Generation) -> Result<ContainerRequest, Refusal> {
        let (_, deployed) = self.live(service, generation)?;
        let image = self.store.image(&deployed.spec.image.digest).ok_or_else(|| {
            Refusal::new(
                Reason::ImageNotFound,
                format!("{} is not on this host", deployed.spec.image.reference),
            )
        })?;
        Ok(ContainerRequest {
            id: InstanceId::new(service, generation),
            spec: deployed.spec.clone(),
            image,
            address: deployed.address,
            hosts: self.hosts(),
            commit: deployed.commit.id.clone(),
            one_shot: None,
        })
    }

    fn addresses(&mut self, service: &ServiceName) -> Option<Addresses> {
        let records = self.journal.records.values();
        let mut used: BTreeSet<Ipv4Addr> = records
            .flat_map(|record| {
                let own = record.live_generations().map(|deployed| deployed.address);
                own.chain([record.service_address])
            })
            .collect();
        used.extend(self.seen.routes.values().flat_map(|route| [route.address, route.service_address]));
        let known = self.journal.records.get(service).map(|record| record.service_address);
        let service = known.or_else(|| self.pool.service(&used))?;
        Some(Addresses { service, generation: self.pool.container(&used)? })
    }

    /// State could not be written: nothing was done, and the service waits.
    fn state_trouble(&mut self, service: &ServiceName, error: &StateError) {
        let refusal = error.to_refusal();
        if self.effects.pause(service, &refusal, clock::now()) {
            self.tell(Some(
                Message::of(Kind::StateTrouble, service, refusal.message.clone()).because(&refusal),
            ));
        }
    }
}

/// A place where a test can kill the agent.
pub(super) fn failpoint(step: &Step, place: &str) {
    crate::failpoint::hit(&format!("{}::{place}", step.word()));
}
