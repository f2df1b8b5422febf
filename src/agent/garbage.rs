//! When images are collected: once a deploy has settled, when a pull did not fit, after a start, and when an operator
//! says so. What is chosen is chosen in the loop, so that no decision about a service can cross it; the removal of the
//! bytes runs beside it.

use std::collections::BTreeSet;

use super::control::{Answer, Answers, Reply};
use super::wake::Wake;
use super::{Agent, clock};
use crate::reconcile::later;
use crate::reconcile::step::Step;
use crate::reconcile::transition::Outcome;
use crate::reconcile::uses::{Role, contents, secrets, uses};
use crate::registry::{Collection, Doomed, Pressure};
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{ByteSize, ContainerState, Digest, Reason, Refusal, Timestamp, plural};

/// From one collection by itself to the next where nothing is deployed: one a day, for what grows old.
const EVERY: std::time::Duration = std::time::Duration::from_secs(86_400);

/// What is known of the next collection.
#[derive(Debug)]
pub(super) struct Garbage {
    /// `Some`: one is due.
    due: Option<Pressure>,
    /// The last one of its own.
    last: Option<Timestamp>,
    under_way: bool,
}

impl Garbage {
    /// One is due: a former agent may have left some.
    pub fn at_start() -> Self {
        Self { due: Some(Pressure::Configured), last: None, under_way: false }
    }

    /// One is due, where the last one is long ago.
    fn remind(&mut self, now: Timestamp) {
        // A clock that is set back does not put it off by as much.
        self.last = self.last.map(|last| last.min(now));
        if self.last.is_some_and(|last| now >= later(last, EVERY)) {
            self.due = self.due.or(Some(Pressure::Configured));
        }
    }

    /// Notes what came of a step.
    pub fn after(&mut self, step: &Step, outcome: &Outcome) {
        match (step, outcome) {
            (Step::Pull(_), Outcome::Retry(refusal) | Outcome::Failed(refusal))
                if refusal.reason == Reason::DiskSpace =>
            {
                self.due = Some(Pressure::Everything);
            }
            (Step::Promote(_) | Step::Retire(_) | Step::Conclude | Step::Remove(_), Outcome::Done) => {
                self.due = self.due.or(Some(Pressure::Configured));
            }
            _ => {}
        }
    }
}

impl Agent {
    /// Collects when it is time.
    pub(super) fn collect_garbage(&mut self) {
        let now = clock::now();
        self.garbage.remind(now);
        let Some(pressure) = self.garbage.due else { return };
        // A pull that waits for room is never at rest.
        let may = self.at_rest() || pressure == Pressure::Everything;
        // Without a word from the repo nobody knows what it wants.
        if self.garbage.under_way || !may || self.source.looks == 0 {
            return;
        }
        self.garbage.due = None;
        self.garbage.last = Some(now);
        match self.doom(pressure, false) {
            Ok(doomed) => self.remove(doomed, false, None),
            Err(refusal) => tracing::warn!("images are not collected: {refusal}"),
        }
    }

    /// Collects for an operator.
    pub(super) fn collect_for(&mut self, dry_run: bool, answer: Answers) {
        let result = if self.garbage.under_way {
            Err(Refusal::new(Reason::Superseded, "a collection is under way: try again shortly"))
        } else {
            self.doom(Pressure::Configured, dry_run)
        };
        match result {
            Ok(doomed) => self.remove(doomed, dry_run, Some(answer)),
            Err(refusal) => {
                // The asker may be gone: its own business.
                let _ = answer.send(Answer::Reply(Reply::failed(refusal.to_string())));
            }
        }
    }

