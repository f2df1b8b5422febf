//! A port of the host that goes from one service to another: it stays where it is until the other one is proved, and takes it
//! in the transaction of its own switch. So nobody is refused in between, however long that takes and whatever comes of it.
//!
//! Nothing of it is remembered: what a service has beside what its record says is on its way to somebody else.

use std::collections::{BTreeMap, BTreeSet};

use super::exchange::{all_from, waits_for};
use super::next::held;
use super::ports::{elsewhere, shown};
use super::record::{Cause, Deployed, Phase, Rollout, ServiceRecord, Spec};
use super::sharing::under_way;
use super::step::{Amendment, Next, Step};
use super::view::View;
use super::world::{Desired, DesiredService, Observed};
use super::{changes, later, order, preflight, removals};
use crate::types::{Policy, PortMapping, Reason, Refusal, Route, ServiceName};

/// The ports that are to lead to `deployed`: with those that nobody has taken yet who is to have them; of a service that is to
/// go without those that were taken.
///
/// What its spec does not name any more is kept where the same port of the container goes on being published, or nothing but
/// the spec has changed: behind another one could be anything. What a newer file gives back to the service itself stays, too.
pub(super) fn published(
    name: &ServiceName,
    deployed: &Deployed,
    desired: Option<&Desired>,
    observed: &Observed,
) -> Vec<PortMapping> {
    let own = &deployed.spec.ports;
    let Some(desired) = desired else { return own.clone() };
    let goes = !desired.services.contains_key(name);
    let others = || observed.routes.iter().filter(|(other, _)| *other != name);
    let is_taken = |port: &PortMapping| goes && others().any(|(_, route)| is_among(port, &route.ports));
    let there = observed.routes.get(name);
    let same = there.is_some_and(|route| route.generation == deployed.generation);
    let leads = |port: &PortMapping| same || !loses(&deployed.spec, port);
    let back = |port: &PortMapping| desired.ports.get(name).is_some_and(|ports| is_among(port, ports));
    let is_whole = same && deployed.amending.is_none();
    let wanted = |port: &PortMapping| wants(desired, name, port).next().is_some() || is_whole && back(port);
    let is_kept = |port: &&PortMapping| !is_among(port, own) && leads(port) && wanted(port);
    let kept = there.into_iter().flat_map(|route| &route.ports).filter(is_kept);
    own.iter().filter(|port| !is_taken(port)).chain(kept).cloned().collect()
}

/// The other services that are to publish `port`.
fn wants<'a>(
    desired: &'a Desired,
    name: &ServiceName,
    port: &PortMapping,
) -> impl Iterator<Item = &'a ServiceName> {
    let others = desired.ports.iter().filter(move |(other, ports)| *other != name && is_among(port, ports));
    others.map(|(other, _)| other)
}

fn is_among(port: &PortMapping, ports: &[PortMapping]) -> bool {
    ports.iter().any(|other| other.clashes(port))
}

/// Whether a port leads to `other` only until somebody takes it: nothing that it is, or is to be, publishes it, nor does its
/// file.
pub(super) fn is_kept(view: &View<'_>, other: &ServiceName, port: &PortMapping) -> bool {
    let claims = |deployed: &Deployed| is_among(port, &deployed.spec.ports);
    let Some(record) = view.records.get(other) else { return false };
    let rollout = record.rollout.as_ref().map(|rollout| &rollout.to);
    let frozen = view.observed.frozen.contains_key(other);
    let declared = view.desired.and_then(|desired| desired.ports.get(other));
    !frozen
        && !declared.is_some_and(|ports| is_among(port, ports))
        && !record.incumbent.iter().chain(rollout).any(claims)
}

/// Whether `other` gives up a port once somebody else takes it: it only keeps it, or it is to go itself.
pub(super) fn is_free(view: &View<'_>, other: &ServiceName, port: &PortMapping) -> bool {
    let goes = || {
        let still = view.records.get(other).is_some_and(|record| record.rollout.is_none());
        still && is_to_go(view, other) && !view.observed.frozen.contains_key(other)
    };
    is_kept(view, other, port) || goes()
}

