//! The promises, asked at every instant of every story. Each check says the sentence it stands for.

use std::collections::{BTreeMap, BTreeSet};

use gitopsd::reconcile::later;
use gitopsd::reconcile::receipt::Side;
use gitopsd::reconcile::record::{Cause, Deployed, Down, Phase, Rollout, ServiceRecord, Spec};
use gitopsd::reconcile::step::{Next, Plan, Step};
use gitopsd::types::{
    CommitId, ContainerState, Declared, Digest, Generation, InstanceId, Job, Reason, Route, ServiceName,
    Strategy, Timestamp, VolumeMount,
};

use super::Host;

/// What the checks remember of the whole story.
#[derive(Clone, Default)]
pub struct Audit {
    /// Generations that a probe saw working.
    pub passed: BTreeSet<InstanceId>,
    /// Containers put there by hand.
    pub debris: BTreeSet<InstanceId>,
    /// How often an operator asked for another try.
    pub asks: BTreeMap<ServiceName, u32>,
    /// How often each commit was tried.
    tries: BTreeMap<(ServiceName, CommitId), u32>,
    /// What each number was used for.
    pub(super) specs: BTreeMap<InstanceId, Spec>,
    /// What the last commit says of each service, and the bytes that its tag was found to stand for.
    pub(super) declared: BTreeMap<ServiceName, (Declared, Digest)>,
    /// The rollouts whose end has a receipt.
    pub(super) ended: BTreeMap<InstanceId, (String, u32)>,
    /// What has traffic, by the last receipt of each service.
    pub(super) told: BTreeMap<ServiceName, Option<Side>>,
    /// Since when a candidate's container has a part of its service's traffic.
    pub branches: BTreeMap<InstanceId, Timestamp>,
    /// Candidates that were well with their part, and have begun to take places.
    pub in_batches: BTreeSet<InstanceId>,
    /// Candidates that had all new connections while what they came for did not run.
    pub stood_in: BTreeSet<InstanceId>,
    /// When a container lost its new connections, where it has none.
    pub lost: BTreeMap<InstanceId, Timestamp>,
    /// Containers that were about to be told to end: from then on they take no new connections.
    pub deaf: BTreeSet<InstanceId>,
    /// How often the agent was killed.
    pub crashes: u32,
    /// The one-shots that were started, and when that was written down.
    pub(super) jobs: BTreeSet<(InstanceId, Option<Timestamp>)>,
}

/// How many containers there may be of a service whose candidate comes in batches, as its commit says.
fn most_at_once(record: &ServiceRecord) -> Option<usize> {
    let (rollout, incumbent) = (record.rollout.as_ref()?, record.incumbent.as_ref()?);
    let deploy = &rollout.to.spec.deploy;
    let (old, new) = (incumbent.spec.deploy.replicas, deploy.replicas);
    let batch = deploy.parallelism.filter(|batch| *batch < new)?;
    // What was too many of the incumbent before may still be there.
    let before = incumbent.indices().count().max(old as usize);
    let batches = rollout.phase != Phase::Abandoning && incumbent.quota.is_some();
    batches.then_some(before + (batch as usize).max((new as usize + 1).saturating_sub(old as usize)))
}

fn running(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Running { .. })
}

fn shares_a_volume(a: &Spec, b: &Spec) -> bool {
    let written = |spec: &Spec| -> BTreeSet<_> {
        let writes = |volume: &&VolumeMount| !volume.read_only;
        spec.volumes.iter().filter(writes).map(|volume| volume.source.clone()).collect()
    };
    !written(a).is_disjoint(&written(b))
}

impl Host {
    pub(super) fn demand(&self, holds: bool, sentence: &str, name: &ServiceName) {
        assert!(holds, "{sentence}: broken for {name} at {}\n{}", self.now, self.tail());
    }

