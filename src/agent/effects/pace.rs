//! When what did not work is tried again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::reconcile::step::Step;
use crate::reconcile::world::Busy;
use crate::reconcile::{later, pending};
use crate::types::{Reason, Refusal, ServiceName, Timestamp};

/// First pause after an effect that did not work and that no record remembers; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The same step so often within [`REPEATS_WITHIN`] is no progress: something does not stay as it was made.
const REPEATS: u32 = 6;
const REPEATS_WITHIN: Duration = Duration::from_secs(10);

/// Pauses and repetitions, by service.
#[derive(Debug, Default)]
pub struct Pace {
    /// Tries in a row, the end of the pause, and why there is one.
    pauses: BTreeMap<ServiceName, (u32, Timestamp, Refusal)>,
    /// The last step of each service, how often in a row, and since when.
    repeats: BTreeMap<ServiceName, (Step, u32, Timestamp)>,
}

impl Pace {
    /// Those that last; what is waited for is why.
    pub fn pauses(&self, now: Timestamp) -> BTreeMap<ServiceName, Busy> {
        let pauses = self.pauses.iter().filter(|(_, (_, until, _))| pending(now, *until, LONGEST_PAUSE));
        let busy = |until: &Timestamp, refusal: &Refusal| Busy {
            what: format!("{refusal}; tried again soon"),
            since: *until,
            yields: false,
        };
        pauses.map(|(service, (_, until, refusal))| (service.clone(), busy(until, refusal))).collect()
    }

    /// When the next one ends.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        self.pauses
            .values()
            .map(|(_, until, _)| *until)
            .filter(|until| pending(now, *until, LONGEST_PAUSE))
            .min()
    }

    /// Why the last effect of a service did not work.
    pub fn trouble(&self, service: &ServiceName) -> Option<&Refusal> {
        self.pauses.get(service).map(|(_, _, refusal)| refusal)
    }

    /// An effect that no rollout remembers did not work: it waits before it is tried again. Gives whether that is
    /// news.
    pub fn pause(&mut self, service: &ServiceName, refusal: &Refusal, now: Timestamp) -> bool {
        let former = self.pauses.get(service);
        let news = former.is_none_or(|(_, _, former)| former != refusal);
        let attempts = former.map_or(0, |(attempts, ..)| *attempts);
        let pause = FIRST_PAUSE.saturating_mul(1 << attempts.min(16)).min(LONGEST_PAUSE);
        self.pauses.insert(service.clone(), (attempts.saturating_add(1), later(now, pause), refusal.clone()));
        news
    }

    /// An effect did not work, and the record says when it is tried again: only why is kept, and nothing else of the
    /// service waits for it. Gives whether that is news.
    pub fn note(&mut self, service: &ServiceName, refusal: &Refusal, now: Timestamp) -> bool {
        let news = self.trouble(service) != Some(refusal);
        self.pauses.insert(service.clone(), (0, now, refusal.clone()));
        news
    }

    /// Ends the pause of a service (`None`: of all) now.
    pub fn hurry(&mut self, service: Option<&ServiceName>, now: Timestamp) {
        let chosen = |name: &ServiceName| service.is_none_or(|service| service == name);
        for (_, (attempts, until, _)) in self.pauses.iter_mut().filter(|(name, _)| chosen(name)) {
            (*attempts, *until) = (0, now);
        }
    }

    /// Notes that a step is about to be taken. `Some`: it was taken again and again, and has to wait.
    pub fn repeated(&mut self, service: &ServiceName, step: &Step, now: Timestamp) -> Option<Refusal> {
        let (count, since) = match self.repeats.get(service) {
            Some((last, count, since))
                if last == step && (*since..later(*since, REPEATS_WITHIN)).contains(&now) =>
            {
                (count + 1, *since)
            }
            _ => (1, now),
        };
        self.repeats.insert(service.clone(), (step.clone(), count, since));
        (count > REPEATS).then(|| {
            Refusal::new(
                Reason::Internal,
                format!("`{step}` was done {REPEATS} times in a row and does not last"),
            )
        })
    }

    /// An effect worked.
    pub fn clear(&mut self, service: &ServiceName) {
        self.pauses.remove(service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boot before the clock is set: what does not work then is tried again as soon as it is right.
    #[test]
    fn a_clock_that_is_set_back_ends_pauses() {
        let (service, refusal) = ("web".parse().unwrap(), Refusal::new(Reason::StartFailed, "no disk yet"));
        let wrong: Timestamp = "2038-01-01T00:00:00Z".parse().unwrap();
        let right: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut pace = Pace::default();
        pace.pause(&service, &refusal, wrong);
        assert!(pace.pauses(wrong).contains_key(&service) && pace.next_end(wrong).is_some());
        assert!(pace.pauses(right).is_empty() && pace.next_end(right).is_none());
    }
}
