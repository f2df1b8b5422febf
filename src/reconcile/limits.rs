//! Brakes across services: what one commit may not do at once.

use std::collections::BTreeMap;

use super::record::ServiceRecord;
use super::world::Desired;
use crate::types::{Policy, Reason, Refusal, ServiceName};

/// Why no service may be removed at this commit; `None` when those it no longer names may go. `frozen`: how many
/// services run here beside those in `records`.
pub fn removal_refusal(
    desired: &Desired,
    records: &BTreeMap<ServiceName, ServiceRecord>,
    frozen: usize,
    policy: &Policy,
) -> Option<Refusal> {
    let here = || records.iter().filter(|(_, record)| !record.is_absent());
    let begun = |record: &ServiceRecord| record.removing.is_some() || record.leaving_since.is_some();
    // What the commit names as meant to go is no accident.
    let meant = |name: &ServiceName| desired.removed.contains(name);
    let leaving = here()
        .filter(|(name, record)| !begun(record) && !desired.services.contains_key(name) && !meant(name))
        .count();
    if leaving == 0 {
        return None;
    }
    if desired.declared_in_repo == 0 {
        return Some(Refusal::new(
            Reason::ConfigEmpty,
            format!("commit {} declares no service at all, so none is removed", desired.commit.id.short()),
        ));
    }
    // One whose record cannot be read is here all the same: it must not lower the limit for the others.
    let running = here().count().saturating_add(frozen);
    let allowed = policy.removals_allowed(running);
    (leaving > allowed).then(|| {
        Refusal::new(
            Reason::TooManyRemovals,
            format!(
                "commit {} would take {leaving} of {} services off this host, and policy.max_removals allows {allowed}",
                desired.commit.id.short(),
                running,
            ),
        )
    })
}
