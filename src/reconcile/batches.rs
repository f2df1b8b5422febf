//! Replicas that are replaced some at a time (`deploy.parallelism`): so many of a candidate's containers are started beside
//! the incumbent's and proved, get their share of new connections, and as many of the incumbent's lose theirs, drain and
//! go; then the next ones. The last go by the switch, like any incumbent.
//!
//! How far it is stands in the record, as the number of containers that each of both has for now ([`Deployed::quota`]). All
//! the time the route is the incumbent's, with a branch to the candidate: a return is a route without the branch. What
//! the incumbent has lost by then it gets back like any container that is missing.

use super::canary;
use super::health::Verdict;
use super::next::wait;
use super::record::{Cause, Deployed, Phase, Rollout, ServiceRecord, Spec};
use super::rolling::{paused, sick};
use super::step::{Next, Step};
use super::view::View;
use super::world::Observed;
use super::{later, preflight, repair, replicas};
use crate::types::{
    Branch, ContainerState, Deploy, Generation, Reason, Refusal, ServiceName, Share, ShareBy, Strategy,
    Timestamp, WHOLE, format_duration,
};

/// How many of them are replaced at a time; `None` = all.
pub(super) fn at_a_time(deploy: &Deploy) -> Option<u32> {
    deploy.parallelism.filter(|number| *number < deploy.replicas).map(|number| number.max(1))
}

/// How many containers a candidate begins with, where that is not all of them: a batch, or the one that has a canary's
/// share.
pub(super) fn first(incumbent: Option<&Deployed>, spec: &Spec, cause: Cause) -> Option<u32> {
    let beside = incumbent.is_some() && spec.strategy() == Strategy::BlueGreen;
    let canary = (cause == Cause::Commit).then(|| canary::declared(spec)).flatten();
    let first = canary.map(|_| 1).or_else(|| at_a_time(&spec.deploy))?;
    (beside && first < spec.deploy.replicas).then_some(first)
}

/// How many containers beside those of the incumbent there are at the most until it has been replaced.
pub fn further(incumbent: &Deployed, spec: &Spec) -> u32 {
    let (old, new) = (incumbent.spec.deploy.replicas, spec.deploy.replicas);
    match at_a_time(&spec.deploy) {
        // One of the old ones stays until the switch.
        Some(batch) => batch.max(new.saturating_add(1).saturating_sub(old)),
        None => new,
    }
}

/// What to say where there is no room for all of them at once.
pub fn advice(incumbent: Option<&Deployed>, spec: &Spec) -> &'static str {
    match incumbent.is_some() && spec.deploy.replicas > 1 && at_a_time(&spec.deploy).is_none() {
        true => "; `parallelism` in [deploy] replaces some at a time",
        false => "",
    }
}

/// How many containers there are to be beside those of the incumbent, or beside those of both once places were given up, for
/// the next ones of a candidate to be started.
pub(super) fn left(record: &ServiceRecord, rollout: &Rollout) -> u32 {
    let (spec, incumbent) = (&rollout.to.spec, record.incumbent.as_ref());
    match (rollout.phase, at_a_time(&spec.deploy)) {
        (Phase::Batches, Some(batch)) => batch.min(spec.deploy.replicas.saturating_sub(rollout.to.size())),
        // After a power cut, when those that took places are started again.
        _ if has_begun(record) => rollout.to.size(),
        _ => incumbent.map_or(1, |incumbent| further(incumbent, spec)),
    }
}

/// How many containers a rollout may still start beside what there was, and how many of its own have taken places and need
/// no more room.
pub(super) fn claims(record: &ServiceRecord, rollout: &Rollout) -> (u32, usize) {
    let left = left(record, rollout);
    if rollout.phase != Phase::Batches {
        return (left, 0);
    }
    let gone = record.incumbent.as_ref().map(|it| it.spec.deploy.replicas.saturating_sub(it.size()));
    let places = gone.unwrap_or(0);
    (left.max(rollout.to.size().saturating_sub(places)), usize::try_from(places).unwrap_or(usize::MAX))
}

/// Whether a candidate has all of its containers.
fn is_whole(candidate: &Deployed) -> bool {
    candidate.size() == candidate.spec.deploy.replicas
}

