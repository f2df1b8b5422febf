//! The containers of a generation beside its first one (`deploy.replicas`): which there are to be, which of them get new
//! connections, and what they need.
//!
//! The first container is looked after by the same modules as that of any service; here the others are, by the same rules.
//! Nothing here is reached for a generation that has one container and is to have one.

mod noted;

use std::net::Ipv4Addr;

pub use noted::scale;
pub(super) use noted::{begins, dropped, ends, promoted};

use super::drain::Drain;
use super::health::{Verdict, judge};
use super::record::{Deployed, Phase, Replica, Rollout, ServiceRecord};
use super::repair::{self, LONGEST_PAUSE, PROVING, pause_after, restart_at};
use super::step::{Next, Step};
use super::view::View;
use super::world::Observed;
use super::{later, pending};
use crate::types::{
    ContainerState, Generation, InstanceId, Reason, ReplicaIndex, Route, ServiceName, Timestamp,
};

/// The indices that `deployed` is to have, without the first.
fn wanted(deployed: &Deployed) -> impl Iterator<Item = ReplicaIndex> {
    (2..=deployed.size()).filter_map(ReplicaIndex::new)
}

/// Whether one of them is to stay.
fn stays(deployed: &Deployed, index: ReplicaIndex) -> bool {
    index.number() <= deployed.size()
}

/// Whether it has several containers, or is to have several.
pub(super) fn is_several(deployed: &Deployed) -> bool {
    deployed.spec.deploy.replicas > 1 || !deployed.replicas.is_empty()
}

/// Whether the list of its containers is another than the one that it is to have.
pub(super) fn is_off(deployed: &Deployed) -> bool {
    let stays_in = |(index, replica): (&ReplicaIndex, &Replica)| {
        stays(deployed, *index) == replica.leaving_since.is_none()
    };
    wanted(deployed).any(|index| !deployed.replicas.contains_key(&index))
        || !deployed.replicas.iter().all(stays_in)
}

/// The containers that are to serve and are written down.
pub(super) fn serving(deployed: &Deployed) -> impl Iterator<Item = ReplicaIndex> {
    deployed.indices().filter(|index| stays(deployed, *index))
}

/// How many addresses have to be found before `deployed` has all of its containers.
pub fn missing(deployed: &Deployed) -> usize {
    wanted(deployed).filter(|index| !deployed.replicas.contains_key(index)).count()
}

/// The addresses of `deployed` that get new connections: what runs and was judged healthy. What is not decided stays where
/// it is, so that an agent that has just started takes none out. Are all out, all that run are in: a sick answer is
/// better than a refused connection.
pub fn lanes(
    name: &ServiceName,
    deployed: &Deployed,
    observed: &Observed,
    now: Timestamp,
) -> (Ipv4Addr, Vec<Ipv4Addr>) {
    if !is_several(deployed) {
        return (deployed.address, Vec::new());
    }
    // Also where the rest of the route is another generation's.
    let route = observed.routes.get(name);
    let is_in = |address| route.is_some_and(|route| route.addresses().any(|lane| lane == address));
    let (mut up, mut good) = (Vec::new(), Vec::new());
    let leaves = |index| deployed.replicas.get(&index).is_some_and(|replica| replica.leaving_since.is_some());
    let (last, staying): (Vec<_>, Vec<_>) =
        deployed.indices().partition(|index| !stays(deployed, *index) || leaves(*index));
    for index in staying {
        let Some(address) = deployed.address_of(index) else { continue };
        let fine = match verdict_of(name, deployed, index, observed, now) {
            None => continue,
            Some(Verdict::Healthy) => true,
            Some(Verdict::Unhealthy(_)) => false,
            Some(Verdict::Undecided { .. }) => is_in(address),
        };
        up.push(address);
        good.extend(Some(address).filter(|_| fine));
    }
    if good.is_empty() {
        // What is too many goes on as long as nothing that stays is well, and what was about to go, if it is taken back.
        // What was told to end takes no connection any more.
        let is_ending =
            |index: &ReplicaIndex| deployed.replicas.get(index).is_some_and(|replica| replica.is_ending);
        let goes_on =
            |index: &ReplicaIndex, address| !is_ending(index) && (is_in(address) || stays(deployed, *index));
        for index in last {
            let Some(address) = deployed.address_of(index).filter(|address| goes_on(&index, *address)) else {
                continue;
            };
            match verdict_of(name, deployed, index, observed, now) {
                Some(Verdict::Healthy) => good.push(address),
                Some(_) => up.push(address),
                None => {}
            }
        }
    }
    let mut lanes = if good.is_empty() { up } else { good }.into_iter();
    (lanes.next().unwrap_or(deployed.address), lanes.collect())
}

