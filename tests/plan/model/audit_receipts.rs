//! What is promised of receipts: every transition has one, and who reads nothing else knows what runs.

use gitopsd::reconcile::receipt::{ReceiptResult, Side, Transition};
use gitopsd::reconcile::record::{Deployed, Down, Replica, ServiceRecord};
use gitopsd::reconcile::step::Step;
use gitopsd::types::{ContainerState, InstanceId, Reason, ServiceName, Strategy, Timestamp};

use super::{Container, Host};

/// The rows of restarts that have not been told, of each of its containers that is to stay.
fn untold(deployed: &Deployed) -> impl Iterator<Item = Timestamp> {
    let stays = |replica: &&Replica| replica.leaving_since.is_none();
    let replicas = deployed.replicas.values().filter(stays).filter_map(|replica| replica.untold);
    deployed.untold.into_iter().chain(replicas)
}

impl Host {
    pub(super) fn audit_receipt(&mut self, receipt: &Transition) {
        let name = &receipt.service;
        if let Some(first) = self.receipts.get(&receipt.id()) {
            let same = first.from == receipt.from
                && first.to == receipt.to
                && first.result == receipt.result
                && first.reason == receipt.reason
                && first.commit == receipt.commit;
            self.demand(same, "a receipt written twice is the same, and another one has another id", name);
        }
        self.audit.told.insert(name.clone(), receipt.serving().cloned());
        let number = |side: &Option<Side>| side.as_ref().map(|side| side.generation);
        let in_place =
            receipt.result == ReceiptResult::Deployed && number(&receipt.from) == number(&receipt.to);
        let of_job = matches!(receipt.reason, Some(Reason::PostFailed | Reason::RunFailed));
        let rollout_over = !in_place
            && !of_job
            && !matches!(receipt.result, ReceiptResult::Restarted | ReceiptResult::Removed);
        if let (true, Some(to)) = (rollout_over, &receipt.to) {
            let id = InstanceId::new(name, to.generation);
            let now = (receipt.id(), self.audit.crashes);
            let first = self.audit.ended.entry(id).or_insert(now.clone());
            // The first one is written and its record is not, then comes a power cut: the second one may differ.
            let once = first.0 == now.0 || first.1 < now.1;
            *first = now;
            self.demand(once, "a rollout ends once", name);
        }
        let lost = matches!(receipt.result, ReceiptResult::Failed | ReceiptResult::RolledBack);
        let given_up = self
            .records
            .get(name)
            .is_some_and(|record| record.rollout.as_ref().is_some_and(|rollout| rollout.trouble.is_some()));
        if let (true, true, Some(from)) = (lost, given_up, &receipt.from) {
            let id = InstanceId::new(name, from.generation);
            let steady =
                self.audit.specs.get(&id).is_some_and(|spec| self.behaviour_of_spec(spec).keeps_serving());
            let up = self.any_runs(name, from.generation);
            let served = self
                .routes
                .get(name)
                .is_some_and(|route| route.generation == from.generation && route.canary.is_none());
            let local = self.images.contains(&from.digest);
            // A start that a crash cut short is tried again after its pause.
            let pausing = !up && self.incumbent(name).is_some_and(|incumbent| incumbent.restarts > 0);
            // It has ended by itself too, and its policy leaves it so.
            let ended = self.incumbent(name).is_some_and(|incumbent| match self.containers.get(&id) {
                // It comes and goes.
                _ if incumbent.spec.schedule.is_some() => true,
                // It was stopped for what cannot be undone, and is not to come back by itself.
                _ if incumbent.down == Some(Down::Barred) => true,
                Some(Container { state: ContainerState::Exited(exit), .. }) => {
                    !incumbent.spec.restart.restarts(exit, incumbent.ends)
                }
                _ => incumbent.down == Some(Down::Ended),
            });
            // The network that it shared has gone with its container, which waited for it only so long.
            let stranded = self.incumbent(name).is_some_and(|incumbent| {
                let host = incumbent.spec.joins().and_then(|host| self.records.get(host));
                host.is_some_and(|host| incumbent.joined.is_none_or(|joined| host.live(joined).is_none()))
            });
            let excused = pausing || ended || stranded;
            let serves = !steady || !local || excused || (up && served);
            // It was stopped for what cannot be undone.
            let forward = self.records[name].rollout.as_ref().is_some_and(|rollout| {
                let spec = &rollout.to.spec;
                !spec.deploy.reversible && spec.strategy() == Strategy::Recreate
            });
            self.demand(serves || forward, "a failed deploy leaves the old version serving", name);
        }
    }

