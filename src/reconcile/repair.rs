//! Keeping the incumbent as it should be: running, with its route.

use std::time::Duration;

use super::record::{Deployed, Phase, ServiceRecord};
use super::step::{Next, Step};
use super::view::View;
use super::{later, pending};
use crate::types::Timestamp;

/// First pause before a container that ended is started again; doubled for each further start in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A container that ran this long has recovered: its next end begins a new row.
pub const RECOVERED_AFTER: Duration = Duration::from_secs(600);

/// What the incumbent needs; `None` = nothing.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let incumbent = record.incumbent.as_ref()?;
    if view.runs(incumbent.generation) {
        let traffic_elsewhere =
            record.rollout.as_ref().is_some_and(|rollout| rollout.phase >= Phase::Switching);
        let right = view.route() == Some(&view.route_for(record, incumbent));
        return (!right && !traffic_elsewhere).then_some(Next::Do(Step::Route(incumbent.generation)));
    }
    let local = view.has_image(incumbent);
    // A candidate is on its way, and one pull at a time is enough; once it is given up, nothing else brings cure.
    if !local && record.rollout.as_ref().is_some_and(|rollout| rollout.phase != Phase::Abandoning) {
        return None;
    }
    let due = restart_at(incumbent);
    let generation = incumbent.generation;
    Some(match (pending(view.now, due, LONGEST_PAUSE), local) {
        (false, true) => Next::Do(Step::Start(generation)),
        (false, false) => Next::Do(Step::Pull(generation)),
        (true, true) => Next::Wait {
            until: Some(due),
            why: format!("generation {generation} ended; it is started again"),
        },
        (true, false) => Next::Wait {
            until: Some(due),
            why: format!("generation {generation} ended, and its image is not local; it is pulled again"),
        },
    })
}

/// When an incumbent that is not running may be started, or its lost image pulled: both count as tries.
fn restart_at(incumbent: &Deployed) -> Timestamp {
    let Some(last) = incumbent.restarted_at else { return Timestamp::MIN };
    let doublings = incumbent.restarts.saturating_sub(1).min(16);
    later(last, FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE))
}