    pub(super) fn audit_world(&self) {
        for (name, route) in &self.routes {
            let id = InstanceId::new(name, route.generation);
            let judged = self.audit.passed.contains(&id);
            self.demand(judged, "traffic never points at a generation that was not judged healthy", name);
            let live = self.records.get(name).and_then(|record| record.live(route.generation));
            if let Some(live) = live {
                let known = route.lanes().all(|lane| live.addresses().any(|address| address == lane));
                self.demand(known, "traffic goes to containers that the record names", name);
            }
            let Some(branch) = &route.canary else { continue };
            let id = InstanceId::new(name, branch.generation);
            let judged = self.audit.passed.contains(&id);
            self.demand(judged, "no part of it points at a generation that was not judged healthy", name);
            let deploy = self.audit.specs.get(&id).map(|spec| &spec.deploy);
            let declared = deploy.and_then(|deploy| deploy.canary);
            let exact = declared.is_some_and(|canary| (canary.share, canary.by) == (branch.share, branch.by))
                && branch.also.is_empty();
            let (new, all) = (branch.lanes().count() as f64, route.addresses().count() as f64);
            let even = (f64::from(branch.share.thousandths()) - 1000.0 * new / all).abs() <= 0.5;
            let batches = deploy.is_some_and(|deploy| deploy.parallelism.is_some()) && even;
            self.demand(exact || batches, "a candidate has the part that its commit declares", name);
            let other = branch.generation != route.generation && branch.address != route.address;
            self.demand(other, "a part goes to another generation than the rest", name);
        }
        let services: BTreeSet<_> = self.containers.keys().map(|id| &id.service).collect();
        for name in services {
            let own: Vec<_> = self
                .containers
                .iter()
                .filter(|(id, _)| id.service == *name && id.job.is_none() && !self.audit.debris.contains(id))
                .collect();
            let generations: BTreeSet<_> = own.iter().map(|(id, _)| id.generation).collect();
            let rollout = self.records.get(name).and_then(|record| record.rollout.as_ref());
            let most = self.records.get(name).and_then(most_at_once).filter(|_| {
                // One that had all for a while was not to wait for anybody to go.
                rollout
                    .is_some_and(|it| !self.audit.stood_in.contains(&InstanceId::new(name, it.to.generation)))
            });
            // What a reboot left of one needs no room.
            let there = own.iter().filter(|(_, it)| it.state != ContainerState::Remains).count();
            let right = most.is_none_or(|most| there <= most);
            self.demand(right, "batches need room for one batch more", name);
            self.demand(generations.len() <= 2, "at most two generations exist at once", name);
            let named = |id: &InstanceId| {
                let live = self.records.get(name).and_then(|record| record.live(id.generation));
                live.is_none_or(|live| live.has(id.index))
            };
            self.demand(
                own.iter().all(|(id, _)| named(id)),
                "a generation has the containers that its record names",
                name,
            );
            let live: Vec<_> = own
                .iter()
                .filter(|(_, c)| running(&c.state))
                .filter_map(|(id, _)| self.audit.specs.get(id))
                .collect();
            // In the order of their numbers: what is newer says how it wants to follow.
            if let [.., older, newer] = live.as_slice() {
                let alone = newer.strategy() == Strategy::Recreate;
                let shared =
                    shares_a_volume(older, newer) && newer.deploy.strategy != Some(Strategy::BlueGreen);
                self.demand(!alone && !shared, "under recreate there are never two at once", name);
            }
        }
    }

    pub(super) fn audit_begin(&mut self, name: &ServiceName, step: &Step) {
        let Step::Begin { generation, spec, commit, cause } = step else { return };
        let id = InstanceId::new(name, *generation);
        self.audit_bytes(name, spec, *cause);
        let fresh = self.audit.specs.insert(id, (**spec).clone()).is_none();
        self.demand(fresh, "a generation number is never used twice", name);
        if *cause == Cause::Commit {
            let tries = self.audit.tries.entry((name.clone(), commit.id.clone())).or_default();
            *tries += 1;
            let allowed = 1 + self.audit.asks.get(name).copied().unwrap_or(0);
            // Each time that the network it shares is another one.
            let once = *tries <= allowed || spec.joins().is_some();
            self.demand(once, "a commit is tried once, and again only when an operator asks", name);
        }
    }

