//! What has lost its traffic and is on its way out, the former incumbent or a container that is too many: until when its
//! connections are waited for, and how long it is given to end.

use std::time::Duration;

use super::record::{Deployed, ServiceRecord};
use super::step::{Next, Step};
use super::view::View;
use super::{jobs, joined, later};
use crate::types::{DrainSignal, InstanceId, ReplicaIndex, Timestamp};

/// After the switch, before the first look at the old generation's sockets: connections whose first packet is still
/// on its way are not counted yet.
pub const GRACE: Duration = Duration::from_secs(2);

/// From one look at a retiring generation's sockets to the next.
pub const IDLE_POLL: Duration = Duration::from_millis(250);

/// This many looks in a row without a connection, and it is idle.
pub const IDLE_POLLS: u32 = 2;

/// A generation, or a container of one, that has had no new connections for a while.
#[derive(Debug, Clone, Copy)]
pub struct Drain<'a> {
    of: &'a Deployed,
    since: Timestamp,
    limit: Duration,
}

impl<'a> Drain<'a> {
    /// That of the former incumbent.
    pub fn former(record: &'a ServiceRecord) -> Option<Self> {
        let retiring = record.retiring.as_ref()?;
        // What was just deployed says how long: the incumbent.
        let limit = record.incumbent.as_ref().map_or(Duration::ZERO, |incumbent| incumbent.spec.deploy.drain);
        Some(Self { of: &retiring.old, since: retiring.since, limit })
    }

    /// That of a container which the incumbent has too much.
    pub fn too_many(record: &'a ServiceRecord, index: ReplicaIndex) -> Option<Self> {
        let incumbent = record.incumbent.as_ref()?;
        let since = incumbent.replicas.get(&index)?.leaving_since?;
        let newest = record.rollout.as_ref().map_or(incumbent, |rollout| &rollout.to);
        Some(Self { of: incumbent, since, limit: newest.spec.deploy.drain })
    }

    /// When old connections have had their time.
    pub fn over(&self) -> Timestamp {
        later(self.since, self.limit)
    }

    /// Whether it is told to end at once, and ends its connections by itself. Its own spec rules: it is its own program
    /// that has to know how.
    pub fn is_early(&self) -> bool {
        self.of.spec.deploy.drain_signal == DrainSignal::Early
    }

    /// From the stop signal to SIGKILL.
    pub fn patience(&self, now: Timestamp) -> Duration {
        let grace = self.of.spec.stop_grace_period;
        match self.is_early() {
            // Of its connections it takes care itself: it has all of the drain for that.
            true => {
                grace.saturating_add(Duration::try_from(self.over().duration_since(now)).unwrap_or_default())
            }
            false => grace,
        }
    }

    /// Whether these containers may go: none runs, their connections have ended, or their time is over. Else when to look
    /// again.
    pub(super) fn look(
        &self,
        view: &View<'_>,
        containers: impl Iterator<Item = InstanceId>,
    ) -> Result<(), Timestamp> {
        let running: Vec<_> = containers.filter(|id| view.observed.runs(id)).collect();
        let is_idle = |id| view.observed.idle_polls.get(id).copied().unwrap_or(0) >= IDLE_POLLS;
        let grace = later(self.since, GRACE.min(self.limit));
        let ready = view.now >= grace && (self.is_early() || running.iter().all(is_idle));
        if running.is_empty() || view.now >= self.over() || ready {
            return Ok(());
        }
        Err(if view.now < grace { grace } else { later(view.now, IDLE_POLL) }.min(self.over()))
    }
}

/// The former incumbent goes once its connections have ended, or `drain` is over.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let drain = Drain::former(record)?;
    let generation = drain.of.generation;
    // A run of a scheduled service is not cut short for the next version, and keeps nobody waiting.
    if jobs::busy(record, generation).is_some() {
        return None;
    }
    // Its network goes with it.
    let kept = later(drain.over(), joined::KEPT);
    if let Some(guest) = joined::guest(view, generation).filter(|_| view.now < kept) {
        let why = format!("generation {generation} is kept for {guest}, which shares its network");
        return Some(Next::Wait { until: Some(kept), why });
    }
    Some(match drain.look(view, drain.of.instances(view.name)) {
        Ok(()) => Next::Do(Step::Retire(generation)),
        Err(look) => Next::Wait { until: Some(look), why: format!("generation {generation} is draining") },
    })
}
