//! What this host says of a commit as a whole: for the hosts of later waves, who go by it.

use std::time::Duration;

use super::{Agent, clock};
use crate::reconcile::arrival::Arrival;
use crate::reconcile::later;
use crate::reconcile::step::Next;
use crate::state::arrival::Kept;
use crate::types::{Reason, Refusal, ServiceName, Timestamp};

/// Longest pause between two words on one commit: a service that comes and goes is no news each time.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The name that what is to be said has among the receipts that are pushed.
pub(super) const NAME: &str = "arrival";

/// What was said last.
#[derive(Debug, Default)]
pub struct Arrivals {
    kept: Option<Kept>,
    /// How often it was said of this commit.
    words: u32,
    next_word: Option<Timestamp>,
}

impl Arrivals {
    pub fn new(kept: Option<Kept>) -> Self {
        Self { kept, ..Self::default() }
    }

    /// What is not in git yet.
    pub fn due(&self) -> Option<&Arrival> {
        self.kept.as_ref().filter(|kept| !kept.pushed).map(|kept| &kept.arrival)
    }

    /// When more may be said.
    pub fn next_word(&self) -> Option<Timestamp> {
        self.next_word
    }
}

impl Agent {
    /// Says how this host is, once nothing of the commit is under way and where that is another word than the last.
    pub(super) fn note_arrival(&mut self) {
        self.arrivals.next_word = None;
        let Some(desired) = self.desired.as_ref().filter(|_| self.source.wave.is_some()) else { return };
        let settled = self.is_over() && self.blind.is_none() && self.fault.is_none();
        if !settled || self.is_put_off() {
            return;
        }
        let (now, host) = (clock::now(), &self.config.host);
        let trouble = self.trouble();
        let trouble = trouble.as_ref().map(|(service, refusal)| (service, refusal));
        let word = Arrival::new(&host.name, &host.labels, &desired.commit.id, trouble, now);
        let former = self.arrivals.kept.as_ref().map(|kept| &kept.arrival);
        if former.is_some_and(|former| former.says_the_same(&word)) {
            return;
        }
        let words = match former {
            Some(former) if former.commit == word.commit => self.arrivals.words,
            _ => 0,
        };
        if let Some(former) = former.filter(|_| words > 0) {
            let pause = Duration::from_secs(1).saturating_mul(1 << words.min(16)).min(LONGEST_PAUSE);
            let next = later(former.since, pause);
            if now < next && next <= later(now, LONGEST_PAUSE) {
                self.arrivals.next_word = Some(next);
                return;
            }
        }
        let kept = Kept { arrival: word, pushed: false };
        if let Err(error) = self.state.save_arrival(&kept) {
            return self.note_fault(Some(error.to_refusal()));
        }
        self.arrivals = Arrivals { kept: Some(kept), words: words + 1, next_word: None };
        self.outbox_changed = true;
    }

    /// What was said is in git. Where newer words have come meanwhile, these are not.
    pub(super) fn arrival_pushed(&mut self, id: &str) {
        let Some(kept) = self.arrivals.kept.as_mut().filter(|kept| kept.arrival.id == id) else { return };
        kept.pushed = true;
        if let Err(error) = self.state.save_arrival(kept) {
            // It is said once more after a restart: the same words under the same name.
            tracing::warn!("{}", error.to_refusal());
        }
    }

    /// Whether a service waits for something that is meant to come: its window, or another service.
    fn is_put_off(&self) -> bool {
        self.plan.services.values().any(|planned| match &planned.next {
            Next::Held { refusal, .. } => matches!(refusal.reason, Reason::Window | Reason::Dependency),
            _ => false,
        })
    }

    /// The first service that is not as it should be.
    fn trouble(&self) -> Option<(ServiceName, Refusal)> {
        let held = self.plan.services.iter().find_map(|(service, planned)| match &planned.next {
            Next::Held { refusal, .. } => Some((service.clone(), refusal.clone())),
            _ => None,
        });
        held.or_else(|| {
            self.ailing.first_key_value().map(|(service, refusal)| (service.clone(), refusal.clone()))
        })
    }
}
