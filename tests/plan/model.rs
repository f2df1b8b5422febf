//! A host in memory: what survives a crash, what survives a reboot, what is lost, and time.
//!
//! The records change through `reconcile::transition` alone, in the agent's order: intent, effect, receipt, record.
//! Every write and every effect has a point before and after it at which the agent may be killed or the host may lose
//! its power. [`audit`] looks at every one of these points.

pub mod act;
pub mod audit;
pub mod audit_changes;
pub mod audit_drains;
pub mod audit_receipts;
pub mod audit_tags;
pub mod images;
pub mod operator;
pub mod repo;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gitopsd::reconcile::clock::put_right;
use gitopsd::reconcile::drain::Drain;
use gitopsd::reconcile::errors::ErrorHistory;
use gitopsd::reconcile::health::{EffectiveCheck, ProbeHistory};
use gitopsd::reconcile::receipt::Transition;
use gitopsd::reconcile::record::{Deployed, Phase, Rollout, ServiceRecord, Spec};
use gitopsd::reconcile::step::{Plan, Step};
use gitopsd::reconcile::world::{Busy, Desired, DesiredService, Ending, Observed, Room};
use gitopsd::reconcile::{later, plan};
use gitopsd::types::{
    ByteSize, ContainerState, Counters, Digest, Exit, HealthCheck, InstanceId, Policy, Reason, Refusal,
    Route, ServiceName, Timestamp, Zones,
};
use images::Behaviour;

/// How an agent ends without being asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Crash {
    /// SIGKILL: what it only remembered is gone, and it is started again at once.
    Kill,
    /// Power cut: all processes and kernel objects are gone as well.
    Reboot,
}

/// A container and what it was made from.
#[derive(Debug, Clone)]
pub struct Container {
    /// As the agent sees it.
    pub state: ContainerState,
    /// Its image as the service file names it; empty for debris.
    pub tag: String,
    /// When it was started, as the world knows it: whatever the clock says.
    pub born: Timestamp,
    /// The memory that its control group lets it have.
    pub limit: Option<ByteSize>,
}

/// A long effect under way.
#[derive(Debug, Clone)]
pub struct Effect {
    /// `None`: a pause after an effect that did not work.
    step: Option<Step>,
    since: Timestamp,
    ends_at: Timestamp,
}

/// The model host.
#[derive(Clone)]
pub struct Host {
    /// The time.
    pub now: Timestamp,
    /// When the story began.
    pub began: Timestamp,
    /// What the host's owner allows.
    pub policy: Policy,
    // Durable.
    pub records: BTreeMap<ServiceName, ServiceRecord>,
    pub receipts: BTreeMap<String, Transition>,
    pub images: BTreeSet<Digest>,
    pub desired: Option<Desired>,
    pub repo: repo::Repo,
    pub frozen: BTreeSet<ServiceName>,
    // Gone with a reboot.
    pub containers: BTreeMap<InstanceId, Container>,
    pub routes: BTreeMap<ServiceName, Route>,
    // Gone with the agent.
    pub health: BTreeMap<InstanceId, ProbeHistory>,
    pub busy: BTreeMap<ServiceName, Effect>,
    /// Containers on their way out.
    pub ending: BTreeMap<ServiceName, Effect>,
    pub idle_polls: BTreeMap<InstanceId, u32>,
    pub errors: BTreeMap<InstanceId, ErrorHistory>,
    polled_at: Option<Timestamp>,
    agent_since: Timestamp,
    pub agent_up: bool,
    // The world outside.
    pub registry_up: bool,
    pub traffic_works: bool,
    /// Whether somebody else has every port.
    pub ports_taken: bool,
    /// Whether a process of the host listens on every port that is not published yet.
    pub ports_listened: bool,
    /// Bytes of memory that can be had; `None` = nobody asks.
    pub memory: Option<u64>,
    pub behaviours: BTreeMap<String, Behaviour>,
    /// Crash after passing this many points.
    pub crash_in: Option<(u32, Crash)>,
    pub audit: audit::Audit,
    /// What was seen, one line each.
    pub log: Vec<String>,
    shown: BTreeMap<ServiceName, String>,
    next_address: u32,
}