/// The verdict on one container; one that does not run has none.
pub fn verdict_of(
    name: &ServiceName,
    deployed: &Deployed,
    index: ReplicaIndex,
    observed: &Observed,
    now: Timestamp,
) -> Option<Verdict> {
    let id = InstanceId::replica(name, deployed.generation, index);
    let Some(ContainerState::Running { started_at, .. }) = observed.containers.get(&id) else { return None };
    Some(judge(&observed.check(&deployed.spec), observed.health.get(&id), *started_at, now))
}

/// The verdict on all of them together: the worst. `None`: one does not run.
pub(super) fn verdict(view: &View<'_>, deployed: &Deployed) -> Option<Verdict> {
    let mut all = Some(Verdict::Healthy);
    for index in serving(deployed) {
        let why = |why| format!("replica {index}: {why}");
        match view.verdict_of(deployed, index) {
            Some(Verdict::Unhealthy(cause)) => return Some(Verdict::Unhealthy(why(cause))),
            Some(Verdict::Healthy) => {}
            Some(Verdict::Undecided { why: cause }) if all == Some(Verdict::Healthy) => {
                all = Some(Verdict::Undecided { why: why(cause) });
            }
            Some(Verdict::Undecided { .. }) => {}
            None => all = None,
        }
    }
    all
}

/// What is there of one of them.
fn state<'a>(view: &View<'a>, generation: Generation, index: ReplicaIndex) -> Option<&'a ContainerState> {
    view.observed.containers.get(&InstanceId::replica(view.name, generation, index))
}

fn is_up(view: &View<'_>, generation: Generation, index: ReplicaIndex) -> bool {
    view.observed.runs(&InstanceId::replica(view.name, generation, index))
}

/// Whether what is too many has lost its traffic: as long as nothing that stays is well, or rules cannot be written, it
/// has not.
fn may_scale(view: &View<'_>, incumbent: &Deployed) -> bool {
    let mut too_many = incumbent
        .replicas
        .iter()
        .filter(|(index, replica)| !stays(incumbent, **index) && replica.leaving_since.is_none());
    let leads_to = |address| view.route().is_some_and(|route| route.lanes().any(|lane| lane == address));
    !too_many.any(|(_, replica)| leads_to(replica.address))
}

/// Why a candidate is given up: one of its containers has ended.
pub(super) fn ended(view: &View<'_>, deployed: &Deployed) -> Option<(Reason, String)> {
    let generation = deployed.generation;
    let mut others = serving(deployed).filter(|index| *index != ReplicaIndex::FIRST);
    others.find_map(|index| match state(view, generation, index)? {
        ContainerState::Exited(exit) => {
            Some((Reason::Exited, format!("replica {index} of generation {generation} {exit}")))
        }
        _ => None,
    })
}

/// What a candidate whose first container runs needs before it can be judged: the others.
pub(super) fn starting(view: &View<'_>, rollout: &Rollout) -> Option<Step> {
    let candidate = &rollout.to;
    let generation = candidate.generation;
    if is_off(candidate) {
        return Some(Step::Scale(generation));
    }
    let mut others = serving(candidate).filter(|index| *index != ReplicaIndex::FIRST);
    let index = others.find(|index| !is_up(view, generation, *index))?;
    // Thrown away since the first one was started, by a check of the disk or a hand.
    Some(match view.has_image(candidate) {
        true => Step::StartReplica(generation, index),
        false => Step::Pull(generation),
    })
}

/// Whether one of a candidate's containers is gone, as after a reboot or by somebody's hand.
pub(super) fn is_incomplete(view: &View<'_>, deployed: &Deployed) -> bool {
    let gone =
        |index| matches!(state(view, deployed.generation, index), None | Some(ContainerState::Remains));
    is_several(deployed) && (is_off(deployed) || serving(deployed).any(gone))
}

/// Whether one that is to stay was about to go, for a candidate that is given up itself. Nobody waits for one that was told to
/// end: another one comes once it has.
pub(super) fn is_to_stay(deployed: &Deployed) -> bool {
    let mut staying = deployed.replicas.iter().filter(|(index, _)| stays(deployed, **index));
    staying.any(|(_, replica)| replica.leaving_since.is_some() && !replica.is_ending)
}

/// The end of one that was told to end: it is not there any more if one of its number is wanted again.
fn ending(deployed: &Deployed) -> Option<Step> {
    let (index, _) = deployed.replicas.iter().find(|(_, replica)| replica.is_ending)?;
    Some(Step::DropReplica(deployed.generation, *index))
}

