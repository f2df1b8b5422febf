//! What operators ask.

use std::time::Duration;

use super::control::{Accept, Answer, Answers, Command, Reply};
use super::waiters::Waiter;
use super::{Agent, clock, news};
use crate::reconcile::record::{Cause, Hold, Phase, ServiceRecord};
use crate::reconcile::step::Step;
use crate::reconcile::transition::{self, Outcome};
use crate::reconcile::{later, operator};
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{Reason, Refusal, ServiceName};

impl Agent {
    /// Hears an operator.
    pub(super) fn operator(&mut self, command: Command, answer: Answers) {
        let reply = match command {
            Command::Status => {
                let body = self.status_now().and_then(|status| serde_json::to_value(status).ok());
                Reply { code: 0, message: String::new(), body }
            }
            Command::Sync { wait, seconds, accept, now } => {
                self.hurry();
                if now {
                    self.waive_windows();
                }
                let accepts = accept.is_some();
                if let Some(Accept { commit, by }) = accept {
                    let reason = "gitopsd sync --accept".to_owned();
                    if let Err(refusal) = self.reset_trust(Some(commit), by, reason) {
                        let _ = answer.send(Answer::Reply(Reply::failed(refusal.to_string())));
                        return;
                    }
                }
                let look = self.look();
                if wait || accepts {
                    let limit = seconds.map(Duration::from_secs);
                    return self.waiters.push(Waiter::new(look, wait, limit, answer));
                }
                Reply::done("looking at the repo")
            }
            Command::TrustReset { commit, by, reason } => match self.reset_trust(commit, by, reason) {
                Ok(()) => {
                    self.hurry();
                    let look = self.look();
                    return self.waiters.push(Waiter::new(look, false, None, answer));
                }
                Err(refusal) => Reply::failed(refusal.to_string()),
            },
            Command::Rollback { service, by } => {
                self.with_record(&service, |agent, record| agent.roll_back(&service, record, by))
            }
            Command::Hold { service, reason, by, seconds } => {
                self.with_record(&service, |agent, mut record| {
                    let now = clock::now();
                    let until = seconds.map(|seconds| later(now, Duration::from_secs(seconds)));
                    let message =
                        Message::of(Kind::HoldBegan, &service, format!("{service}: held by {by}: {reason}"));
                    operator::hold(&mut record, Hold { reason, by, since: now, until, while_commit: None });
                    let done = match &record.rollout {
                        Some(rollout) if rollout.phase == Phase::Baking => format!(
                            "{service} is held; generation {} has traffic, and stays unless it turns out \
                             unhealthy; `gitopsd rollback {service}` goes back",
                            rollout.to.generation
                        ),
                        Some(rollout) if rollout.phase == Phase::Batches => format!(
                            "{service} is held once generation {} has replaced the old one; `gitopsd rollback \
                             {service}` goes back",
                            rollout.to.generation
                        ),
                        Some(rollout) if rollout.phase == Phase::Canary => format!(
                            "{service} is held as it is; generation {}, which has a part of new connections, is given up",
                            rollout.to.generation
                        ),
                        Some(rollout) if rollout.cause == Cause::Commit => format!(
                            "{service} is held as it is; generation {}, which has no traffic yet, is given up",
                            rollout.to.generation
                        ),
                        _ => format!("{service} is held"),
                    };
                    agent.keep(&service, record, message, done)
                })
            }
            Command::Resume { service } => self.resume(&service),
            Command::Pull { images, all } => return self.pull_ahead(images, all, answer),
            Command::Gc { dry_run } => return self.collect_for(dry_run, answer),
            Command::Repair { layers, images } => return self.repair(layers, images, answer),
        };
        // The asker may be gone: its own business.
        let _ = answer.send(Answer::Reply(reply));
    }

    fn with_record(
        &mut self,
        service: &ServiceName,
        act: impl FnOnce(&mut Self, ServiceRecord) -> Reply,
    ) -> Reply {
        match (self.journal.frozen.get(service), self.journal.records.get(service)) {
            (Some(refusal), _) => Reply::failed(refusal.to_string()),
            (None, Some(record)) if record.is_known() => {
                let record = record.clone();
                act(self, record)
            }
            (None, _)
                if self.desired.as_ref().is_some_and(|desired| desired.services.contains_key(service)) =>
            {
                Reply::failed(format!(
                    "nothing of {service} was begun on this host yet: `gitopsd why {service}` says why"
                ))
            }
            (None, _) => Reply::failed(format!("there is no service {service} on this host")),
        }
    }

    /// Writes a changed record down, and says so.
    fn keep(
        &mut self,
        service: &ServiceName,
        record: ServiceRecord,
        message: Message,
        done: String,
    ) -> Reply {
        if let Err(error) = self.state.save_record(service, &record) {
            return Reply::failed(error.to_refusal().to_string());
        }
        self.journal.records.insert(service.clone(), record);
        self.tell(Some(message));
        Reply::done(done)
    }

