//! The loop, top to bottom.

use std::collections::BTreeSet;
use std::time::Duration;

use super::probes::Subject;
use super::source::{Revision, Source};
use super::wake::Wake;
use super::{Agent, clock};
use crate::reconcile::health::EffectiveCheck;
use crate::reconcile::next::{GRACE, IDLE_POLL};
use crate::reconcile::step::Next;
use crate::reconcile::world::{DesiredService, Observed};
use crate::reconcile::{later, plan};
use crate::report::Message;
use crate::report::message::Kind;
use crate::report::notify;
use crate::state::trust::HighWater;
use crate::types::{ContainerState, InstanceId, Refusal, Timestamp};

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
            let more = self.round();
            self.push_receipts();
            self.collect_garbage();
            self.publish();
            self.answer_waiters();
            self.notifier.alive();
            if !std::mem::replace(&mut ready, true) {
                self.notifier.ready();
            }
            let done = self.at_rest() && self.outbox.is_quiet() && !self.is_collecting();
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
        if now >= self.source.next_poll && !self.source.is_looking() {
            self.look();
        }
        if let Some(desired) = &mut self.desired {
            self.source.retry(desired, now);
        }
    }

    /// Looks at the repo now; gives the number of the look that will have seen it.
    pub(super) fn look(&mut self) -> u64 {
        let mark = self.high_water.as_ref().map(|mark| mark.commit.clone());
        self.source.look(mark, clock::now())
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

    /// The world, afresh.
    fn observe(&mut self) -> Result<Observed, Refusal> {
        let now = clock::now();
        let containers = self.hands.engine.observe().map_err(|error| error.to_refusal())?;
        let routes = self.hands.traffic.observe().map_err(|error| error.to_refusal())?;
        let mut subjects = Vec::new();
        for seen in &containers {
            let record = self.journal.records.get(&seen.id.service);
            let live = record.and_then(|record| record.live(seen.id.generation));
            if let (Some(deployed), ContainerState::Running { pid, started_at }) = (live, &seen.state) {
                subjects.push(Subject {
                    id: seen.id.clone(),
                    pid: *pid,
                    started_at: *started_at,
                    address: deployed.address,
                    check: EffectiveCheck::of(&deployed.spec),
                });
            }
        }
        self.probes.follow(subjects);
        let mut seen = Observed {
            containers: containers.into_iter().map(|seen| (seen.id, seen.state)).collect(),
            routes,
            health: self.probes.histories(),
            pulling: self.effects.pulling(),
            busy: self.effects.busy(now),
            frozen: self.journal.frozen.clone(),
            ..Observed::default()
        };
        self.look_for_images(&mut seen);
        self.look_for_idle(&mut seen, now);
        Ok(seen)
    }

    /// Only images that a decision can hang on are looked for: of candidates, and of incumbents that are down.
    fn look_for_images(&self, seen: &mut Observed) {
        let running = |service, generation| {
            let id = InstanceId::new(service, generation);
            matches!(seen.containers.get(&id), Some(ContainerState::Running { .. }))
        };
        let mut digests = BTreeSet::new();
        for (service, record) in &self.journal.records {
            let incumbent = record.incumbent.iter().filter(|deployed| !running(service, deployed.generation));
            let candidate = record.rollout.iter().map(|rollout| &rollout.to);
            digests.extend(incumbent.chain(candidate).map(|deployed| &deployed.spec.image.digest));
        }
        let here = digests.into_iter().filter(|digest| self.store.image(digest).is_some());
        seen.images = here.cloned().collect();
    }

    /// Counts the looks at which a retiring container had no connection.
    fn look_for_idle(&mut self, seen: &mut Observed, now: Timestamp) {
        let mut idle = std::mem::take(&mut self.idle);
        for (service, record) in &self.journal.records {
            let Some(retiring) = &record.retiring else { continue };
            let id = InstanceId::new(service, retiring.old.generation);
            let runs = matches!(seen.containers.get(&id), Some(ContainerState::Running { .. }));
            if !runs || now < later(retiring.since, GRACE) {
                continue;
            }
            let (polls, last) = idle.remove(&id).unwrap_or((0, Timestamp::MIN));
            let counted = if now < later(last, IDLE_POLL.mul_f64(0.8)) {
                (polls, last)
            } else {
                match self.hands.traffic.connections(&id) {
                    Ok(0) => (polls.saturating_add(1), now),
                    Ok(_) => (0, now),
                    Err(error) => {
                        tracing::debug!("{id}: {}", error.to_refusal());
                        (0, now)
                    }
                }
            };
            seen.idle_polls.insert(id.clone(), counted.0);
            self.idle.insert(id, counted);
        }
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
                if current && let Some(wanted) = self.source.resolved(&service, result, clock::now()) {
                    self.set_desired(|desired| {
                        desired.services.insert(service, wanted);
                    });
                }
            }
            Wake::Effect { service, step, outcome } => {
                self.effects.ended(&service, &step);
                self.conclude(&service, &step, &outcome);
            }
            Wake::Pushed(result) => self.pushed(result),
            Wake::Collected(collection) => self.collected(collection),
            Wake::Operator(command, answer) => self.operator(command, answer),
            // Taken care of by the caller.
            Wake::Stop => {}
        }
    }

    /// A look at the repo is over.
    fn fetched(&mut self, result: Result<Revision, Refusal>) {
        let now = clock::now();
        if self.source.looked() {
            self.look();
        }
        match result {
            Err(refusal) => {
                if self.source.refusal.as_ref() != Some(&refusal) {
                    let lost = refusal.reason == crate::types::Reason::GitUnreachable;
                    let kind = if lost { Kind::SourceLost } else { Kind::RevisionRefused };
                    let text = format!("{}; everything stays as it is", refusal.message);
                    self.tell(Some(Message::new(kind, text).because(&refusal)));
                }
                self.source.refusal = Some(refusal);
            }
            Ok(revision) => {
                if self.source.refusal.take().is_some() {
                    self.tell(Some(Message::new(Kind::SourceFound, "the config repo is followed again")));
                }
                let first = self.source.reached_at.is_none();
                self.source.reached_at = Some(now);
                let moved =
                    self.desired.as_ref().is_none_or(|desired| desired.commit.id != revision.commit.id);
                if moved || first {
                    self.admit(revision, moved, now);
                }
            }
        }
    }

    /// Takes a revision over: the mark first, then what it wants.
    fn admit(&mut self, revision: Revision, moved: bool, now: Timestamp) {
        let commit = revision.commit.clone();
        if self.high_water.as_ref().is_none_or(|mark| mark.commit != commit.id) {
            let mark = HighWater { commit: commit.id.clone(), admitted_at: now };
            if let Err(error) = self.state.save_high_water(&mark) {
                let refusal = error.to_refusal();
                self.tell(Some(Message::new(Kind::StateTrouble, refusal.message.clone()).because(&refusal)));
                self.source.refusal = Some(refusal);
                return;
            }
            self.high_water = Some(mark);
        }
        if moved {
            let text = format!("commit {} by {}: {}", commit.id.short(), commit.author, commit.subject);
            self.tell(Some(Message::new(Kind::RevisionAdmitted, text).at(&commit.id)));
        }
        let desired = self.source.desire(revision, self.desired.as_ref(), &self.journal.records);
        if self.desired.as_ref() != Some(&desired) {
            self.keep_desired(desired);
        }
    }

    fn set_desired(&mut self, change: impl FnOnce(&mut crate::reconcile::world::Desired)) {
        if let Some(mut desired) = self.desired.take() {
            change(&mut desired);
            self.keep_desired(desired);
        }
    }

    /// Makes durable what is wanted. Where that fails it is acted on all the same: the commit is the truth, and is
    /// read again after a restart.
    fn keep_desired(&mut self, desired: crate::reconcile::world::Desired) {
        if let Err(error) = self.state.save_desired(&desired) {
            let refusal = error.to_refusal();
            self.tell(Some(Message::new(Kind::StateTrouble, refusal.message.clone()).because(&refusal)));
        }
        self.desired = Some(desired);
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
            Some(self.source.next_poll).filter(|_| !self.source.is_looking()),
            self.desired.as_ref().and_then(Source::next_retry),
            self.effects.next_end(now),
            self.outbox.next_try(),
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
            && self.blind.is_none()
            && self.ailing.is_empty()
    }

    /// Whether nothing is under way.
    pub(super) fn at_rest(&self) -> bool {
        let resolving = self.desired.as_ref().is_some_and(|desired| {
            desired.services.values().any(|service| matches!(service, DesiredService::Resolving))
        });
        self.plan.at_rest() && !resolving && !self.source.is_looking()
    }
}
