//! Keeping the incumbent as it should be: running, with its route.

use std::collections::BTreeSet;
use std::time::Duration;

use super::record::{Deployed, Down, Phase, Rollout, ServiceRecord};
use super::restarts::stays;
use super::rolling::incumbent_serves;
use super::step::{Next, Step};
use super::view::View;
use super::{irreversible, joined, later, order, pending, replicas, schedule};
use crate::types::{InstanceId, Reason, Refusal, ServiceName, Strategy, Timestamp};

/// First pause before a container that ended is started again; doubled for each further start in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause between two starts.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// From one look whether a service that comes first is well to the next.
pub(super) const PROVING: Duration = Duration::from_millis(500);

/// A container that ran this long has recovered: its next end begins a new row.
pub const RECOVERED_AFTER: Duration = Duration::from_secs(600);

/// What the incumbent needs; `None` = nothing.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let incumbent = record.incumbent.as_ref()?;
    if incumbent.spec.schedule.is_some() {
        return schedule::next(view, record);
    }
    match replicas::is_several(incumbent) {
        true => replicas::next(view, record, incumbent, first_container(view, record, incumbent)),
        false => first_container(view, record, incumbent),
    }
}

/// What the incumbent's first container needs.
fn first_container(view: &View<'_>, record: &ServiceRecord, incumbent: &Deployed) -> Option<Next> {
    let generation = incumbent.generation;
    if view.runs(generation) {
        // Also in part.
        let traffic_elsewhere = record.rollout.as_ref().is_some_and(|rollout| rollout.phase >= Phase::Canary);
        let right = view.route() == Some(&view.route_for(record, incumbent));
        if !right && !traffic_elsewhere {
            return Some(Next::Do(Step::Route(generation)));
        }
        return incumbent.untold.map(|_| Next::Do(Step::Report(generation)));
    }
    if let Some(held) = irreversible::barred(incumbent) {
        return Some(held);
    }
    // The network that it shared is gone: what is left is a new generation.
    if !joined::is_there(view, incumbent) {
        return None;
    }
    if let Some(exit) = stays(record, incumbent, view.container(generation)) {
        if incumbent.down != Some(Down::Ended) {
            return Some(Next::Do(Step::Note(generation, exit.clone())));
        }
        if exit.code == Some(0) {
            return None;
        }
        let policy = incumbent.spec.restart;
        let message = format!("generation {generation} {exit}, and `restart = \"{policy}\"` leaves it so");
        return Some(Next::Held { refusal: Refusal::new(Reason::Exited, message), until: None });
    }
    let local = view.has_image(incumbent);
    // A candidate is on its way, and one pull at a time is enough.
    if !local && record.rollout.as_ref().is_some_and(|rollout| !pulls_beside(rollout)) {
        return None;
    }
    let due = restart_at(incumbent);
    Some(match (pending(view.now, due, LONGEST_PAUSE), local) {
        (false, true) => match first(view, incumbent) {
            Some(other) => {
                let why = format!("generation {generation} is started once {other} runs");
                // One that runs has to answer within its time.
                let until =
                    Some(later(view.now, PROVING)).filter(|_| !view.observed.busy.contains_key(other));
                Next::Wait { until, why }
            }
            None => Next::Do(Step::Start(generation)),
        },
        (false, false) => Next::Do(Step::Pull(generation)),
        (true, true) => Next::Wait {
            until: Some(due),
            why: format!("generation {generation} ended; it is started again"),
        },
        (true, false) => Next::Wait {
            until: Some(due),
            why: format!("generation {generation} ended, and its image is not local; it is pulled again"),
        },
    })
}

/// Whether a lost image of the incumbent is pulled beside a candidate: one that may have to wait, or is given up.
pub(super) fn pulls_beside(rollout: &Rollout) -> bool {
    let to_start = [Phase::Pulling, Phase::Preparing, Phase::Yielding, Phase::Starting];
    to_start.contains(&rollout.phase) || rollout.phase == Phase::Abandoning
}

/// The start of an incumbent that should serve and does not run, if it is due now.
pub(super) fn start(view: &View<'_>, record: &ServiceRecord) -> Option<Step> {
    record.rollout.as_ref().is_none_or(incumbent_serves).then(|| due(view, record)).flatten()
}

