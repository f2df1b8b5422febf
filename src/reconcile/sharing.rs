//! Services that write to the same directory of the host: their changes come one after the other, and who is to leave one
//! leaves it before somebody else takes it.
//!
//! Only changes are put in order. Two services that write to one directory while nothing changes do so because the repo says
//! so.

use std::collections::BTreeSet;
use std::path::Path;

use super::next::{held, wait};
use super::record::{Cause, Down, Phase, Rollout, ServiceRecord, Spec};
use super::step::{Next, Step};
use super::view::View;
use super::world::DesiredService;
use super::{exchange, order, preflight, window};
use crate::types::{Reason, Refusal, ServiceName, ServiceSpec, VolumeSource};

/// A directory or file of the host that is written to. Named volumes are each service's own.
pub(super) type Place<'a> = &'a Path;

/// Why a candidate has to wait before anything of it runs; `None` = it is its turn.
pub(super) fn turn(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<Next> {
    if has_begun(view, record, rollout) {
        return None;
    }
    // Before anything of it runs: two that wait for each other would do so for good.
    if let Some(refusal) = exchange::refusal(view, &rollout.to.spec) {
        return Some(Next::Do(Step::Fail(refusal)));
    }
    if let Some((other, place)) = taken(view, &rollout.to.spec).first() {
        let message = format!("{} is still written to by {other}, which is to leave it", place.display());
        return Some(held(Refusal::new(Reason::VolumeInUse, message)));
    }
    // An operator who goes back does not wait for others to be done.
    if rollout.cause == Cause::Rollback {
        return None;
    }
    let (other, place) = sharers(view, rollout).find_map(|(other, theirs, place)| {
        let change = (theirs, theirs.rollout.as_ref()?);
        comes_first(view, rollout, &view.of(other), change).then_some((other, place))
    })?;
    Some(wait(format!("{other}, which writes to {} too, is being changed", place.display())))
}

/// The other services that write to a volume of this candidate's by a candidate of their own.
fn sharers<'a>(
    view: &View<'a>,
    rollout: &'a Rollout,
) -> impl Iterator<Item = (&'a ServiceName, &'a ServiceRecord, Place<'a>)> {
    let (own, writes) = (view.name, written(&rollout.to.spec));
    view.records.iter().filter(move |(name, _)| *name != own).filter_map(move |(name, record)| {
        let theirs = written(&record.rollout.as_ref()?.to.spec);
        common(&writes, &theirs).map(|place| (name, record, place))
    })
}

/// The other services whose change has begun and writes where `spec` does: this one's comes after it.
pub(super) fn under_way<'a>(view: &View<'a>, spec: &Spec) -> Vec<&'a ServiceName> {
    let writes = written(spec);
    let comes_first = |(name, record): &(&'a ServiceName, &'a ServiceRecord)| {
        let rollout = record.rollout.as_ref().filter(|_| *name != view.name);
        rollout.is_some_and(|it| {
            common(&writes, &written(&it.to.spec)).is_some() && has_begun(&view.of(name), record, it)
        })
    };
    view.records.iter().filter(comes_first).map(|(name, _)| name).collect()
}

/// The volumes and directories that it writes to.
pub(super) fn written<I>(spec: &ServiceSpec<I>) -> BTreeSet<Place<'_>> {
    let writes = spec.volumes.iter().filter(|volume| !volume.read_only);
    let bound = writes.filter_map(|volume| match &volume.source {
        VolumeSource::Bind(path) => Some(path.as_path()),
        VolumeSource::Named(_) => None,
    });
    bound.collect()
}

/// One of `ours` that lies within one of `theirs`, or the other way round.
fn common<'a>(ours: &BTreeSet<Place<'a>>, theirs: &BTreeSet<Place<'_>>) -> Option<Place<'a>> {
    ours.iter().find(|place| is_among(place, theirs)).copied()
}

pub(super) fn is_among(place: Place<'_>, others: &BTreeSet<Place<'_>>) -> bool {
    others.iter().any(|other| place.starts_with(other) || other.starts_with(place))
}