impl Host {
    /// A host on which nothing ever ran.
    pub fn new() -> Self {
        let began: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        Self {
            now: began,
            began,
            policy: Policy::default(),
            records: BTreeMap::new(),
            receipts: BTreeMap::new(),
            images: BTreeSet::new(),
            desired: None,
            repo: repo::Repo::default(),
            frozen: BTreeSet::new(),
            containers: BTreeMap::new(),
            routes: BTreeMap::new(),
            health: BTreeMap::new(),
            busy: BTreeMap::new(),
            ending: BTreeMap::new(),
            idle_polls: BTreeMap::new(),
            errors: BTreeMap::new(),
            polled_at: None,
            agent_since: began,
            agent_up: true,
            registry_up: true,
            traffic_works: true,
            ports_taken: false,
            ports_listened: false,
            memory: None,
            behaviours: BTreeMap::new(),
            crash_in: None,
            audit: audit::Audit::default(),
            log: Vec::new(),
            shown: BTreeMap::new(),
            next_address: u32::from(std::net::Ipv4Addr::new(10, 98, 1, 0)),
        }
    }

    /// How containers of `tag` behave.
    pub fn behaviour(&mut self, tag: &str) -> &mut Behaviour {
        self.behaviours.entry(tag.to_owned()).or_default()
    }

    fn behaviour_of(&self, tag: &str) -> Behaviour {
        self.behaviours.get(tag).cloned().unwrap_or_default()
    }

    /// How containers of a spec behave.
    pub fn behaviour_of_spec(&self, spec: &Spec) -> Behaviour {
        self.behaviour_of(&spec.image.reference.to_string())
    }

    /// Whose next ports somebody listens on.
    fn listened(&self) -> impl Iterator<Item = (ServiceName, Refusal)> {
        let moves = |record: &ServiceRecord| {
            let ports = record.incumbent.as_ref().map(|incumbent| &incumbent.spec.ports);
            let next = record.rollout.as_ref().map(|rollout| &rollout.to.spec.ports);
            next.is_some_and(|next| ports != Some(next))
        };
        let found = self.records.iter().filter(move |(_, record)| self.ports_listened && moves(record));
        found.map(|(name, _)| {
            (name.clone(), Refusal::new(Reason::PortInUse, "port 81/tcp is listened on by nginx (pid 4711)"))
        })
    }

    /// What the agent would see now.
    pub fn observe(&self) -> Observed {
        let busy = self.busy.iter().filter_map(|(name, effect)| {
            let step = effect.step.as_ref()?;
            let what = format!("{step} under way");
            Some((name.clone(), Busy { what, since: effect.since, yields: false }))
        });
        let ending = self.ending.iter().filter_map(|(name, effect)| {
            let step = effect.step.as_ref()?;
            Some((name.clone(), Ending { what: format!("{step} under way"), ids: self.ended_by(name, step) }))
        });
        let pauses = self.busy.iter().filter(|(_, effect)| effect.step.is_none()).map(|(name, effect)| {
            let what = "pausing after an effect that did not work".to_owned();
            (name.clone(), Busy { what, since: effect.ends_at, yields: false })
        });
        let broken = |name: &ServiceName| {
            (name.clone(), Refusal::new(Reason::StateInvalid, format!("{name}.json cannot be read")))
        };
        Observed {
            containers: self.containers.iter().map(|(id, c)| (id.clone(), c.state.clone())).collect(),
            routes: self.routes.clone(),
            images: self.images.clone(),
            health: self.health.clone(),
            busy: busy.collect(),
            ending: ending.collect(),
            pauses: pauses.collect(),
            ports_taken: self.listened().collect(),
            pulling: BTreeMap::new(),
            frozen: self.frozen.iter().map(broken).collect(),
            idle_polls: self.idle_polls.clone(),
            errors: self.errors.clone(),
            oom_kills: self.oom_kills(),
            image_checks: self.image_checks(),
            room: Room { memory: self.memory_left(), used: self.used(), no_address: BTreeMap::new() },
            zones: Zones::default(),
            secrets: BTreeMap::new(),
        }
    }

    /// What is left of memory beside the candidates that run, with what went for them.
    pub fn memory_left(&self) -> Option<u64> {
        let used = self.used();
        let candidates = self.records.iter().flat_map(|(name, record)| {
            record.rollout.iter().flat_map(move |rollout| rollout.to.instances(name))
        });
        let candidates = candidates.filter_map(|id| used.get(&id).copied());
        let gone = self.records.iter().filter_map(|(name, record)| {
            let incumbent = record.incumbent.as_ref().filter(|incumbent| incumbent.quota.is_some())?;
            let run = incumbent.instances(name).filter(|id| used.contains_key(id)).count() as u64;
            let each = self.behaviour_of_spec(&incumbent.spec).uses?;
            Some(each * u64::from(incumbent.spec.deploy.replicas).saturating_sub(run))
        });
        Some((self.memory? + gone.sum::<u64>()).saturating_sub(candidates.sum()))
    }

