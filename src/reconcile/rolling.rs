//! The decision for a service with a candidate under way.

use super::errors::ErrorHistory;
use super::health::Verdict;
use super::next::{held, wait};
use super::record::{Cause, Phase, Rollout, ServiceRecord};
use super::replace::needs_new_generation;
use super::restarts::{completed, stays};
use super::step::{Next, Step};
use super::transition::LONGEST_RETRY;
use super::view::View;
use super::world::{DesiredService, Observed};
use super::{
    batches, canary, drain, handover, irreversible, jobs, joined, later, order, pending, ports, preflight,
    repair, replicas, secrets, sharing, window,
};
use crate::types::{ContainerState, Job, Reason, Refusal, ServiceName, Strategy, Timestamp};

/// What a rollout does next.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    // With its part it stands in for an incumbent that has ended, before that is started again.
    let in_part = matches!(rollout.phase, Phase::Canary | Phase::Batches);
    let has_all = (in_part || rollout.phase == Phase::Switching) && routed(view, record, rollout);
    let mut pull = None;
    if incumbent_serves(rollout) && !has_all && !in_part {
        match repair::next(view, record) {
            // A restart that has to wait must not hold the candidate up, nor may its image: it may be the cure.
            Some(next @ Next::Do(Step::Pull(_))) => {
                pull = Some(next).filter(|_| !view.observed.pulling.contains_key(view.name));
            }
            Some(next @ Next::Do(_)) => return next,
            _ => {}
        }
    }
    // A switch that was meant and did not happen (its port is another service's) is no reason to stay with it. What
    // alone serves is not given up for what may come.
    if rollout.phase <= Phase::Switching
        && !has_all
        && let Some(refusal) = superseded(view, rollout)
    {
        return Next::Do(Step::Fail(refusal));
    }
    let generation = rollout.to.generation;
    let to_start = matches!(rollout.phase, Phase::Preparing | Phase::Yielding | Phase::Starting);
    if to_start
        && view.container(generation).is_none_or(|it| *it == ContainerState::Remains)
        && !view.has_image(&rollout.to)
    {
        // Thrown away meanwhile, by a check of the disk or a hand.
        return Next::Do(Step::Advance(Phase::Pulling));
    }
    if let (true, Some(closed)) = (to_start, window::closed_for(view, record, rollout)) {
        return pull.unwrap_or(closed);
    }
    let next = match rollout.phase {
        Phase::Pulling => pulling(view, record, rollout),
        Phase::Preparing => preparing(view, record, rollout),
        Phase::Yielding => match &record.incumbent {
            // Asked while the incumbent still runs: it is not stopped for a successor that has to wait.
            Some(incumbent) if view.any_runs(incumbent) => {
                // From here on nothing serves: all that it needs has settled by then.
                let turn = sharing::turn(view, record, rollout);
                let wait = turn
                    .or_else(|| preflight::before_stop(view, rollout))
                    .or_else(|| order::before_switch(view, rollout))
                    .or_else(|| order::missing(view, &rollout.to).map(held));
                wait.unwrap_or(Next::Do(Step::Stop(incumbent.generation)))
            }
            // A run of it may write to the same files.
            incumbent => match incumbent.as_ref().and_then(|it| jobs::busy(record, it.generation)) {
                Some((job, _)) => wait(format!("{job} of the former generation has not ended")),
                None => Next::Do(Step::Advance(Phase::Starting)),
            },
        },
        // There is nothing to start and to prove: it runs when it is due.
        Phase::Starting | Phase::Proving | Phase::Switching | Phase::Baking
            if rollout.to.spec.schedule.is_some() =>
        {
            promote(record, rollout)
        }
        Phase::Starting => starting(view, record, rollout),
        Phase::Proving | Phase::Switching => proving(view, record, rollout),
        Phase::Canary => canary::next(view, record, rollout),
        Phase::Batches => batches::next(view, record, rollout),
        Phase::Baking => baking(view, record, rollout),
        Phase::Abandoning => abandoning(view, record, rollout),
    };
    match batches::or_gives_up(view, record, rollout, next) {
        idle @ (Next::Held { .. } | Next::Wait { .. }) => pull.unwrap_or(idle),
        Next::Do(Step::Fail(refusal)) if irreversible::holds(record, rollout) => {
            irreversible::instead(view, record, rollout, &refusal)
        }
        next => next,
    }
}

