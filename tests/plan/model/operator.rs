//! What a person does at the host.

use std::time::Duration;

use gitopsd::reconcile::later;
use gitopsd::reconcile::operator;
use gitopsd::reconcile::record::{Hold, ServiceRecord};
use gitopsd::reconcile::step::Step;
use gitopsd::reconcile::transition::{self, Outcome};
use gitopsd::reconcile::world::DesiredService;
use gitopsd::types::{ContainerState, Generation, InstanceId, Refusal, ReplicaIndex, ServiceName, Timestamp};

use super::{Container, Host};

impl Host {
    /// `gitopsd hold`.
    pub fn hold(&mut self, name: &ServiceName, time: Option<Duration>) {
        let until = time.map(|time| later(self.now, time));
        let hold = Hold {
            reason: "looking at it".to_owned(),
            by: "ada".to_owned(),
            since: self.now,
            until,
            while_commit: None,
        };
        if let Some(record) = self.records.get_mut(name) {
            if record.rollout.is_some() {
                // What is given up for a hold is tried once more after it.
                *self.audit.asks.entry(name.clone()).or_default() += 1;
            }
            // In the place of a rollback's hold one without an end says that `resume` tries the commit again.
            operator::hold(record, hold);
        }
    }

    /// `gitopsd sync --now`: windows do not count for the commit in force, until all of it is deployed.
    pub fn waive_windows(&mut self) {
        if let Some(desired) = &mut self.desired {
            desired.window_waived = true;
        }
    }

    /// `gitopsd resume`: ends the hold, and asks for another try of what failed.
    pub fn resume(&mut self, name: &ServiceName) {
        if let Some(record) = self.records.get_mut(name) {
            operator::resume(record);
            *self.audit.asks.entry(name.clone()).or_default() += 1;
        }
    }

    /// `gitopsd rollback`.
    pub fn rollback(&mut self, name: &ServiceName) -> Result<(), Refusal> {
        let Some(record) = self.records.get(name).cloned() else { return Ok(()) };
        let mut back = record.clone();
        let mut record = match operator::bring_back(&mut back) {
            Some(_) => back,
            None => self.goes_back(name, &record)?,
        };
        let hold = Hold {
            reason: "rolled back".to_owned(),
            by: "ada".to_owned(),
            since: self.now,
            until: None,
            while_commit: None,
        };
        operator::hold_back(
            &mut record,
            hold,
            self.desired.as_ref().map(|desired| desired.commit.id.clone()),
        );
        self.records.insert(name.clone(), record);
        Ok(())
    }

    fn goes_back(&mut self, name: &ServiceName, record: &ServiceRecord) -> Result<ServiceRecord, Refusal> {
        let step = operator::rollback(record)?;
        Ok(match &step {
            Step::Begin { generation, spec, .. } => {
                self.audit_begin(name, &step);
                let addresses = self.addresses(*generation, spec);
                transition::begin(Some(record), &step, addresses, self.now).unwrap()
            }
            step => transition::conclude(name, record, step, &Outcome::Done, self.now).record.unwrap(),
        })
    }

    /// Somebody loses the service's traffic rule.
    pub fn lose_route(&mut self, name: &ServiceName) {
        let lanes = self.lanes_of(name);
        self.routes.remove(name);
        self.note_lost(name, &lanes);
    }

    /// Somebody kills the container that has traffic.
    pub fn kill_container(&mut self, name: &ServiceName) {
        self.kill_replica(name, ReplicaIndex::FIRST);
    }

    /// Somebody kills one of its containers.
    pub fn kill_replica(&mut self, name: &ServiceName, index: ReplicaIndex) {
        let Some(generation) = self.incumbent(name).map(|incumbent| incumbent.generation) else { return };
        let exit = gitopsd::types::Exit { code: None, signal: Some(9), oom_killed: false, at: self.now };
        if let Some(container) = self.containers.get_mut(&InstanceId::replica(name, generation, index)) {
            container.state = ContainerState::Exited(exit);
        }
    }

    /// Something under the service's name that nobody knows.
    pub fn debris(&mut self, name: &ServiceName, generation: u64) {
        let id = InstanceId::new(name, Generation(generation));
        self.audit.debris.insert(id.clone());
        self.containers.insert(
            id,
            Container { state: ContainerState::Remains, tag: String::new(), born: self.now, limit: None },
        );
    }

    /// A file-system check throws an image away.
    pub fn lose_images(&mut self) {
        self.images.clear();
    }

    /// Somebody sets the clock. What happens by itself goes on as before.
    pub fn set_clock(&mut self, to: Timestamp) {
        let from = std::mem::replace(&mut self.now, to);
        let moved = |at: &mut Timestamp| *at = to.checked_add(at.duration_since(from)).unwrap();
        for container in self.containers.values_mut() {
            moved(&mut container.born);
            // As the agent takes it.
            if let ContainerState::Running { started_at, .. } = &mut container.state {
                *started_at = (*started_at).min(to);
            }
        }
        // Beyond what a schedule waits for, all times that come once more are other ones.
        let far = |begun: &Timestamp| *begun > later(to, Duration::from_secs(60));
        let jobs = &self.audit.jobs;
        let again: Vec<_> =
            jobs.iter().filter(|it| it.1.as_ref().is_some_and(far)).map(|it| it.0.service.clone()).collect();
        let comes = |begun: Timestamp| begun > to;
        self.audit.jobs.retain(|(id, begun)| !again.contains(&id.service) || !begun.is_some_and(comes));
        for effect in self.busy.values_mut().chain(self.ending.values_mut()) {
            moved(&mut effect.since);
            moved(&mut effect.ends_at);
        }
        for wanted in self.desired.iter_mut().flat_map(|desired| desired.services.values_mut()) {
            if let DesiredService::Refused { retry_at: Some(at), .. } = wanted {
                moved(at);
            }
        }
        self.polled_at = None;
        self.agent_since = self.agent_since.min(to);
        let audited = self.audit.lost.values_mut().chain(self.audit.branches.values_mut());
        audited.for_each(|at| *at = (*at).min(to));
    }
}
