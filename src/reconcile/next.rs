//! The decision for one service.

use super::record::{Cause, ServiceRecord, Spec};
use super::step::{Next, Planned, Situation, Step};
use super::view::View;
use super::world::{DesiredService, Ending};
use super::{
    amend, batches, drain, exchange, handover, irreversible, jobs, joined, order, preflight, repair,
    replicas, rolling, window,
};
use crate::types::{CommitInfo, Reason, Refusal};

/// Decides for one service.
pub(super) fn decide(view: &View<'_>) -> Planned {
    let mut planned = choose(view);
    // One pull a service at a time; whatever else there is to do goes on meanwhile.
    if let (Next::Do(Step::Pull(_)), Some(pull)) = (&planned.next, view.observed.pulling.get(view.name)) {
        planned.next = wait(pull.what.clone());
    }
    planned
}

/// What cannot wait until containers that nothing leads to have ended, which may take hours: that what serves runs, and
/// that what is sick gets no traffic.
fn while_ending(view: &View<'_>, ending: &Ending) -> Next {
    let waits = |until| Next::Wait { until, why: ending.what.clone() };
    let Some(record) = view.record else { return waits(None) };
    let rollout = record.rollout.as_ref().filter(|_| view.pause().is_none());
    let step = rollout
        .and_then(|rollout| batches::meanwhile(view, record, rollout))
        .or_else(|| replicas::spread(view));
    step.map(Next::Do).unwrap_or_else(|| match repair::while_ending(view, record) {
        Some(Next::Do(step)) if !step.starts(view.name).is_some_and(|id| ending.ids.contains(&id)) => {
            Next::Do(step)
        }
        Some(Next::Wait { until, .. }) => waits(until),
        _ => waits(None),
    })
}

fn choose(view: &View<'_>) -> Planned {
    if let Some(refusal) = view.observed.frozen.get(view.name) {
        return Planned { situation: Situation::OnHold, next: held(refusal.clone()) };
    }
    if let Some(busy) = view.busy() {
        let situation = view.record.map_or(Situation::Absent, situation);
        // What only serves a candidate that a newer commit makes idle is not waited for.
        let idle = view.record.filter(|_| busy.yields).and_then(|record| {
            record.rollout.as_ref().filter(|rollout| !irreversible::holds(record, rollout))
        });
        let idle = idle.and_then(|rollout| rolling::superseded(view, rollout));
        let step = idle.map(Step::Fail).or_else(|| replicas::spread(view));
        return Planned { situation, next: step.map_or_else(|| wait(busy.what.clone()), Next::Do) };
    }
    if let Some(ending) = view.ending() {
        let situation = view.record.map_or(Situation::Absent, situation);
        return Planned { situation, next: while_ending(view, ending) };
    }
    if let Some(pause) = view.pause() {
        // Whatever else has to wait: what serves goes on serving.
        return match view.record.and_then(|record| repair::start(view, record)) {
            Some(step) => Planned { situation: Situation::Drifted, next: Next::Do(step) },
            None => Planned {
                situation: view.record.map_or(Situation::Absent, situation),
                next: Next::Wait {
                    until: Some(pause.since).filter(|at| *at > view.now),
                    why: pause.what.clone(),
                },
            },
        };
    }
    if let Some(step) = stray(view) {
        return Planned { situation: Situation::Drifted, next: Next::Do(step) };
    }
    let Some(record) = view.record else {
        let next = match view.wanted() {
            Some(wanted) => want(view, None, wanted),
            None if view.route().is_some() => Next::Do(Step::Withdraw),
            None => Next::Settled,
        };
        return Planned { situation: Situation::Absent, next };
    };
    if let Some(removing) = &record.removing {
        return Planned {
            situation: Situation::Orphaned,
            next: Next::Do(Step::Remove(removing.commit.clone().into())),
        };
    }
    if let Some(step) = jobs::beside(view, record) {
        return Planned { situation: situation(record), next: Next::Do(step) };
    }
    if let Some(rollout) = &record.rollout {
        let next = drain::before(view, record, rollout, rolling::next(view, record, rollout));
        return Planned { situation: situation(record), next };
    }
    if record.is_absent() && view.wanted().is_none() {
        let next = if view.route().is_some() { Next::Do(Step::Withdraw) } else { Next::Settled };
        return Planned { situation: Situation::Absent, next };
    }
    if let (Some(desired), None) = (view.desired, view.wanted()) {
        let next = match view.removal_refusal {
            // What may not be removed is still kept as it should be; what an earlier commit took away goes on going.
            Some(refusal) if record.leaving_since.is_none() => {
                kept(view, record).unwrap_or_else(|| held(refusal.clone()))
            }
            _ if order::dependant(view).is_some() => {
                kept(view, record).unwrap_or_else(|| after_dependant(view))
            }
            _ if handover::taker(view).is_some() => {
                kept(view, record).unwrap_or_else(|| handover::after_taker(view))
            }
            _ => drain::unwanted(view, record, &desired.commit),
        };
        return Planned { situation: Situation::Orphaned, next };
    }
    // A repair that has to wait must not hold up a newer version: it may be the cure.
    let waiting = match repair::next(view, record) {
        Some(next @ Next::Do(_)) => return Planned { situation: Situation::Drifted, next },
        waiting => waiting,
    };
    let waiting = match replicas::scaling(view, record) {
        Some(next @ Next::Do(_)) => Some(next),
        other => replicas::sooner(waiting, other),
    };
    if let Some(next) = drain::next(view, record) {
        return match (next, waiting) {
            (Next::Wait { .. }, Some(next @ Next::Do(_))) => Planned { situation: Situation::Drifted, next },
            (next, waiting) => {
                Planned { situation: Situation::Retiring, next: replicas::or_sooner(next, waiting) }
            }
        };
    }
    if let Some(hold) = &record.hold {
        let waiting = match waiting {
            next @ Some(Next::Do(_)) => next,
            later => amend::take_back(view, record).or(later),
        };
        let head = view.desired.map(|desired| &desired.commit.id);
        let next = if hold.is_over(head, view.now) {
            Next::Do(Step::Release)
        } else if let Some(next) = waiting {
            return Planned { situation: Situation::Drifted, next };
        } else {
            let message = format!("held by {}: {}", hold.by, hold.reason);
            let until = hold.until.filter(|until| *until > view.now);
            let rolled_back = hold.while_commit.is_some() && until.is_none();
            let reason = if rolled_back { Reason::OperatorRollback } else { Reason::Held };
            Next::Held { refusal: Refusal::new(reason, message), until }
        };
        return Planned { situation: Situation::OnHold, next };
    }
    let next = match view.wanted() {
        Some(wanted) => want(view, Some(record), wanted),
        None => Next::Settled,
    };
    let next = match next {
        next @ Next::Held { .. } => amend::take_back(view, record).unwrap_or(next),
        next => next,
    };
    let next = match next {
        Next::Settled => jobs::after_deploy(view, record).unwrap_or(Next::Settled),
        next => next,
    };
    if let (Some(next), false) = (waiting, matches!(next, Next::Do(_))) {
        return Planned { situation: Situation::Drifted, next };
    }
    let situation = match &next {
        Next::Settled => Situation::Current,
        Next::Held { .. } if record.failure.is_some() => Situation::Quarantined,
        _ => Situation::Outdated,
    };
    Planned { situation, next }
}