/// What an incumbent with several containers needs; `first`: what its first one does. How many there are to be is another
/// matter: [`scaling`].
pub(super) fn next(
    view: &View<'_>,
    record: &ServiceRecord,
    incumbent: &Deployed,
    first: Option<Next>,
) -> Option<Next> {
    let generation = incumbent.generation;
    let elsewhere = record.rollout.as_ref().is_some_and(|rollout| rollout.phase >= Phase::Canary);
    let right = elsewhere || view.route() == Some(&view.route_for(record, incumbent));
    // Before anything else: connections to what has ended are refused.
    if !right && view.serves(incumbent) {
        return Some(Next::Do(Step::Route(generation)));
    }
    if matches!(first, Some(Next::Do(_))) {
        return first;
    }
    let mut waits = Waits::default();
    let after = repair::first(view, incumbent);
    for (index, replica) in needed(view, incumbent) {
        match state(view, generation, *index) {
            Some(ContainerState::Running { .. }) if replica.untold.is_some() => {
                return Some(Next::Do(Step::Report(generation)));
            }
            Some(ContainerState::Running { .. }) => {}
            // What was stopped for a candidate comes back by its first one.
            _ if incumbent.down.is_some() => {}
            _ if let Some(other) = after => {
                let why = format!("replica {index} is started once {other} runs");
                waits.add(Some(later(view.now, PROVING)), why);
            }
            _ if !view.has_image(incumbent) => {
                let due = restart_at(incumbent);
                match pending(view.now, due, LONGEST_PAUSE) {
                    // A candidate is on its way, and one pull at a time is enough.
                    _ if record.rollout.as_ref().is_some_and(|it| !repair::pulls_beside(it)) => {}
                    false => return Some(Next::Do(Step::Pull(generation))),
                    true => waits.add(Some(due), format!("the image of replica {index} is not local")),
                }
            }
            _ => match pause(view, replica) {
                None => return Some(Next::Do(Step::StartReplica(generation, *index))),
                due => {
                    let why =
                        format!("replica {index} of generation {generation} ended; it is started again");
                    waits.add(due, why);
                }
            },
        }
    }
    for index in serving(incumbent) {
        if let Some((look, why)) = undecided(view, incumbent, index) {
            waits.add(Some(look), why);
        }
    }
    waits.with(first)
}

/// Those that are to run. What is too many is, as long as it may not lose its traffic.
fn needed<'a>(
    view: &View<'_>,
    incumbent: &'a Deployed,
) -> impl Iterator<Item = (&'a ReplicaIndex, &'a Replica)> {
    let all = !may_scale(view, incumbent);
    let needed = move |(index, replica): &(&ReplicaIndex, &Replica)| {
        replica.leaving_since.is_none() && (all || stays(incumbent, **index))
    };
    incumbent.replicas.iter().filter(needed)
}

/// What is to be done about how many containers the incumbent has: never so pressing that a newer version or an operator
/// waits for it.
pub(super) fn scaling(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let incumbent = record.incumbent.as_ref().filter(|incumbent| is_several(incumbent))?;
    let generation = incumbent.generation;
    if let Some(step) = ending(incumbent) {
        return Some(Next::Do(step));
    }
    let mut waits = Waits::default();
    if is_off(incumbent) {
        if may_scale(view, incumbent) {
            return Some(Next::Do(Step::Scale(generation)));
        }
        let why = format!("what is too many of generation {generation} stays until the rest is well");
        waits.add(None, why);
    }
    for index in incumbent.replicas.keys() {
        let Some(drain) = Drain::too_many(record, *index) else { continue };
        let id = InstanceId::replica(view.name, generation, *index);
        match drain.look(view, std::iter::once(id)) {
            Ok(()) => return Some(Next::Do(Step::DropReplica(generation, *index))),
            Err(look) => {
                waits.add(Some(look), format!("replica {index} of generation {generation} is draining"));
            }
        }
    }
    waits.with(None)
}

/// Several things that are waited for.
#[derive(Default)]
struct Waits {
    until: Option<Timestamp>,
    why: Option<String>,
}

impl Waits {
    fn add(&mut self, until: Option<Timestamp>, why: String) {
        self.until = [self.until, until].into_iter().flatten().min();
        self.why.get_or_insert(why);
    }

    /// All of them, and `first` before them.
    fn with(self, first: Option<Next>) -> Option<Next> {
        let waits = self.why.map(|why| Next::Wait { until: self.until, why });
        sooner(first, waits)
    }
}