/// Whether the incumbent has given containers up for a candidate: it cannot carry all traffic by itself.
pub(super) fn has_begun(record: &ServiceRecord) -> bool {
    record.incumbent.as_ref().is_some_and(|incumbent| incumbent.quota.is_some())
}

/// After a power cut each of both begins with as many containers as it had. Where the candidate cannot be started for as long
/// as it may take to be healthy, the incumbent gets its own back.
pub(super) fn or_gives_up(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout, next: Next) -> Next {
    let Next::Held { refusal, until } = next else { return next };
    if rollout.phase > Phase::Starting || !has_begun(record) {
        return Next::Held { refusal, until };
    }
    let timeout = rollout.to.spec.deploy.timeout;
    let over = later(rollout.phase_since, timeout);
    if view.now < over {
        return Next::Held { refusal, until: Some(until.map_or(over, |until| until.min(over))) };
    }
    let message = format!("{}, for {} since it ended halfway", refusal.message, format_duration(timeout));
    Next::Do(Step::Fail(Refusal::new(refusal.reason, message)))
}

/// What comes before a switch for a candidate whose containers, as many as it has, are well.
pub(super) fn due(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<Step> {
    let (candidate, generation) = (&rollout.to, rollout.to.generation);
    if is_whole(candidate) {
        return None;
    }
    let beside = record.incumbent.as_ref().filter(|incumbent| view.serves(incumbent));
    Some(match (beside, at_a_time(&candidate.spec.deploy)) {
        // One that is sick as a whole gives places up once it has no new connections.
        (Some(incumbent), Some(_)) if is_lost(view, incumbent) => {
            Step::Batch { generation, stay: incumbent.size() }
        }
        (Some(incumbent), Some(_)) => Step::Batch { generation, stay: stay(incumbent, candidate) },
        // Nobody gives a place up, or none is needed.
        _ => Step::Widen { generation, to: candidate.spec.deploy.replicas },
    })
}

/// How many of the incumbent's containers stay beside those that a candidate has. One does until the switch.
fn stay(incumbent: &Deployed, candidate: &Deployed) -> u32 {
    incumbent.spec.deploy.replicas.saturating_sub(candidate.size()).clamp(1, incumbent.size())
}

/// What a candidate does next whose containers take the incumbent's places.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Next {
    let (candidate, generation) = (&rollout.to, rollout.to.generation);
    // Gone with a reboot: what it had is started and proved anew.
    if matches!(view.container(generation), None | Some(ContainerState::Remains)) {
        return Next::Do(Step::Advance(Phase::Starting));
    }
    let (done, all) = (candidate.size(), candidate.spec.deploy.replicas);
    if let Some(step) = failing(view, record, rollout) {
        return Next::Do(step);
    }
    let or_pause = |step| paused(view, rollout).unwrap_or(Next::Do(step));
    let rest = rest(view, rollout);
    let Some(incumbent) = record.incumbent.as_ref().filter(|_| rest.is_some() || done < all) else {
        return rest.unwrap_or_else(|| or_pause(Step::Switch(generation)));
    };
    // What was meant did not happen yet, or nobody was left to write it down. Of one that has ended since nothing is shared.
    if rollout.canary_since.is_none() && paused(view, rollout).is_none() && !is_lost(view, incumbent) {
        return Next::Do(Step::Batch { generation, stay: incumbent.size() });
    }
    let leads = view.route().is_some_and(|route| route.generation == incumbent.generation);
    let stay = stay(incumbent, candidate);
    if rest.is_none() && leads && !is_lost(view, incumbent) && incumbent.size() > stay {
        return or_pause(Step::Batch { generation, stay });
    }
    let waiting = match traffic(view, record, rollout, incumbent) {
        Some(next @ Next::Do(_)) => return next,
        waiting => waiting,
    };
    // The next ones need the room of those that go; as long as it is not decided about the candidate, they may come back.
    let undecided = matches!(rest, Some(Next::Wait { .. }));
    match replicas::scaling(view, record).filter(|_| !undecided && !is_settled(incumbent)) {
        Some(Next::Do(step)) => return Next::Do(step),
        Some(next) => return replicas::or_sooner(next, waiting),
        None => {}
    }
    match rest {
        Some(wait @ Next::Wait { .. }) => replicas::or_sooner(wait, waiting),
        Some(next) => next,
        None => {
            let batch = at_a_time(&candidate.spec.deploy).unwrap_or(all);
            let widen = Next::Do(Step::Widen { generation, to: done.saturating_add(batch).min(all) });
            // As many of one that cannot serve go as come.
            let room = preflight::before_start(view, record, rollout).filter(|_| incumbent.size() <= stay);
            room.unwrap_or(widen)
        }
    }
}

