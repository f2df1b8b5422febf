//! What keeps the agent from a change that it would make otherwise. For `gitopsd plan`, which knows records, files and the
//! clock, and asks neither the host nor the registry.

use std::collections::BTreeMap;

use super::changes::{self, Difference};
use super::joined::left_behind;
use super::pins::unpinned;
use super::preview::Change;
use super::record::{Cause, Down, Failure, Hold, Phase, Rollout, ServiceRecord, Spec};
use super::window::{is_felt, shut};
use super::{batches, irreversible};
use crate::types::{CommitId, Declared, Refusal, ServiceName, Timestamp, Zones};

/// What there is to know beside the records.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The branch's head; `None` = files of somewhere else, which come with a commit that is not there yet.
    pub head: Option<&'a CommitId>,
    /// Windows do not count for it.
    pub waives_window: bool,
    /// The zones that windows name.
    pub zones: &'a Zones,
    /// By the host's clock.
    pub now: Timestamp,
    /// Why nothing is removed.
    pub removals: Option<&'a Refusal>,
}

impl Circumstances<'_> {
    /// Why changes are not made yet, of those that are kept from it by a hold, by a failure of this commit, by a window or, of
    /// removals, by how many they are.
    pub fn postponed(
        &self,
        changes: &BTreeMap<ServiceName, Change>,
        declared: &BTreeMap<ServiceName, Result<Declared, Refusal>>,
        records: &BTreeMap<ServiceName, ServiceRecord>,
    ) -> BTreeMap<ServiceName, String> {
        let of = |name: &ServiceName| declared.get(name)?.as_ref().ok();
        let mut all = BTreeMap::new();
        // What an earlier commit took away goes on going.
        let is_begun = |name: &ServiceName| records.get(name).is_some_and(ServiceRecord::is_leaving);
        if let Some(refusal) = self.removals {
            let stay = changes.iter().filter(|(_, change)| matches!(change, Change::Remove { .. }));
            let stay = stay.map(|(name, _)| name).filter(|name| !is_begun(name));
            all.extend(stay.map(|name| (name.clone(), refusal.message.clone())));
        }
        // Who shares another one's network comes after it.
        let (guests, others): (Vec<_>, Vec<_>) =
            changes.iter().partition(|(name, _)| of(name).is_some_and(|spec| spec.joins().is_some()));
        for (name, change) in others.into_iter().chain(guests) {
            let Some(declared) = of(name).filter(|_| change.is_change()) else { continue };
            let record = records.get(name);
            let incumbent = record.and_then(|record| record.incumbent.as_ref());
            let left_behind = incumbent.is_some_and(|it| left_behind(records, it).is_some());
            let moves = |host: &&ServiceName| matches!(changes.get(*host), Some(Change::Replace { .. }));
            let host = declared.joins().filter(moves);
            let stays = host.filter(|host| !left_behind && only_follows(change) && all.contains_key(*host));
            let why = match stays {
                Some(host) if incumbent.is_some_and(|it| differences(&it.spec, declared).is_empty()) => {
                    Some(format!("{host}, whose network it shares, is not changed now"))
                }
                // What else is new of it is changed in place.
                Some(_) => self.why(true, record, declared, false),
                None => {
                    // No window keeps what would be left without a network.
                    let joined = incumbent.and_then(|it| it.spec.joins());
                    let follows = host.is_some_and(|host| joined == Some(host) && !all.contains_key(host));
                    let in_place = matches!(change, Change::Amend { .. });
                    self.why(in_place, record, declared, left_behind || follows)
                }
            };
            all.extend(why.map(|why| (name.clone(), why)));
        }
        all
    }

    fn why(
        &self,
        in_place: bool,
        record: Option<&ServiceRecord>,
        declared: &Declared,
        moves: bool,
    ) -> Option<String> {
        let rollout = record.and_then(|record| record.rollout.as_ref());
        let begun = rollout.filter(|it| it.phase != Phase::Abandoning && is_tried(it, declared));
        if record.zip(begun).is_some_and(|(record, rollout)| goes_on(record, rollout)) {
            return None;
        }
        let hold = record.and_then(|record| record.hold.as_ref());
        if let Some(hold) = hold.filter(|hold| self.holds(hold)) {
            let until = hold.until.filter(|until| *until > self.now);
            let until = until.map(|until| format!(" until {until:.0}")).unwrap_or_default();
            return Some(format!("held{until} by {}: {}", hold.by, hold.reason));
        }
        // What is changed in place is tried again, and waits for no window.
        if in_place && !self.was_refused(record) {
            return None;
        }
        if let Some(refusal) = record.and_then(|record| self.failed(record, declared)) {
            return Some(format!("this commit failed here and is not tried again: {refusal}"));
        }
        let at_any_time = |record| {
            begun.is_some_and(|rollout| is_felt(record, rollout)) || may_at_any_time(record, declared)
        };
        if self.waives_window || moves || record.is_some_and(at_any_time) {
            return None;
        }
        let (refusal, opens) = shut(&declared.deploy.window, self.zones, self.now)?;
        let opens = opens.map(|at| format!(", which opens at {at:.0}")).unwrap_or_default();
        Some(format!("{}{opens}", refusal.message))
    }

    /// A rollback's hold is over with the commit that comes with these files.
    fn holds(&self, hold: &Hold) -> bool {
        let ends_with_a_commit = || {
            let in_time = hold.until.is_none_or(|until| self.now >= until);
            self.head.is_none() && hold.while_commit.is_some() && in_time
        };
        !hold.is_over(self.head, self.now) && !ends_with_a_commit()
    }

    /// The running container did not take this commit's change: a new generation has to.
    fn was_refused(&self, record: Option<&ServiceRecord>) -> bool {
        let amending = record.and_then(|record| record.incumbent.as_ref()?.amending.as_ref());
        amending.is_some_and(|it| it.refused.is_some() && self.head == Some(&it.commit))
    }

    /// What came of the only try at this commit; of one that is on its way back, too.
    fn failed<'r>(&self, record: &'r ServiceRecord, declared: &Declared) -> Option<&'r Refusal> {
        let head = self.head?;
        let failure = record.failure.as_ref();
        let known = failure.filter(|it| it.is_at(head, &declared.secrets));
        let returns = || {
            let rollout = record.rollout.as_ref().filter(|it| it.phase == Phase::Abandoning)?;
            let same = rollout.to.commit.id == *head && rollout.to.spec.secrets == declared.secrets;
            rollout.trouble.as_ref().filter(|trouble| same && Failure::comes_of(trouble))
        };
        known.map(|failure| &failure.refusal).or_else(returns)
    }
}