    fn resume(&mut self, service: &ServiceName) -> Reply {
        let now = clock::now();
        self.effects.hurry(Some(service), now);
        // What is known of it may be no more than that its tag could not be looked up.
        if let Some(desired) = self.desired.as_mut().filter(|it| it.services.contains_key(service)) {
            self.source.hurry(desired, Some(service), now);
            let known = self.journal.records.get(service).is_some_and(ServiceRecord::is_known);
            if !known && !self.journal.frozen.contains_key(service) {
                return Reply::done(format!("{service} is tried again"));
            }
        }
        self.with_record(service, |agent, mut record| {
            operator::resume(&mut record);
            let text = format!("{service}: an operator lets it follow the repo");
            let message = Message::of(Kind::HoldEnded, service, text);
            agent.keep(service, record, message, format!("{service} follows the repo"))
        })
    }

    /// Who asks for a look does not want to wait for the end of a pause.
    fn hurry(&mut self) {
        let now = clock::now();
        self.effects.hurry(None, now);
        self.outbox.hurry(now);
        if let Some(desired) = &mut self.desired {
            self.source.hurry(desired, None, now);
        }
        for (service, record) in &mut self.journal.records {
            let before = record.clone();
            operator::hurry(record);
            // Best effort: the pause is over in any case, and the next step is written down.
            if *record != before && self.state.save_record(service, record).is_err() {
                self.unsaved.insert(service.clone());
            }
        }
    }

    /// Both at once, the step and the hold: after a crash in between the same commit would be deployed once more, or
    /// a hold would stand for what never happened.
    fn roll_back(&mut self, service: &ServiceName, before: ServiceRecord, by: String) -> Reply {
        let now = clock::now();
        let refused = |refusal: Refusal| Reply::failed(format!("{service}: {}", refusal.message));
        let mut back = before.clone();
        if let Some(generation) = operator::bring_back(&mut back) {
            let what = format!("{service} brings generation {generation} back");
            return self.held_back(service, back, by, &what);
        }
        let step = match operator::rollback(&before) {
            Ok(step) => step,
            Err(refusal) => return refused(refusal),
        };
        let after = match &step {
            Step::Begin { spec, .. } => self
                .addresses(service, spec)
                .and_then(|addresses| transition::begin(Some(&before), &step, addresses, now)),
            step => transition::conclude(service, &before, step, &Outcome::Done, now).record,
        };
        let Some(after) = after else {
            let host = match &step {
                Step::Begin { spec, .. } => spec.joins(),
                _ => None,
            };
            let serves = |host: &ServiceName| {
                self.journal.records.get(host).is_some_and(|record| record.serving().is_some())
            };
            return refused(match host.filter(|host| !serves(host)) {
                Some(host) => Refusal::new(
                    Reason::Dependency,
                    format!("{host}, whose network it would share, is not running"),
                ),
                None => Refusal::new(Reason::Network, "the subnet has no free address left"),
            });
        };
        let what = match &step {
            Step::Begin { spec, .. } => format!("{service} goes back to {}", spec.image.reference),
            _ => format!("{service} gives its new generation up"),
        };
        let reply = self.held_back(service, after, by, &what);
        if reply.code == 0 {
            self.tell(news::of(service, Some(&before), &step, &Outcome::Done, None));
        }
        reply
    }

    /// Holds a service that goes back, says so, and does what is next at once.
    fn held_back(
        &mut self,
        service: &ServiceName,
        mut after: ServiceRecord,
        by: String,
        what: &str,
    ) -> Reply {
        let head = self.desired.as_ref().map(|desired| desired.commit.id.clone());
        let reason = "rolled back".to_owned();
        let message = Message::of(Kind::HoldBegan, service, format!("{service}: {by} rolls it back"));
        let hold = Hold { reason, by, since: clock::now(), until: None, while_commit: None };
        operator::hold_back(&mut after, hold, head);
        let until = match after.hold.as_ref().is_some_and(|hold| hold.while_commit.is_some()) {
            true => "until the commit moves or ",
            false => "until ",
        };
        let done = format!("{what}, and is held {until}`gitopsd resume {service}`");
        self.effects.clear(service);
        // A former generation that ends its connections by itself may have hours for that.
        let goes_back = after.rollout.as_ref().is_some_and(|rollout| rollout.cause == Cause::Rollback);
        let former = after.retiring.as_ref().filter(|_| goes_back);
        let patience = former.map(|former| former.old.spec.stop_grace_period);
        let reply = self.keep(service, after, message, done);
        if reply.code != 0 {
            return reply;
        }
        self.effects.cut_short(service, self.journal.records.get(service));
        if let Some(patience) = patience {
            self.effects.hurry_ending(service, patience);
        }
        reply
    }
}
