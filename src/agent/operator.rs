//! What operators ask.

use std::time::Duration;

use super::control::{Answer, Answers, Command, Reply};
use super::{Agent, clock};
use crate::reconcile::later;
use crate::reconcile::record::{Hold, ServiceRecord};
use crate::reconcile::step::{Next, Step};
use crate::reconcile::transition;
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::ServiceName;

/// Somebody who wants to hear when all is settled.
pub(super) struct Waiter {
    /// After this look at the repo.
    look: u64,
    answer: Answers,
}

impl Agent {
    /// Hears an operator.
    pub(super) fn operator(&mut self, command: Command, answer: Answers) {
        let reply = match command {
            Command::Status => {
                let body = self.status_now().and_then(|status| serde_json::to_value(status).ok());
                Reply { code: 0, message: String::new(), body }
            }
            Command::Sync { wait } => {
                let look = self.look();
                if wait {
                    return self.waiters.push(Waiter { look, answer });
                }
                Reply::done("looking at the repo")
            }
            Command::Rollback { service, by } => {
                self.with_record(&service, |agent, record| agent.roll_back(&service, record, by))
            }
            Command::Hold { service, reason, by, seconds } => {
                self.with_record(&service, |agent, mut record| {
                    let now = clock::now();
                    let until = seconds.map(|seconds| later(now, Duration::from_secs(seconds)));
                    record.hold = Some(Hold {
                        reason: reason.clone(),
                        by: by.clone(),
                        since: now,
                        until,
                        while_commit: None,
                    });
                    let message =
                        Message::of(Kind::HoldBegan, &service, format!("{service}: held by {by}: {reason}"));
                    agent.keep(&service, record, message, format!("{service} is held"))
                })
            }
            Command::Resume { service } => self.with_record(&service, |agent, mut record| {
                record.hold = None;
                record.failure = None;
                let message = Message::of(
                    Kind::HoldEnded,
                    &service,
                    format!("{service}: an operator lets it follow the repo"),
                );
                agent.keep(&service, record, message, format!("{service} follows the repo"))
            }),
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
            (None, Some(record)) if !record.is_absent() => {
                let record = record.clone();
                act(self, record)
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

    fn roll_back(&mut self, service: &ServiceName, mut record: ServiceRecord, by: String) -> Reply {
        let step = match transition::rollback(&record) {
            Ok(step) => step,
            Err(refusal) => return Reply::failed(format!("{service}: {}", refusal.message)),
        };
        // The hold first: without it the next round would deploy the same commit once more.
        record.hold = Some(Hold {
            reason: "rolled back".to_owned(),
            by: by.clone(),
            since: clock::now(),
            until: None,
            while_commit: self.desired.as_ref().map(|desired| desired.commit.id.clone()),
        });
        let message = Message::of(Kind::HoldBegan, service, format!("{service}: {by} rolls it back"));
        let what = match &step {
            Step::Begin { spec, .. } => format!("{service} goes back to {}", spec.image.reference),
            _ => format!("{service} gives its new generation up"),
        };
        let reply = self.keep(
            service,
            record,
            message,
            format!("{what}, and is held until the commit moves or `gitopsd resume {service}`"),
        );
        if reply.code == 0 {
            self.execute(service, &step);
        }
        reply
    }

    /// Answers those whose look is over once nothing is under way.
    pub(super) fn answer_waiters(&mut self) {
        if self.waiters.is_empty() || !self.at_rest() {
            return;
        }
        let reply = self.settled_reply();
        let looks = self.source.looks;
        self.waiters.retain(|waiter| {
            let due = looks >= waiter.look;
            if due {
                // The asker may be gone: its own business.
                let _ = waiter.answer.send(Answer::Reply(reply.clone()));
            }
            !due
        });
    }

    fn settled_reply(&self) -> Reply {
        if self.in_sync() {
            let at = self
                .desired
                .as_ref()
                .map_or_else(String::new, |desired| format!(" at {}", desired.commit.id.short()));
            return Reply::done(format!("in sync{at}"));
        }
        let mut lines: Vec<String> =
            self.source.refusal.iter().chain(&self.blind).map(ToString::to_string).collect();
        lines.extend(self.plan.services.iter().filter_map(|(service, planned)| match &planned.next {
            Next::Held { refusal, .. } => Some(format!("{service}: {refusal}")),
            _ => None,
        }));
        let told = |service: &ServiceName| {
            matches!(self.plan.services.get(service).map(|planned| &planned.next), Some(Next::Held { .. }))
        };
        let ailing = self.ailing.iter().filter(|(service, _)| !told(service));
        lines.extend(ailing.map(|(service, refusal)| format!("{service}: {refusal}")));
        Reply::failed(lines.join("\n"))
    }
}
