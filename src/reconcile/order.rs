//! `depends_on` across services: the order in which candidates of one commit start and switch, and services go.

use std::collections::BTreeSet;

use super::health::{Verdict, judge};
use super::next::held;
use super::record::{Cause, Deployed, Down, Phase, Rollout, ServiceRecord};
use super::replace::needs_new_generation;
use super::step::Next;
use super::view::View;
use super::world::DesiredService;
use super::{later, ports, preflight};
use crate::types::{Condition, ContainerState, Dependency, InstanceId, Reason, Refusal, ServiceName};

/// Why `deployed` may not start: the first service it needs that is not so far.
pub(super) fn missing(view: &View<'_>, deployed: &Deployed) -> Option<Refusal> {
    let unmet =
        dependencies(view, deployed).into_iter().find(|needed| needed.required && !is_met(view, needed))?;
    let message = format!("{}, which it depends on, is not {}", unmet.service, unmet.condition);
    Some(Refusal::new(Reason::Dependency, message))
}

/// What a candidate needs: by the commit in force, where that is the same container.
fn dependencies(view: &View<'_>, deployed: &Deployed) -> Vec<Dependency> {
    match view.wanted() {
        Some(DesiredService::Run(spec)) if needs_new_generation(&deployed.spec, spec).is_none() => {
            spec.dependencies().collect()
        }
        _ => deployed.spec.dependencies().collect(),
    }
}

/// Whether the generation that has traffic is so far. While a candidate bakes it is what serves: under `recreate` its
/// incumbent is down.
fn is_met(view: &View<'_>, needed: &Dependency) -> bool {
    let Some(record) = view.records.get(&needed.service) else { return false };
    let Some(serving) = record.serving() else { return false };
    // Of several containers one is enough.
    let starts =
        serving.instances(&needed.service).filter_map(|id| match view.observed.containers.get(&id)? {
            ContainerState::Running { started_at, .. } => Some((id, *started_at)),
            _ => None,
        });
    let up: Vec<_> = starts.collect();
    let ended_well = |exit: &crate::types::Exit| exit.code == Some(0);
    let over = match &serving.spec.schedule {
        // Of what comes round: the last time that it ran.
        Some(_) => record.jobs.run.as_ref().is_some_and(|run| run.trouble.is_none() && run.ended.is_some()),
        None => serving.down == Some(Down::Ended) && serving.last_exit.as_ref().is_some_and(ended_well),
    };
    match needed.condition {
        Condition::ServiceStarted if serving.spec.schedule.is_some() || !up.is_empty() => true,
        Condition::ServiceHealthy => {
            let check = view.observed.check(&serving.spec);
            let health = &view.observed.health;
            up.iter().any(|(id, at)| judge(&check, health.get(id), *at, view.now) == Verdict::Healthy)
        }
        Condition::ServiceStarted | Condition::ServiceCompletedSuccessfully => over,
    }
}

/// Why a candidate does not start yet: a service that it needs is changed by the same commit, and comes first.
pub(super) fn before_start(view: &View<'_>, rollout: &Rollout) -> Option<Next> {
    let changing = first_changing(view, rollout, |record| {
        record.rollout.as_ref().is_none_or(|theirs| theirs.phase != Phase::Baking)
    })?;
    Some(held(changing))
}

/// Why a candidate gets no traffic yet: the new generation of a service that it needs has not settled.
pub(super) fn before_switch(view: &View<'_>, rollout: &Rollout) -> Option<Next> {
    first_changing(view, rollout, |_| true).map(held)
}

/// The first service that a candidate needs and that this commit changes, or was to. `counts`: of one that is changing,
/// whether that is waited for.
fn first_changing(
    view: &View<'_>,
    rollout: &Rollout,
    counts: impl Fn(&ServiceRecord) -> bool,
) -> Option<Refusal> {
    let commit = &view.desired?.commit;
    if rollout.cause == Cause::Rollback {
        return None;
    }
    // Whoever shares a network moves with it, and is begun anew: that has an order of its own.
    let host = rollout.to.spec.joins();
    let needed = needs(view, view.name);
    needed.iter().filter(|needed| Some(&needed.service) != host).find_map(|needed| {
        let name = &needed.service;
        // Two commits may turn an order round.
        if reaches(view, name, view.name) {
            return None;
        }
        let record = view.records.get(name);
        let failure = record.and_then(|record| record.failure.as_ref());
        let wanted = view.desired.and_then(|desired| desired.services.get(name));
        let failed =
            failure.filter(|failure| failure.is_of(&commit.id, wanted) && rollout.to.commit.id == commit.id);
        if let (Some(failure), true) = (failed, needed.required) {
            let message = format!(
                "{name}, which it depends on, did not get to commit {}: {}",
                commit.id.short(),
                failure.refusal.message
            );
            return Some(Refusal::new(Reason::Dependency, message));
        }
        let changing = match record {
            Some(record) => is_changing(view, name, record) && counts(record),
            None => is_to_begin(view, name, None),
        };
        changing.then(|| {
            Refusal::new(
                Reason::Dependency,
                format!("{name}, which it depends on, is being changed and comes first"),
            )
        })
    })
}

