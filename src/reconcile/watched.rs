//! A candidate with new connections, while its incumbent is kept to stand in for it.

use std::time::Duration;

use super::canary;
use super::record::{Cause, ServiceRecord};
use crate::types::Strategy;

/// How long a candidate that gets all new connections, or a `part` of them, is watched with these; `None`: it is not, or nothing
/// stands in for it by itself.
pub fn time(record: &ServiceRecord, part: bool) -> Option<Duration> {
    let rollout = record.rollout.as_ref()?;
    record.incumbent.as_ref().filter(|incumbent| incumbent.down.is_none())?;
    let spec = &rollout.to.spec;
    let goes_back = spec.deploy.reversible || rollout.cause == Cause::Rollback;
    let two = spec.strategy() == Strategy::BlueGreen && !spec.network_mode().is_shared();
    let first = canary::declared(spec).map(|canary| canary.time).filter(|_| part);
    let time = first.unwrap_or(spec.deploy.bake);
    (goes_back && two && !time.is_zero()).then_some(time)
}
