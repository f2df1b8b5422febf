//! The memory of a container that ends and is started again: how often in a row, since when, and whether it was told.

use super::health::EffectiveCheck;
use super::later;
use super::receipt::{ReceiptResult, Side, Transition};
use super::record::{Deployed, Down, Phase, ServiceRecord};
use super::repair::RECOVERED_AFTER;
use crate::types::{ContainerState, Exit, Reason, ReplicaIndex, ServiceName, Strategy, Timestamp};

/// Counts a start (or the pull of a lost image) that is about to be tried. `tells`: the first of a row earns a receipt.
pub(super) fn count(incumbent: &mut Deployed, tells: bool, now: Timestamp) {
    let last = incumbent.restarted_at.unwrap_or(incumbent.since);
    let recovered = now >= later(last, RECOVERED_AFTER);
    incumbent.restarts = if recovered { 1 } else { incumbent.restarts.saturating_add(1) };
    incumbent.restarted_at = Some(now);
    if tells && incumbent.restarts == 1 {
        // Kept until the receipt is written: a crash in between must neither lose it nor give it another name.
        incumbent.untold.get_or_insert(now);
    }
}

/// How an incumbent ended that is to stay so, by its restart policy. `state`: what its container does.
pub(super) fn stays<'a>(
    record: &ServiceRecord,
    incumbent: &'a Deployed,
    state: Option<&'a ContainerState>,
) -> Option<&'a Exit> {
    let exit = match (incumbent.down, state) {
        (Some(Down::Wanted | Down::Barred), _) | (_, Some(ContainerState::Running { .. })) => return None,
        (Some(Down::Ended), _) => incumbent.last_exit.as_ref()?,
        // It is down for a candidate.
        (None, _)
            if yielded(record) && record.rollout.as_ref().is_some_and(|it| it.phase >= Phase::Yielding) =>
        {
            return None;
        }
        (None, Some(ContainerState::Exited(exit))) => exit,
        // Gone with a reboot, which is no end of its own; or it could not be started.
        (None, Some(ContainerState::Remains) | None) => return None,
    };
    let last = incumbent.restarted_at.unwrap_or(incumbent.since);
    let ends = if exit.at >= later(last, RECOVERED_AFTER) { 0 } else { incumbent.ends };
    (!incumbent.spec.restart.restarts(exit, ends)).then_some(exit)
}

/// Whether a container has done what it is for: its restart policy lets it end, it ended with code 0, and there is
/// nothing to probe.
pub(super) fn completed(check: &EffectiveCheck, deployed: &Deployed, state: Option<&ContainerState>) -> bool {
    let well = matches!(state, Some(ContainerState::Exited(exit)) if exit.code == Some(0));
    well && deployed.spec.restart.may_end() && check.probes.is_empty()
}

/// Takes in that the incumbent is about to be started; `end`: how it ended, if it did in this boot.
pub(super) fn ended(incumbent: &mut Deployed, end: Option<&Exit>) {
    if let (Some(end), None) = (end, incumbent.down) {
        incumbent.ends = if incumbent.restarts > 1 { incumbent.ends.saturating_add(1) } else { 1 };
        incumbent.last_exit = Some(end.clone());
    }
    incumbent.down = None;
}

/// Whether the incumbent was stopped on purpose: its start is a part of the rollout that is given up.
pub(super) fn yielded(record: &ServiceRecord) -> bool {
    record.rollout.as_ref().is_some_and(|rollout| rollout.to.spec.strategy() == Strategy::Recreate)
}

/// The receipt that a row of restarts has earned, if it was not written yet. One for a row: a container that crashes
/// every minute must not fill the audit trail.
pub(super) fn told(name: &ServiceName, incumbent: &mut Deployed, now: Timestamp) -> Option<Transition> {
    let began = incumbent.untold.take()?;
    let message = format!("generation {} was not running and was started again", incumbent.generation);
    Some(restarted(name, incumbent, message, (began, now)))
}

/// The same for one of its containers beside the first; `None`: for the first of them that has earned one.
pub(super) fn told_replica(
    name: &ServiceName,
    incumbent: &mut Deployed,
    index: Option<ReplicaIndex>,
    now: Timestamp,
) -> Option<Transition> {
    let mut replicas =
        incumbent.replicas.iter_mut().filter(|(own, _)| index.is_none_or(|index| index == **own));
    let (index, began) = replicas.find_map(|(index, replica)| Some((*index, replica.untold.take()?)))?;
    let message = format!(
        "replica {index} of generation {} was not running and was started again",
        incumbent.generation
    );
    Some(restarted(name, incumbent, message, (began, now)))
}

fn restarted(
    name: &ServiceName,
    incumbent: &Deployed,
    message: String,
    times: (Timestamp, Timestamp),
) -> Transition {
    Transition {
        from: Some(Side::of(incumbent)),
        to: Some(Side::of(incumbent)),
        reason: Some(Reason::Exited),
        serves: Some(incumbent.generation),
        ..Transition::plain(name, &incumbent.commit.id, ReceiptResult::Restarted, message, times)
    }
}
