//! Receipts on their way to git: in order, at least once, tried again for ever.

use std::time::Duration;

use super::arrivals::NAME as ARRIVAL;
use super::tags::NAME as TAGS;
use super::wake::{Pushed, Wake};
use super::{Agent, clock};
use crate::git::Place;
use crate::reconcile::{later, pending};
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{Refusal, Timestamp, plural};

/// First pause before a push is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How many receipts one push takes along: the rest go with the next.
const BATCH: usize = 200;

/// What is known of the outbox.
#[derive(Debug, Default)]
pub struct Outbox {
    pushing: bool,
    /// Receipts that wait.
    pub waiting: usize,
    attempts: u32,
    next_try: Option<Timestamp>,
    refusal: Option<Refusal>,
}

impl Outbox {
    /// When the next push is due by itself.
    pub fn next_try(&self) -> Option<Timestamp> {
        self.next_try.filter(|_| !self.pushing)
    }

    /// Has what waits pushed at once.
    pub fn hurry(&mut self, now: Timestamp) {
        if let Some(at) = &mut self.next_try {
            (*at, self.attempts) = (now, 0);
        }
    }

    /// Whether nothing can be pushed right now.
    pub fn is_quiet(&self) -> bool {
        !self.pushing && (self.waiting == 0 || self.next_try.is_some())
    }
}

impl Agent {
    /// Begins to push what is in the outbox, beside the loop.
    pub(super) fn push_receipts(&mut self) {
        let due = self.outbox.next_try.is_some_and(|at| !pending(clock::now(), at, LONGEST_PAUSE));
        if !self.config.report.push || self.outbox.pushing || !(self.outbox_changed || due) {
            return;
        }
        self.outbox_changed = false;
        let receipts = match self.state.outbox() {
            Ok(receipts) => receipts,
            Err(error) => return self.pushed(Err(error.to_refusal())),
        };
        let word = self.arrivals.due().cloned();
        let tags = self.tags.as_ref().filter(|kept| !kept.pushed).map(|kept| kept.tagged.clone());
        self.outbox.waiting = receipts.len() + usize::from(word.is_some()) + usize::from(tags.is_some());
        if self.outbox.waiting == 0 {
            return;
        }
        self.outbox.pushing = true;
        self.outbox.next_try = None;
        let (repository, waker) = (self.repository.clone(), self.waker.clone());
        let (remote, host) = (self.config.report.remote.clone(), self.config.host.name.clone());
        self.hands.runtime.spawn_blocking(move || {
            let mut names = Vec::new();
            let mut lines = Vec::new();
            for (name, receipt) in receipts.into_iter().take(BATCH) {
                lines.push((receipt.commit, receipt.id, receipt.line));
                names.push(name);
            }
            if let Some(word) = word {
                let line = serde_json::to_string(&word).unwrap_or_default();
                names.push(format!("{ARRIVAL}/{}", word.id));
                lines.push((word.commit, word.id, line));
            }
            if let Some(tags) = tags {
                let line = serde_json::to_string(&tags).unwrap_or_default();
                names.push(format!("{TAGS}/{}", tags.id));
                lines.push((tags.commit, tags.id, line));
            }
            let result = repository.publish(remote.as_ref(), &host, &lines);
            // The loop may be gone: then they wait in the outbox.
            let pushed = result.map(|place| Pushed { names, place });
            let _ = waker.send(Wake::Pushed(pushed.map_err(|error| error.to_refusal())));
        });
    }

    /// A push has ended.
    pub(super) fn pushed(&mut self, result: Result<Pushed, Refusal>) {
        self.outbox.pushing = false;
        let cleared = result.and_then(|Pushed { names, place }| {
            if let Place::NewBranch { branch, why } = place {
                let text = format!(
                    "the git server refuses this host's notes ({why}): receipts go to the branch {branch}"
                );
                self.tell(Some(Message::new(Kind::ReceiptsOnBranch, text)));
            }
            for name in &names {
                match name.split_once('/') {
                    Some((ARRIVAL, id)) => self.arrival_pushed(id),
                    Some((TAGS, id)) => self.tags_pushed(id),
                    _ => self.state.clear_outbox(name).map_err(|error| error.to_refusal())?,
                }
            }
            Ok(names.len())
        });
        match cleared {
            Ok(count) => {
                self.outbox.waiting = self.outbox.waiting.saturating_sub(count);
                self.outbox.attempts = 0;
                self.outbox.refusal = None;
                // More than a batch, or new ones since.
                self.outbox_changed |= self.outbox.waiting > 0;
                self.tell(Some(Message::new(
                    Kind::ReceiptsPushed,
                    format!("{} in git", plural(count, "receipt is", "receipts are")),
                )));
            }
            Err(refusal) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << self.outbox.attempts.min(16)).min(LONGEST_PAUSE);
                self.outbox.attempts = self.outbox.attempts.saturating_add(1);
                self.outbox.next_try = Some(later(clock::now(), pause));
                if self.outbox.refusal.as_ref() != Some(&refusal) {
                    let text = format!("receipts wait in the outbox: {}", refusal.message);
                    self.tell(Some(Message::new(Kind::ReceiptsStuck, text).because(&refusal)));
                }
                self.outbox.refusal = Some(refusal);
            }
        }
    }
}
