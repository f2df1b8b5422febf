//! What a look at the repo brings: believed, made durable, acted on.

use super::gate::Waits;
use super::source::{Looked, Revision};
use super::{Agent, clock};
use crate::report::Message;
use crate::report::message::Kind;
use crate::state::trust::{HighWater, Reset};
use crate::types::{Refusal, Timestamp};

impl Agent {
    /// Takes an operator's word that windows do not count for the commit in force, and the one that the next look finds.
    pub(super) fn waive_windows(&mut self) {
        self.waives = true;
        self.set_desired(|desired| desired.window_waived = true);
    }

    /// A look at the repo is over.
    pub(super) fn fetched(&mut self, result: Result<Looked, Refusal>) {
        let now = clock::now();
        if self.source.looked() {
            self.look();
        }
        match result {
            Err(refusal) => {
                // It was said of a look that has failed, and not of whatever comes hours later.
                self.waives &= self.source.is_looking();
                if self.source.refusal.as_ref() != Some(&refusal) {
                    let lost = refusal.reason == crate::types::Reason::GitUnreachable;
                    let kind = if lost { Kind::SourceLost } else { Kind::RevisionRefused };
                    let text = format!("{}; everything stays as it is", refusal.message);
                    self.tell(Some(Message::new(kind, text).because(&refusal)));
                }
                self.source.refusal = Some(refusal);
            }
            Ok(Looked { revision, waits }) => {
                // Not that of a look which had begun before it was said.
                let waives = self.waives;
                self.waives &= self.source.is_looking();
                let refused = self.source.refusal.take().is_some();
                let first = !self.source.taken_over;
                self.source.reached_at = Some(now);
                self.wait_for_others(waits);
                if let Some(mut revision) = revision {
                    revision.waives_window |= waives;
                    let moved =
                        self.desired.as_ref().is_none_or(|desired| desired.commit.id != revision.commit.id);
                    if moved || first || revision.reset.is_some() {
                        // A new agent reads the same commit again: what an operator said of it still holds.
                        let former = self.desired.as_ref().filter(|_| !moved);
                        revision.waives_window |= former.is_some_and(|desired| desired.window_waived);
                        self.admit(revision, moved, now);
                    } else if waives {
                        self.set_desired(|desired| desired.window_waived = true);
                    }
                }
                self.judge_age(now);
                if refused && self.source.refusal.is_none() {
                    self.tell(Some(Message::new(Kind::SourceFound, "the config repo is followed again")));
                }
            }
        }
    }

    /// Says that the head waits for other hosts, or that they have stopped it: once.
    fn wait_for_others(&mut self, waits: Option<Waits>) {
        if let Some(waits) = &waits {
            // What is waited for changes all the time; that it is waited, and that this is over, is news.
            let same = self.source.waits.as_ref().is_some_and(|former| {
                former.commit.id == waits.commit.id
                    && former.refusal.reason == waits.refusal.reason
                    && (!waits.stopped || former.refusal == waits.refusal)
            });
            if !same {
                let kind = if waits.stopped { Kind::RevisionStopped } else { Kind::RevisionWaits };
                let text = format!("{}; everything stays as it is", waits.refusal.message);
                self.tell(Some(Message::new(kind, text).because(&waits.refusal).at(&waits.commit.id)));
            }
        }
        self.source.waits = waits;
    }

    /// Takes a revision over: the mark first, then what it wants.
    fn admit(&mut self, mut revision: Revision, moved: bool, now: Timestamp) {
        let commit = revision.commit.clone();
        // Before anything names them: a candidate of this commit could not be started without.
        if let Err(error) = self.state.keep_contents(&revision.view.contents) {
            let refusal = error.to_refusal();
            self.note_fault(Some(refusal.clone()));
            self.source.refusal = Some(refusal);
            return;
        }
        if self.high_water.as_ref().is_none_or(|mark| mark.commit != commit.id) {
            let mark = HighWater { commit: commit.id.clone(), admitted_at: now };
            if let Err(error) = self.state.save_high_water(&mark) {
                let refusal = error.to_refusal();
                self.note_fault(Some(refusal.clone()));
                self.source.refusal = Some(refusal);
                return;
            }
            self.high_water = Some(mark);
        }
        let reset = revision.reset.take();
        self.conclude_reset(reset.as_ref(), &commit.id, moved);
        // The commit in force, read again, is not checked again.
        if moved || revision.signer.is_some() {
            self.signer = revision.signer.clone().map(|signer| (commit.id.clone(), signer));
        }
        if moved {
            let mut text = format!("commit {} by {}: {}", commit.id.short(), commit.author, commit.subject);
            if let Some(Reset { commit: accepted, by, reason, .. }) = &reset {
                text.push_str(&match accepted {
                    Some(_) => format!(" (its history was rewritten, and {by} accepts that: {reason})"),
                    None => format!(" ({by} had the commit before it forgotten: {reason})"),
                });
            }
            if let Some(signer) = &revision.signer {
                text.push_str(&format!(" (signed by {}, {})", signer.principal, signer.fingerprint));
            }
            self.tell(Some(Message::new(Kind::RevisionAdmitted, text).at(&commit.id)));
        }
        let desired = self.source.desire(revision, self.desired.as_ref(), &self.journal.records);
        if self.desired.as_ref() != Some(&desired) {
            self.keep_desired(desired);
        }
    }

    pub(super) fn set_desired(&mut self, change: impl FnOnce(&mut crate::reconcile::world::Desired)) {
        if let Some(mut desired) = self.desired.take() {
            change(&mut desired);
            self.keep_desired(desired);
        }
    }

    /// Makes durable what is wanted. Where that fails it is acted on all the same: the commit is the truth, and is
    /// read again after a restart.
    fn keep_desired(&mut self, desired: crate::reconcile::world::Desired) {
        if let Err(error) = self.state.save_desired(&desired) {
            self.note_fault(Some(error.to_refusal()));
        }
        self.desired = Some(desired);
    }
}
