//! What a candidate needs of the host, asked before anything that runs is touched: ports, addresses, memory.
//!
//! The rest is asked elsewhere before that too: the policy and the image's platform when a commit is read and its tag is
//! looked up (a service that fails there is never begun), and room on the disk before the first byte of a pull.

use std::time::Duration;

use super::next::{held, wait};
use super::record::{Cause, Deployed, Phase, Rollout, ServiceRecord, Spec};
use super::step::{Next, Step};
use super::view::View;
use super::world::DesiredService;
use super::{batches, joined, later, order, ports as claims, replicas};
use crate::types::{ByteSize, Reason, Refusal, ServiceName, Strategy};

/// After this, what the host lacks is looked at again.
const RETRY: Duration = Duration::from_secs(10);

/// So long a recreated service, which goes on serving, waits at least for a port that another service is to leave.
const PORT_PATIENCE: Duration = Duration::from_secs(3600);

/// A second copy is expected to use what the first one does, and one part in so many on top.
const MARGIN_PART: u64 = 8;
/// At the least: 16 MiB.
const LEAST_MARGIN: u64 = 16 << 20;

/// Why no candidate can be begun now; `None` = one can.
pub(super) fn before_begin(view: &View<'_>, record: Option<&ServiceRecord>, spec: &Spec) -> Option<Next> {
    if let Some(held) = ports(view, spec) {
        return Some(held);
    }
    if let Some(refusal) = spec.joins().and_then(|host| joined::missing(view, host)) {
        return Some(held(refusal));
    }
    if let Some(refusal) = view.observed.room.no_address.get(view.name) {
        return Some(held_for_now(view, refusal.clone()));
    }
    let incumbent = record.and_then(|record| record.incumbent.as_ref());
    let copies = incumbent.map_or(1, |incumbent| batches::further(incumbent, spec));
    memory(view, incumbent, spec, copies, |_, _| true)
        .map(|refusal| held_for_now(view, advised(refusal, incumbent, spec)))
}

/// Whether a service that is about to change waits for memory or an address: what another one that goes gives back.
pub(super) fn is_short(view: &View<'_>) -> bool {
    let rollout = view.record.and_then(|record| Some((record, record.rollout.as_ref()?)));
    let waits = match (rollout, view.wanted()) {
        (Some((record, rollout)), _) => {
            rollout.phase == Phase::Starting && before_start(view, record, rollout).is_some()
        }
        (None, Some(DesiredService::Run(spec))) if order::is_to_begin(view, view.name, view.record) => {
            let incumbent = view.record.and_then(|record| record.incumbent.as_ref());
            let copies = incumbent.map_or(1, |incumbent| batches::further(incumbent, spec));
            memory(view, incumbent, spec, copies, |_, _| true).is_some()
        }
        _ => false,
    };
    waits || view.observed.room.no_address.contains_key(view.name)
}

/// With what may help where a new generation has no room.
fn advised(refusal: Refusal, incumbent: Option<&Deployed>, spec: &Spec) -> Refusal {
    let message = format!("{}{}", refusal.message, batches::advice(incumbent, spec));
    Refusal { message, ..refusal }
}

/// Why `spec`'s ports cannot be published by this service now.
pub(super) fn ports(view: &View<'_>, spec: &Spec) -> Option<Next> {
    if let Some(refusal) = claims::contested(view, &spec.ports) {
        return Some(held(refusal));
    }
    view.observed.ports_taken.get(view.name).map(|refusal| held_for_now(view, refusal.clone()))
}

/// Why the incumbent of a recreated service is not stopped now, and nothing is run for its successor: a port is not free.
pub(super) fn before_stop(view: &View<'_>, rollout: &Rollout) -> Option<Next> {
    if !is_to_stop(view, rollout) {
        return None;
    }
    let taken = view.observed.ports_taken.get(view.name).cloned();
    let ours = || {
        let (other, port) = claims::elsewhere(view, &rollout.to.spec.ports)?;
        Some(Refusal::new(Reason::PortInUse, format!("{port} is published by service {other}")))
    };
    let Some(refusal) = taken.or_else(ours) else {
        return claims::wanted_back(view, &rollout.to.spec.ports).map(wait);
    };
    let over = view.now >= later(rollout.phase_since, PORT_PATIENCE.max(rollout.to.spec.deploy.timeout));
    Some(if over { Next::Do(Step::Fail(refusal)) } else { held_for_now(view, refusal) })
}

/// The other service that has a port for which an incumbent is to be stopped.
pub(super) fn waits_for_port<'a>(view: &View<'a>, rollout: &Rollout) -> Option<&'a ServiceName> {
    if !is_to_stop(view, rollout) {
        return None;
    }
    claims::elsewhere(view, &rollout.to.spec.ports).map(|(other, _)| other)
}

fn is_to_stop(view: &View<'_>, rollout: &Rollout) -> bool {
    rollout.to.spec.strategy() == Strategy::Recreate
        && view.record.is_some_and(|record| record.incumbent.is_some())
        && matches!(rollout.phase, Phase::Preparing | Phase::Yielding)
        && rollout.yielded_at.is_none()
}

