//! The loop, top to bottom.

use std::time::Duration;

use super::source::Source;
use super::waiters::Waiter;
use super::wake::Wake;
use super::{Agent, clock};
use crate::reconcile::plan;
use crate::reconcile::step::Next;
use crate::reconcile::world::DesiredService;
use crate::report::Message;
use crate::report::message::Kind;
use crate::report::notify;
use crate::types::Timestamp;

/// More passes than any rollout has phases: a round that needs more goes on in the next one, after the watchdog was
/// fed and the operators were heard.
const MAX_PASSES: usize = 16;

/// The loop comes round at least this often, to see what nothing tells it of.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

impl Agent {
    /// Comes round until it is told to stop. Gives whether the host is in sync.
    pub(super) fn run(&mut self, once: bool) -> bool {
        let mut ready = false;
        loop {
            self.poll();
            self.look_at_state();
            self.look_at_socket();
            let more = self.round();
            self.note_arrival();
            self.push_receipts();
            self.collect_garbage();
            self.publish();
            self.show();
            self.answer_waiters();
            self.notifier.alive();
            if !std::mem::replace(&mut ready, true) {
                self.notifier.ready();
            }
            let rests = self.at_rest() || self.is_over();
            let beside = self.outbox.is_quiet() && self.board.is_quiet() && self.shims.is_quiet();
            let done = rests && beside && !self.is_collecting();
            if once && !more && done && self.source.looks > 0 {
                return self.in_sync();
            }
            let pause = if more { Duration::ZERO } else { self.pause() };
            let mut next = self.wakes.recv_timeout(pause).ok();
            while let Some(wake) = next {
                if let Wake::Stop = wake {
                    self.notifier.stopping();
                    self.tell(Some(Message::new(Kind::AgentStopping, "the agent ends; containers go on")));
                    return self.in_sync();
                }
                self.take(wake);
                next = self.wakes.try_recv().ok();
            }
        }
    }

    /// Looks at the repo when it is time, and at tags that are to be tried again.
    fn poll(&mut self) {
        let now = clock::now();
        if self.source.is_due(now) {
            self.look();
        }
        if let Some(desired) = &mut self.desired {
            self.source.retry(desired, now);
            self.source.check_tags(desired, now);
        }
    }

    /// Looks at the repo now; gives the number of the look that will have seen it.
    pub(super) fn look(&mut self) -> u64 {
        let mark = self.high_water.as_ref().map(|mark| mark.commit.clone());
        let in_force = self.desired.as_ref().map(|desired| desired.commit.id.clone());
        self.source.look(mark, self.reset.clone(), in_force, self.waives, clock::now())
    }

    /// Observes, plans, carries out, until no step is left that can be taken now. Gives whether it was cut short.
    fn round(&mut self) -> bool {
        for _ in 0..MAX_PASSES {
            match self.observe() {
                Ok(seen) => {
                    self.seen = seen;
                    self.blind = None;
                }
                Err(refusal) => {
                    if self.blind.as_ref() != Some(&refusal) {
                        let message =
                            Message::new(Kind::EffectFailed, refusal.message.clone()).because(&refusal);
                        self.tell(Some(message));
                    }
                    self.blind = Some(refusal);
                    return false;
                }
            }
            self.plan = plan(
                self.desired.as_ref(),
                &self.seen,
                &self.journal.records,
                &self.config.policy,
                clock::now(),
            );
            let steps: Vec<_> =
                self.plan.steps().map(|(service, step)| (service.clone(), step.clone())).collect();
            if steps.is_empty() {
                // It was said of what was to be deployed then, and not of what the host itself changes later.
                if self.in_sync() && self.desired.as_ref().is_some_and(|desired| desired.window_waived) {
                    self.set_desired(|desired| desired.window_waived = false);
                }
                self.note_refusals();
                self.note_ailing();
                self.state.refill_reserve();
                return false;
            }
            for (service, step) in &steps {
                self.execute(service, step);
            }
        }
        true
    }

