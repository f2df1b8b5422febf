//! One step on the model host, as the agent takes it: intent, effect, receipt, record.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use gitopsd::reconcile::handover;
use gitopsd::reconcile::jobs;
use gitopsd::reconcile::later;
use gitopsd::reconcile::receipt::Transition;
use gitopsd::reconcile::record::{Deployed, Phase, PullCost, ServiceRecord, Spec};
use gitopsd::reconcile::replicas;
use gitopsd::reconcile::step::{Amendment, Step};
use gitopsd::reconcile::transition::{self, Addresses, Outcome};
use gitopsd::types::{
    Branch, Canary, ContainerState, DrainSignal, Exit, Generation, InstanceId, Job, PortMapping, Reason,
    Refusal, Route, ServiceName, Share,
};

use super::{Container, Effect, Host};

/// The agent was killed at a point of the step.
#[derive(Debug)]
pub struct Crashed;

/// What the agent waits after an effect that the record does not pace.
const PAUSE: Duration = Duration::from_secs(2);

/// Longest time that a program takes to end: then it is killed. One that has its drain for it, and one that has not.
const EARLY_END: Duration = Duration::from_secs(60);
const LATE_END: Duration = Duration::from_secs(10);

impl Host {
    /// A moment at which the world can be looked at, and the agent can die.
    fn point(&mut self) -> Result<(), Crashed> {
        self.audit_world();
        match &mut self.crash_in {
            Some((0, crash)) => {
                let crash = *crash;
                self.crash_in = None;
                self.crash(crash);
                self.audit_world();
                Err(Crashed)
            }
            Some((points, _)) => {
                *points -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, name: &ServiceName, record: Option<ServiceRecord>) -> Result<(), Crashed> {
        if self.records.get(name) == record.as_ref() {
            return Ok(());
        }
        self.point()?;
        match record {
            Some(record) => self.records.insert(name.clone(), record),
            None => self.records.remove(name),
        };
        self.point()
    }

    pub(super) fn addresses(&mut self, generation: Generation, spec: &Spec) -> Addresses {
        self.next_address += 1;
        let service = Ipv4Addr::new(10, 98, 0, (generation.0 % 250) as u8);
        let host = spec.joins().and_then(|host| self.records.get(host)?.serving());
        let own = Ipv4Addr::from(self.next_address);
        Addresses {
            service,
            generation: host.map_or(own, |host| host.address),
            joined: host.map(|host| host.generation),
        }
    }

    /// Addresses for the containers that a generation has not yet.
    fn further_addresses(&mut self, name: &ServiceName, generation: Generation) -> Vec<Ipv4Addr> {
        let missing = self.deployed(name, generation).map_or(0, replicas::missing);
        let next = |_| {
            self.next_address += 1;
            Ipv4Addr::from(self.next_address)
        };
        (0..missing).map(next).collect()
    }

    /// Takes a step; a long effect is only begun.
    pub(super) fn act(&mut self, name: &ServiceName, step: &Step) -> Result<(), Crashed> {
        // Nothing takes no time, and two transitions never begin in the same microsecond.
        self.now = later(self.now, Duration::from_millis(1));
        let record = self.records.get(name).cloned();
        if let Step::Begin { generation, spec, .. } = step {
            let addresses = self.addresses(*generation, spec);
            let record = transition::begin(record.as_ref(), step, addresses, self.now);
            let written = self.write(name, record.clone());
            // What never reached the disk was never begun.
            if self.records.get(name) == record.as_ref() {
                self.audit_begin(name, step);
            }
            return written;
        }
        if let Some(record) = &record {
            let about = match (step, &record.rollout) {
                (Step::Start(generation), _) => Some(InstanceId::new(name, *generation)),
                (Step::StartReplica(generation, index), _) => {
                    Some(InstanceId::replica(name, *generation, *index))
                }
                (Step::Fail(_), Some(rollout)) => Some(InstanceId::new(name, rollout.to.generation)),
                _ => None,
            };
            let about = about.and_then(|id| self.containers.get(&id));
            let end = about.and_then(|container| match &container.state {
                ContainerState::Exited(exit) => Some(exit.clone()),
                _ => None,
            });
            let intended = match step {
                Step::Scale(generation) => {
                    let further = self.further_addresses(name, *generation);
                    replicas::scale(record, *generation, &further, self.now)
                }
                _ => transition::intend(record, step, end.as_ref(), self.now),
            };
            if let Step::Batch { generation, .. } = step {
                self.audit_canary(name, *generation);
            }
            let written = self.write(name, Some(intended.clone()));
            // From then on it has been well with its part, whatever becomes of the host before the rules say so.
            if let Step::Batch { generation, .. } = step
                && self.records.get(name) == Some(&intended)
            {
                self.audit.in_batches.insert(InstanceId::new(name, *generation));
            }
            written?;
        }
        if let Step::Pull(generation) = step {
            self.demand(!self.is_local(name, *generation), "what is local is not pulled", name);
        }
        let length = match step {
            Step::Pull(generation) if !self.is_local(name, *generation) && self.registry_up => {
                self.behaviour_of_generation(name, *generation).map(|behaviour| behaviour.pull)
            }
            _ => None,
        };
        if let Some(length) = length {
            self.point()?;
            let ends_at = later(self.now, length);
            self.busy.insert(name.clone(), Effect { step: Some(step.clone()), since: self.now, ends_at });
            return Ok(());
        }
        // A program that still has clients takes its time to end.
        let since = self.records.get(name).and_then(|record| match step {
            Step::Retire(_) => record.retiring.as_ref().map(|retiring| retiring.since),
            Step::DropReplica(_, index) => record.incumbent.as_ref()?.replicas.get(index)?.leaving_since,
            Step::Discard(_) => record.rollout.as_ref()?.returned_at,
            _ => None,
        });
        let still = |id: &InstanceId| {
            let lingers = self.behaviour_of(&self.containers.get(id)?.tag).lingers;
            let early = self
                .deployed(name, id.generation)
                .is_some_and(|it| it.spec.deploy.drain_signal == DrainSignal::Early);
            let most = if early { EARLY_END } else { LATE_END };
            let over = later(since.unwrap_or(self.now), lingers).min(later(self.now, most));
            self.started_at(id).and_then(|_| Duration::try_from(over.duration_since(self.now)).ok())
        };
        let ended = self.ended_by(name, step);
        let length = ended.iter().filter_map(still).max().unwrap_or_default();
        if !ended.is_empty() {
            if let Step::DropReplica(generation, index) = step {
                self.audit_to_end(&InstanceId::replica(name, *generation, *index));
            }
            // Before the program is told: a client that uses a port again is turned away.
            self.point()?;
            self.audit.deaf.extend(ended);
        }
        if length > Duration::ZERO {
            self.point()?;
            let ends_at = later(self.now, length);
            self.ending.insert(name.clone(), Effect { step: Some(step.clone()), since: self.now, ends_at });
            return Ok(());
        }
        self.finish(name, step)
    }

    /// The containers that a step takes away.
    pub(super) fn ended_by(&self, name: &ServiceName, step: &Step) -> BTreeSet<InstanceId> {
        match step {
            Step::Retire(generation) | Step::Discard(generation) => {
                self.all_of(name, *generation).into_iter().collect()
            }
            Step::DropReplica(generation, index) => {
                BTreeSet::from([InstanceId::replica(name, *generation, *index)])
            }
            _ => BTreeSet::new(),
        }
    }

    /// The effect itself, and what is remembered of it.
    pub(super) fn finish(&mut self, name: &ServiceName, step: &Step) -> Result<(), Crashed> {
        self.point()?;
        if let Step::Amend(amendment) = step {
            self.audit_amend(name, amendment);
            let takes = self.behaviour_of_spec(&amendment.spec).takes_limits;
            let ids: Vec<_> = self.all_of(name, amendment.generation);
            for id in ids.iter().filter(|_| amendment.touches && takes) {
                if let Some(container) = self.containers.get_mut(id) {
                    container.limit = amendment.spec.mem_limit;
                    // Killed between the parts of it.
                    self.point()?;
                }
            }
        }
        let outcome = self.effect(name, step);
        self.point()?;
        let Some(record) = self.records.get(name).cloned() else { return Ok(()) };
        // The record paces what concerns a candidate and a start of the incumbent. Anything else is for the agent to
        // pace, or it would try a rule that cannot be set thousands of times a second.
        let failed = matches!(outcome, Outcome::Retry(_) | Outcome::Failed(_));
        if failed
            && matches!(
                step,
                Step::Amend(_) | Step::Route(_) | Step::Return { .. } | Step::Withdraw | Step::Remove(_)
            )
        {
            let ends_at = later(self.now, PAUSE);
            self.busy.insert(name.clone(), Effect { step: None, since: self.now, ends_at });
        }
        let applied = transition::conclude(name, &record, step, &outcome, self.now);
        if let Some(receipt) = applied.receipt {
            self.point()?;
            self.receive(name, receipt);
            self.point()?;
        }
        self.audit_memory(name, &record, step, applied.record.as_ref());
        self.audit_told(name, &record, step, applied.record.as_ref());
        self.write(name, applied.record)
    }

    fn receive(&mut self, name: &ServiceName, receipt: Transition) {
        let side = |side: &Option<_>| {
            side.as_ref().map_or("-".to_owned(), |side: &gitopsd::reconcile::receipt::Side| {
                side.generation.to_string()
            })
        };
        let (from, to) = (side(&receipt.from), side(&receipt.to));
        let reason = receipt.reason.map_or(String::new(), |reason| format!(" ({reason})"));
        let line = format!("receipt: {} {from} -> {to}{reason}: {}", receipt.result.word(), receipt.message);
        self.say(name, &line);
        self.audit_receipt(&receipt);
        self.receipts.insert(receipt.id(), receipt);
    }

    fn deployed(&self, name: &ServiceName, generation: Generation) -> Option<&Deployed> {
        self.records.get(name)?.live(generation)
    }

    fn is_local(&self, name: &ServiceName, generation: Generation) -> bool {
        self.deployed(name, generation)
            .is_some_and(|deployed| self.images.contains(&deployed.spec.image.digest))
    }

    fn behaviour_of_generation(
        &self,
        name: &ServiceName,
        generation: Generation,
    ) -> Option<super::images::Behaviour> {
        self.deployed(name, generation).map(|deployed| self.behaviour_of_spec(&deployed.spec))
    }

    fn effect(&mut self, name: &ServiceName, step: &Step) -> Outcome {
        match step {
            Step::Pull(generation) => return self.pull(name, *generation),
            Step::Prepare(generation) => return self.start_job(name, *generation, Job::Pre),
            Step::Finish(generation) => return self.start_job(name, *generation, Job::Post),
            Step::Run(generation) => return self.start_job(name, *generation, Job::Run),
            Step::Ended { job, generation, exit, late } => {
                let deployed = self.deployed(name, *generation).expect("only what is recorded ends");
                if let Some(refusal) = jobs::failure(deployed, *job, exit, *late) {
                    return Outcome::Failed(refusal);
                }
            }
            Step::Clear(generation, job) => {
                self.containers.remove(&InstanceId::of_job(name, *generation, *job));
            }
            Step::Start(generation) => {
                self.audit_start(name, *generation);
                return self.start(name, *generation);
            }
            Step::StartReplica(generation, index) => {
                return self.start_one(name, InstanceId::replica(name, *generation, *index));
            }
            Step::DropReplica(generation, index) => {
                let id = InstanceId::replica(name, *generation, *index);
                self.audit_drop(&id);
                self.audit_drained(name, step, &id);
                self.containers.remove(&id);
            }
            Step::Amend(amendment) => return self.amend(name, amendment),
            Step::Stop(generation) => {
                self.audit_end(name, step, *generation);
                let exit = Exit { code: None, signal: Some(15), oom_killed: false, at: self.now };
                for id in self.all_of(name, *generation) {
                    if let Some(container) = self.containers.get_mut(&id) {
                        container.state = ContainerState::Exited(exit.clone());
                    }
                }
            }
            Step::Canary(generation) => {
                self.note_judged(name, *generation);
                let incumbent = self.incumbent(name).map(|incumbent| incumbent.generation);
                return self.point_traffic(name, incumbent);
            }
            Step::Batch { generation, stay } => {
                self.note_judged(name, *generation);
                self.audit_batch(name, *generation, *stay);
                let incumbent = self.incumbent(name).map(|incumbent| incumbent.generation);
                return self.point_traffic(name, incumbent);
            }
            Step::Switch(generation) | Step::Route(generation) => {
                match step {
                    Step::Switch(_) => {
                        self.note_judged(name, *generation);
                        self.audit_canary(name, *generation);
                        self.audit_all_judged(name, *generation);
                    }
                    _ => self.audit_route(name, *generation),
                }
                return self.point_traffic(name, Some(*generation));
            }
            Step::Return { to, .. } => return self.point_traffic(name, *to),
            Step::Withdraw => return self.point_traffic(name, None),
            Step::Discard(generation) | Step::Retire(generation) | Step::Sweep(generation) => {
                self.audit_end(name, step, *generation);
                for id in self.all_of(name, *generation) {
                    self.audit_drained(name, step, &id);
                    self.containers.remove(&id);
                }
            }
            Step::Remove(_) => {
                let record = &self.records[name];
                let former = record.retiring.as_ref().map(|retiring| &retiring.old);
                let both: Vec<_> = record.incumbent.iter().chain(former).map(|it| it.generation).collect();
                for id in both.into_iter().flat_map(|generation| self.all_of(name, generation)) {
                    self.audit_drained(name, step, &id);
                }
                self.containers.retain(|id, _| id.service != *name);
                return self.point_traffic(name, None);
            }
            Step::Begin { .. }
            | Step::Advance(_)
            | Step::Promote(_)
            | Step::Fail(_)
            | Step::Conclude
            | Step::Report(_)
            | Step::Scale(_)
            | Step::Widen { .. }
            | Step::Note(..)
            | Step::Release => {}
        }
        Outcome::Done
    }

    /// The containers of a generation that there are, without one-shots.
    fn all_of(&self, name: &ServiceName, generation: Generation) -> Vec<InstanceId> {
        let own = |id: &&InstanceId| id.service == *name && id.generation == generation && id.job.is_none();
        self.containers.keys().filter(own).cloned().collect()
    }

    fn amend(&mut self, name: &ServiceName, amendment: &Amendment) -> Outcome {
        match amendment.touches {
            true if !self.behaviour_of_spec(&amendment.spec).takes_limits => {
                Outcome::Failed(Refusal::new(Reason::StartFailed, "its limits cannot be changed"))
            }
            true => self.point_traffic_of(name, Some(amendment.generation), Some(&amendment.spec)),
            false => Outcome::Done,
        }
    }

    fn start_job(&mut self, name: &ServiceName, generation: Generation, job: Job) -> Outcome {
        let deployed = self.deployed(name, generation).cloned().expect("only what is recorded is started");
        assert!(self.is_local(name, generation), "only a local image is started\n{}", self.tail());
        if !self.behaviour_of_spec(&deployed.spec).starts {
            return Outcome::Failed(Refusal::new(Reason::StartFailed, "exec /srv: no such file"));
        }
        let id = InstanceId::of_job(name, generation, job);
        if !self.containers.contains_key(&id) {
            self.audit_job(&id);
            let tag = deployed.spec.image.reference.to_string();
            let state = ContainerState::Running { pid: 4712, started_at: self.now };
            self.containers
                .insert(id, Container { state, tag, born: self.now, limit: deployed.spec.mem_limit });
        }
        Outcome::Done
    }

    fn pull(&mut self, name: &ServiceName, generation: Generation) -> Outcome {
        let Some(deployed) = self.deployed(name, generation).cloned() else { return Outcome::Done };
        let tag = deployed.spec.image.reference.to_string();
        if self.images.contains(&deployed.spec.image.digest) {
            return Outcome::Done;
        }
        if !self.registry_up {
            let message = format!("{tag}: the registry does not answer");
            return Outcome::Retry(Refusal::new(Reason::RegistryUnreachable, message));
        }
        if !self.behaviour_of_spec(&deployed.spec).intact {
            return Outcome::Failed(Refusal::new(
                Reason::DigestMismatch,
                format!("{tag}: a layer is broken"),
            ));
        }
        self.images.insert(deployed.spec.image.digest);
        Outcome::Pulled(PullCost { bytes: 1000, seconds: 1.0 })
    }

    fn start(&mut self, name: &ServiceName, generation: Generation) -> Outcome {
        self.start_one(name, InstanceId::new(name, generation))
    }

    fn start_one(&mut self, name: &ServiceName, id: InstanceId) -> Outcome {
        let generation = id.generation;
        let deployed = self.deployed(name, generation).cloned().expect("only what is recorded is started");
        assert!(self.is_local(name, generation), "only a local image is started\n{}", self.tail());
        if !self.behaviour_of_spec(&deployed.spec).starts {
            return Outcome::Failed(Refusal::new(Reason::StartFailed, "exec /srv: no such file"));
        }
        // The network that it shares goes with its container.
        if let (Some(host), Some(joined)) = (deployed.spec.joins(), deployed.joined)
            && !self.containers.contains_key(&InstanceId::new(host, joined))
        {
            let message = format!("{name} cannot share the network of {host}.{joined}: it has none");
            return Outcome::Failed(Refusal::new(Reason::Network, message));
        }
        assert!(deployed.has(id.index), "only what is recorded is started: {id}\n{}", self.tail());
        let tag = deployed.spec.image.reference.to_string();
        let runs = self
            .containers
            .get(&id)
            .is_some_and(|container| matches!(container.state, ContainerState::Running { .. }));
        if !runs {
            // One that only ended has the network that it had.
            if self.containers.get(&id).is_none_or(|it| it.state == ContainerState::Remains) {
                self.audit.deaf.remove(&id);
            }
            let state = ContainerState::Running { pid: 4711, started_at: self.now };
            self.containers
                .insert(id, Container { state, tag, born: self.now, limit: deployed.spec.mem_limit });
        }
        Outcome::Done
    }

    /// Who loses a port to a route of these.
    fn givers(&self, name: &ServiceName, ports: &[PortMapping]) -> BTreeSet<ServiceName> {
        let (generation, address) = (Generation(0), Ipv4Addr::UNSPECIFIED);
        let (service, ports) = (name.clone(), ports.to_vec());
        let also = Vec::new();
        let route =
            Route { service, service_address: address, generation, address, also, ports, canary: None };
        let records = self.readable();
        handover::givers(self.desired.as_ref(), &self.observe(), &records, &self.policy, &route)
    }

    fn point_traffic(&mut self, name: &ServiceName, to: Option<Generation>) -> Outcome {
        self.point_traffic_of(name, to, None)
    }

    /// Whether a service's file, or the last one that could be read, says that it is to have a port.
    pub(super) fn is_to_have(&self, name: &ServiceName, port: &PortMapping) -> bool {
        let ports = self.desired.as_ref().and_then(|desired| desired.ports.get(name));
        ports.is_some_and(|ports| ports.iter().any(|own| own.clashes(port)))
    }

    /// The ports that `deployed`, with this spec, has now, and is to go on having until others take them, with its own; without those
    /// that others have already where it is to go.
    pub(super) fn ports_of(
        &self,
        name: &ServiceName,
        generation: Generation,
        spec: &Spec,
    ) -> Vec<PortMapping> {
        let amending = self.deployed(name, generation).is_some_and(|it| it.amending.is_some());
        let led = self.routes.get(name).is_some_and(|route| route.generation == generation);
        let of = |it: &ServiceName| it != name || (led && !amending);
        let anybodys =
            |port: &PortMapping| self.repo.declared.keys().any(|it| of(it) && self.is_to_have(it, port));
        let taken = |port: &PortMapping| {
            let mut others = self.routes.iter().filter(|(other, _)| *other != name);
            let has = others.any(|(_, route)| route.ports.iter().any(|it| it.clashes(port)));
            has && !self.repo.declared.contains_key(name)
        };
        let mut ports: Vec<_> = spec.ports.iter().filter(|port| !taken(port)).cloned().collect();
        for (route, port) in
            self.routes.get(name).into_iter().flat_map(|it| it.ports.iter().map(move |port| (it, port)))
        {
            let inside = spec.ports.iter().any(|own| own.container_port == port.container_port);
            let leads = inside || route.generation == generation;
            if leads && !spec.ports.iter().any(|own| own.clashes(port)) && anybodys(port) {
                ports.push(port.clone());
            }
        }
        ports.sort();
        ports
    }

    /// The other service that has one of these ports and does not leave it.
    fn owner_of_port(
        &self,
        name: &ServiceName,
        ports: &[PortMapping],
        givers: &BTreeSet<ServiceName>,
    ) -> Option<&ServiceName> {
        let clashes = |theirs: &PortMapping| ports.iter().any(|port| port.clashes(theirs));
        let mut others = self.routes.iter().filter(|(other, _)| *other != name && !givers.contains(*other));
        others.find(|(_, route)| route.ports.iter().any(clashes)).map(|(other, _)| other)
    }

    /// `spec`: instead of the one that is recorded.
    fn point_traffic_of(
        &mut self,
        name: &ServiceName,
        to: Option<Generation>,
        spec: Option<&Spec>,
    ) -> Outcome {
        if !self.traffic_works {
            return Outcome::Retry(Refusal::new(Reason::Network, "nft: Operation not permitted"));
        }
        let from = self.routes.get(name).map(|route| route.generation);
        if self.ports_taken && to.is_some() && from != to {
            return Outcome::Retry(Refusal::new(Reason::PortInUse, "port 80/tcp belongs to service other"));
        }
        let deployed = to.and_then(|to| self.records.get(name)?.live(to));
        let spec_of = spec.or(deployed.map(|it| &it.spec)).zip(to);
        let ports = spec_of.map(|(spec, to)| self.ports_of(name, to, spec)).unwrap_or_default();
        let givers = match to {
            Some(_) => self.givers(name, &ports),
            None => BTreeSet::new(),
        };
        if let Some(other) = to.and_then(|_| self.owner_of_port(name, &ports, &givers)) {
            return Outcome::Retry(Refusal::new(
                Reason::PortInUse,
                format!("its port belongs to service {other}"),
            ));
        }
        let led: Vec<_> = self.routes.values().flat_map(|route| route.ports.clone()).collect();
        let old_lanes = self.lanes_of(name);
        let (before, mut part) = (self.routes.get(name).and_then(|route| route.canary.clone()), None);
        let spread = |host: &Self| host.routes.get(name).map(|route| route.lanes().collect::<Vec<_>>());
        let spread_before = spread(self);
        match to {
            None => {
                self.routes.remove(name);
            }
            Some(generation) => {
                let record = &self.records[name];
                let deployed = record.live(generation).expect("only what is recorded gets traffic");
                let mut deployed = deployed.clone();
                deployed.spec = spec.cloned().unwrap_or(deployed.spec);
                let deployed = &deployed;
                let seen = self.observe();
                let (address, also) = replicas::lanes(name, deployed, &seen, self.now);
                let new = record.rollout.as_ref().map(|it| replicas::lanes(name, &it.to, &seen, self.now));
                let beside = also.len() + 1;
                let route = Route {
                    service: name.clone(),
                    service_address: record.service_address,
                    generation,
                    address,
                    also,
                    canary: branch(record, deployed, new, beside),
                    ports,
                };
                self.audit_switch(name, generation, &route);
                if let Some(branch) = &route.canary {
                    self.audit_switch(name, branch.generation, &route);
                    self.audit.branches.entry(InstanceId::new(name, branch.generation)).or_insert(self.now);
                }
                part = route.canary.clone();
                for giver in &givers {
                    self.audit_given(name, giver, &route);
                    let theirs = self.routes.get_mut(giver).expect("it has a port");
                    theirs.ports.retain(|port| !route.ports.iter().any(|taken| taken.clashes(port)));
                    self.say(name, &format!("takes its port from {giver}"));
                }
                self.routes.insert(name.clone(), route);
            }
        }
        if from != to {
            let word = |g: Option<Generation>| g.map_or("nothing".to_owned(), |g| g.to_string());
            self.say(name, &format!("traffic: {} -> {}", word(from), word(to)));
        }
        let after = spread(self);
        self.note_lost(name, &old_lanes);
        self.audit_led(name, &led);
        let several = |lanes: &Option<Vec<Ipv4Addr>>| lanes.as_ref().is_some_and(|lanes| lanes.len() > 1);
        if spread_before != after && (several(&spread_before) || several(&after)) {
            let lanes = after.map_or(0, |lanes| lanes.len());
            self.say(name, &format!("traffic: over {lanes}"));
        }
        if let Some(branch) = part.filter(|part| before.as_ref() != Some(part)) {
            self.say(name, &format!("traffic: {} of it -> {}", branch.share, branch.generation));
        }
        Outcome::Done
    }
}

/// As the repo has it: the part that a candidate gets before it gets all; in batches, each of its containers, at `lanes`, as
/// much as one of the others, of which there are so many `beside`.
fn branch(
    record: &ServiceRecord,
    deployed: &Deployed,
    lanes: Option<(Ipv4Addr, Vec<Ipv4Addr>)>,
    beside: usize,
) -> Option<Branch> {
    let phases = [Phase::Canary, Phase::Batches];
    let rollout = record.rollout.as_ref().filter(|rollout| phases.contains(&rollout.phase))?;
    let (address, also) =
        lanes.filter(|_| rollout.phase == Phase::Batches).unwrap_or((rollout.to.address, Vec::new()));
    let new = also.len() + 1;
    let even = || Share::new(((new * 1000) as f64 / (new + beside) as f64).round() as u16).unwrap();
    let canary = match rollout.phase {
        Phase::Canary => rollout.to.spec.deploy.canary?,
        _ => Canary::new(even()),
    };
    let incumbent = record.incumbent.as_ref()?.generation == deployed.generation;
    let published: Vec<_> = deployed.spec.ports.iter().map(|port| port.host_port).collect();
    incumbent.then(|| Branch {
        generation: rollout.to.generation,
        address,
        also,
        share: canary.share,
        by: canary.by,
        ports: rollout
            .to
            .spec
            .ports
            .iter()
            .filter(|port| published.contains(&port.host_port))
            .cloned()
            .collect(),
    })
}