/// Of two things that are not to be done now what is the case, and the earlier time of both.
pub(super) fn sooner(first: Option<Next>, second: Option<Next>) -> Option<Next> {
    match first {
        Some(first) => Some(or_sooner(first, second)),
        None => second,
    }
}

/// The same, where there is a first.
pub(super) fn or_sooner(first: Next, second: Option<Next>) -> Next {
    match (first, second) {
        (Next::Wait { until, why }, Some(Next::Wait { until: other, .. })) => {
            Next::Wait { until: [until, other].into_iter().flatten().min(), why }
        }
        // What goes by itself is over first.
        (Next::Held { .. }, Some(second)) => second,
        (first, _) => first,
    }
}

/// When those containers of a candidate were started that run, have no traffic, and were not judged yet.
pub(super) fn newcomers(
    name: &ServiceName,
    candidate: &Deployed,
    observed: &Observed,
    now: Timestamp,
) -> impl Iterator<Item = Timestamp> {
    serving(candidate).filter_map(move |index| {
        let id = InstanceId::replica(name, candidate.generation, index);
        let Some(ContainerState::Running { started_at, .. }) = observed.containers.get(&id) else {
            return None;
        };
        let address = candidate.address_of(index)?;
        let route = observed.routes.get(name);
        let is_in = route.is_some_and(|route| route.addresses().any(|lane| lane == address));
        let verdict = verdict_of(name, candidate, index, observed, now);
        (!is_in && matches!(verdict, Some(Verdict::Undecided { .. }))).then_some(*started_at)
    })
}

/// When to look again at a container that runs and was not judged yet. One that never says anything is not waited for.
fn undecided(view: &View<'_>, incumbent: &Deployed, index: ReplicaIndex) -> Option<(Timestamp, String)> {
    let generation = incumbent.generation;
    let Some(ContainerState::Running { started_at, .. }) = state(view, generation, index) else {
        return None;
    };
    let late = later(*started_at, incumbent.spec.deploy.timeout);
    let steady = later(*started_at, view.check(incumbent).steady);
    let Some(Verdict::Undecided { why }) = view.verdict_of(incumbent, index).filter(|_| view.now < late)
    else {
        return None;
    };
    let look = if view.now < steady { steady.min(late) } else { late };
    Some((look, format!("replica {index} of generation {generation} is not healthy yet: {why}")))
}

/// Until when a container that does not run waits for its next start.
fn pause(view: &View<'_>, replica: &Replica) -> Option<Timestamp> {
    let due = later(replica.started_at?, pause_after(replica.restarts));
    Some(due).filter(|due| pending(view.now, *due, LONGEST_PAUSE))
}

/// The start of one that should serve and does not run, if it is due now.
pub(super) fn start(view: &View<'_>, incumbent: &Deployed) -> Option<Step> {
    let generation = incumbent.generation;
    if incumbent.down.is_some() || !view.has_image(incumbent) || repair::first(view, incumbent).is_some() {
        return None;
    }
    let (index, _) = needed(view, incumbent)
        .find(|(index, replica)| !is_up(view, generation, **index) && pause(view, replica).is_none())?;
    Some(Step::StartReplica(generation, *index))
}

/// While a long effect is under way for a service: its route, where only the spread over its containers is wrong. What
/// has ended loses its traffic at once, whatever else goes on.
pub(super) fn spread(view: &View<'_>) -> Option<Step> {
    // What could not be done is not tried again at once.
    let record = view.record.filter(|_| view.pause().is_none())?;
    let serving = record.serving().filter(|serving| is_several(serving))?;
    // What changes rules itself is left alone.
    let apart = record.removing.is_some() || serving.amending.is_some();
    let (there, wanted) = (view.route()?, view.route_for(record, serving));
    let only_lanes = there.agrees(&wanted) && *there != wanted;
    (only_lanes && !apart && view.serves(serving)).then_some(Step::Route(serving.generation))
}

/// A container of a generation that is known, which no record names.
pub(super) fn stray(view: &View<'_>) -> Option<Step> {
    let record = view.record?;
    let own = view.observed.instances_of(view.name);
    let mut stray = own.filter(|id| record.live(id.generation).is_some_and(|live| !live.has(id.index)));
    stray.next().map(|id| Step::DropReplica(id.generation, id.index))
}

/// Whether a route leads to the generation of `wanted`, over whichever of its containers.
pub(super) fn leads_to(deployed: &Deployed, route: Option<&Route>, wanted: &Route) -> bool {
    match is_several(deployed) {
        true => route.is_some_and(|route| route.agrees(wanted)),
        false => route == Some(wanted),
    }
}

#[cfg(test)]
mod tests;
