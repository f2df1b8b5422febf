//! Who may rest with something undone because it waits for another service: only for as long as that one is unfinished.

use gitopsd::reconcile::record::{Cause, Down, Spec};
use gitopsd::reconcile::step::{Next, Plan};
use gitopsd::reconcile::world::DesiredService;
use gitopsd::types::{Condition, ContainerState, Dependency, InstanceId, Reason, ServiceName};

use super::model::Host;

/// The service that another one says it waits for.
pub fn waits_for(next: &Next) -> Option<ServiceName> {
    let text = match next {
        Next::Held { refusal, .. } if matches!(refusal.reason, Reason::Dependency | Reason::VolumeInUse) => {
            &refusal.message
        }
        Next::Wait { why, .. } if why.ends_with(" too, is being changed") => why,
        _ => return None,
    };
    let text = ["it goes once ", "it gets traffic once "]
        .iter()
        .find_map(|it| text.strip_prefix(it))
        .unwrap_or(text);
    if let Some((other, _)) = text.split_once(" serves ") {
        return other.parse().ok();
    }
    let text = text.split_once(" is still written to by ").map_or(text, |(_, other)| other);
    text.split_once(", ")?.0.parse().ok()
}

/// Whether what a service waits for, by however many others, is really not done. Those that wait for each other wait for
/// nothing.
pub fn is_unfinished(host: &Host, plan: &Plan, name: &ServiceName) -> bool {
    let (mut seen, mut at) = (vec![name.clone()], name.clone());
    while let Some(other) = plan.services.get(&at).and_then(|planned| waits_for(&planned.next)) {
        if seen.contains(&other) {
            return needs_what_is_to_go(host, &seen);
        }
        seen.push(other.clone());
        at = other;
    }
    let waiting = seen.iter().rev().nth(1);
    match plan.services.get(&at) {
        Some(planned) if planned.next == Next::Settled => {
            waiting.is_some_and(|waiting| !is_enough(host, waiting, &at))
        }
        _ => true,
    }
}

/// Whether one of these needs another one that the repo has no more: no order does both, and a check of the repo refuses it.
fn needs_what_is_to_go(host: &Host, circle: &[ServiceName]) -> bool {
    let Some(desired) = &host.desired else { return false };
    let specs = circle.iter().filter_map(|name| match desired.services.get(name)? {
        DesiredService::Run(spec) => Some(spec),
        _ => None,
    });
    let mut needed = specs.flat_map(|spec| spec.dependencies());
    needed.any(|needed| circle.contains(&needed.service) && !desired.services.contains_key(&needed.service))
}

/// Whether a service that is settled is what another one waits for.
fn is_enough(host: &Host, waiting: &ServiceName, settled: &ServiceName) -> bool {
    let live = host.records.get(settled).into_iter().flat_map(|record| record.live_generations());
    let still_needs = live.into_iter().any(|live| live.spec.needs().any(|needed| needed == waiting));
    let wanted = host.desired.as_ref().and_then(|desired| desired.services.get(waiting));
    let candidate = host.records.get(waiting).and_then(|record| record.rollout.as_ref());
    let met = |spec: &Spec| {
        let needed = spec.dependencies().filter(|needed| needed.service == *settled && needed.required);
        needed.into_iter().all(|needed| is_met(host, &needed))
    };
    match (wanted, candidate) {
        // What goes back, and what has a file that cannot be read, needs what it needed.
        (_, Some(candidate)) if candidate.cause == Cause::Rollback => met(&candidate.to.spec),
        (Some(DesiredService::Run(spec)), _) => met(spec),
        (_, Some(candidate)) => met(&candidate.to.spec),
        (Some(_), None) => true,
        (None, None) => !still_needs,
    }
}

fn is_met(host: &Host, needed: &Dependency) -> bool {
    let Some(incumbent) = host.incumbent(&needed.service) else { return false };
    let id = InstanceId::new(&needed.service, incumbent.generation);
    let state = host.containers.get(&id).map(|container| &container.state);
    let runs = matches!(state, Some(ContainerState::Running { .. }));
    let ended_well = incumbent.down == Some(Down::Ended)
        && incumbent.last_exit.as_ref().is_some_and(|exit| exit.code == Some(0));
    let scheduled = incumbent.spec.schedule.is_some();
    match needed.condition {
        Condition::ServiceStarted => runs || ended_well || scheduled,
        Condition::ServiceHealthy => runs && host.behaviour_of_spec(&incumbent.spec).keeps_serving(),
        // Of what comes round nobody knows here how its last run ended.
        Condition::ServiceCompletedSuccessfully => ended_well && !scheduled,
    }
}

/// Whether what has traffic has it still, whatever a service waits for.
pub fn keeps_serving(host: &Host, name: &ServiceName) -> bool {
    let Some(incumbent) = host.incumbent(name) else { return true };
    let id = InstanceId::new(name, incumbent.generation);
    let state = host.containers.get(&id).map(|container| &container.state);
    let runs = matches!(state, Some(ContainerState::Running { .. }));
    let routed = host.routes.get(name).is_some_and(|route| route.generation == incumbent.generation);
    let over =
        matches!(incumbent.down, Some(Down::Ended | Down::Barred)) || incumbent.spec.schedule.is_some();
    // A network that it shared may have gone.
    (runs && routed) || over || incumbent.spec.joins().is_some()
}
