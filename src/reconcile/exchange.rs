//! Services that are to take each other's directories by one commit: each would wait until another one has left, and none
//! can be first.

use std::collections::{BTreeMap, BTreeSet};

use super::order;
use super::record::{Phase, ServiceRecord, Spec};
use super::sharing::{Place, has_begun, is_among, taken, written};
use super::view::View;
use super::world::DesiredService;
use crate::types::{Declared, Reason, Refusal, ServiceName};

/// What a repo declares, service by service.
type Declarations = BTreeMap<ServiceName, Result<Declared, Refusal>>;

/// Why `spec` cannot be this service's next one while the others are to be what the repo says.
pub(super) fn refusal(view: &View<'_>, spec: &Spec) -> Option<Refusal> {
    circle(view.name, &taken(view, spec), |name| waits_for(view, name))
}

/// A service that writes to a directory which `spec` would take, and of which it is not known yet whether it is to leave it:
/// its tag is being looked up.
pub(super) fn unknown<'a>(view: &View<'a>, spec: &Spec) -> Option<&'a ServiceName> {
    let incumbent = view.record.and_then(|record| record.incumbent.as_ref());
    let had = incumbent.map(|incumbent| written(&incumbent.spec)).unwrap_or_default();
    let new: Vec<_> = written(spec).into_iter().filter(|place| !is_among(place, &had)).collect();
    let writes = |record: &ServiceRecord| {
        let theirs = record.incumbent.as_ref().map(|it| written(&it.spec)).unwrap_or_default();
        new.iter().any(|place| is_among(place, &theirs))
    };
    let looked_up = |name| matches!(view.of(name).wanted(), Some(DesiredService::Resolving));
    let mut others = view.records.iter().filter(|(name, _)| *name != view.name);
    others.find(|(name, record)| looked_up(name) && writes(record)).map(|(name, _)| name)
}

/// Why what is declared cannot be this service's next one, before a tag is looked up and anything is begun.
pub(super) fn declared_refusal(
    declared: &Declarations,
    records: &BTreeMap<ServiceName, ServiceRecord>,
    name: &ServiceName,
) -> Option<Refusal> {
    let taken = |name: &ServiceName| taken_by_declared(declared, records, name);
    circle(name, &taken(name), |name| taken(name).into_iter().map(|(other, _)| other.clone()).collect())
}

/// Whether one of those from which `own` takes a directory waits for `own`, by however many others. `from`: those from
/// which a service takes one.
fn circle(
    own: &ServiceName,
    takes: &[(&ServiceName, Place<'_>)],
    from: impl Fn(&ServiceName) -> Vec<ServiceName>,
) -> Option<Refusal> {
    let (other, place) = takes.iter().find(|(other, _)| leads_to(other, own, &from))?;
    let message = format!(
        "it is to take {} from {other}, which cannot leave it before this service has left a directory of its own, or does \
         without it: let one of them do so in a commit before",
        place.display()
    );
    Some(Refusal::new(Reason::VolumeInUse, message))
}

/// Whether `last` is among those that `first` comes to by `from`, itself included.
pub(super) fn leads_to(
    first: &ServiceName,
    last: &ServiceName,
    from: impl Fn(&ServiceName) -> Vec<ServiceName>,
) -> bool {
    all_from(first, from).contains(last)
}

/// All that `first` comes to by `from`, itself included.
pub(super) fn all_from(
    first: &ServiceName,
    from: impl Fn(&ServiceName) -> Vec<ServiceName>,
) -> BTreeSet<ServiceName> {
    let mut seen = BTreeSet::new();
    let mut next = vec![first.clone()];
    while let Some(name) = next.pop() {
        if seen.insert(name.clone()) {
            next.extend(from(&name));
        }
    }
    seen
}

/// Those from which a service is to take a directory, where it has not begun to; of one that is to go those that need it.
pub(super) fn waits_for(view: &View<'_>, name: &ServiceName) -> Vec<ServiceName> {
    let Some(there) = view.known(name) else { return Vec::new() };
    if view.desired.is_some_and(|desired| !desired.services.contains_key(name)) {
        return order::dependants(&there).cloned().collect();
    }
    let rollout = there.record.and_then(|record| Some((record, record.rollout.as_ref()?)));
    // One that is given up is next what the repo says.
    if rollout.is_some_and(|(record, it)| it.phase != Phase::Abandoning && has_begun(&there, record, it)) {
        return Vec::new();
    }
    let taken = match (there.wanted(), rollout) {
        (Some(DesiredService::Run(spec)), _) => taken(&there, spec),
        (_, Some((_, rollout))) => taken(&there, &rollout.to.spec),
        _ => Vec::new(),
    };
    taken.into_iter().map(|(other, _)| other.clone()).collect()
}

/// The directories that a service would take by its file, and the services that are to leave them by theirs.
fn taken_by_declared<'a>(
    declared: &'a Declarations,
    records: &'a BTreeMap<ServiceName, ServiceRecord>,
    name: &ServiceName,
) -> Vec<(&'a ServiceName, Place<'a>)> {
    let Some(Ok(spec)) = declared.get(name) else { return Vec::new() };
    let incumbent = records.get(name).and_then(|record| record.incumbent.as_ref());
    let had = incumbent.map(|incumbent| written(&incumbent.spec)).unwrap_or_default();
    let new = written(spec).into_iter().filter(|place| !is_among(place, &had));
    let all = new.flat_map(|place| {
        let own = name.clone();
        let leaves = move |(other, record): &(&'a ServiceName, &'a ServiceRecord)| {
            let writes = record.incumbent.as_ref().is_some_and(|it| is_among(place, &written(&it.spec)));
            let stays = match declared.get(*other) {
                Some(Ok(theirs)) => is_among(place, &written(theirs)),
                Some(Err(_)) => true,
                None => false,
            };
            // Who waits for us in any case cannot leave first.
            **other != own && writes && !stays && !depends(declared, other, &own)
        };
        records.iter().filter(leaves).map(move |(other, _)| (other, place))
    });
    all.collect()
}

fn depends(declared: &Declarations, from: &ServiceName, on: &ServiceName) -> bool {
    leads_to(from, on, |name| match declared.get(name) {
        Some(Ok(spec)) => spec.needs().cloned().collect(),
        _ => Vec::new(),
    })
}