fn is_to_go(view: &View<'_>, name: &ServiceName) -> bool {
    let unwanted = view.desired.is_some_and(|desired| !desired.services.contains_key(name));
    unwanted && view.removal_refusal.is_none()
}

/// The services that lose a port to `route`: all that have one of its ports, and give it up.
///
/// Of one that has another of them for good none is taken: the rules are not changed, and whoever carries that out is told.
pub fn givers(
    desired: Option<&Desired>,
    observed: &Observed,
    records: &BTreeMap<ServiceName, ServiceRecord>,
    policy: &Policy,
    route: &Route,
) -> BTreeSet<ServiceName> {
    let refusal = removals(desired, observed, records, policy);
    let view = View {
        name: &route.service,
        desired,
        record: records.get(&route.service),
        records,
        observed,
        removal_refusal: refusal.as_ref(),
        now: crate::types::Timestamp::MIN,
    };
    let others = observed.routes.iter().filter(|(other, _)| **other != route.service);
    let gives = |(other, theirs): &(&ServiceName, &Route)| {
        let mut taken = theirs.ports.iter().filter(|port| is_among(port, &route.ports)).peekable();
        taken.peek().is_some() && taken.all(|port| is_free(&view, other, port))
    };
    others.filter(gives).map(|(other, _)| other.clone()).collect()
}

/// Who is to have a port of a service that is to go, and which one: until then it serves. Not one that waits for this service
/// itself, or for what it gives back.
pub(super) fn taker<'a>(view: &View<'a>) -> Option<(&'a ServiceName, String)> {
    let route = view.route()?;
    let comes = |other: &ServiceName, port: &PortMapping| {
        !has_ended(view, other, port) && !waits_for_us(view, other, Waits::ForAll)
    };
    route.ports.iter().find_map(|port| {
        let other = wants(view.desired?, view.name, port).find(|other| comes(other, port))?;
        Some((other, shown(port)))
    })
}

/// Whether a service that has this port by its record has ended: nothing of it will take the port.
fn has_ended(view: &View<'_>, name: &ServiceName, port: &PortMapping) -> bool {
    let Some(there) = view.known(name) else { return false };
    let incumbent = there.record.and_then(|record| record.incumbent.as_ref());
    incumbent.is_some_and(|it| is_among(port, &it.spec.ports) && !there.any_runs(it))
}

/// Which waits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    ForAll,
    /// All but those for a port of this service, which is about to give it up.
    ButForOurPorts,
}

/// Whether the change of `other` waits for this service, by however many others, or for what this one would give back.
fn waits_for_us(view: &View<'_>, other: &ServiceName, waits: Waits) -> bool {
    let is_short = |name: &ServiceName| view.known(name).is_some_and(|there| preflight::is_short(&there));
    let first = all_from(other, |name| comes_after(view, name, waits));
    first.iter().any(|name| name == view.name || is_short(name))
}

/// The services for whose change the one of `name` waits.
fn comes_after(view: &View<'_>, name: &ServiceName, waits: Waits) -> Vec<ServiceName> {
    let needed = order::needs(view, name).into_iter().map(|needed| needed.service);
    let ports = view.desired.and_then(|desired| desired.ports.get(name)).into_iter().flatten();
    let gives = |other: &ServiceName| waits == Waits::ButForOurPorts && other == view.name;
    let holders = ports.flat_map(|port| {
        let mut routes = view.observed.routes.iter().filter(|(other, _)| *other != name && !gives(other));
        routes.find(|(other, route)| is_among(port, &route.ports) && !is_free(view, other, port))
    });
    let all = waits_for(view, name).into_iter().chain(needed).chain(holders.map(|(other, _)| other.clone()));
    let there = view.known(name);
    let behind = there.and_then(|there| Some(under_way(&there, next_of(&there)?))).into_iter().flatten();
    all.chain(there.iter().flat_map(takers).chain(behind).cloned()).collect()
}

/// What a service is to be next, where that is another generation.
fn next_of<'a>(view: &View<'a>) -> Option<&'a Spec> {
    let rollout = view.record.and_then(|record| record.rollout.as_ref());
    match (rollout, view.wanted()) {
        (Some(rollout), _) => Some(&rollout.to.spec),
        (None, Some(DesiredService::Run(spec))) if order::is_to_begin(view, view.name, view.record) => {
            Some(spec)
        }
        _ => None,
    }
}