    /// What each running container uses.
    pub fn used(&self) -> BTreeMap<InstanceId, u64> {
        let running =
            self.containers.iter().filter(|(_, c)| matches!(c.state, ContainerState::Running { .. }));
        running.filter_map(|(id, c)| Some((id.clone(), self.behaviour_of(&c.tag).uses?))).collect()
    }

    /// The records that can be read.
    pub fn readable(&self) -> BTreeMap<ServiceName, ServiceRecord> {
        let mut records = self.records.clone();
        records.retain(|name, _| !self.frozen.contains(name));
        records
    }

    /// What the core says now.
    pub fn plan(&self) -> Plan {
        plan(self.desired.as_ref(), &self.observe(), &self.readable(), &self.policy, self.now)
    }

    /// Goes on for `time`.
    pub fn run(&mut self, time: Duration) {
        self.run_until(later(self.now, time), false);
    }

    /// Goes on until nothing is under way, at most for `time`; whether it came to that.
    pub fn run_to_rest(&mut self, time: Duration) -> bool {
        self.run_until(later(self.now, time), true)
    }

    fn run_until(&mut self, limit: Timestamp, stop_at_rest: bool) -> bool {
        let mut spins = 0;
        loop {
            self.happen();
            let mut wake = None;
            if self.agent_up {
                let frozen = self.frozen.clone();
                let known = self.records.iter_mut().filter(|(name, _)| !frozen.contains(*name));
                for (_, record) in known {
                    put_right(record, self.now);
                }
                let plan = self.plan();
                self.check_plan(&plan);
                self.show(&plan);
                let steps: Vec<_> = plan.steps().map(|(n, s)| (n.clone(), s.clone())).collect();
                if !steps.is_empty() {
                    spins += 1;
                    assert!(spins < 200, "the core never spins: {steps:?}\n{}", self.tail());
                    for (name, step) in steps {
                        if self.act(&name, &step).is_err() {
                            break;
                        }
                    }
                    continue;
                }
                spins = 0;
                if let Some(desired) = self.desired.as_mut().filter(|_| plan.in_sync()) {
                    desired.window_waived = false;
                }
                if stop_at_rest && plan.at_rest() {
                    return true;
                }
                wake = plan.wake_at;
            }
            if self.now >= limit {
                return false;
            }
            let next = self.next_event().into_iter().chain(wake).min().unwrap_or(limit);
            self.now = next.max(later(self.now, Duration::from_millis(1))).min(limit);
        }
    }

    /// The next time at which the world changes by itself.
    fn next_event(&self) -> Option<Timestamp> {
        let mut times: Vec<Timestamp> = Vec::new();
        for (id, container) in &self.containers {
            times.extend(self.exit_at(id, container));
        }
        if self.agent_up {
            times.extend(self.busy.values().chain(self.ending.values()).map(|effect| effect.ends_at));
            times.extend(self.probed().into_iter().map(|(_, _, due)| due));
            times.extend(self.retry_resolving_at());
        }
        times.into_iter().filter(|at| *at > self.now).min()
    }

    fn exit_at(&self, id: &InstanceId, container: &Container) -> Option<Timestamp> {
        let ContainerState::Running { .. } = container.state else { return None };
        let started_at = container.born;
        if id.job.is_some() {
            return Some(later(started_at, self.behaviour_of(&container.tag).job));
        }
        self.behaviour_of(&container.tag).exits_after.map(|after| later(started_at, after))
    }

    /// The containers that are probed, with the start of their container and the time of the next probe.
    fn probed(&self) -> Vec<(InstanceId, EffectiveCheck, Timestamp)> {
        let mut due = Vec::new();
        for (name, record) in &self.records {
            let phases = [Phase::Proving, Phase::Canary, Phase::Batches, Phase::Switching, Phase::Baking];
            let rollout = record.rollout.as_ref().filter(|rollout| phases.contains(&rollout.phase));
            // Of the rest it matters beside a candidate with a part of traffic, and to a candidate that needs it well.
            let canary =
                rollout.is_some_and(|rollout| matches!(rollout.phase, Phase::Canary | Phase::Batches));
            let several = |deployed: &&Deployed| !deployed.replicas.is_empty();
            let incumbent =
                record.incumbent.iter().filter(|it| canary || self.is_awaited(name) || several(it));
            let deployed = incumbent.chain(rollout.map(|rollout| &rollout.to));
            for (deployed, id) in deployed.flat_map(|it| it.instances(name).map(move |id| (it, id))) {
                let check = self.check(&deployed.spec);
                if let Some(started_at) = self.started_at(&id)
                    && !check.probes.is_empty()
                {
                    let at = match self.health.get(&id).filter(|history| history.started_at == started_at) {
                        // A prober does not wait for a clock that was set back.
                        Some(ProbeHistory { last: Some((last, _)), .. }) if *last > self.now => self.now,
                        Some(history) => history.next_probe_at(&check),
                        // A probe takes its time: the agent plans at least once before its first answer.
                        None => later(started_at.max(self.agent_since), Duration::from_millis(5)),
                    };
                    due.push((id, check, at));
                }
            }
        }
        due
    }

