//! Services that run at times. What serves of one is nothing but a promise: its incumbent has no container of its own,
//! each run is a one-shot, and a new version takes effect at the next run.

use std::time::Duration;

use super::jobs::{self, Progress};
use super::record::{Deployed, ServiceRecord};
use super::repair::{LONGEST_PAUSE, restart_at};
use super::step::{Next, Step};
use super::view::View;
use super::{later, order, pending};
use crate::types::{Job, Reason, Refusal, Schedule, Timestamp};

/// So late a run still counts as in time where missed ones are not made up for: the agent was at something else.
pub(super) const SLACK: Duration = Duration::from_secs(60);

/// How often a time zone that is not to be had is asked for again.
const RETRY: Duration = Duration::from_secs(60);

/// When the next run is due; at or before now: it is. `None`: never, or its time zone is unknown.
pub fn next_run(
    record: &ServiceRecord,
    incumbent: &Deployed,
    zones: &crate::types::Zones,
    now: Timestamp,
) -> Option<Timestamp> {
    let schedule = incumbent.spec.schedule.as_ref()?;
    let zone = zones.get(schedule.calendar.zone())?;
    let base = record.jobs.served.unwrap_or(incumbent.since);
    let slack = now.checked_sub(SLACK).unwrap_or(base);
    let base = if schedule.persistent { base } else { base.max(slack) };
    schedule.calendar.next(base, &zone)
}

/// What a scheduled incumbent needs; `None` = nothing.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let incumbent = record.incumbent.as_ref()?;
    let schedule = incumbent.spec.schedule.as_ref()?;
    // Of a version that served all the time.
    if view.route().is_some() {
        return Some(Next::Do(Step::Withdraw));
    }
    if let Some(next) = under_way(view, record) {
        return next;
    }
    let Some(due) = next_run(record, incumbent, &view.observed.zones, view.now) else {
        return never(view, schedule);
    };
    if due > view.now {
        let refusal = record.jobs.run.as_ref().and_then(|run| run.trouble.clone())?;
        return Some(Next::Held { refusal, until: Some(due) });
    }
    if let Some(refusal) = order::missing(view, incumbent) {
        return Some(Next::Held { refusal, until: None });
    }
    if !view.has_image(incumbent) {
        let at = restart_at(incumbent);
        return Some(match pending(view.now, at, LONGEST_PAUSE) {
            true => Next::Wait { until: Some(at), why: "its image is pulled again".to_owned() },
            false => Next::Do(Step::Pull(incumbent.generation)),
        });
    }
    Some(Next::Do(Step::Run(incumbent.generation)))
}

/// A run that was begun: also one of the former generation, as no two run at once. The inner `None`: it keeps nobody
/// waiting.
fn under_way(view: &View<'_>, record: &ServiceRecord) -> Option<Option<Next>> {
    let run = record.jobs.run.as_ref().filter(|run| run.begun.is_some())?;
    let deployed = record.live(run.generation)?;
    match jobs::progress(view, deployed, Job::Run, run) {
        Progress::Do(Step::Run(_)) if !view.has_image(deployed) => None,
        Progress::Do(step) => Some(Some(Next::Do(step))),
        Progress::Runs(_) => Some(None),
        Progress::Over => None,
    }
}

fn never(view: &View<'_>, schedule: &Schedule) -> Option<Next> {
    let zone = schedule.calendar.zone().filter(|zone| view.observed.zones.get(Some(zone)).is_none());
    let Some(zone) = zone else {
        let message = format!("`schedule = \"{}\"` names no time that is still to come", schedule.calendar);
        return Some(Next::Held { refusal: Refusal::new(Reason::ConfigInvalid, message), until: None });
    };
    let message = format!("`schedule`: this host knows no time zone {zone}");
    let until = Some(later(view.now, RETRY));
    Some(Next::Held { refusal: Refusal::new(Reason::ConfigInvalid, message), until })
}

/// When a schedule has to be looked at by the clock.
pub(super) fn wake_at(view: &View<'_>) -> Option<Timestamp> {
    let record = view.record?;
    let incumbent = record.incumbent.as_ref()?;
    next_run(record, incumbent, &view.observed.zones, view.now).filter(|at| *at > view.now)
}
