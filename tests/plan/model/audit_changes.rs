//! What is promised of changes in place, of memory for two copies, and of directories that services share.

use std::collections::BTreeSet;
use std::path::Path;

use gitopsd::reconcile::record::{Cause, Deployed, Phase, Spec};
use gitopsd::reconcile::step::Amendment;
use gitopsd::reconcile::world::DesiredService;
use gitopsd::types::{
    ContainerState, Generation, InstanceId, PortMapping, Route, ServiceName, Strategy, VolumeSource,
};

use super::Host;

fn written(spec: &Spec) -> BTreeSet<&Path> {
    let writes = spec.volumes.iter().filter(|volume| !volume.read_only);
    let bound = writes.filter_map(|volume| match &volume.source {
        VolumeSource::Bind(path) => Some(path.as_path()),
        VolumeSource::Named(_) => None,
    });
    bound.collect()
}

/// Whether two write to one directory, or one of them inside of the other's.
pub fn share(a: &Spec, b: &Spec) -> bool {
    let within = |one: &Path| written(b).iter().any(|other| one.starts_with(other) || other.starts_with(one));
    written(a).into_iter().any(within)
}

impl Host {
    fn is_running(&self, id: &InstanceId) -> bool {
        let container = self.containers.get(id);
        container.is_some_and(|container| matches!(container.state, ContainerState::Running { .. }))
    }

    /// A change in place is about to be made.
    pub(super) fn audit_amend(&self, name: &ServiceName, amendment: &Amendment) {
        let incumbent = self.incumbent(name).map(|incumbent| incumbent.generation);
        self.demand(incumbent == Some(amendment.generation), "only the incumbent is changed in place", name);
        let limit = amendment.spec.mem_limit.map_or(u64::MAX, |limit| limit.0);
        for id in self.incumbent(name).into_iter().flat_map(|incumbent| incumbent.instances(name)) {
            let smaller = self.containers.get(&id).is_some_and(|it| it.limit.is_none_or(|now| limit < now.0));
            let fits = self.used().get(&id).is_none_or(|used| *used <= limit);
            self.demand(!smaller || fits, "no limit is made smaller than what runs uses", name);
        }
    }

    /// A container is about to be started.
    pub(super) fn audit_start(&self, name: &ServiceName, generation: Generation) {
        let Some(record) = self.records.get(name) else { return };
        let Some(rollout) = record.rollout.as_ref().filter(|it| it.to.generation == generation) else {
            return;
        };
        let spec = &rollout.to.spec;
        let fresh = !self.containers.contains_key(&InstanceId::new(name, generation));
        let asked = fresh && rollout.cause != Cause::Rollback;
        if let (true, Some(memory), Some(incumbent)) = (asked, self.memory_left(), &record.incumbent)
            && spec.strategy() == Strategy::BlueGreen
            && let Some(used) = self.used().get(&InstanceId::new(name, incumbent.generation))
        {
            let need = spec.mem_limit.map_or(*used, |limit| limit.0.min(*used));
            self.demand(need <= memory, "no second copy is started without memory for it", name);
        }
        let yielded = record
            .incumbent
            .as_ref()
            .is_some_and(|it| !self.is_running(&InstanceId::new(name, it.generation)));
        let goes_back = rollout.cause == Cause::Rollback;
        if goes_back || !fresh || yielded || !spec.deploy.pre.is_empty() {
            return;
        }
        for (other, theirs) in self.records.iter().filter(|(other, _)| *other != name) {
            if let Some(change) = &theirs.rollout
                && share(spec, &change.to.spec)
                && change.cause != Cause::Rollback
                && change.to.spec.needs().next().is_none()
                && spec.needs().next().is_none()
                && !theirs.live_generations().any(|live| live.spec.needs().next().is_some())
            {
                let inside = self.is_running(&InstanceId::new(other, change.to.generation))
                    && matches!(change.phase, Phase::Proving | Phase::Switching | Phase::Baking);
                let sentence = "what writes to one directory is changed one after the other";
                self.demand(!inside, &format!("{sentence} ({other})"), name);
            }
            let wanted = self.desired.as_ref().map(|desired| desired.services.get(other));
            let leaving = |spec_of: &Spec| match wanted {
                Some(Some(DesiredService::Run(wanted))) => !share(spec_of, wanted),
                Some(None) => true,
                _ => false,
            };
            // Who is to come after this one cannot leave before it.
            let comes_after = matches!(wanted, Some(Some(DesiredService::Run(wanted)))
                if wanted.needs().any(|needed| needed == name));
            let newcomer = !comes_after
                && record.incumbent.as_ref().is_none_or(|incumbent| !share(&incumbent.spec, spec));
            for live in theirs.live_generations().filter(|live| share(&live.spec, spec) && newcomer) {
                let gone = !leaving(&live.spec) || !self.is_running(&InstanceId::new(other, live.generation));
                let sentence = "who is to leave a directory leaves it before another one takes it";
                self.demand(gone, &format!("{sentence} ({other})"), name);
            }
        }
    }

