//! Those who wait for the end of a commit.

use std::time::Duration;

use super::control::{Answer, Answers, Reply};
use super::{Agent, clock};
use crate::reconcile::later;
use crate::reconcile::step::Next;
use crate::types::{ServiceName, Timestamp, format_duration};

/// Somebody who wants to hear how a look at the repo went.
pub(super) struct Waiter {
    /// After this look.
    look: u64,
    /// And all that the commit brought with it: drain, bake and further tries too.
    to_the_end: bool,
    /// No longer than so long, and until then.
    limit: Option<(Duration, Timestamp)>,
    answer: Answers,
    /// What was told last.
    told: Vec<String>,
}

impl Waiter {
    /// Waits for a look, and `to_the_end` of what it brings, within `limit`.
    pub fn new(look: u64, to_the_end: bool, limit: Option<Duration>, answer: Answers) -> Self {
        let limit = limit.map(|limit| (limit, later(clock::now(), limit)));
        Self { look, to_the_end, limit, answer, told: Vec::new() }
    }

    /// When it gives up.
    pub fn gives_up_at(&self) -> Option<Timestamp> {
        self.limit.map(|(_, at)| at)
    }
}

impl Agent {
    /// Answers those who have waited long enough, and tells the others what they wait for.
    pub(super) fn answer_waiters(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let (over, looks) = (self.is_over(), self.source.looks);
        let (ended, seen_only) = (self.settled_reply(), self.seen_reply());
        let (waiting, now) = (self.waited_for(), clock::now());
        self.waiters.retain_mut(|waiter| {
            let seen = looks >= waiter.look;
            if seen && (over || !waiter.to_the_end) {
                let reply = if waiter.to_the_end { &ended } else { &seen_only };
                // The asker may be gone: its own business.
                let _ = waiter.answer.send(Answer::Reply(reply.clone()));
                return false;
            }
            if let Some((limit, _)) = waiter.limit.filter(|(_, at)| now >= *at) {
                let text = format!("not over after {}:\n{}", format_duration(limit), waiting.join("\n"));
                let _ = waiter.answer.send(Answer::Reply(Reply::failed(text.trim_end())));
                return false;
            }
            if seen && waiter.told != waiting {
                waiter.told.clone_from(&waiting);
                let told = serde_json::json!({ "waiting": waiting });
                return waiter.answer.send(Answer::Progress(told)).is_ok();
            }
            true
        });
    }

    /// How the look itself went.
    fn seen_reply(&self) -> Reply {
        let waits = self.source.waits.as_ref().map(|waits| &waits.refusal);
        match (self.source.refusal.as_ref().or(waits), &self.desired) {
            (Some(refusal), _) => Reply::failed(refusal.to_string()),
            (None, Some(desired)) => Reply::done(format!("followed at {}", desired.commit.id.short())),
            (None, None) => Reply::failed("nothing was seen yet"),
        }
    }

    /// What is not over yet, a line each.
    fn waited_for(&self) -> Vec<String> {
        let services = self.plan.services.iter().filter_map(|(service, planned)| match &planned.next {
            Next::Wait { why, .. } => Some(format!("{service}: {why}")),
            Next::Held { refusal, until: Some(_) } => Some(format!("{service}: {refusal}; tried again")),
            Next::Do(step) => Some(format!("{service}: {step}")),
            Next::Held { .. } | Next::Settled => None,
        });
        services.collect()
    }

    fn settled_reply(&self) -> Reply {
        if self.in_sync() {
            let at = self
                .desired
                .as_ref()
                .map_or_else(String::new, |desired| format!(" at {}", desired.commit.id.short()));
            return Reply::done(format!("in sync{at}"));
        }
        let mut lines: Vec<String> = self
            .source
            .refusal
            .iter()
            .chain(&self.blind)
            .chain(&self.fault)
            .chain(self.source.waits.as_ref().map(|waits| &waits.refusal))
            .map(ToString::to_string)
            .collect();
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