    /// Takes in what a wake carries.
    fn take(&mut self, wake: Wake) {
        match wake {
            Wake::Look(why) => tracing::debug!("looking: {why}"),
            Wake::RepoMoved(why) => {
                tracing::debug!("looking at the repo: {why}");
                self.look();
            }
            Wake::Fetched(result) => self.fetched(*result),
            Wake::Resolved { commit, service, result } => {
                let current = self.desired.as_ref().is_some_and(|desired| desired.commit.id == commit);
                let own = current.then(|| self.source.looked_up(&service)).flatten();
                if let (Some(image), Ok(digest)) = (own, &result) {
                    self.note_tag(&image, digest);
                }
                if current && let Some(wanted) = self.source.resolved(&service, result, clock::now()) {
                    self.set_desired(|desired| {
                        desired.services.insert(service, wanted);
                    });
                }
            }
            Wake::TagMoved(moved) => self.tag_moved(&moved),
            Wake::Effect { service, step, outcome } => {
                self.effects.ended(&service, &step);
                self.conclude(&service, &step, &outcome);
            }
            Wake::Adopted { failed } => self.shims.adopted(failed, clock::now()),
            Wake::Pushed(result) => self.pushed(result),
            Wake::Shown(result) => self.shown(result),
            Wake::Collected(collection) => self.collected(collection),
            Wake::Operator(command, answer) => self.operator(command, answer),
            // Taken care of by the caller.
            Wake::Stop => {}
        }
    }

    fn note_refusals(&mut self) {
        let held: Vec<_> = self
            .plan
            .services
            .iter()
            .map(|(service, planned)| match &planned.next {
                Next::Held { refusal, .. } => (service.clone(), Some(refusal.clone())),
                _ => (service.clone(), None),
            })
            .collect();
        for (service, refusal) in held {
            // What an operator or a failed rollout said has been told already.
            let told = self.journal.records.get(&service).is_some_and(|record| {
                record.hold.is_some()
                    || record.failure.as_ref().map(|failure| &failure.refusal) == refusal.as_ref()
            });
            if !told || refusal.is_none() {
                self.refuse(&service, refusal.as_ref());
            }
        }
    }

    /// How long nothing can change without a wake.
    fn pause(&self) -> Duration {
        let now = clock::now();
        let until = |at: Timestamp| Duration::try_from(at.duration_since(now)).unwrap_or_default();
        let times = [
            self.plan.wake_at,
            Some(self.source.next_look()).filter(|_| !self.source.is_looking()),
            self.arrivals.next_word(),
            self.desired.as_ref().and_then(Source::next_retry),
            self.source.next_tags(),
            self.effects.next_end(now),
            self.outbox.next_try(),
            self.board.next_try(),
            // Who sees nothing has nobody adopted.
            self.shims.next_try().filter(|_| self.blind.is_none()),
            self.waiters.iter().filter_map(Waiter::gives_up_at).min(),
        ];
        let limit = match (notify::watchdog(), &self.blind) {
            (_, Some(_)) => Duration::from_secs(1),
            (Some(watchdog), None) => LONGEST_SLEEP.min(watchdog / 3),
            (None, None) => LONGEST_SLEEP,
        };
        // A millisecond more than needed beats coming round a moment too early, for nothing.
        let first = times.into_iter().flatten().map(until).min();
        first.map_or(limit, |first| limit.min(first + Duration::from_millis(1)))
    }

    /// Whether every service is as the repo wants it and well, and the repo is followed.
    pub(super) fn in_sync(&self) -> bool {
        self.plan.in_sync()
            && self.desired.is_some()
            && self.source.refusal.is_none()
            && self.source.waits.is_none()
            && self.blind.is_none()
            && self.fault.is_none()
            && self.ailing.is_empty()
    }

    /// Whether nothing is under way.
    pub(super) fn at_rest(&self) -> bool {
        self.plan.at_rest() && !self.is_finding_out()
    }

    /// Whether this commit has come to its end here: nothing is under way, and nothing is about to be tried again.
    pub(super) fn is_over(&self) -> bool {
        // What waits for state to be writable waits for a person.
        let stuck = self.fault.is_some() && self.effects.is_quiet();
        (self.plan.is_over() || stuck) && !self.is_finding_out()
    }

    fn is_finding_out(&self) -> bool {
        let resolving = self.desired.as_ref().is_some_and(|desired| {
            desired.services.values().any(|service| matches!(service, DesiredService::Resolving))
        });
        resolving || self.source.is_looking()
    }
}