/// Whether the incumbent comes first: until traffic has gone over, nobody else serves. Under `recreate` it is down on
/// purpose once it has yielded.
pub(super) fn incumbent_serves(rollout: &Rollout) -> bool {
    match rollout.phase {
        Phase::Pulling | Phase::Preparing => true,
        Phase::Starting | Phase::Proving | Phase::Canary | Phase::Batches | Phase::Switching => {
            rollout.to.spec.strategy() == Strategy::BlueGreen
        }
        // Not stopped yet.
        Phase::Yielding => rollout.yielded_at.is_none(),
        Phase::Baking | Phase::Abandoning => false,
    }
}

/// Whether new connections go to the candidate.
fn routed(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> bool {
    replicas::leads_to(&rollout.to, view.route(), &view.route_for(record, &rollout.to))
}

/// Whether the incumbent's route has a branch to a candidate.
fn has_part(view: &View<'_>) -> bool {
    view.route().is_some_and(|route| route.canary.is_some())
}

/// Why a candidate that does not have all traffic yet is given up: an operator holds the service as it is, or a newer commit wants
/// something else.
pub(super) fn superseded(view: &View<'_>, rollout: &Rollout) -> Option<Refusal> {
    let halfway = view.record.is_some_and(|record| batches::goes_on(view, record, rollout));
    if halfway || rollout.phase == Phase::Abandoning {
        return None;
    }
    if let Some(refusal) = joined::left_behind(view.records, &rollout.to) {
        return Some(refusal);
    }
    if rollout.cause == Cause::Rollback {
        return None;
    }
    let head = view.desired.map(|desired| &desired.commit.id);
    let hold = view.record.and_then(|record| record.hold.as_ref());
    let forward = view.record.is_some_and(|record| irreversible::holds(record, rollout));
    if let Some(hold) = hold.filter(|hold| !hold.is_over(head, view.now) && !forward) {
        return Some(Refusal::new(Reason::Held, format!("held by {}: {}", hold.by, hold.reason)));
    }
    let desired = view.desired?;
    if desired.commit.id == rollout.to.commit.id {
        return secrets::outdated(&rollout.to.spec, desired.services.get(view.name));
    }
    let newer = match desired.services.get(view.name) {
        Some(DesiredService::Run(spec)) => {
            // A one-shot that is mended is no other container, but it is another attempt.
            let other_pre = rollout.to.spec.deploy.pre != spec.deploy.pre;
            needs_new_generation(&rollout.to.spec, spec).is_some()
                || (other_pre && rollout.phase <= Phase::Preparing)
        }
        // Refused or unknown yet: what is under way was fine, and goes on.
        Some(_) => false,
        // A commit whose removals are refused changes nothing.
        None => view.removal_refusal.is_none(),
    };
    newer.then(|| {
        let message = format!("commit {} came before it was switched to", desired.commit.id.short());
        Refusal::new(Reason::Superseded, message)
    })
}

fn pulling(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    if view.has_image(&rollout.to) {
        return Next::Do(Step::Advance(after_pull(record, rollout)));
    }
    paused(view, rollout).unwrap_or(Next::Do(Step::Pull(rollout.to.generation)))
}

/// The pause after an effect that may be tried again.
pub(super) fn paused(view: &View<'_>, rollout: &Rollout) -> Option<Next> {
    let at = rollout.retry_at.filter(|at| pending(view.now, *at, LONGEST_RETRY))?;
    let trouble = rollout.trouble.clone()?;
    Some(Next::Held { refusal: trouble, until: Some(at) })
}

/// The phase that comes once the image is local.
pub(super) fn after_pull(record: &ServiceRecord, rollout: &Rollout) -> Phase {
    if rollout.to.spec.deploy.pre.is_empty() { after_prepare(record, rollout) } else { Phase::Preparing }
}

/// The phase that comes once the image is local and `deploy.pre` has run.
pub(super) fn after_prepare(record: &ServiceRecord, rollout: &Rollout) -> Phase {
    match (rollout.to.spec.strategy(), &record.incumbent) {
        (Strategy::Recreate, Some(_)) => Phase::Yielding,
        _ => Phase::Starting,
    }
}

/// `deploy.pre`, once.
fn preparing(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    let generation = rollout.to.generation;
    let run = record.jobs.pre.as_ref().filter(|run| run.generation == generation);
    let Some(run) = run else {
        // What it changes is for a service that can start.
        return sharing::turn(view, record, rollout)
            .or_else(|| dependency(view, rollout))
            .or_else(|| preflight::before_stop(view, rollout))
            .or_else(|| paused(view, rollout))
            .unwrap_or(Next::Do(Step::Prepare(generation)));
    };
    match jobs::progress(view, &rollout.to, Job::Pre, run) {
        jobs::Progress::Do(step) => Next::Do(step),
        jobs::Progress::Runs(until) => {
            let command = rollout.to.spec.deploy.pre.join(" ");
            let limit = crate::types::format_duration(rollout.to.spec.deploy.timeout);
            let why =
                format!("running deploy.pre `{command}` of generation {generation}, for {limit} at the most");
            Next::Wait { until, why }
        }
        jobs::Progress::Over => match &run.trouble {
            None => Next::Do(Step::Advance(after_prepare(record, rollout))),
            Some(refusal) => Next::Do(Step::Fail(refusal.clone())),
        },
    }
}

/// The candidate takes the incumbent's place, whose own last one-shot is not cut short for it.
fn promote(record: &ServiceRecord, rollout: &Rollout) -> Next {
    let incumbent = record.incumbent.as_ref();
    match incumbent.and_then(|incumbent| jobs::busy(record, incumbent.generation)) {
        Some((Job::Post, _)) => wait("deploy.post of the former generation has not ended".to_owned()),
        _ => match record.retiring.as_ref().map(|retiring| retiring.old.generation) {
            // A run of the generation before that one goes on.
            Some(old) if jobs::busy(record, old).is_some() => wait(format!("a run of generation {old}")),
            Some(old) => Next::Do(Step::Retire(old)),
            None => Next::Do(Step::Promote(rollout.to.generation)),
        },
    }
}

/// Why it may not start yet.
fn dependency(view: &View<'_>, rollout: &Rollout) -> Option<Next> {
    let missing = || order::missing(view, &rollout.to).map(held);
    order::before_start(view, rollout).or_else(missing)
}

fn starting(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    let generation = rollout.to.generation;
    // The addresses of all are written down before anything is made.
    if replicas::is_off(&rollout.to) {
        return paused(view, rollout).unwrap_or(Next::Do(Step::Scale(generation)));
    }
    let start = || paused(view, rollout).unwrap_or(Next::Do(Step::Start(generation)));
    match view.container(generation) {
        Some(ContainerState::Running { .. }) => Next::Do(Step::Advance(Phase::Proving)),
        state @ Some(ContainerState::Exited(_))
            if completed(&view.check(&rollout.to), &rollout.to, state) =>
        {
            Next::Do(Step::Advance(Phase::Proving))
        }
        Some(ContainerState::Exited(exit)) => {
            Next::Do(Step::Fail(Refusal::new(Reason::Exited, format!("generation {generation} {exit}"))))
        }
        Some(ContainerState::Remains) => start(),
        // The incumbent has yielded: nothing serves, and waiting would not help.
        None if rollout.to.spec.strategy() == Strategy::Recreate && record.incumbent.is_some() => start(),
        None => sharing::turn(view, record, rollout)
            .or_else(|| dependency(view, rollout))
            .or_else(|| preflight::before_start(view, record, rollout))
            .unwrap_or_else(start),
    }
}

fn proving(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    let generation = rollout.to.generation;
    // The kernel's word: the switch happened, though nobody was left to write it down.
    let over = completed(&view.check(&rollout.to), &rollout.to, view.container(generation));
    let runs = view.runs(generation) || over;
    if rollout.phase == Phase::Switching && routed(view, record, rollout) && runs {
        return Next::Do(Step::Advance(Phase::Baking));
    }
    match view.container(generation) {
        Some(ContainerState::Running { .. }) => {
            if let Some((reason, message)) = replicas::ended(view, &rollout.to) {
                let message = format!("{message} before it was healthy");
                return Next::Do(Step::Fail(Refusal::new(reason, message)));
            }
            if let Some(step) = replicas::starting(view, rollout) {
                return paused(view, rollout).unwrap_or(Next::Do(step));
            }
        }
        Some(ContainerState::Exited(_)) if over => {
            return switch(view, record, rollout);
        }
        Some(ContainerState::Exited(exit)) => {
            let message = format!("generation {generation} {exit} before it was healthy");
            return Next::Do(Step::Fail(Refusal::new(Reason::Exited, message)));
        }
        // Gone with a reboot: what is left is a start.
        Some(ContainerState::Remains) | None => return Next::Do(Step::Advance(Phase::Starting)),
    }
    match view.verdict(&rollout.to) {
        // Where there is only the way forward, it is switched to as soon as the port is free.
        Some(Verdict::Healthy) => {
            match handover::refusal(view, rollout).filter(|_| !irreversible::holds(record, rollout)) {
                Some(refusal) => Next::Do(Step::Fail(refusal)),
                None => switch(view, record, rollout),
            }
        }
        Some(Verdict::Unhealthy(why)) => {
            let message = format!("generation {generation} failed its health check: {why}");
            Next::Do(Step::Fail(Refusal::new(Reason::Unhealthy, message)))
        }
        Some(Verdict::Undecided { why }) => {
            let timeout = rollout.to.spec.deploy.timeout;
            let deadline = deadline(view.name, rollout, view.observed, view.now);
            // A new agent has no history: it asks once before it judges, however late it is.
            if view.now >= deadline && !view.is_asked(&rollout.to) {
                return wait(why);
            }
            if view.now >= deadline {
                let limit = crate::types::format_duration(timeout);
                let message = format!("generation {generation} was not healthy within {limit}: {why}");
                return Next::Do(Step::Fail(Refusal::new(Reason::DeployTimeout, message)));
            }
            let until = view.steady_at(&rollout.to).unwrap_or(deadline);
            Next::Wait { until: Some(until.min(deadline)), why }
        }
        None => wait("not probed yet".to_owned()),
    }
}

/// When a candidate that is proved has to be healthy: of several containers one may have been started later.
pub fn deadline(name: &ServiceName, rollout: &Rollout, observed: &Observed, now: Timestamp) -> Timestamp {
    let first = rollout.candidate_started_at.unwrap_or(rollout.phase_since);
    let newest = replicas::newcomers(name, &rollout.to, observed, now).min();
    later(newest.map_or(first, |at| at.max(first)), rollout.to.spec.deploy.timeout)
}

/// It may have the traffic, or a part of it first, unless what it needs comes before that.
fn switch(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    // What was meant already is done, and where nothing serves nobody is to wait.
    let down = rollout.to.spec.strategy() == Strategy::Recreate && record.incumbent.is_some();
    let order = order::before_switch(view, rollout).filter(|_| rollout.phase < Phase::Switching && !down);
    // Nothing of it has had traffic yet.
    let apart = !down && !batches::has_begun(record) && rollout.canary_since.is_none();
    if order.is_none()
        && apart
        && let Some(why) = ports::wanted_back(view, &rollout.to.spec.ports)
    {
        return match rollout.phase {
            // So that it has its time for the switch once it may be tried again.
            Phase::Switching => Next::Do(Step::Advance(Phase::Proving)),
            _ => wait(why),
        };
    }
    let port = || handover::before_switch(view, record, rollout).filter(|_| apart);
    let wait = order.or_else(port).or_else(|| paused(view, rollout));
    let generation = rollout.to.generation;
    wait.unwrap_or_else(|| {
        let step = match canary::is_due(view, record, rollout) {
            true => Step::Canary(generation),
            false => batches::due(view, record, rollout).unwrap_or(Step::Switch(generation)),
        };
        Next::Do(step)
    })
}

/// What is wrong with a candidate that has traffic.
pub(super) fn sick(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<(Reason, String)> {
    let generation = rollout.to.generation;
    match view.container(generation) {
        Some(ContainerState::Running { .. }) => {
            replicas::ended(view, &rollout.to).or_else(|| ails(view, record, rollout))
        }
        state @ Some(ContainerState::Exited(_))
            if completed(&view.check(&rollout.to), &rollout.to, state) =>
        {
            None
        }
        Some(ContainerState::Exited(exit)) => {
            Some((Reason::Exited, format!("generation {generation} {exit}")))
        }
        Some(ContainerState::Remains) | None => None,
    }
}

fn baking(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    let generation = rollout.to.generation;
    let gone = matches!(view.container(generation), None | Some(ContainerState::Remains));
    if gone || replicas::is_incomplete(view, &rollout.to) {
        return match irreversible::holds(record, rollout) {
            // Gone with a reboot. It was judged healthy, and the incumbent may not serve again.
            true => promote(record, rollout),
            // Gone with a reboot: the candidate is started and proved anew while the incumbent serves.
            false => Next::Do(Step::Advance(Phase::Starting)),
        };
    }
    if let (Some((reason, message)), Some(_)) = (sick(view, record, rollout), &record.incumbent) {
        return Next::Do(Step::Fail(Refusal::new(reason, format!("{message} after the switch"))));
    }
    let at_home = |deployed| joined::left_behind(view.records, deployed).is_none();
    if let (Some(refusal), true) =
        (joined::left_behind(view.records, &rollout.to), record.incumbent.as_ref().is_some_and(at_home))
    {
        return Next::Do(Step::Fail(refusal));
    }
    let bake_over = later(rollout.switched_at.unwrap_or(rollout.phase_since), rollout.to.spec.deploy.bake);
    // With nothing to go back to there is nothing to keep ready.
    if record.incumbent.is_none() || view.now >= bake_over {
        return promote(record, rollout);
    }
    if view.route() != Some(&view.route_for(record, &rollout.to)) {
        return Next::Do(Step::Route(generation));
    }
    let looks = view.errors(&rollout.to).map(|errors| errors.next_look_at(&rollout.to.spec.deploy));
    let look = looks.filter(|at| *at > view.now).min().map_or(bake_over, |at| at.min(bake_over));
    Next::Wait { until: Some(look), why: format!("generation {generation} has traffic and is watched") }
}

/// What is wrong with a candidate that has traffic and runs.
fn ails(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<(Reason, String)> {
    let candidate = &rollout.to;
    let generation = candidate.generation;
    if let Some(Verdict::Unhealthy(why)) = view.verdict(candidate) {
        return Some((Reason::Unhealthy, format!("generation {generation} failed its health check: {why}")));
    }
    // Some programs live with a child that is killed now and then: those did so before.
    let (kills, former) = (view.oom_kills(candidate), record.incumbent.as_ref());
    // Of several the one that did may have given its place up.
    let whole = !batches::has_begun(record);
    if kills > 0 && whole && former.is_some_and(|former| view.oom_kills(former) == 0) {
        let times = if kills == 1 { "once".to_owned() } else { format!("{kills} times") };
        let message =
            format!("in generation {generation} memory ran out {times}: the kernel killed a process");
        return Some((Reason::OutOfMemory, message));
    }
    let errors = view.errors(candidate).find_map(ErrorHistory::verdict)?;
    Some((Reason::ErrorRate, format!("of generation {generation} {errors}")))
}

fn abandoning(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    let generation = rollout.to.generation;
    match &record.incumbent {
        // It stays down; a newer commit goes on from there.
        Some(_) if irreversible::leaves_down(record, rollout) && view.route().is_some() => {
            return Next::Do(Step::Return { to: None, from: generation });
        }
        Some(_) if irreversible::leaves_down(record, rollout) => {}
        Some(incumbent) => {
            let wanted = view.route_for(record, incumbent);
            if view.serves(incumbent) {
                if !replicas::leads_to(incumbent, view.route(), &wanted) {
                    return Next::Do(Step::Return { to: Some(incumbent.generation), from: generation });
                }
                // Back already: only which of its containers are well is another matter now.
                if view.route() != Some(&wanted) {
                    return Next::Do(Step::Route(incumbent.generation));
                }
                // What was about to go for the candidate, and has not gone yet, serves again at once.
                if replicas::is_to_stay(incumbent) {
                    return Next::Do(Step::Scale(incumbent.generation));
                }
            } else if stays(record, incumbent, view.container(incumbent.generation)).is_some() {
                // It had ended before: there is nobody to wait for, and nobody to lead clients to.
                if routed(view, record, rollout) || has_part(view) {
                    return Next::Do(Step::Return { to: None, from: generation });
                }
            } else if rollout.to.spec.strategy() == Strategy::Recreate
                && view.container(generation).is_some()
                && view.has_image(incumbent)
            {
                // Two at once would write to the same files: here the candidate has to go first.
                return Next::Do(Step::Discard(generation));
            } else if let Some(next @ Next::Do(_)) = repair::next(view, record) {
                // It has to run before the candidate may go.
                return next;
            } else if let Some(other) = repair::comes_after(view, incumbent) {
                return wait(format!("generation {} is started once {other} runs", incumbent.generation));
            } else if has_part(view) {
                // The rest of it reaches nobody.
                return Next::Do(Step::Return { to: None, from: generation });
            } else if routed(view, record, rollout) && view.any_runs(&rollout.to) {
                // A sick candidate with traffic is better than none, until the incumbent can be started.
                return repair::next(view, record).unwrap_or_else(|| wait("the old generation".to_owned()));
            }
        }
        None if view.route().is_some() => return Next::Do(Step::Return { to: None, from: generation }),
        None => {}
    }
    if let Some(next) = drain::given_up(view, record) {
        return next;
    }
    let pre = crate::types::InstanceId::of_job(view.name, generation, Job::Pre);
    if view.observed.containers.contains_key(&pre) {
        return Next::Do(Step::Clear(generation, Job::Pre));
    }
    if view.observed.containers_of(view.name).any(|(own, _)| own == generation) {
        return Next::Do(Step::Discard(generation));
    }
    Next::Do(Step::Conclude)
}