    /// Takes what nothing needs out of use.
    fn doom(&self, pressure: Pressure, dry_run: bool) -> Result<Doomed, Refusal> {
        if let Some(service) = self.journal.frozen.keys().next() {
            let what =
                format!("what {service} needs is not known, as its record is damaged: nothing is removed");
            return Err(Refusal::new(Reason::StateInvalid, what));
        }
        let now = clock::now();
        let uses = uses(self.desired.as_ref(), &self.journal.records);
        let needed: BTreeSet<Digest> = uses.iter().map(|used| used.image.digest.clone()).collect();
        let used = uses.iter().filter(|used| used.role != Role::Wanted);
        if !dry_run {
            let mut contents = contents(self.desired.as_ref(), &self.journal.records);
            contents.extend(self.source.contents());
            if let Err(error) = self.state.drop_contents(&contents) {
                tracing::warn!("old config files are not removed: {}", error.to_refusal());
            }
            let mut secrets = secrets(&self.journal.records);
            secrets.extend(self.secrets.contents());
            if let Err(error) = self.state.drop_secrets(&secrets) {
                tracing::warn!("old secrets are not removed: {}", error.to_refusal());
            }
            self.store.note_uses(&used.map(|used| used.image.digest.clone()).collect(), now);
        }
        let doomed = self.store.collect(&self.config.images, &needed, pressure, now, dry_run);
        doomed.map_err(|error| error.to_refusal())
    }

    /// Removes the bytes beside the loop.
    fn remove(&mut self, doomed: Doomed, dry_run: bool, answer: Option<Answers>) {
        self.garbage.under_way = true;
        let (store, waker, oldest) = (self.store.clone(), self.waker.clone(), self.oldest_container());
        self.hands.runtime.spawn_blocking(move || {
            let collection = doomed.finish();
            // Damaged layers that were put aside go with the last container that is older than that.
            if !dry_run {
                store.sweep_aside(|aside| oldest.is_some_and(|oldest| oldest <= aside.since));
            }
            let told = match answer {
                Some(answer) => {
                    let body = serde_json::to_value(&collection).ok();
                    let _ = answer.send(Answer::Reply(Reply { code: 0, message: String::new(), body }));
                    None
                }
                None => Some(collection),
            };
            // The loop may be gone.
            let _ = waker.send(Wake::Collected(told));
        });
    }

    /// When the oldest container began that runs.
    fn oldest_container(&self) -> Option<Timestamp> {
        let began = |state: &ContainerState| match state {
            ContainerState::Running { started_at, .. } => Some(*started_at),
            _ => None,
        };
        self.seen.containers.values().filter_map(began).min()
    }

    /// Whether bytes are being removed.
    pub(super) fn is_collecting(&self) -> bool {
        self.garbage.under_way
    }

    /// A collection is over.
    pub(super) fn collected(&mut self, collection: Option<Collection>) {
        self.garbage.under_way = false;
        let Some(collection) = collection.filter(|collection| collection.freed > 0) else { return };
        let freed = ByteSize(collection.freed).human();
        let names: Vec<String> = collection
            .images
            .iter()
            .map(|gone| gone.references.first().map_or_else(|| gone.digest.to_string(), ToString::to_string))
            .collect();
        let what = match names.as_slice() {
            [] => format!("{} that no image has", plural(collection.unused.len(), "layer", "layers")),
            names => names.join(", "),
        };
        self.tell(Some(Message::new(Kind::ImagesCollected, format!("removed {what}: {freed} freed"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_a_day_also_after_a_clock_that_was_ahead() {
        let at = |hours: i64| Timestamp::from_second(1_800_000_000 + hours * 3600).unwrap();
        let due = |garbage: &mut Garbage, hours| {
            garbage.remind(at(hours));
            garbage.due.take().is_some()
        };
        let mut garbage = Garbage { due: None, last: Some(at(0)), under_way: false };
        assert!(!due(&mut garbage, 23) && due(&mut garbage, 24));
        let year_ahead = Some(at(365 * 24));
        let mut garbage = Garbage { due: None, last: year_ahead, under_way: false };
        assert!(!due(&mut garbage, 0) && !due(&mut garbage, 23) && due(&mut garbage, 24));
    }
}
