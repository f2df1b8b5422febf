//! A candidate that was judged healthy gets a part of new connections first, and all of them once it was well with that
//! (`deploy.canary`).
//!
//! The incumbent stays what serves: its route has a branch to the candidate for as long as [`Phase::Canary`] lasts, and
//! nothing else knows of it. So a return is a route without the branch, like any other.

use super::health::Verdict;
use super::next::wait;
use super::record::{Cause, Deployed, Phase, Rollout, ServiceRecord, Spec};
use super::restarts::completed;
use super::rolling::{paused, sick};
use super::step::{Next, Step};
use super::transition::healthy;
use super::view::View;
use super::{batches, later, pending, repair, replicas};
use crate::types::{Branch, Canary, ContainerState, PortMapping, Reason, Refusal, Strategy, Timestamp};

/// What a candidate gets before it gets all: nothing of the kind where two cannot be at once.
pub(super) fn declared(spec: &Spec) -> Option<Canary> {
    let two = spec.strategy() == Strategy::BlueGreen && !spec.network_mode().is_shared();
    spec.deploy.canary.filter(|_| two)
}

/// Whether a candidate that was judged healthy gets a part first. Beside an incumbent that does not run a part would
/// leave the rest to nobody; one that had all of it before a reboot has been through this; and an operator who goes back
/// is in a hurry.
pub(super) fn is_due(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> bool {
    let serves = record.incumbent.as_ref().is_some_and(|incumbent| view.serves(incumbent));
    let first =
        rollout.cause == Cause::Commit && rollout.switched_at.is_none() && !batches::has_begun(record);
    first
        && serves
        // One that has done what it is for has no use for connections.
        && view.runs(rollout.to.generation)
        && declared(&rollout.to.spec).is_some_and(|canary| left(view, rollout, canary).is_none_or(|it| it.is_some()))
}

/// When its time with a part is over: `None`, it has not begun; `Some(None)`, that was.
fn left(view: &View<'_>, rollout: &Rollout, canary: Canary) -> Option<Option<Timestamp>> {
    let over = later(rollout.canary_since?, canary.time);
    Some(Some(over).filter(|over| pending(view.now, *over, canary.time)))
}

/// What a candidate with its part does next.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    let generation = rollout.to.generation;
    let state = view.container(generation);
    let all = || {
        let switch = || batches::due(view, record, rollout).unwrap_or(Step::Switch(generation));
        // Its other containers are proved before anything more leads to it.
        batches::rest(view, rollout).or_else(|| paused(view, rollout)).unwrap_or_else(|| Next::Do(switch()))
    };
    // Gone with a reboot: it is started and proved anew, and gets its part anew.
    if matches!(state, None | Some(ContainerState::Remains)) {
        return Next::Do(Step::Advance(Phase::Starting));
    }
    let (Some(canary), Some(incumbent)) = (declared(&rollout.to.spec), &record.incumbent) else {
        return all();
    };
    if let Some((reason, message)) = sick(view, record, rollout) {
        let message = format!("{message}, with {} of new connections", canary.share);
        return Next::Do(Step::Fail(Refusal::new(reason, message)));
    }
    if completed(&view.check(&rollout.to), &rollout.to, state) {
        return all();
    }
    let left = left(view, rollout, canary);
    if left != Some(None) {
        return beside(view, record, rollout, incumbent, left.flatten()).unwrap_or_else(all);
    }
    // The others, where it was one of several.
    if rollout.to.size() > 1 {
        return match batches::rest(view, rollout) {
            Some(next) => serving(view, record, rollout, incumbent).unwrap_or(next),
            None => all(),
        };
    }
    // On the edge, or a new agent that has not asked yet: it gets no more before that is decided.
    let why = match view.verdict(&rollout.to) {
        Some(Verdict::Healthy) => return all(),
        Some(Verdict::Undecided { why } | Verdict::Unhealthy(why)) => why,
        None => {
            return serving(view, record, rollout, incumbent)
                .unwrap_or_else(|| wait("not probed yet".to_owned()));
        }
    };
    let timeout = rollout.to.spec.deploy.timeout;
    let since = rollout.canary_since.unwrap_or(rollout.phase_since);
    let deadline = later(later(since, canary.time), timeout);
    if view.now >= deadline && view.is_asked(&rollout.to) {
        let limit = crate::types::format_duration(timeout);
        let message = format!(
            "generation {generation}, with {} of new connections, was not healthy within {limit} of its end: {why}",
            canary.share
        );
        return Next::Do(Step::Fail(Refusal::new(Reason::DeployTimeout, message)));
    }
    serving(view, record, rollout, incumbent)
        .unwrap_or(Next::Wait { until: Some(deadline).filter(|at| *at > view.now), why })
}

