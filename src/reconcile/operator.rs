//! What an operator's word makes of a record. Pure, so that the agent and the model host remember alike.

use super::record::{Cause, Down, Hold, Phase, ServiceRecord};
use super::step::Step;
use crate::types::{CommitId, Generation, Reason, Refusal};

/// Holds a service. One that was rolled back stays so at least until the branch moves: a hold whose time is up must not
/// bring back what somebody took away.
pub fn hold(record: &mut ServiceRecord, mut hold: Hold) {
    if hold.until.is_some() {
        hold.while_commit = record.hold.take().and_then(|former| former.while_commit);
    }
    record.hold = Some(hold);
}

/// Holds a service that goes back, for as long as the branch is at `head`; a hold that was there before is not cut
/// short by that.
pub fn hold_back(record: &mut ServiceRecord, mut hold: Hold, head: Option<CommitId>) {
    match record.hold.take() {
        Some(former) if former.until.is_none() && former.while_commit.is_none() => hold = former,
        Some(former) if former.until.is_some() => hold = Hold { while_commit: head, ..former },
        _ => hold.while_commit = head,
    }
    record.hold = Some(hold);
}

/// Lets a service follow the repo again: its hold, its failure and its pauses are over.
pub fn resume(record: &mut ServiceRecord) {
    record.hold = None;
    record.failure = None;
    // What a one-shot did not do is for the operator now: it is not run again.
    record.jobs.post = record.jobs.post.take().filter(|run| run.trouble.is_none());
    if let Some(run) = &mut record.jobs.run {
        run.trouble = None;
    }
    hurry(record);
    if let Some(incumbent) = &mut record.incumbent {
        (incumbent.restarts, incumbent.restarted_at) = (0, None);
        incumbent.replicas.values_mut().for_each(|replica| replica.restarts = 0);
        incumbent.ends = 0;
        // One that ended for good is started once more; one that may not come back by itself waits for a candidate.
        incumbent.down = incumbent.down.map(|down| if down == Down::Barred { down } else { Down::Wanted });
    }
}

/// Ends the pause before what did not work is tried again.
pub fn hurry(record: &mut ServiceRecord) {
    if let Some(rollout) = &mut record.rollout {
        rollout.retry_at = None;
    }
}

/// Lets an incumbent come back that was stopped for a candidate which did not make it: with nothing under way that is
/// what to go back to, and not the one before it. Gives which it is.
pub fn bring_back(record: &mut ServiceRecord) -> Option<Generation> {
    if record.rollout.is_some() || record.removing.is_some() {
        return None;
    }
    let incumbent = record.incumbent.as_mut().filter(|it| it.down == Some(Down::Barred))?;
    incumbent.down = Some(Down::Wanted);
    (incumbent.restarts, incumbent.restarted_at) = (0, None);
    Some(incumbent.generation)
}

/// The step that goes back to the previous generation, or why there is nothing to go back to.
pub fn rollback(record: &ServiceRecord) -> Result<Step, Refusal> {
    if let Some(rollout) = &record.rollout {
        let message = format!("generation {} was given up by an operator", rollout.to.generation);
        return match rollout.phase {
            Phase::Abandoning => {
                Err(Refusal::new(Reason::OperatorRollback, "it is being rolled back already"))
            }
            _ => Ok(Step::Fail(Refusal::new(Reason::OperatorRollback, message))),
        };
    }
    // Its removal would forget what is begun now, and no receipt would tell of it.
    if record.removing.is_some() {
        let message = "it is being removed";
        return Err(Refusal::new(Reason::OperatorRollback, message));
    }
    let Some(previous) = &record.previous else {
        return Err(Refusal::new(Reason::OperatorRollback, "there is no previous generation to go back to"));
    };
    Ok(Step::Begin {
        generation: Generation(record.last_generation.0.saturating_add(1)),
        spec: Box::new(previous.spec.clone()),
        commit: Box::new(previous.commit.clone()),
        cause: Cause::Rollback,
    })
}