/// Those that are to have a port of this service before it goes, or its next version has the traffic.
fn takers<'a>(view: &View<'a>) -> Vec<&'a ServiceName> {
    let next = next_of(view);
    let (Some(desired), Some(route)) = (view.desired, view.route()) else { return Vec::new() };
    if next.is_none() && view.wanted().is_some() {
        return Vec::new();
    }
    let lost = route.ports.iter().filter(|port| next.is_none_or(|spec| loses(spec, port)));
    lost.flat_map(|port| wants(desired, view.name, port)).collect()
}

/// Whether nothing would lead to `port` any more by `spec`: neither it, nor the same port of the container under another number.
fn loses(spec: &Spec, port: &PortMapping) -> bool {
    let inside = |port: &PortMapping| (port.container_port, port.protocol);
    !is_among(port, &spec.ports) && !spec.ports.iter().any(|own| inside(own) == inside(port))
}

/// What comes before a proved candidate gets traffic that leads nowhere by it and another service is to have: that the port is what
/// the incumbent only keeps, and then that it is taken.
pub(super) fn before_switch(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<Next> {
    let incumbent = record.incumbent.as_ref().filter(|it| view.any_runs(it))?;
    let (desired, route) = (view.desired?, view.route()?);
    if rollout.cause == Cause::Rollback || route.generation != incumbent.generation {
        return None;
    }
    let next_of = |port: &PortMapping| {
        let mut others = wants(desired, view.name, port);
        others
            .find(|it| !has_ended(view, it, port) && !waits_for_us(view, it, Waits::ButForOurPorts))
            .filter(|_| loses(&rollout.to.spec, port))
    };
    let own = &incumbent.spec.ports;
    let (given, rest): (Vec<_>, Vec<_>) = own.iter().cloned().partition(|port| next_of(port).is_some());
    if !given.is_empty() {
        let spec = Spec { ports: rest, ..incumbent.spec.clone() };
        return Some(Next::Do(Step::Amend(Box::new(Amendment {
            generation: incumbent.generation,
            differences: changes::between(&incumbent.spec, &spec),
            spec,
            commit: desired.commit.clone(),
            // Its rules stay as they are: they lead to it until they are taken.
            touches: false,
        }))));
    }
    let (other, port) = route.ports.iter().find_map(|port| Some((next_of(port)?, shown(port))))?;
    let message =
        format!("it gets traffic once {other} serves {port}, which leads to the version before until then");
    Some(held(Refusal::new(Reason::Dependency, message)))
}

/// It is no longer wanted, and what it has is another one's next.
pub(super) fn after_taker(view: &View<'_>) -> Next {
    let (other, port) = taker(view).unzip();
    let (other, port) = (other.map(ToString::to_string).unwrap_or_default(), port.unwrap_or_default());
    let message = format!("it goes once {other} serves {port}, which leads to this service until then");
    held(Refusal::new(Reason::Dependency, message))
}

/// Why a candidate that was proved is given up for a port: another service still has it, for longer than a deploy may take,
/// and is not about to leave it.
pub(super) fn refusal(view: &View<'_>, rollout: &Rollout) -> Option<Refusal> {
    let over = view.now >= later(rollout.phase_since, rollout.to.spec.deploy.timeout);
    let taken = rollout.trouble.as_ref().filter(|trouble| trouble.reason == Reason::PortInUse);
    let is_coming = || {
        let (holder, _) = elsewhere(view, &rollout.to.spec.ports)?;
        let theirs = view.records.get(holder)?.rollout.as_ref()?;
        let leaves = !theirs.to.spec.ports.iter().any(|port| is_among(port, &rollout.to.spec.ports));
        Some(leaves && theirs.phase != Phase::Abandoning && !waits_for_us(view, holder, Waits::ForAll))
    };
    taken.filter(|_| rollout.phase == Phase::Switching && over && is_coming() != Some(true)).cloned()
}