/// What a service needs: by the commit in force, or by its candidate where that says nothing.
pub(super) fn needs(view: &View<'_>, name: &ServiceName) -> Vec<Dependency> {
    if let Some(DesiredService::Run(spec)) = view.desired.and_then(|desired| desired.services.get(name)) {
        return spec.dependencies().collect();
    }
    let record = view.records.get(name);
    let rollout = record.and_then(|record| record.rollout.as_ref()).map(|rollout| &rollout.to);
    let deployed = rollout.or_else(|| record?.incumbent.as_ref());
    deployed.map(|deployed| deployed.spec.dependencies().collect()).unwrap_or_default()
}

pub(super) fn reaches(view: &View<'_>, from: &ServiceName, to: &ServiceName) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![from.clone()];
    while let Some(name) = next.pop() {
        if name == *to {
            return true;
        }
        if seen.insert(name.clone()) {
            next.extend(needs(view, &name).into_iter().map(|needed| needed.service));
        }
    }
    false
}

/// Whether another generation of a service is on its way, or about to be.
fn is_changing(view: &View<'_>, name: &ServiceName, record: &ServiceRecord) -> bool {
    match &record.rollout {
        // That it has failed is written down with its end.
        Some(rollout) if rollout.phase == Phase::Abandoning => true,
        // It waits for a port, which may be this one's to give.
        Some(rollout) => {
            let refused = rollout.trouble.as_ref().is_some_and(|trouble| trouble.reason == Reason::PortInUse);
            let waits = |other| other == view.name || reaches(view, other, view.name);
            !refused && !preflight::waits_for_port(&view.of(name), rollout).is_some_and(waits)
        }
        None => is_to_begin(view, name, Some(record)),
    }
}

pub(super) fn is_to_begin(view: &View<'_>, name: &ServiceName, record: Option<&ServiceRecord>) -> bool {
    let stays = record.is_some_and(|record| record.hold.is_some() || record.removing.is_some());
    let Some(desired) = view.desired.filter(|_| !stays && !view.observed.frozen.contains_key(name)) else {
        return false;
    };
    let spec = match desired.services.get(name) {
        Some(DesiredService::Run(spec)) => spec,
        Some(DesiredService::Resolving) => return true,
        Some(DesiredService::Refused { .. }) | None => return false,
    };
    let incumbent = record.and_then(|record| record.incumbent.as_ref());
    let other = incumbent.is_none_or(|incumbent| needs_new_generation(&incumbent.spec, spec).is_some());
    let failed = record
        .and_then(|record| record.failure.as_ref())
        .is_some_and(|failure| failure.is_of(&desired.commit.id, desired.services.get(name)));
    let theirs = View { name, record, ..*view };
    let no_port =
        ports::contested(&theirs, &spec.ports).is_some() || view.observed.ports_taken.contains_key(name);
    other && !failed && !no_port
}

/// The service that still runs a generation which depends on this one: it goes first.
pub(super) fn dependant<'a>(view: &View<'a>) -> Option<&'a ServiceName> {
    dependants(view).next()
}

/// All of those.
pub(super) fn dependants<'a>(view: &View<'a>) -> impl Iterator<Item = &'a ServiceName> {
    let others = view.records.iter().filter(|(name, _)| view.record.is_some() && *name != view.name);
    let found = others.filter(move |(name, record)| {
        lives_on(view, name, record)
            // Of two that need each other neither would ever go.
            && !view.record.is_some_and(|own| way_back(view, own, name))
    });
    found.map(|(name, _)| name)
}

/// Whether a generation of `other` needs this service.
fn lives_on(view: &View<'_>, other: &ServiceName, record: &ServiceRecord) -> bool {
    // A candidate that has not been started may wait for what this one never will be.
    let candidate = record.rollout.as_ref().map(|rollout| rollout.to.generation);
    let idle = candidate.filter(|generation| view.of(other).container(*generation).is_none());
    let needs = |deployed: &Deployed| deployed.spec.needs().any(|needed| needed == view.name);
    record.live_generations().any(|live| needs(live) && Some(live.generation) != idle)
}

/// Whether a generation of `from` depends on `to`, by however many others.
fn way_back(view: &View<'_>, from: &ServiceRecord, to: &ServiceName) -> bool {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&ServiceRecord> = vec![from];
    while let Some(record) = next.pop() {
        for name in record.live_generations().flat_map(|deployed| deployed.spec.needs()) {
            if name == to {
                return true;
            }
            if seen.insert(name) {
                next.extend(view.records.get(name));
            }
        }
    }
    false
}

/// At the start of a host: whether `other`, of which this one needs that it is healthy, runs and has not been asked often
/// enough to tell.
pub(super) fn is_proving(view: &View<'_>, deployed: &Deployed, name: &ServiceName, other: &Deployed) -> bool {
    let healthy = |needed: &Dependency| {
        needed.service == *name && needed.required && needed.condition == Condition::ServiceHealthy
    };
    let id = InstanceId::new(name, other.generation);
    let Some(ContainerState::Running { started_at, .. }) = view.observed.containers.get(&id) else {
        return false;
    };
    let check = view.observed.check(&other.spec);
    let verdict = judge(&check, view.observed.health.get(&id), *started_at, view.now);
    // One that never says anything is not waited for.
    let late = view.now >= later(*started_at, other.spec.deploy.timeout);
    deployed.spec.dependencies().any(|needed| healthy(&needed))
        && matches!(verdict, Verdict::Undecided { .. })
        && !late
}