    /// Whether a candidate needs that a service is healthy.
    fn is_awaited(&self, name: &ServiceName) -> bool {
        let candidates = self.records.values().filter_map(|record| record.rollout.as_ref());
        let by_record = candidates.flat_map(|rollout| &rollout.to.spec.depends_on);
        // What a candidate needs may be another commit's word than the one it was begun by.
        let wanted = self.desired.iter().flat_map(|desired| desired.services.values());
        let by_commit = wanted.filter_map(|wanted| match wanted {
            DesiredService::Run(spec) => Some(&spec.depends_on),
            _ => None,
        });
        by_record.chain(by_commit.flatten()).any(|needed| {
            needed.service == *name && needed.condition == gitopsd::types::Condition::ServiceHealthy
        })
    }

    fn started_at(&self, id: &InstanceId) -> Option<Timestamp> {
        match self.containers.get(id)?.state {
            ContainerState::Running { started_at, .. } => Some(started_at),
            _ => None,
        }
    }

    /// All that is due by now: exits, ends of long effects, probes, looks at sockets, tags looked up again.
    fn happen(&mut self) {
        let exits: Vec<_> = self
            .containers
            .iter()
            .filter(|(id, container)| self.exit_at(id, container).is_some_and(|at| at <= self.now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in exits {
            let text = match id.job {
                Some(job) => format!("container {} {} exits", id.generation, job.word()),
                None => format!("container {} exits", id.number()),
            };
            self.say(&id.service, &text);
            let behaviour = self.behaviour_of(&self.containers[&id].tag);
            let well = if id.job.is_some() { behaviour.pre_succeeds } else { behaviour.exits_well };
            let exit = Exit { code: Some(i32::from(!well)), signal: None, oom_killed: false, at: self.now };
            self.containers.get_mut(&id).unwrap().state = ContainerState::Exited(exit);
        }
        if !self.agent_up {
            return;
        }
        let ended: Vec<_> = self
            .busy
            .iter()
            .chain(&self.ending)
            .filter(|(_, effect)| effect.ends_at <= self.now)
            .map(|(name, effect)| (name.clone(), effect.step.clone()))
            .collect();
        for (name, step) in ended {
            let slot =
                if step.as_ref().is_some_and(Step::is_ending) { &mut self.ending } else { &mut self.busy };
            slot.remove(&name);
            if let Some(step) = step
                && self.finish(&name, &step).is_err()
            {
                return;
            }
        }
        for (id, check, due) in self.probed() {
            if due <= self.now {
                let started_at = self.started_at(&id).unwrap();
                let container = &self.containers[&id];
                let result = self.behaviour_of(&container.tag).probe(container.born, self.now);
                if result.is_ok() {
                    self.audit.passed.insert(id.clone());
                }
                let history = self.health.entry(id).or_insert_with(|| ProbeHistory::new(started_at));
                if history.started_at != started_at {
                    *history = ProbeHistory::new(started_at);
                }
                history.record(&check, self.now, result);
            }
        }
        self.look_for_errors();
        if self.polled_at.is_none_or(|at| self.now >= later(at, Duration::from_millis(250))) {
            self.polled_at = Some(self.now);
            self.poll_sockets();
        }
        if self.retry_resolving_at().is_some_and(|at| at <= self.now) {
            self.retry_resolving();
        }
    }

    /// The check in force for a spec.
    pub fn check(&self, spec: &Spec) -> EffectiveCheck {
        EffectiveCheck::of(spec, self.behaviour_of_spec(spec).own_check().as_ref())
    }

    fn image_checks(&self) -> BTreeMap<Digest, HealthCheck> {
        let live = self.records.values().flat_map(|record| record.live_generations());
        let check = |deployed: &Deployed| {
            Some((deployed.spec.image.digest.clone(), self.behaviour_of_spec(&deployed.spec).own_check()?))
        };
        live.filter_map(check).collect()
    }

    fn oom_kills(&self) -> BTreeMap<InstanceId, u64> {
        let kills = self.containers.iter().filter_map(|(id, container)| {
            self.started_at(id)?;
            Some((id.clone(), self.behaviour_of(&container.tag).oom_kills(container.born, self.now)))
        });
        kills.filter(|(_, count)| *count > 0).collect()
    }

    fn counters(&self, id: &InstanceId) -> Option<(Timestamp, Counters)> {
        let (started_at, container) = (self.started_at(id)?, &self.containers[id]);
        Some((started_at, self.behaviour_of(&container.tag).counters(container.born, self.now)))
    }

    /// What the agent looks at while a candidate has traffic.
    fn look_for_errors(&mut self) {
        let mut former = std::mem::take(&mut self.errors);
        for (name, record) in &self.records {
            let has_traffic =
                |rollout: &&Rollout| matches!(rollout.phase, Phase::Canary | Phase::Batches | Phase::Baking);
            let rollout = record.rollout.as_ref().filter(has_traffic);
            let Some((rollout, incumbent)) = rollout.zip(record.incumbent.as_ref()) else { continue };
            let old = incumbent.instances(name).find_map(|id| self.counters(&id));
            for id in rollout.to.instances(name) {
                let Some((started_at, new)) = self.counters(&id) else { continue };
                let known = former.remove(&id).filter(|history| history.started_at == started_at);
                let Some(mut history) =
                    known.or_else(|| old.map(|(_, old)| ErrorHistory::new(started_at, old, new, self.now)))
                else {
                    continue;
                };
                history.record(&rollout.to.spec.deploy, self.now, new);
                self.errors.insert(id, history);
            }
        }
    }

    fn poll_sockets(&mut self) {
        for (name, record) in &self.records {
            let too_many = record.incumbent.iter().flat_map(|incumbent| {
                incumbent.replicas.iter().filter_map(move |(index, replica)| {
                    let id = InstanceId::replica(name, incumbent.generation, *index);
                    Some((id, &incumbent.spec, replica.leaving_since?))
                })
            });
            let as_a_whole = Drain::all(record).flat_map(|drain| {
                drain.of().instances(name).map(move |id| (id, &drain.of().spec, drain.since()))
            });
            for (id, spec, since) in too_many.chain(as_a_whole) {
                let lingers = self.behaviour_of_spec(spec).lingers;
                let polls = self.idle_polls.entry(id).or_insert(0);
                *polls = if self.now >= later(since, lingers) { *polls + 1 } else { 0 };
            }
        }
    }

    /// The agent or the whole host goes down and comes back.
    pub fn crash(&mut self, crash: Crash) {
        self.say_all(match crash {
            Crash::Kill => "the agent is killed",
            Crash::Reboot => "the host reboots",
        });
        self.audit.crashes += 1;
        self.health.clear();
        self.busy.clear();
        self.ending.clear();
        self.idle_polls.clear();
        self.errors.clear();
        self.shown.clear();
        self.agent_since = self.now;
        if crash == Crash::Reboot {
            self.routes.clear();
            self.audit.branches.clear();
            self.audit.lost.clear();
            self.audit.deaf.clear();
            for (id, container) in &mut self.containers {
                // What was begun is known by a mark, and how it ended by a durable record.
                container.state = match (&container.state, id.job) {
                    (ContainerState::Running { .. }, Some(_)) => ContainerState::Exited(Exit {
                        code: None,
                        signal: None,
                        oom_killed: false,
                        at: self.now,
                    }),
                    (ContainerState::Exited(exit), Some(_)) => ContainerState::Exited(exit.clone()),
                    _ => ContainerState::Remains,
                };
            }
        }
    }

    /// The agent comes back.
    pub fn agent_starts(&mut self) {
        self.agent_up = true;
        self.agent_since = self.now;
    }

    /// The generation that has a service's traffic.
    pub fn incumbent(&self, name: &ServiceName) -> Option<&Deployed> {
        self.records.get(name)?.incumbent.as_ref()
    }

    fn show(&mut self, plan: &Plan) {
        for (name, planned) in &plan.services {
            let line = format!("[{:?}] {}", planned.situation, planned.next);
            if self.shown.get(name) != Some(&line) {
                self.say(name, &line);
                self.shown.insert(name.clone(), line);
            }
        }
    }

    pub(crate) fn say(&mut self, name: &ServiceName, text: &str) {
        let at = self.now.duration_since(self.began).as_millis();
        self.log.push(format!("{:>6}.{:03}  {name:<8} {text}", at / 1000, at % 1000));
    }

    pub(crate) fn say_all(&mut self, text: &str) {
        self.say(&"host".parse().unwrap(), text);
    }

    /// The last lines of the story, for messages of failed checks.
    pub fn tail(&self) -> String {
        self.log[self.log.len().saturating_sub(60)..].join("\n")
    }
}
