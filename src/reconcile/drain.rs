//! The former incumbent on its way out: until when its connections are waited for, and how long it is given to end.

use std::time::Duration;

use super::record::{Deployed, ServiceRecord};
use super::step::{Next, Step};
use super::view::View;
use super::{jobs, joined, later};
use crate::types::{ContainerState, DrainSignal, InstanceId, ReplicaIndex, Timestamp};

/// After the switch, before the first look at the old generation's sockets: connections whose first packet is still
/// on its way are not counted yet.
pub const GRACE: Duration = Duration::from_secs(2);

/// From one look at a retiring generation's sockets to the next.
pub const IDLE_POLL: Duration = Duration::from_millis(250);

/// This many looks in a row without a connection, and it is idle.
pub const IDLE_POLLS: u32 = 2;

/// When old connections have had their time. The incumbent's spec rules: it is the one that was just deployed.
pub fn over(record: &ServiceRecord) -> Option<Timestamp> {
    Some(later(record.retiring.as_ref()?.since, drain(record)))
}

fn drain(record: &ServiceRecord) -> Duration {
    record.incumbent.as_ref().map_or(Duration::ZERO, |incumbent| incumbent.spec.deploy.drain)
}

/// Whether the old generation is told to end at once, and ends its connections by itself. Its own spec rules: it is its
/// own program that has to know how.
pub fn is_early(record: &ServiceRecord) -> bool {
    let signal = record.retiring.as_ref().map(|retiring| retiring.old.spec.deploy.drain_signal);
    signal == Some(DrainSignal::Early)
}

/// From the stop signal to SIGKILL, for the former incumbent.
pub fn patience(record: &ServiceRecord, now: Timestamp) -> Duration {
    let Some(retiring) = &record.retiring else { return Duration::ZERO };
    let grace = retiring.old.spec.stop_grace_period;
    match over(record).filter(|_| is_early(record)) {
        // Of its connections it takes care itself: it has all of the drain for that.
        Some(over) => grace.saturating_add(Duration::try_from(over.duration_since(now)).unwrap_or_default()),
        None => grace,
    }
}

/// The same for one of its containers that is too many.
pub fn patience_of(deployed: &Deployed, index: ReplicaIndex, now: Timestamp) -> Duration {
    let (deploy, grace) = (&deployed.spec.deploy, deployed.spec.stop_grace_period);
    let since = deployed.replicas.get(&index).and_then(|replica| replica.leaving_since);
    match since.filter(|_| deploy.drain_signal == DrainSignal::Early) {
        Some(since) => {
            let left = later(since, deploy.drain).duration_since(now);
            grace.saturating_add(Duration::try_from(left).unwrap_or_default())
        }
        None => grace,
    }
}

/// The former incumbent goes once its connections have ended, or `drain` is over.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let retiring = record.retiring.as_ref()?;
    let generation = retiring.old.generation;
    let over = over(record)?;
    let grace = later(retiring.since, GRACE.min(drain(record)));
    let runs =
        |id: &InstanceId| matches!(view.observed.containers.get(id), Some(ContainerState::Running { .. }));
    let is_idle = |id| view.observed.idle_polls.get(&id).copied().unwrap_or(0) >= IDLE_POLLS;
    // All that run; where none does, it goes for that.
    let idle = retiring.old.instances(view.name).filter(runs).all(is_idle);
    // A run of a scheduled service is not cut short for the next version, and keeps nobody waiting.
    if jobs::busy(record, generation).is_some() {
        return None;
    }
    // Its network goes with it.
    let kept = later(over, joined::KEPT);
    if let Some(guest) = joined::guest(view, generation).filter(|_| view.now < kept) {
        let why = format!("generation {generation} is kept for {guest}, which shares its network");
        return Some(Next::Wait { until: Some(kept), why });
    }
    let ready = view.now >= grace && (idle || is_early(record));
    if !view.any_runs(&retiring.old) || view.now >= over || ready {
        return Some(Next::Do(Step::Retire(generation)));
    }
    let look = if view.now < grace { grace } else { later(view.now, IDLE_POLL) };
    let why = format!("generation {generation} is draining");
    Some(Next::Wait { until: Some(look.min(over)), why })
}