    /// Whether any container of a generation runs.
    pub(super) fn any_runs(&self, name: &ServiceName, generation: Generation) -> bool {
        let own = |id: &InstanceId| id.service == *name && id.generation == generation && id.job.is_none();
        self.containers.iter().any(|(id, container)| own(id) && running(&container.state))
    }

    /// A candidate is about to take the places of some of the incumbent's containers.
    pub(super) fn audit_batch(&self, name: &ServiceName, generation: Generation, stay: u32) {
        let record = &self.records[name];
        let (candidate, incumbent) = (record.live(generation).unwrap(), record.incumbent.as_ref().unwrap());
        self.demand(self.all_judged(name, candidate), "a batch gets traffic once it is healthy", name);
        let (new, old) = (candidate.indices().count(), incumbent.spec.deploy.replicas as usize);
        let same = new + stay as usize >= old;
        self.demand(same, "a batch takes no more places than it has containers", name);
        let gives = stay < incumbent.size();
        let up = !gives || self.any_of_those_that_stay(name, incumbent, true);
        self.demand(up, "what gives places up serves itself", name);
    }

    /// Whether each container of a generation was judged healthy.
    fn all_judged(&self, name: &ServiceName, deployed: &Deployed) -> bool {
        let check = self.check(&deployed.spec);
        let steady = |id: &InstanceId| {
            let since = self.started_at(id).filter(|_| check.probes.is_empty());
            since.is_some_and(|since| self.now >= later(since, check.steady))
        };
        deployed.instances(name).all(|id| self.audit.passed.contains(&id) || steady(&id))
    }

    /// A candidate is about to get all new connections for the first time.
    pub(super) fn audit_all_judged(&self, name: &ServiceName, generation: Generation) {
        let deployed = self.records[name].live(generation).unwrap();
        if deployed.replicas.is_empty() {
            return;
        }
        let all = self.all_judged(name, deployed);
        self.demand(all, "a generation gets traffic once all of its containers are healthy", name);
        let count = deployed.indices().count();
        let right = count == deployed.spec.deploy.replicas as usize;
        self.demand(right, "a generation has as many containers as its commit says", name);
    }

    /// One of several containers is about to be told to end. Once it was, it has to go, whoever is wanted again by now.
    pub(super) fn audit_to_end(&self, id: &InstanceId) {
        let live = self.records.get(&id.service).and_then(|record| record.live(id.generation));
        let wanted = live.is_some_and(|live| id.index.number() <= live.size());
        let told = self.audit.deaf.contains(id);
        self.demand(!wanted || told, "only what is one too many is told to end", &id.service);
    }

    /// One of several containers is about to be taken away.
    pub(super) fn audit_drop(&self, id: &InstanceId) {
        let name = &id.service;
        let live = self.records.get(name).and_then(|record| record.live(id.generation));
        let Some(address) = live.and_then(|live| live.address_of(id.index)) else { return };
        let served = self.routes.get(name).is_some_and(|route| route.lanes().any(|lane| lane == address));
        self.demand(!served, "what is one too many has lost its traffic before it goes", name);
    }

    /// Traffic is about to be led to a generation: what is not probed was judged by the clock, now. It counts also where the rules
    /// cannot be changed, and the clock is set back before they can.
    pub(super) fn note_judged(&mut self, name: &ServiceName, generation: Generation) {
        let id = InstanceId::new(name, generation);
        let deployed = self.records[name].live(generation).unwrap();
        let check = self.check(&deployed.spec);
        if check.probes.is_empty()
            && let Some(started_at) = self.started_at(&id)
            && self.now >= later(started_at, check.steady)
        {
            self.audit.passed.insert(id.clone());
        }
        if self.has_done_its_work(name, generation) {
            self.audit.passed.insert(id);
        }
    }

