//! Brakes across services: what one commit may not do at once.

use std::collections::{BTreeMap, BTreeSet};

use super::record::ServiceRecord;
use super::world::Desired;
use crate::types::{Policy, Reason, Refusal, ServiceName};

/// Whom the repo names for this host.
#[derive(Debug)]
pub struct Named<'a> {
    /// Who says so, for messages: a commit, a folder.
    pub by: String,
    /// How many services there are in it, whomever they are for.
    pub declared_in_repo: usize,
    /// Those that are to run here.
    pub wanted: BTreeSet<&'a ServiceName>,
    /// Those that no host is to have any more.
    pub removed: &'a BTreeSet<ServiceName>,
}

impl<'a> Named<'a> {
    pub(super) fn of(desired: &'a Desired) -> Self {
        Self {
            by: format!("commit {}", desired.commit.id.short()),
            declared_in_repo: desired.declared_in_repo,
            wanted: desired.services.keys().collect(),
            removed: &desired.removed,
        }
    }
}

/// Why no service may be removed; `None` when those that are no longer named may go. `frozen`: how many services run here
/// beside those in `records`.
pub fn removal_refusal(
    named: &Named<'_>,
    records: &BTreeMap<ServiceName, ServiceRecord>,
    frozen: usize,
    policy: &Policy,
) -> Option<Refusal> {
    let here = || records.iter().filter(|(_, record)| !record.is_absent());
    // What the commit names as meant to go is no accident.
    let meant = |name: &ServiceName| named.removed.contains(name);
    let leaving = here()
        .filter(|(name, record)| !record.is_leaving() && !named.wanted.contains(name) && !meant(name))
        .count();
    if leaving == 0 {
        return None;
    }
    if named.declared_in_repo == 0 {
        return Some(Refusal::new(
            Reason::ConfigEmpty,
            format!("{} declares no service at all, so none is removed", named.by),
        ));
    }
    // One whose record cannot be read is here all the same: it must not lower the limit for the others.
    let running = here().count().saturating_add(frozen);
    let allowed = policy.removals_allowed(running);
    (leaving > allowed).then(|| {
        Refusal::new(
            Reason::TooManyRemovals,
            format!(
                "{} would take {leaving} of {running} services off this host, and policy.max_removals allows {allowed}",
                named.by,
            ),
        )
    })
}