    /// A step is about to be remembered: what it changed for good has its receipt by then.
    pub(super) fn audit_told(
        &self,
        name: &ServiceName,
        before: &ServiceRecord,
        step: &Step,
        after: Option<&ServiceRecord>,
    ) {
        let Some(after) = after else { return };
        let generation = |deployed: &Option<Deployed>| deployed.as_ref().map(|it| it.generation);
        let number = |side: &Option<Side>| side.as_ref().map(|side| side.generation);
        let demand = |told: &dyn Fn(&Transition) -> bool, what: &str| {
            let found = self.receipts.values().any(|receipt| receipt.service == *name && told(receipt));
            self.demand(
                found,
                &format!("every transition has its receipt before it is remembered ({what})"),
                name,
            );
        };
        let goes_on = |begun| after.rollout.as_ref().is_some_and(|rollout| rollout.to.generation == begun);
        if let Some(rollout) = before.rollout.as_ref().filter(|rollout| !goes_on(rollout.to.generation)) {
            let end = |receipt: &Transition| {
                receipt.to == Some(Side::of(&rollout.to))
                    && receipt.commit == rollout.to.commit.id
                    && receipt.started_at == rollout.started_at
                    && receipt.serves == generation(&after.incumbent)
            };
            demand(&end, "the end of a rollout");
        }
        let removed = |receipt: &Transition| {
            receipt.result == ReceiptResult::Removed && number(&receipt.from) == generation(&before.incumbent)
        };
        if before.removing.is_some() && after.removing.is_none() {
            demand(&removed, "a removal");
        }
        let (Some(old), Some(new)) = (&before.incumbent, &after.incumbent) else { return };
        if old.generation != new.generation {
            return;
        }
        if let (Step::Amend(amendment), true) = (step, old.spec != new.spec) {
            let changed = |receipt: &Transition| {
                (&receipt.from, &receipt.to) == (&Some(Side::of(old)), &Some(Side::of(new)))
                    && receipt.commit == amendment.commit.id
            };
            demand(&changed, "a change in place");
        }
        // Of one that is not wanted any more and never ran since it was to be started again there is nothing to tell.
        let never_ran = |at: &Timestamp| {
            old.replicas.iter().any(|(index, replica)| {
                let id = InstanceId::replica(name, old.generation, *index);
                replica.untold == Some(*at) && index.number() > new.size() && self.started_at(&id).is_none()
            })
        };
        let ended = |at: &Timestamp| !untold(new).any(|still| still == *at) && !never_ran(at);
        for at in untold(old).filter(ended) {
            let restarted =
                |receipt: &Transition| receipt.result == ReceiptResult::Restarted && receipt.started_at == at;
            demand(&restarted, "a restart");
        }
    }

    /// Nothing of a service is about to be written down: its receipts say what runs, and how all that was begun came out.
    pub fn audit_receipts_of(&self, name: &ServiceName) {
        let Some(record) = self.records.get(name) else { return };
        let open = record.rollout.as_ref().map(|rollout| rollout.to.generation);
        for id in self.audit.specs.keys().filter(|id| id.service == *name) {
            let told = self.audit.ended.contains_key(id) || open == Some(id.generation);
            self.demand(told, &format!("what was begun has its end in a receipt ({id})"), name);
        }
        let amending = record.incumbent.as_ref().is_some_and(|incumbent| incumbent.amending.is_some());
        if open.is_none() && record.removing.is_none() && !amending {
            let runs = record.incumbent.as_ref().map(Side::of);
            let told = self.audit.told.get(name).cloned().flatten();
            self.demand(told == runs, &format!("receipts say what runs, not {told:?}"), name);
        }
    }
}