/// Whether all new connections go to the candidate.
fn has_all(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> bool {
    view.route() == Some(&view.route_for(record, &rollout.to))
}

/// Whether new connections may go to the incumbent: of several containers one is enough.
pub(super) fn is_well(view: &View<'_>, incumbent: &Deployed) -> bool {
    replicas::serving(incumbent).any(|index| view.verdict_of(incumbent, index) == Some(Verdict::Healthy))
}

/// What keeps the service served while it is not decided: an incumbent that ended is stood in for, and started again.
fn serving(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout, incumbent: &Deployed) -> Option<Next> {
    let (generation, has_all) = (rollout.to.generation, has_all(view, record, rollout));
    if !view.serves(incumbent) && !has_all && view.runs(generation) {
        return Some(Next::Do(Step::Route(generation)));
    }
    if has_all && is_well(view, incumbent) {
        return Some(Next::Do(Step::Canary(generation)));
    }
    repair::next(view, record).filter(|next| matches!(next, Next::Do(_)))
}

/// What is to be done for its part until its time is `over`; `None`: there is nobody to share with.
fn beside(
    view: &View<'_>,
    record: &ServiceRecord,
    rollout: &Rollout,
    incumbent: &Deployed,
    over: Option<Timestamp>,
) -> Option<Next> {
    let (generation, old) = (rollout.to.generation, incumbent.generation);
    let up = view.serves(incumbent);
    let has_all = has_all(view, record, rollout);
    if !up && !has_all {
        // The incumbent has ended. What is well stands in until it is back, as connections to it would be refused; not
        // where it had no part yet.
        return over.map(|_| Next::Do(Step::Route(generation)));
    }
    let pause = match repair::next(view, record) {
        Some(next @ Next::Do(_)) => return Some(next),
        Some(Next::Wait { until, .. }) => until,
        // It stays as it is.
        _ if !up => return None,
        _ => None,
    };
    if !up || (has_all && !is_well(view, incumbent)) {
        let until = [over, pause, view.steady_at(incumbent)].into_iter().flatten().min();
        let why = format!("generation {generation} has all new connections until generation {old} is back");
        return Some(Next::Wait { until, why });
    }
    let has_part = view.route() == Some(&view.route_for(record, incumbent));
    match (declared(&rollout.to.spec), over) {
        (Some(canary), Some(_)) if has_part => {
            let share = canary.share;
            let why = format!("generation {generation} has {share} of new connections and is watched");
            let looks = view.errors(&rollout.to).map(|errors| errors.next_look_at(&rollout.to.spec.deploy));
            let until = over.into_iter().chain(looks.filter(|at| *at > view.now)).min();
            Some(Next::Wait { until, why })
        }
        _ => Some(paused(view, rollout).unwrap_or(Next::Do(Step::Canary(generation)))),
    }
}

/// The branch that the route of `deployed` has: in [`Phase::Canary`] that of the incumbent, to the candidate.
pub(super) fn branch(record: &ServiceRecord, deployed: &Deployed) -> Option<Branch> {
    let rollout = record.rollout.as_ref().filter(|rollout| rollout.phase == Phase::Canary)?;
    let incumbent = record.incumbent.as_ref()?;
    let canary = declared(&rollout.to.spec).filter(|_| incumbent.generation == deployed.generation)?;
    Some(Branch {
        generation: rollout.to.generation,
        address: rollout.to.address,
        also: Vec::new(),
        share: canary.share,
        by: canary.by,
        ports: shared_ports(deployed, &rollout.to),
    })
}

/// The candidate's ports that both publish, sorted. A port that only one of them has is no choice: an old one stays with
/// the incumbent, a new one comes with the switch.
pub(super) fn shared_ports(incumbent: &Deployed, candidate: &Deployed) -> Vec<PortMapping> {
    let same = |a: &PortMapping, b: &PortMapping| {
        (a.host_ip, a.host_port, a.protocol) == (b.host_ip, b.host_port, b.protocol)
    };
    let both = |port: &&PortMapping| incumbent.spec.ports.iter().any(|old| same(old, port));
    let mut ports: Vec<PortMapping> = candidate.spec.ports.iter().filter(both).cloned().collect();
    ports.sort();
    ports
}

/// The share that the candidate has of new connections, and when it is to get all of them.
pub fn progress(rollout: &Rollout) -> Option<(Canary, Option<Timestamp>)> {
    let canary = declared(&rollout.to.spec).filter(|_| rollout.phase == Phase::Canary)?;
    Some((canary, rollout.canary_since.map(|since| later(since, canary.time))))
}

/// Takes in that it has its part; the first time counts.
pub(super) fn begun(record: &mut ServiceRecord, now: Timestamp) {
    let in_part = |rollout: &&mut Rollout| matches!(rollout.phase, Phase::Canary | Phase::Batches);
    let rollout = record.rollout.as_mut().filter(in_part);
    if let Some(rollout) = rollout {
        rollout.canary_since.get_or_insert(now);
        (rollout.retry_at, rollout.trouble) = (None, None);
        healthy(rollout, now);
    }
}
