//! What is promised of connections that are under way when what has them is to go.

use gitopsd::reconcile::drain::GRACE;
use gitopsd::reconcile::later;
use gitopsd::reconcile::record::Cause;
use gitopsd::reconcile::step::Step;
use gitopsd::types::{DrainSignal, InstanceId, Reason, ServiceName, Strategy};

use super::Host;

impl Host {
    /// The containers of a service that get new connections.
    pub(super) fn lanes_of(&self, name: &ServiceName) -> Vec<InstanceId> {
        let (Some(route), Some(record)) = (self.routes.get(name), self.records.get(name)) else {
            return Vec::new();
        };
        let own = record.live_generations().flat_map(|live| {
            let leads = |address| route.addresses().any(|lane| Some(lane) == address);
            let id = |index| InstanceId::replica(name, live.generation, index);
            live.indices().filter(move |index| leads(live.address_of(*index))).map(id)
        });
        own.collect()
    }

    /// The route of a service was changed; `before`: the containers that got new connections.
    pub(super) fn note_lost(&mut self, name: &ServiceName, before: &[InstanceId]) {
        let now = self.lanes_of(name);
        self.audit.lost.retain(|id, _| !now.contains(id));
        for id in now.iter().filter(|id| !before.contains(id)) {
            let hears = self.started_at(id).is_none() || !self.audit.deaf.contains(id);
            self.demand(hears, "what was told to end gets no new connections", name);
        }
        for id in before.iter().filter(|id| !now.contains(id)) {
            self.audit.lost.insert(id.clone(), self.now);
        }
    }

    /// A container is about to be stopped by a step, and taken away.
    pub(super) fn audit_drained(&self, name: &ServiceName, step: &Step, id: &InstanceId) {
        let Some(record) = self.records.get(name) else { return };
        let (Some(live), Some(started_at)) = (record.live(id.generation), self.started_at(id)) else {
            return;
        };
        let Some(lost) = self.audit.lost.get(id).copied().filter(|lost| started_at <= *lost) else { return };
        let candidate = record.rollout.as_ref();
        let incumbent = record.incumbent.as_ref().map(|incumbent| &incumbent.spec);
        let newest = candidate.map(|rollout| &rollout.to.spec).or(incumbent);
        let says = if matches!(step, Step::Retire(_)) { incumbent } else { newest };
        // Where nothing is to lead to what serves now, and rules cannot be written until somebody takes them away, the drain counts
        // from when they last were to be written.
        let led_away = record.retiring.as_ref().map(|retiring| retiring.since);
        let led_away = led_away
            .filter(|_| matches!(step, Step::Retire(_)))
            .filter(|_| incumbent.is_some_and(|spec| spec.schedule.is_some()));
        let lost = led_away.map_or(lost, |led_away| lost.min(led_away));
        let drain = says.map(|spec| spec.deploy.drain).unwrap_or_default();
        let sick = candidate.is_some_and(|rollout| {
            let reason = rollout.trouble.as_ref().map(|trouble| trouble.reason);
            let late = reason == Some(Reason::DeployTimeout) && rollout.to.spec.deploy.replicas == 1;
            let ails = [Reason::Unhealthy, Reason::Exited, Reason::OutOfMemory, Reason::ErrorRate];
            late || reason.is_some_and(|reason| ails.contains(&reason))
        });
        let alone = live.spec.strategy() == Strategy::Recreate;
        let by_hand = candidate.is_some_and(|rollout| rollout.cause == Cause::Rollback);
        let at_once = match step {
            Step::Discard(_) => sick || alone,
            Step::Remove(_) => alone || live.spec.schedule.is_some(),
            Step::Retire(_) => by_hand,
            _ => false,
        };
        if at_once {
            return;
        }
        let early = live.spec.deploy.drain_signal == DrainSignal::Early && !matches!(step, Step::Remove(_));
        let lingers = self.behaviour_of_spec(&live.spec).lingers;
        let idle = self.now >= later(lost, GRACE.min(drain)) && (early || self.now >= later(lost, lingers));
        let drained = idle || self.now >= later(lost, drain);
        self.demand(drained, &format!("what is well ends its connections before it goes ({step})"), name);
    }
}