    /// Whether it has ended, and that is what it is for.
    fn has_done_its_work(&self, name: &ServiceName, generation: Generation) -> bool {
        let deployed = self.records[name].live(generation).unwrap();
        let state = self.containers.get(&InstanceId::new(name, generation)).map(|container| &container.state);
        matches!(state, Some(ContainerState::Exited(exit)) if exit.code == Some(0))
            && self.check(&deployed.spec).probes.is_empty()
            && deployed.spec.restart.may_end()
    }

    pub(super) fn audit_switch(&mut self, name: &ServiceName, generation: Generation, route: &Route) {
        self.note_judged(name, generation);
        let over = self.has_done_its_work(name, generation);
        let deployed = self.records[name].live(generation).unwrap();
        let runs = |id: InstanceId| self.containers.get(&id).is_some_and(|it| running(&it.state));
        // Of a part the branch alone: further containers that have an address by now are started later.
        let lanes = |address| match &route.canary {
            Some(branch) if branch.generation == generation => branch.lanes().any(|lane| lane == address),
            _ => route.generation != generation || route.lanes().any(|lane| lane == address),
        };
        let up = over
            || deployed.indices().all(|index| {
                let lane = deployed.address_of(index).is_some_and(lanes);
                !lane || runs(InstanceId::replica(name, generation, index))
            });
        self.demand(up, "traffic is sent only to what runs", name);
    }

    /// A one-shot is about to be started.
    pub(super) fn audit_job(&mut self, id: &InstanceId) {
        let record = &self.records[&id.service];
        let run = record.jobs.of(id);
        let begun = run.and_then(|run| run.begun);
        self.demand(begun.is_some(), "that a one-shot begins is durable before it does", &id.service);
        // Those of a rollout once for its generation, those of a schedule once each time.
        let which = begun.filter(|_| id.job == Some(Job::Run));
        let once = self.audit.jobs.insert((id.clone(), which));
        self.demand(once, &format!("a one-shot runs once ({id})"), &id.service);
        let alone = !self.containers.iter().any(|(other, container)| {
            other.service == id.service && other.job == id.job && running(&container.state)
        });
        self.demand(alone, "two runs of a service never overlap", &id.service);
    }

    /// A candidate is about to get all new connections, or the first of its batches.
    pub(super) fn audit_canary(&self, name: &ServiceName, generation: Generation) {
        let record = &self.records[name];
        let Some(rollout) = record.rollout.as_ref().filter(|it| it.to.generation == generation) else {
            return;
        };
        let Some(canary) = rollout.to.spec.deploy.canary else { return };
        let runs = |generation| {
            let container = self.containers.get(&InstanceId::new(name, generation));
            container.is_some_and(|container| running(&container.state))
        };
        let incumbent = record.incumbent.as_ref();
        let beside = incumbent.is_some_and(|incumbent| self.any_runs(name, incumbent.generation));
        let excused = rollout.to.spec.strategy() != Strategy::BlueGreen
            || rollout.cause == Cause::Rollback
            || rollout.switched_at.is_some()
            // It was asked when the batches began; the host may have been rebooted, or its clock set back, since.
            || self.audit.in_batches.contains(&InstanceId::new(name, generation))
            || !runs(generation)
            || !beside;
        let since = self.audit.branches.get(&InstanceId::new(name, generation));
        let long = since.is_some_and(|since| later(*since, canary.time) <= self.now);
        self.demand(excused || long, "a candidate gets more after it was well with its part", name);
    }

    /// A route is about to be put right.
    pub(super) fn audit_route(&mut self, name: &ServiceName, generation: Generation) {
        let record = &self.records[name];
        let Some(phase) = record.rollout.as_ref().map(|rollout| rollout.phase) else { return };
        let in_part = matches!(phase, Phase::Canary | Phase::Batches);
        let Some(incumbent) = record.incumbent.as_ref().filter(|_| in_part) else { return };
        let own = generation == incumbent.generation;
        let up = self.any_of_those_that_stay(name, incumbent, phase == Phase::Batches);
        self.demand(own || !up, "a candidate has all only while the incumbent cannot serve", name);
        if !own {
            self.audit.stood_in.insert(InstanceId::new(name, generation));
        }
    }