/// Whether a rollout goes on to its end whatever is said meanwhile: it has the traffic or much of it, there is no way back, or
/// it is the way back that somebody wants.
fn goes_on(record: &ServiceRecord, rollout: &Rollout) -> bool {
    let halfway = matches!(rollout.phase, Phase::Batches | Phase::Switching)
        && batches::has_begun(record)
        && rollout.trouble.is_none();
    let stays = rollout.phase == Phase::Baking || rollout.cause == Cause::Rollback;
    stays || halfway || irreversible::holds(record, rollout)
}

fn differences(spec: &Spec, declared: &Declared) -> Vec<Difference> {
    changes::between_declared(&unpinned(spec), declared)
}

fn is_for(spec: &Spec, declared: &Declared) -> bool {
    !changes::need_new_generation(&differences(spec, declared))
}

/// A one-shot that is mended is no other container, but it is another attempt.
fn is_tried(rollout: &Rollout, declared: &Declared) -> bool {
    let same_pre = rollout.phase > Phase::Preparing || rollout.to.spec.deploy.pre == declared.deploy.pre;
    same_pre && is_for(&rollout.to.spec, declared)
}

/// What it declares is what it has; the network that it shares is another one.
fn only_follows(change: &Change) -> bool {
    matches!(change, Change::Replace { differences, .. } if differences.is_empty())
}

/// What no window holds up: the way back to what ran before, and what serves nothing.
fn may_at_any_time(record: &ServiceRecord, declared: &Declared) -> bool {
    let barred = record.incumbent.as_ref().is_some_and(|incumbent| incumbent.down == Some(Down::Barred));
    let goes_back = || record.previous.as_ref().is_some_and(|previous| is_for(&previous.spec, declared));
    barred || goes_back()
}
