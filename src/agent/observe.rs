//! The host as it is now: what a round decides on.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::probes::Subject;
use super::{Agent, clock};
use crate::reconcile::health::EffectiveCheck;
use crate::reconcile::later;
use crate::reconcile::next::{GRACE, IDLE_POLL};
use crate::reconcile::world::{DesiredService, Observed};
use crate::types::{ContainerState, InstanceId, NetworkMode, PortMapping, Refusal, ServiceName, Timestamp};

impl Agent {
    /// The world, afresh.
    pub(super) fn observe(&mut self) -> Result<Observed, Refusal> {
        let now = clock::now();
        let containers = self.hands.engine.observe().map_err(|error| error.to_refusal())?;
        self.connect();
        let routes = self.hands.traffic.observe().map_err(|error| error.to_refusal())?;
        let mut subjects = Vec::new();
        for seen in &containers {
            let record = self.journal.records.get(&seen.id.service);
            let live = record.and_then(|record| record.live(seen.id.generation));
            if let (Some(deployed), ContainerState::Running { pid, started_at }) = (live, &seen.state) {
                subjects.push(Subject {
                    id: seen.id.clone(),
                    pid: *pid,
                    started_at: *started_at,
                    // What listens on the host may listen on its loopback interface alone.
                    address: match deployed.spec.network_mode() {
                        NetworkMode::Host => Ipv4Addr::LOCALHOST,
                        _ => deployed.address,
                    },
                    check: EffectiveCheck::of(&deployed.spec),
                });
            }
        }
        self.probes.follow(subjects);
        self.shims.follow(&containers);
        self.note_oom_kills(&containers);
        let foreign = containers.iter().filter_map(|it| Some((it.id.service.clone(), it.foreign.clone()?)));
        let frozen = foreign.chain(self.journal.frozen.clone()).collect();
        let mut seen = Observed {
            containers: containers.into_iter().map(|seen| (seen.id, seen.state)).collect(),
            routes,
            health: self.probes.histories(),
            oom_kills: self.oom_kills.clone(),
            pulling: self.effects.pulling(),
            busy: self.effects.busy(),
            pauses: self.effects.pauses(now),
            frozen,
            ..Observed::default()
        };
        self.renew_names(&seen);
        self.look_for_images(&mut seen);
        self.look_for_ports(&mut seen);
        self.look_for_idle(&mut seen, now);
        Ok(seen)
    }

    /// Only images that a decision can hang on are looked for: of candidates, and of incumbents that are down.
    fn look_for_images(&self, seen: &mut Observed) {
        let running = |service, generation| {
            let id = InstanceId::new(service, generation);
            matches!(seen.containers.get(&id), Some(ContainerState::Running { .. }))
        };
        let mut digests = BTreeSet::new();
        for (service, record) in &self.journal.records {
            let incumbent = record.incumbent.iter().filter(|deployed| !running(service, deployed.generation));
            let candidate = record.rollout.iter().map(|rollout| &rollout.to);
            digests.extend(incumbent.chain(candidate).map(|deployed| &deployed.spec.image.digest));
        }
        let here = digests.into_iter().filter(|digest| self.store.image(digest).is_some());
        seen.images = here.cloned().collect();
    }

    /// Counts the looks at which a retiring container had no connection.
    fn look_for_idle(&mut self, seen: &mut Observed, now: Timestamp) {
        let mut idle = std::mem::take(&mut self.idle);
        for (service, record) in &self.journal.records {
            let Some(retiring) = &record.retiring else { continue };
            let id = InstanceId::new(service, retiring.old.generation);
            let runs = matches!(seen.containers.get(&id), Some(ContainerState::Running { .. }));
            if !runs || now < later(retiring.since, GRACE) {
                continue;
            }
            let (polls, last) = idle.remove(&id).unwrap_or((0, Timestamp::MIN));
            let counted = if now < later(last, IDLE_POLL.mul_f64(0.8)) {
                (polls, last)
            } else {
                match self.hands.traffic.connections(&id) {
                    Ok(0) => (polls.saturating_add(1), now),
                    Ok(_) => (0, now),
                    Err(error) => {
                        tracing::debug!("{id}: {}", error.to_refusal());
                        (0, now)
                    }
                }
            };
            seen.idle_polls.insert(id.clone(), counted.0);
            self.idle.insert(id, counted);
        }
    }

    /// Whether ports that a service is about to publish for the first time are free of what is not this instance's: a
    /// process, another instance, somebody's rule. Asked before anything is pulled or started for them.
    fn look_for_ports(&self, seen: &mut Observed) {
        let Some(desired) = &self.desired else { return };
        let mut asked: Vec<(&ServiceName, Vec<PortMapping>)> = Vec::new();
        for (service, wanted) in &desired.services {
            let DesiredService::Run(spec) = wanted else { continue };
            let record = self.journal.records.get(service);
            let stays = record.is_some_and(|record| {
                let failed = record.failure.as_ref().is_some_and(|it| it.commit.id == desired.commit.id);
                record.rollout.is_some() || record.hold.is_some() || record.removing.is_some() || failed
            });
            let own = record.and_then(|record| record.incumbent.as_ref());
            let own = own.map_or(&[][..], |incumbent| &incumbent.spec.ports);
            let new: Vec<PortMapping> =
                spec.ports.iter().filter(|port| !own.contains(port)).cloned().collect();
            if !stays && !new.is_empty() {
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