/// Whether it goes on by itself: then nothing cuts it short, as what is left of the incumbent could not carry all traffic.
pub(super) fn goes_on(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> bool {
    let phase = match rollout.phase {
        Phase::Batches => !waits_for_room(view, record, rollout),
        Phase::Switching => has_begun(record),
        _ => false,
    };
    phase && rollout.trouble.is_none()
}

/// Whether all is done that can be until there is room for the next ones.
fn waits_for_room(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> bool {
    let candidate = &rollout.to;
    let taken = record
        .incumbent
        .as_ref()
        .is_some_and(|incumbent| is_settled(incumbent) && incumbent.size() <= stay(incumbent, candidate));
    let all_are_well = || rest(view, rollout).is_none();
    let no_room = || preflight::before_start(view, record, rollout).is_some();
    taken && !is_whole(candidate) && all_are_well() && no_room()
}

/// What may be done while one of the incumbent's containers is being stopped, which takes its time.
pub(super) fn meanwhile(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<Step> {
    let incumbent = record.incumbent.as_ref()?;
    let generation = rollout.to.generation;
    match rollout.phase {
        Phase::Batches => match (failing(view, record, rollout), traffic(view, record, rollout, incumbent)) {
            (Some(step), _) => Some(step),
            (None, Some(Next::Do(step @ Step::Route(_)))) => Some(step),
            _ => None,
        },
        Phase::Abandoning if view.serves(incumbent) => {
            let part =
                view.route().is_some_and(|route| route.canary.is_some() || route.generation == generation);
            part.then_some(Step::Return { to: Some(incumbent.generation), from: generation })
        }
        _ => None,
    }
}

/// Gives a candidate up that is sick or has ended.
fn failing(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<Step> {
    let (done, all) = (rollout.to.size(), rollout.to.spec.deploy.replicas);
    let (reason, message) = sick(view, record, rollout)?;
    let message = format!("{message}, with {done} of {all} containers begun");
    Some(Step::Fail(Refusal::new(reason, message)))
}

/// Whether nothing of the incumbent can serve: what of it is to stay does not run or was judged sick.
fn is_lost(view: &View<'_>, incumbent: &Deployed) -> bool {
    let lost = |index| matches!(view.verdict_of(incumbent, index), None | Some(Verdict::Unhealthy(_)));
    replicas::serving(incumbent).all(lost)
}

/// Whether none of its containers is about to go.
fn is_settled(incumbent: &Deployed) -> bool {
    incumbent.replicas.keys().all(|index| index.number() <= incumbent.size())
}

/// What new connections need: the incumbent's containers up, and the route as it should be.
fn traffic(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout, incumbent: &Deployed) -> Option<Next> {
    let generation = rollout.to.generation;
    let all = view.route_for(record, &rollout.to);
    let has_all = replicas::leads_to(&rollout.to, view.route(), &all);
    let route = match () {
        // It has ended, or is sick as a whole, and there is somebody who is well.
        () if is_lost(view, incumbent) => Some(generation).filter(|_| view.route() != Some(&all)),
        // It has all until one of the others is well again.
        () if has_all && !canary::is_well(view, incumbent) => None,
        () if view.route() == Some(&view.route_for(record, incumbent)) => None,
        () => Some(incumbent.generation),
    };
    match route {
        Some(generation) => Some(Next::Do(Step::Route(generation))),
        None => repair::next(view, record),
    }
}

/// What the containers that a candidate with several has for now need before it gets more; `None`: all of them are well.
pub(super) fn rest(view: &View<'_>, rollout: &Rollout) -> Option<Next> {
    let candidate = &rollout.to;
    if !replicas::is_several(candidate) {
        return None;
    }
    if let Some(step) = replicas::starting(view, rollout) {
        return Some(paused(view, rollout).unwrap_or(Next::Do(step)));
    }
    let why = match view.verdict(candidate) {
        Some(Verdict::Healthy) => return None,
        Some(Verdict::Undecided { why } | Verdict::Unhealthy(why)) => why,
        None => return Some(wait("not probed yet".to_owned())),
    };
    let deadline = replicas::newcomers(view.name, candidate, view.observed, view.now)
        .map(|at| later(at, candidate.spec.deploy.timeout))
        .min();
    let over = deadline.is_some_and(|deadline| view.now >= deadline);
    if over && view.is_asked(candidate) {
        let limit = format_duration(candidate.spec.deploy.timeout);
        let message = format!("generation {} was not healthy within {limit}: {why}", candidate.generation);
        return Some(Next::Do(Step::Fail(Refusal::new(Reason::DeployTimeout, message))));
    }
    let until = [deadline.filter(|_| !over), view.steady_at(candidate)].into_iter().flatten().min();
    Some(Next::Wait { until, why })
}

/// The branch of the incumbent's route, for as long as both have containers: each of them gets as many as any other.
pub(super) fn branch(
    name: &ServiceName,
    record: &ServiceRecord,
    deployed: &Deployed,
    lanes: usize,
    observed: &Observed,
    now: Timestamp,
) -> Option<Branch> {
    let rollout = record.rollout.as_ref().filter(|rollout| rollout.phase == Phase::Batches)?;
    let incumbent = record.incumbent.as_ref()?;
    if incumbent.generation != deployed.generation {
        return None;
    }
    let (address, also) = replicas::lanes(name, &rollout.to, observed, now);
    Some(Branch {
        generation: rollout.to.generation,
        address,
        share: share(also.len().saturating_add(1), lanes)?,
        by: ShareBy::Connection,
        ports: canary::shared_ports(deployed, &rollout.to),
        also,
    })
}

/// The part of `new` containers beside so many `old` ones.
fn share(new: usize, old: usize) -> Option<Share> {
    let all = new.saturating_add(old);
    let part = new.saturating_mul(usize::from(WHOLE)).saturating_add(all / 2) / all.max(1);
    Share::new(u16::try_from(part).ok()?.clamp(1, WHOLE - 1))
}

/// Takes in that a candidate takes places of the incumbent's containers, of which so many stay.
pub(super) fn begins(record: &mut ServiceRecord, stay: u32) {
    if let Some(incumbent) = &mut record.incumbent {
        incumbent.quota = Some(stay).filter(|stay| *stay < incumbent.spec.deploy.replicas);
    }
}

/// Takes in that a candidate is to have more containers; what it has so far takes places also of an incumbent that gets no
/// new connections.
pub(super) fn widened(record: &mut ServiceRecord, to: u32) {
    let Some(rollout) = &mut record.rollout else { return };
    if let (Phase::Batches, Some(incumbent)) = (rollout.phase, &mut record.incumbent) {
        let stay = stay(incumbent, &rollout.to);
        incumbent.quota = Some(stay).filter(|stay| *stay < incumbent.spec.deploy.replicas);
    }
    rollout.to.quota = Some(to).filter(|to| *to < rollout.to.spec.deploy.replicas);
}

/// What had to be tried again for a candidate's containers has worked.
pub(super) fn worked(record: &mut ServiceRecord, generation: Generation) {
    let own = |rollout: &&mut Rollout| rollout.to.generation == generation && rollout.phase == Phase::Batches;
    if let Some(rollout) = record.rollout.as_mut().filter(own) {
        (rollout.retry_at, rollout.trouble) = (None, None);
    }
}

/// Takes in that a candidate is given up: the incumbent is to have all of its containers again. What is about to go is taken
/// back, or started again, by the rules of any of several containers.
pub(super) fn given_up(record: &mut ServiceRecord) {
    if let Some(incumbent) = &mut record.incumbent {
        incumbent.quota = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_gets_as_many() {
        for (new, old, part) in
            [(1, 1, 500), (1, 3, 250), (2, 1, 667), (1, 2, 333), (63, 1, 984), (1, 64, 15)]
        {
            assert_eq!(share(new, old).map(Share::thousandths), Some(part), "{new} beside {old}");
        }
        assert_eq!(share(5, 0).map(Share::thousandths), Some(999), "there is always a rest");
    }
}