    /// Whether any container of a generation runs that is not too many; `well`: and was not judged sick.
    fn any_of_those_that_stay(&self, name: &ServiceName, deployed: &Deployed, well: bool) -> bool {
        let stays = |id: &InstanceId| id.index.number() <= deployed.size();
        let sick = |id: &InstanceId| {
            let history = self.health.get(id).filter(|it| Some(it.started_at) == self.started_at(id));
            history.is_some_and(|history| history.sick.is_some())
        };
        let mut all = deployed.instances(name).filter(stays);
        all.any(|id| self.started_at(&id).is_some() && !(well && sick(&id)))
    }

    /// A container is about to be stopped or taken away.
    pub(super) fn audit_end(&self, name: &ServiceName, step: &Step, generation: Generation) {
        let Some(record) = self.records.get(name) else { return };
        let has_traffic = self.routes.get(name).is_some_and(|route| {
            let part = route.canary.as_ref().is_some_and(|branch| branch.generation == generation);
            route.generation == generation || part
        }) && self.any_runs(name, generation);
        let incumbent = record.incumbent.as_ref();
        let good = match step {
            Step::Stop(_) => record.rollout.as_ref().is_some_and(|rollout| {
                rollout.to.spec.strategy() == Strategy::Recreate
                    && self.images.contains(&rollout.to.spec.image.digest)
            }),
            Step::Discard(_) => {
                let recreate = record
                    .rollout
                    .as_ref()
                    .is_some_and(|rollout| rollout.to.spec.strategy() == Strategy::Recreate);
                recreate || !has_traffic
            }
            Step::Retire(_) => {
                !has_traffic
                    && incumbent.is_some_and(|incumbent| {
                        // One that comes and goes is only local.
                        incumbent.spec.schedule.is_some()
                            || self.audit.passed.contains(&InstanceId::new(name, incumbent.generation))
                    })
            }
            _ => !has_traffic && record.live(generation).is_none(),
        };
        let sentence = "what runs is never stopped before its successor is local and healthy";
        self.demand(good, &format!("{sentence} ({step})"), name);
    }

    /// What a step did to the memory.
    pub(super) fn audit_memory(
        &self,
        name: &ServiceName,
        before: &ServiceRecord,
        step: &Step,
        after: Option<&ServiceRecord>,
    ) {
        let Some(after) = after else { return };
        let grows = after.last_generation >= before.last_generation;
        self.demand(grows, "the last generation never goes down", name);
        let kept = match step {
            Step::Promote(_) => true,
            _ => {
                after.incumbent.as_ref().map(|d| d.generation)
                    == before.incumbent.as_ref().map(|d| d.generation)
            }
        };
        let removed = matches!(step, Step::Remove(_));
        self.demand(kept || removed, "only a promotion changes the incumbent", name);
    }

    pub(super) fn check_plan(&self, plan: &Plan) {
        for (name, planned) in &plan.services {
            let busy = self.busy.get(name).is_some_and(|effect| effect.step.is_some());
            // A spread that is put right is no effect of its own: what ended is taken out whatever else goes on.
            let several = |name| {
                let serving = self.records.get(name).and_then(|record| record.serving());
                serving.is_some_and(|serving| !serving.replicas.is_empty())
            };
            let spread = matches!(planned.next, Next::Do(Step::Route(_))) && several(name);
            let acts = matches!(planned.next, Next::Do(_)) && !spread;
            self.demand(!(busy && acts), "at most one step a service is under way", name);
            // Nor is what cannot wait until containers have ended.
            if let (Some(step), Next::Do(next)) =
                (self.ending.get(name).and_then(|effect| effect.step.as_ref()), &planned.next)
            {
                let urgent =
                    matches!(next, Step::Pull(_) | Step::Fail(_) | Step::Return { .. } | Step::Route(_))
                        || next.starts(name).is_some();
                self.demand(urgent, "what can wait until containers have ended waits", name);
                let about = next.starts(name).is_some_and(|id| self.ended_by(name, step).contains(&id));
                self.demand(!about, "what is on its way out is not started", name);
            }
            if let Next::Wait { until: Some(until), .. } = &planned.next {
                self.demand(*until > self.now, "what is waited for lies ahead", name);
            }
        }
        assert_eq!(*plan, self.plan(), "planning again gives the same");
    }

