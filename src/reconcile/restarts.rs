//! The memory of a container that ends and is started again: how often in a row, since when, and whether it was told.

use super::later;
use super::receipt::{ReceiptResult, Side, Transition};
use super::record::{Deployed, ServiceRecord};
use super::repair::RECOVERED_AFTER;
use crate::types::{Reason, ServiceName, Strategy, Timestamp};

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

/// Whether the incumbent was stopped on purpose: its start is a part of the rollout that is given up.
pub(super) fn yielded(record: &ServiceRecord) -> bool {
    record.rollout.as_ref().is_some_and(|rollout| rollout.to.spec.strategy() == Strategy::Recreate)
}

/// The receipt that a row of restarts has earned, if it was not written yet. One for a row: a container that crashes
/// every minute must not fill the audit trail.
pub(super) fn told(name: &ServiceName, incumbent: &mut Deployed, now: Timestamp) -> Option<Transition> {
    let began = incumbent.untold.take()?;
    Some(Transition {
        service: name.clone(),
        commit: incumbent.commit.id.clone(),
        from: Some(Side::of(incumbent)),
        to: Some(Side::of(incumbent)),
        result: ReceiptResult::Restarted,
        reason: Some(Reason::Exited),
        message: format!("generation {} was not running and was started again", incumbent.generation),
        started_at: began,
        finished_at: now,
        pulled_bytes: 0,
        pull_seconds: 0.0,
        healthy_seconds: None,
        switched_at: None,
    })
}