/// Why no further containers of what runs can be started now; `None` = they can, or none are to be.
pub(super) fn before_scale(view: &View<'_>, incumbent: &Deployed, spec: &Spec) -> Option<Next> {
    let further = spec.deploy.replicas.saturating_sub(incumbent.spec.deploy.replicas);
    if further == 0 {
        return None;
    }
    no_room(view, incumbent, spec, further).map(|refusal| held_for_now(view, refusal))
}

/// Whether the containers that an incumbent gave up for a candidate can be started again beside it.
pub(super) fn can_come_back(view: &View<'_>, incumbent: &Deployed) -> bool {
    let further = u32::try_from(replicas::missing(incumbent)).unwrap_or(u32::MAX);
    further > 0 && no_room(view, incumbent, &incumbent.spec, further).is_none()
}

/// What the host lacks for so many `further` containers of what runs.
fn no_room(view: &View<'_>, incumbent: &Deployed, spec: &Spec, further: u32) -> Option<Refusal> {
    let mut only_these = spec.clone();
    (only_these.deploy.replicas, only_these.deploy.parallelism) = (further, None);
    let no_address = view.observed.room.no_address.get(view.name).cloned();
    no_address.or_else(|| memory(view, Some(incumbent), &only_these, further, |_, _| true))
}

/// Why the candidate's container cannot be started now, beside the incumbent's: since it was begun others may have taken
/// what memory there was.
pub(super) fn before_start(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<Next> {
    // An operator who goes back knows that what runs is no good.
    if rollout.cause == Cause::Rollback {
        return None;
    }
    let starts_first = |name: &ServiceName, phase| phase == Phase::Starting && name < view.name;
    let (incumbent, spec) = (record.incumbent.as_ref(), &rollout.to.spec);
    memory(view, incumbent, spec, batches::left(record, rollout), starts_first)
        .map(|refusal| held_for_now(view, advised(refusal, incumbent, spec)))
}

fn held_for_now(view: &View<'_>, refusal: Refusal) -> Next {
    Next::Held { refusal, until: Some(later(view.now, RETRY)) }
}

/// Whether there is memory for so many `copies` beside the incumbent. `counts`: which other candidates that do not run yet
/// have a claim that comes before this one's.
fn memory(
    view: &View<'_>,
    incumbent: Option<&Deployed>,
    spec: &Spec,
    copies: u32,
    counts: impl Fn(&ServiceName, Phase) -> bool,
) -> Option<Refusal> {
    let available = view.observed.room.memory?;
    let need = expected(view, incumbent, spec)?.saturating_mul(copies.into());
    let others = view.records.iter().filter(|(name, _)| *name != view.name).filter_map(|(name, record)| {
        let rollout = record.rollout.as_ref().filter(|it| it.phase <= Phase::Switching)?;
        let (other, generation) = (view.of(name), rollout.to.generation);
        // One that has just started has not taken yet what it will; what has taken a place of the incumbent's is no more.
        let (copies, places) = batches::claims(record, rollout);
        let news = rollout.to.instances(name).skip(places);
        let used = news.filter_map(|id| view.observed.room.used.get(&id).copied());
        let has = used.fold(0, u64::saturating_add);
        let need = expected(&other, record.incumbent.as_ref(), &rollout.to.spec)?;
        let need = need.saturating_mul(copies.into());
        // And one that cannot be started itself takes nothing.
        let comes = other.container(generation).is_some() || need <= available && counts(name, rollout.phase);
        comes.then_some(need.saturating_sub(has))
    });
    let claimed = others.fold(0, u64::saturating_add);
    (need > available.saturating_sub(claimed)).then(|| {
        let size = |bytes| ByteSize(bytes).human();
        let for_others = match claimed {
            0 => String::new(),
            claimed => format!(", of which {} are for others that start", size(claimed)),
        };
        let what = match copies {
            1 => "a second copy is".to_owned(),
            several => format!("{several} further copies are"),
        };
        let message = format!(
            "{what} expected to use {}, and {} of memory are available{for_others}",
            size(need),
            size(available)
        );
        Refusal::new(Reason::Memory, message)
    })
}

/// Bytes that a container of a candidate is expected to use beside its incumbent: what that one uses and a little more, or what is
/// reserved for it, within its limit. `None`: it does not run beside it, or nothing is known.
fn expected(view: &View<'_>, incumbent: Option<&Deployed>, spec: &Spec) -> Option<u64> {
    if spec.strategy() == Strategy::Recreate {
        return None;
    }
    // Of several as the one that uses most.
    let incumbent = incumbent?;
    let used = incumbent.instances(view.name).filter_map(|id| view.observed.room.used.get(&id)).max()?;
    let used = *used;
    let margin = (used / MARGIN_PART).max(LEAST_MARGIN);
    let reserved = spec.options.mem_reservation.map_or(0, |size| size.0);
    let need = used.saturating_add(margin).max(reserved);
    Some(spec.mem_limit.map_or(need, |limit| need.min(limit.0)))
}
