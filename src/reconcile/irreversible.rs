//! `deploy.reversible = false`: once the new generation has changed what both use, the old one does not come back by
//! itself. Until it has been stopped or has lost its traffic it just goes on; from then on there is only the way forward,
//! unless an operator says otherwise.

use std::time::Duration;

use super::record::{Cause, Deployed, Down, Phase, Rollout, ServiceRecord};
use super::step::{Next, Step};
use super::view::View;
use super::{later, pending, rolling};
use crate::types::{ContainerState, Reason, Refusal, Strategy};

/// From the end of a candidate that nothing can stand in for to its next start.
const RESTART: Duration = Duration::from_secs(10);

/// Whether the incumbent may not take the place of this candidate.
pub(super) fn holds(record: &ServiceRecord, rollout: &Rollout) -> bool {
    let spec = &rollout.to.spec;
    let stopped = spec.strategy() == Strategy::Recreate
        && matches!(rollout.phase, Phase::Starting | Phase::Proving | Phase::Switching);
    let switched = rollout.phase == Phase::Baking;
    rollout.cause == Cause::Commit
        && !spec.deploy.reversible
        && record.incumbent.is_some()
        && (stopped || switched)
}

/// Whether a candidate that is given up leaves the incumbent down: it had yielded, and no operator wants it back.
pub(super) fn leaves_down(record: &ServiceRecord, rollout: &Rollout) -> bool {
    let by_operator = matches!(&rollout.trouble, Some(trouble) if trouble.reason == Reason::OperatorRollback);
    let down = record.incumbent.as_ref().is_some_and(|incumbent| incumbent.down.is_some());
    rollout.cause == Cause::Commit
        && !rollout.to.spec.deploy.reversible
        && rollout.to.spec.strategy() == Strategy::Recreate
        && rollout.candidate_started_at.is_some()
        && down
        && !by_operator
}

/// What a candidate does that would be given up: it stays, and is started again where it has ended.
pub(super) fn instead(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout, refusal: &Refusal) -> Next {
    let generation = rollout.to.generation;
    let old = record.incumbent.as_ref().map_or(0, |incumbent| incumbent.generation.0);
    let message = format!(
        "{}; `deploy.reversible = false` keeps generation {old} from coming back by itself",
        refusal.message
    );
    let refusal = Refusal::new(Reason::Irreversible, message);
    match view.container(generation) {
        // It was judged healthy once, and is the one that is kept alive.
        Some(ContainerState::Exited(_)) if rollout.phase == Phase::Baking => {
            Next::Do(Step::Promote(generation))
        }
        Some(ContainerState::Exited(exit)) => {
            let at = later(exit.at, RESTART);
            match pending(view.now, at, RESTART) {
                true => Next::Held { refusal, until: Some(at) },
                false if view.has_image(&rollout.to) => Next::Do(Step::Start(generation)),
                // Thrown away meanwhile.
                false => rolling::paused(view, rollout).unwrap_or(Next::Do(Step::Pull(generation))),
            }
        }
        _ => {
            let bake = later(rollout.switched_at.unwrap_or(rollout.phase_since), rollout.to.spec.deploy.bake);
            match rollout.phase == Phase::Baking {
                true if view.now >= bake => Next::Do(Step::Promote(generation)),
                true => Next::Held { refusal, until: Some(bake) },
                false => Next::Held { refusal, until: None },
            }
        }
    }
}

/// Why an incumbent that may not come back is not started.
pub(super) fn barred(incumbent: &Deployed) -> Option<Next> {
    let message = format!(
        "generation {} was stopped for a newer one that did not make it, and `deploy.reversible = false` keeps it from \
         coming back by itself",
        incumbent.generation
    );
    let refusal = Refusal::new(Reason::Irreversible, message);
    (incumbent.down == Some(Down::Barred)).then_some(Next::Held { refusal, until: None })
}