/// The same while containers that nothing leads to are on their way out; or the pull of its image, or when it is due.
pub(super) fn while_ending(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let serves = |rollout: &Rollout| incumbent_serves(rollout) || takes_back(record, rollout);
    if !record.rollout.as_ref().is_none_or(serves) {
        return None;
    }
    let other = || match next(view, record) {
        pull @ Some(Next::Do(Step::Pull(_))) if view.pause().is_none() => pull,
        waiting @ Some(Next::Wait { .. }) => waiting,
        _ => None,
    };
    due(view, record).map(Next::Do).or_else(other)
}

/// Whether the incumbent serves again while a candidate that was given up is ended. Under `recreate` two at once would
/// write to the same files.
fn takes_back(record: &ServiceRecord, rollout: &Rollout) -> bool {
    rollout.phase == Phase::Abandoning
        && rollout.to.spec.strategy() == Strategy::BlueGreen
        && !irreversible::leaves_down(record, rollout)
}

fn due(view: &View<'_>, record: &ServiceRecord) -> Option<Step> {
    let several = record.incumbent.as_ref().filter(|incumbent| replicas::is_several(incumbent));
    let next = match several {
        Some(incumbent) => first_container(view, record, incumbent),
        None => next(view, record),
    };
    match next {
        _ if record.removing.is_some() => None,
        Some(Next::Do(step @ Step::Start(_))) => Some(step),
        _ => several.and_then(|incumbent| replicas::start(view, incumbent)),
    }
}

/// The service that an incumbent which could be started now waits for.
pub(super) fn comes_after<'a>(view: &View<'a>, incumbent: &'a Deployed) -> Option<&'a ServiceName> {
    let due = !pending(view.now, restart_at(incumbent), LONGEST_PAUSE) && view.has_image(incumbent);
    let apart = incumbent.spec.schedule.is_some() || !joined::is_there(view, incumbent);
    if due && !apart { first(view, incumbent) } else { None }
}

/// The service that it needs and that is about to be started, as all are after a boot: it comes first. One that cannot be
/// started is not waited for: this one ran without it before.
pub(super) fn first<'a>(view: &View<'a>, incumbent: &'a Deployed) -> Option<&'a ServiceName> {
    incumbent.spec.needs().find(|name| {
        // Beside a candidate that has not come far its incumbent is started as well.
        let serves = |record: &&ServiceRecord| record.rollout.as_ref().is_none_or(incumbent_serves);
        let Some(record) = view.records.get(*name).filter(serves) else { return false };
        let Some(other) = record.incumbent.as_ref().filter(|it| it.spec.schedule.is_none()) else {
            return false;
        };
        let id = InstanceId::new(name, other.generation);
        let state = view.observed.containers.get(&id);
        let runs = view.observed.runs(&id);
        let stays = stays(record, other, state).is_some() || other.down == Some(Down::Barred);
        let due = !pending(view.now, restart_at(other), LONGEST_PAUSE)
            && view.observed.images.contains(&other.spec.image.digest)
            && !view.observed.pauses.contains_key(*name)
            && !view.observed.frozen.contains_key(*name);
        let coming = due || view.observed.busy.contains_key(*name);
        let first = (!runs && !stays && coming) || order::is_proving(view, incumbent, name, other);
        first && !depends(view, name, view.name)
    })
}

/// Whether the incumbent of `from` depends on `on`, by however many others: two records of different commits may depend
/// on each other.
fn depends(view: &View<'_>, from: &ServiceName, on: &ServiceName) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(name) = next.pop() {
        if name == on {
            return true;
        }
        let incumbent = view.records.get(name).and_then(|record| record.incumbent.as_ref());
        if let (true, Some(incumbent)) = (seen.insert(name), incumbent) {
            next.extend(incumbent.spec.needs());
        }
    }
    false
}

/// When an incumbent that is not running may be started, or its lost image pulled: both count as tries.
pub(super) fn restart_at(incumbent: &Deployed) -> Timestamp {
    let Some(last) = incumbent.restarted_at else { return Timestamp::MIN };
    later(last, pause_after(incumbent.restarts))
}

/// From the last of so many starts in a row to the next.
pub(super) fn pause_after(restarts: u32) -> Duration {
    let doublings = restarts.saturating_sub(1).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}