fn situation(record: &ServiceRecord) -> Situation {
    match (&record.rollout, &record.removing, &record.retiring) {
        (_, Some(_), _) => Situation::Orphaned,
        (Some(rollout), ..) => Situation::Rolling(rollout.phase),
        (None, None, Some(_)) => Situation::Retiring,
        (None, None, None) => Situation::Current,
    }
}

/// What a service needs that is no longer wanted and stays all the same.
fn kept(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let is_do = |next: &Option<Next>| matches!(next, Some(Next::Do(_)));
    let all = [
        repair::next(view, record),
        amend::take_back(view, record),
        drain::next(view, record),
        replicas::scaling(view, record),
    ];
    let (now, later): (Vec<_>, Vec<_>) = all.into_iter().partition(is_do);
    now.into_iter().flatten().next().or_else(|| later.into_iter().fold(None, replicas::sooner))
}

/// It is no longer wanted, and what depends on it goes first.
fn after_dependant(view: &View<'_>) -> Next {
    let other = order::dependant(view).map_or_else(String::new, ToString::to_string);
    let message = format!("it goes once {other}, which depends on it, is away or at another generation");
    held(Refusal::new(Reason::Dependency, message))
}

/// A container that no record names is debris of a crash or of somebody's hand.
fn stray(view: &View<'_>) -> Option<Step> {
    let known = |generation| view.record.is_some_and(|record| record.live(generation).is_some());
    view.observed
        .containers_of(view.name)
        .map(|(generation, _)| generation)
        .find(|g| !known(*g))
        .map(Step::Sweep)
        .or_else(|| replicas::stray(view))
}

/// Nothing is under way: compares what runs with what the repo wants.
fn want(view: &View<'_>, record: Option<&ServiceRecord>, wanted: &DesiredService) -> Next {
    let spec = match wanted {
        DesiredService::Run(spec) => spec,
        DesiredService::Resolving => return wait("looking its tag up".to_owned()),
        DesiredService::Refused { refusal, retry_at } => {
            return Next::Held { refusal: refusal.clone(), until: *retry_at };
        }
    };
    let Some(commit) = view.desired.map(|desired| &desired.commit) else { return Next::Settled };
    let Some(record) = record else { return begin(view, None, spec, commit) };
    if let Some(incumbent) = &record.incumbent
        && joined::left_behind(view.records, incumbent).is_none()
        && let Some(next) = amend::in_place(view, incumbent, spec, commit)
    {
        return next;
    }
    match &record.failure {
        // One attempt a commit, and what the host adds to it: the same one would fail the same way.
        Some(failure) if failure.is_of(&commit.id, Some(wanted)) => held(failure.refusal.clone()),
        _ => begin(view, Some(record), spec, commit),
    }
}

/// A new candidate, unless what it needs of the host cannot be had.
fn begin(view: &View<'_>, record: Option<&ServiceRecord>, spec: &Spec, commit: &CommitInfo) -> Next {
    if let Some(other) = exchange::unknown(view, spec) {
        return wait(format!(
            "looking up the tag of {other}, which writes to a directory that it is to take"
        ));
    }
    if let Some(refusal) = exchange::refusal(view, spec) {
        return held(refusal);
    }
    if let Some(held) = preflight::before_begin(view, record, spec) {
        return held;
    }
    if let Some(next) = window::closed(view, record, spec) {
        return next;
    }
    let generation = record.map_or(crate::types::Generation(0), |record| record.last_generation).next();
    Next::Do(Step::Begin {
        generation,
        spec: Box::new(spec.clone()),
        commit: Box::new(commit.clone()),
        cause: Cause::Commit,
    })
}

pub(super) fn wait(why: String) -> Next {
    Next::Wait { until: None, why }
}

pub(super) fn held(refusal: Refusal) -> Next {
    Next::Held { refusal, until: None }
}