/// Whether something of a change has touched the volume already, or may have: its one-shot ran, the incumbent was
/// stopped for it, or its container was made.
pub(super) fn has_begun(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> bool {
    match rollout.phase {
        Phase::Pulling => false,
        Phase::Preparing | Phase::Yielding | Phase::Starting => {
            let yielded = record.incumbent.as_ref().is_some_and(|it| it.down == Some(Down::Wanted));
            let prepared = rollout.phase > Phase::Preparing && !rollout.to.spec.deploy.pre.is_empty();
            let made = view.container(rollout.to.generation).is_some();
            yielded || prepared || made || view.busy().is_some()
        }
        Phase::Proving
        | Phase::Canary
        | Phase::Batches
        | Phase::Switching
        | Phase::Baking
        | Phase::Abandoning => true,
    }
}

/// Who writes to a directory that this service would take with `spec`, and is to stop doing so.
pub(super) fn taken<'a>(view: &View<'a>, spec: &'a Spec) -> Vec<(&'a ServiceName, Place<'a>)> {
    let incumbent = view.record.and_then(|record| record.incumbent.as_ref());
    let had = incumbent.map(|incumbent| written(&incumbent.spec)).unwrap_or_default();
    let new = written(spec).into_iter().filter(|place| !is_among(place, &had));
    let all = new.flat_map(|place| {
        let leaves = move |(name, theirs): &(&ServiceName, &ServiceRecord)| {
            // Who waits for us cannot leave first.
            *name != view.name
                && !order::reaches(view, name, view.name)
                && theirs.live_generations().any(|live| is_among(place, &written(&live.spec)))
                && is_leaving(view, name, place)
        };
        view.records.iter().filter(leaves).map(move |(name, _)| (name, place))
    });
    all.collect()
}

/// Whether the repo no longer wants a service to write there. Of one whose file is broken nothing is known.
fn is_leaving(view: &View<'_>, name: &ServiceName, place: Place<'_>) -> bool {
    let Some(desired) = view.desired else { return false };
    match desired.services.get(name) {
        Some(DesiredService::Run(spec)) => !is_among(place, &written(spec)),
        Some(DesiredService::Resolving | DesiredService::Refused { .. }) => false,
        None => true,
    }
}

/// Whether the change of another service comes before ours: it has begun, or both could begin and its name is the first.
/// What a service depends on comes before it in any case, so that neither waits for the other.
fn comes_first(
    view: &View<'_>,
    ours: &Rollout,
    there: &View<'_>,
    (record, theirs): (&ServiceRecord, &Rollout),
) -> bool {
    // It may be waiting for us, to be done with it.
    if depends(view, there.name, view.name) {
        return false;
    }
    let waits_for_others =
        || order::missing(there, &theirs.to).is_some() || order::before_start(there, theirs).is_some();
    let blocked = theirs.phase <= Phase::Starting && waits_for_others();
    let begun = has_begun(there, record, theirs);
    // Before it has touched anything it gives way to who need not wait.
    let no_port = || preflight::waits_for_port(there, theirs).is_some();
    let waits = || !taken(there, &theirs.to.spec).is_empty() || is_held(there, record, theirs) || no_port();
    if blocked || (!begun && waits()) {
        return false;
    }
    let tried_again = theirs.retry_at.is_some();
    if depends(view, view.name, there.name) {
        return !tried_again;
    }
    if begun {
        return true;
    }
    let waits = sharers(there, theirs).any(|(name, ..)| depends(view, there.name, name));
    let ready = theirs.phase != Phase::Pulling && !tried_again && !waits;
    ready && ours.phase != Phase::Pulling && there.name < view.name
}

/// Whether a candidate may not go on by itself, for as long as its window is closed or memory is short.
fn is_held(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> bool {
    let short = || preflight::before_start(view, record, rollout).is_some();
    window::closed_for(view, record, rollout).is_some() || (rollout.phase == Phase::Starting && short())
}

/// Whether what `from` is or is to be depends on `on`, by however many others.
fn depends(view: &View<'_>, from: &ServiceName, on: &ServiceName) -> bool {
    if from != on && order::reaches(view, from, on) {
        return true;
    }
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(name) = next.pop() {
        let Some(record) = view.records.get(name).filter(|_| seen.insert(name)) else { continue };
        for needed in record.live_generations().flat_map(|live| live.spec.needs()) {
            if needed == on {
                return true;
            }
            next.push(needed);
        }
    }
    false
}
