//! `deploy.window`: when a service may be changed by a commit. What runs is kept running at any time, and what goes back
//! goes back at once.

use super::record::{Cause, Down, Rollout, ServiceRecord, Spec};
use super::replace::needs_new_generation;
use super::step::Next;
use super::view::View;
use super::world::DesiredService;
use super::{batches, joined};
use crate::types::{Opening, Reason, Refusal, Timestamp, Window, Zones};

/// Why a service is not changed now.
pub(super) fn closed(view: &View<'_>, record: Option<&ServiceRecord>, spec: &Spec) -> Option<Next> {
    if spec.deploy.window.is_empty() || view.desired.is_some_and(|desired| desired.window_waived) {
        return None;
    }
    // A commit that brings back what ran before is the way out of a bad one.
    let previous = record.and_then(|record| record.previous.as_ref());
    if previous.is_some_and(|previous| needs_new_generation(&previous.spec, spec).is_none()) {
        return None;
    }
    // Nothing serves, or soon will not: its network goes to another generation.
    let incumbent = record.and_then(|record| record.incumbent.as_ref());
    if incumbent
        .is_some_and(|it| it.down == Some(Down::Barred) || joined::left_behind(view.records, it).is_some())
    {
        return None;
    }
    let (refusal, until) = shut(&spec.deploy.window, &view.observed.zones, view.now)?;
    Some(Next::Held { refusal, until })
}

/// Why none of these windows is open, and when the first of them is.
pub(super) fn shut(
    windows: &[Window],
    zones: &Zones,
    now: Timestamp,
) -> Option<(Refusal, Option<Timestamp>)> {
    let mut opens = None;
    for window in windows {
        let Some(zone) = zones.get(window.zone()) else {
            let zone = window.zone().unwrap_or_default();
            let message = format!("`window`: this host knows no time zone {zone}");
            return Some((Refusal::new(Reason::ConfigInvalid, message), None));
        };
        match window.at(now, &zone) {
            Opening::Open => return None,
            Opening::Closed(at) => opens = Some(opens.map_or(at, |other: Timestamp| other.min(at))),
        }
    }
    let opens = opens?;
    let all: Vec<String> = windows.iter().map(ToString::to_string).collect();
    let message = format!("it is changed only within its window ({})", all.join(", "));
    Some((Refusal::new(Reason::Window, message), Some(opens)))
}

/// The same for a rollout: the window has closed while its image was pulled. What is felt already goes on to its end.
pub(super) fn closed_for(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout) -> Option<Next> {
    if rollout.cause == Cause::Rollback || is_felt(record, rollout) {
        return None;
    }
    let candidate = &rollout.to.spec;
    // A newer commit may give the same container another window.
    let spec = match view.wanted() {
        Some(DesiredService::Run(spec)) if needs_new_generation(candidate, spec).is_none() => spec,
        _ => candidate,
    };
    closed(view, Some(record), spec)
}

/// Whether a rollout has done something that can be felt: its `pre` was begun, what runs was stopped, or its own container started.
pub(super) fn is_felt(record: &ServiceRecord, rollout: &Rollout) -> bool {
    let pre = record.jobs.pre.as_ref().is_some_and(|run| run.generation == rollout.to.generation);
    pre || rollout.yielded_at.is_some()
        || rollout.candidate_started_at.is_some()
        || batches::has_begun(record)
}