    /// Nothing of a service is left over: what exists is its incumbent, and nothing is under way.
    pub fn audit_rest_of(&self, name: &ServiceName) {
        if let Some(record) = self.records.get(name) {
            // Who goes back to where another service has the port by now waits for it, for an hour.
            let port = |next: &Next| matches!(next, Next::Held { refusal, .. } if refusal.reason == Reason::PortInUse);
            let waits = |rollout: &Rollout| {
                rollout.cause == Cause::Rollback && port(&self.plan().services[name].next)
            };
            let done = record.rollout.as_ref().is_none_or(waits);
            self.demand(done, "after any crash the host converges (rollout)", name);
            self.demand(record.retiring.is_none(), "after any crash the host converges (retiring)", name);
            self.demand(record.removing.is_none(), "after any crash the host converges (removing)", name);
            self.demand(record.leaving_since.is_none(), "what stays does not leave", name);
            let amending = record.incumbent.as_ref().and_then(|incumbent| incumbent.amending.as_ref());
            let half = amending.is_some_and(|amending| amending.refused.is_none());
            self.demand(!half, "at rest the kernel has what the record says", name);
        }
        let incumbent = self.incumbent(name).map(|incumbent| incumbent.generation);
        for id in self.containers.keys().filter(|id| id.service == *name) {
            let job = self.records.get(name).is_some_and(|record| {
                record.jobs.of(id).is_some_and(|run| run.ended.is_none() && id.job == Some(Job::Run))
            });
            let named = self.incumbent(name).is_some_and(|incumbent| incumbent.has(id.index));
            let own = incumbent == Some(id.generation) && id.job.is_none() && named;
            self.demand(job || own, &format!("nothing is left over ({id})"), name);
            let hears = self.started_at(id).is_none() || !self.audit.deaf.contains(id);
            self.demand(hears, "what was told to end does not stay", name);
        }
        self.audit_changed(name);
        if let Some(incumbent) = self.incumbent(name).filter(|it| it.down.is_none()) {
            let count = incumbent.indices().count();
            let leaving = incumbent.replicas.values().any(|replica| replica.leaving_since.is_some());
            let right = count == incumbent.spec.deploy.replicas as usize && !leaving;
            self.demand(right, "after any crash the host converges (replicas)", name);
            let lanes = self.routes.get(name).map_or(count, |route| route.lanes().count());
            self.demand(lanes == count, "at rest new connections go to all containers", name);
        }
        let whole = self.routes.get(name).is_none_or(|route| route.canary.is_none());
        self.demand(whole, "after any crash the host converges (a part of traffic)", name);
        let routed = self.routes.get(name).map(|route| route.generation);
        // There is nobody behind the route of one that ended for good, and none after a boot.
        let over = self.incumbent(name).is_some_and(|incumbent| {
            matches!(incumbent.down, Some(Down::Ended | Down::Barred)) || incumbent.spec.schedule.is_some()
        });
        self.demand(routed == incumbent || (over && routed.is_none()), "traffic goes to the incumbent", name);
    }

    /// The same for every service.
    pub fn audit_rest(&self) {
        let containers = self.containers.keys().map(|id| &id.service);
        for name in self.records.keys().chain(containers).chain(self.routes.keys()) {
            self.audit_rest_of(name);
        }
    }
}