    /// At rest the kernel has what the record says.
    pub(super) fn audit_changed(&self, name: &ServiceName) {
        let Some(incumbent) = self.incumbent(name) else { return };
        let id = InstanceId::new(name, incumbent.generation);
        for id in incumbent.instances(name).filter(|id| self.is_running(id)) {
            let container = &self.containers[&id];
            let right = container.limit == incumbent.spec.mem_limit;
            self.demand(right, "a container has the limits that its record says", name);
        }
        if let Some(route) = self.routes.get(name).filter(|route| route.generation == id.generation) {
            let mut ports = incumbent.spec.ports.clone();
            ports.sort();
            self.demand(
                self.ports_of(name, incumbent.generation, &incumbent.spec) == route.ports,
                "the ports are those that the record says",
                name,
            );
            let kept = route.ports.iter().filter(|port| !ports.contains(port));
            for port in kept {
                let wanted = self.repo.declared.keys().any(|other| self.is_to_have(other, port));
                self.demand(wanted, "a port is kept only for who is to have it", name);
            }
        }
    }

    /// A port of `giver` is about to go to another service by a route.
    pub(super) fn audit_given(&self, name: &ServiceName, giver: &ServiceName, route: &Route) {
        let goes = !self.repo.declared.contains_key(giver);
        let record = self.records.get(giver);
        let theirs =
            self.routes[giver].ports.iter().filter(|port| route.ports.iter().any(|it| it.clashes(port)));
        for port in theirs {
            let has = |live: &Deployed| live.spec.ports.iter().any(|own| own.clashes(port));
            let candidate = record.and_then(|record| record.rollout.as_ref()).map(|rollout| &rollout.to);
            let claimed = record.and_then(|it| it.incumbent.as_ref()).into_iter().chain(candidate).any(has);
            let free = !claimed || (goes && candidate.is_none());
            self.demand(free, "no port is taken from a service that may need it", name);
            self.demand(self.is_to_have(name, port) || !goes, "a port goes to who is to have it", name);
        }
    }

    /// Whether the next version of a service that gives a port up may get traffic before another one has it: an operator wants it, it is
    /// what an earlier commit wanted, or some service may wait for another one.
    fn cannot_wait(&self, name: &ServiceName) -> bool {
        let rollout = self.records.get(name).and_then(|record| record.rollout.as_ref());
        let head = self.desired.as_ref().map(|desired| &desired.commit.id);
        let asked = rollout.is_some_and(|it| it.cause == Cause::Rollback || Some(&it.to.commit.id) != head);
        let live = self.records.values().flat_map(|record| record.live_generations());
        let wanted = self.desired.iter().flat_map(|desired| desired.services.values());
        let wanted = wanted.filter_map(|wanted| match wanted {
            DesiredService::Run(spec) => Some(&**spec),
            _ => None,
        });
        let mut specs = live.map(|live| &live.spec).chain(wanted);
        let waits = specs.any(|spec| spec.needs().next().is_some() || !written(spec).is_empty());
        asked || waits || self.memory_left().is_some()
    }

    /// What a change of a route did to the ports that led somewhere.
    pub(super) fn audit_led(&self, name: &ServiceName, before: &[PortMapping]) {
        let leads = |port: &PortMapping| {
            self.routes.values().any(|route| route.ports.iter().any(|other| other.clashes(port)))
        };
        for port in before.iter().filter(|port| !leads(port)) {
            let next = self.repo.declared.keys().find(|other| *other != name && self.is_to_have(other, port));
            let up = self.incumbent(name).is_some_and(|it| self.any_runs(name, it.generation));
            // Behind the same port of a new version may be anything, unless it is published still.
            let record = self.records.get(name);
            let candidate = record.and_then(|record| record.rollout.as_ref()).map(|rollout| &rollout.to);
            let new = candidate
                .filter(|new| self.routes.get(name).is_some_and(|route| route.generation == new.generation));
            let inside = |port: &PortMapping| (port.container_port, port.protocol);
            let unknown =
                new.is_some_and(|new| !new.spec.ports.iter().any(|own| inside(own) == inside(port)));
            let excused = !up || unknown && self.cannot_wait(name);
            self.demand(
                excused || next.is_none(),
                "a port that another service is to have is not given up before",
                name,
            );
        }
    }
}
