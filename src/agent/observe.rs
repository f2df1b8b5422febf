//! The host as it is now: what a round decides on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::probes::Subject;
use super::{Agent, clock};
use crate::reconcile::health::EffectiveCheck;
use crate::reconcile::record::{Deployed, Phase};
use crate::reconcile::world::{Desired, DesiredService, Observed};
use crate::reconcile::{replicas, secrets};
use crate::types::{
    ContainerState, Digest, HealthCheck, Job, NetworkMode, PortMapping, Refusal, ServiceName, Zones,
};

impl Agent {
    /// The world, afresh.
    pub(super) fn observe(&mut self) -> Result<Observed, Refusal> {
        let now = clock::now();
        let mut containers = self.hands.engine.observe().map_err(|error| error.to_refusal())?;
        self.follow_clock(&mut containers, now);
        let image_checks = self.look_for_image_checks();
        self.connect();
        let routes = self.hands.traffic.observe().map_err(|error| error.to_refusal())?;
        let mut subjects = Vec::new();
        for seen in &containers {
            let record = self.journal.records.get(&seen.id.service);
            let live = record.filter(|_| seen.id.job.is_none());
            let live = live.and_then(|record| record.live(seen.id.generation));
            let live = live.and_then(|deployed| Some((deployed, deployed.address_of(seen.id.index)?)));
            if let (Some((deployed, own)), ContainerState::Running { pid, started_at }) = (live, &seen.state)
            {
                subjects.push(Subject {
                    id: seen.id.clone(),
                    pid: *pid,
                    started_at: *started_at,
                    // What listens on the host may listen on its loopback interface alone.
                    address: match deployed.spec.network_mode() {
                        NetworkMode::Host => Ipv4Addr::LOCALHOST,
                        _ => own,
                    },
                    check: EffectiveCheck::of(&deployed.spec, image_checks.get(&deployed.spec.image.digest)),
                });
            }
        }
        self.probes.follow(subjects);
        self.shims.follow(&containers);
        self.shims.adopt(&containers, now);
        self.note_oom_kills(&containers);
        let foreign = containers.iter().filter_map(|it| Some((it.id.service.clone(), it.foreign.clone()?)));
        let frozen = foreign.chain(self.journal.frozen.clone()).collect();
        let mut seen = Observed {
            containers: containers.into_iter().map(|seen| (seen.id, seen.state)).collect(),
            routes,
            health: self.probes.histories(),
            image_checks,
            oom_kills: self.oom_kills.clone(),
            pulling: self.effects.pulling(),
            busy: self.effects.busy(),
            ending: self.effects.ending(),
            pauses: self.effects.pauses(now),
            frozen,
            zones: self.zones_in_use(),
            ..Observed::default()
        };
        self.renew_names(&seen);
        self.look_for_images(&mut seen);
        self.look_for_secrets(&mut seen, now);
        if let Some(desired) = &self.desired {
            let desired = secrets::settled(desired, &seen.secrets);
            self.look_for_ports(&desired, &mut seen);
            self.look_for_room(&desired, &mut seen);
        }
        self.look_at_drains(&mut seen, now);
        self.look_for_errors(&mut seen, now);
        Ok(seen)
    }

    /// The time zones that schedules and windows name.
    fn zones_in_use(&mut self) -> Zones {
        let desired = self.desired.iter().flat_map(|desired| desired.services.values());
        let desired = desired.filter_map(|service| match service {
            DesiredService::Run(spec) => Some(&**spec),
            _ => None,
        });
        let live = self.journal.records.values().flat_map(|record| record.live_generations());
        let names: BTreeSet<&str> =
            desired.chain(live.map(|deployed| &deployed.spec)).flat_map(|spec| spec.zones()).collect();
        self.zones.get(names)
    }

    /// Only images that a decision can hang on are looked for: of candidates, and of incumbents that are down.
    fn look_for_images(&self, seen: &mut Observed) {
        let run = |service, deployed: &Deployed| {
            deployed.instances(service).all(|id| seen.runs(&id)) && replicas::missing(deployed) == 0
        };
        let mut digests = BTreeSet::new();
        for (service, record) in &self.journal.records {
            let incumbent = record.incumbent.iter().filter(|deployed| !run(service, deployed));
            let candidate = record.rollout.iter().map(|rollout| &rollout.to);
            // A one-shot that is to run starts from an image too.
            let jobs = Job::ALL.into_iter().filter_map(|job| record.jobs.get(job));
            let jobs = jobs.filter(|run| run.ended.is_none()).filter_map(|run| record.live(run.generation));
            digests
                .extend(incumbent.chain(candidate).chain(jobs).map(|deployed| &deployed.spec.image.digest));
        }
        let here = digests.into_iter().filter(|digest| self.store.image(digest).is_some());
        seen.images = here.cloned().collect();
    }

    /// The checks that images of live generations have of their own. What a digest stands for never changes: each is
    /// looked up once.
    fn look_for_image_checks(&mut self) -> BTreeMap<Digest, HealthCheck> {
        let live = self.journal.records.values().flat_map(|record| record.live_generations());
        let digests: BTreeSet<&Digest> = live.map(|deployed| &deployed.spec.image.digest).collect();
        self.image_checks.retain(|digest, _| digests.contains(digest));
        for digest in digests {
            if !self.image_checks.contains_key(digest)
                && let Some(image) = self.store.image(digest)
            {
                self.image_checks.insert(digest.clone(), image.config.healthcheck);
            }
        }
        let known = self.image_checks.iter();
        known.filter_map(|(digest, check)| Some((digest.clone(), check.clone()?))).collect()
    }

    /// Whether ports that a service is about to publish for the first time are free of what is not this instance's: a
    /// process, another instance, somebody's rule. Asked before anything is pulled or started for them.
    fn look_for_ports(&self, desired: &Desired, seen: &mut Observed) {
        let mut asked: Vec<(&ServiceName, Vec<PortMapping>)> = Vec::new();
        for (service, wanted) in &desired.services {
            let record = self.journal.records.get(service);
            let stays = record.is_some_and(|record| {
                let failed =
                    record.failure.as_ref().is_some_and(|it| it.is_of(&desired.commit.id, Some(wanted)));
                record.hold.is_some() || record.removing.is_some() || failed
            });
            let spec = match (record.and_then(|record| record.rollout.as_ref()), wanted) {
                // Again before an incumbent is stopped for it.
                (Some(rollout), _) if matches!(rollout.phase, Phase::Preparing | Phase::Yielding) => {
                    &rollout.to.spec
                }
                (None, DesiredService::Run(spec)) if !stays => spec,
                _ => continue,
            };
            let own = record.and_then(|record| record.incumbent.as_ref());
            let own = own.map_or(&[][..], |incumbent| &incumbent.spec.ports);
            let new: Vec<PortMapping> =
                spec.ports.iter().filter(|port| !own.contains(port)).cloned().collect();
            if !new.is_empty() {
                asked.push((service, new));
            }
        }
        // All at once first: each question costs a listing of the host's rules.
        let all: Vec<PortMapping> = asked.iter().flat_map(|(_, ports)| ports).cloned().collect();
        if all.is_empty() || self.hands.port_conflict(&all).is_none() {
            return;
        }
        for (service, ports) in asked {
            if let Some(refusal) = self.hands.port_conflict(&ports) {
                seen.ports_taken.insert(service.clone(), refusal);
            }
        }
    }
}
