//! What serves and fails its health check: nothing is done about it, so somebody has to hear of it.

use std::collections::BTreeMap;

use super::{Agent, clock};
use crate::reconcile::health::Verdict;
use crate::reconcile::replicas::verdict_of;
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{Reason, Refusal, ServiceName, Timestamp};

impl Agent {
    /// Says which incumbents have become unhealthy, and which are well again.
    pub(super) fn note_ailing(&mut self) {
        let now = self.ailing_at(clock::now());
        let former = std::mem::replace(&mut self.ailing, now);
        let mut news = Vec::new();
        for (service, refusal) in self.ailing.iter().filter(|(service, _)| !former.contains_key(*service)) {
            let text = format!("{service}: {}", refusal.message);
            news.push(Message::of(Kind::Unhealthy, service, text).because(refusal));
        }
        for service in former.keys().filter(|service| !self.ailing.contains_key(*service)) {
            if self.journal.records.get(service).is_some_and(|record| record.incumbent.is_some()) {
                let text = format!("{service}: it no longer fails its health check");
                news.push(Message::of(Kind::Recovered, service, text));
            }
        }
        for message in news {
            self.tell(Some(message));
        }
    }

    /// The incumbents that run and fail their health check.
    fn ailing_at(&self, now: Timestamp) -> BTreeMap<ServiceName, Refusal> {
        let mut ailing = BTreeMap::new();
        for (service, record) in &self.journal.records {
            let Some(incumbent) = &record.incumbent else { continue };
            // What is about to go may say that it is.
            let leaves = |index| incumbent.replicas.get(&index).is_some_and(|it| it.leaving_since.is_some());
            let ailing_one = incumbent.indices().filter(|index| !leaves(*index)).find_map(|index| {
                match verdict_of(service, incumbent, index, &self.seen, now) {
                    Some(Verdict::Unhealthy(why)) => Some((index, why)),
                    _ => None,
                }
            });
            if let Some((index, why)) = ailing_one {
                let replica = match incumbent.replicas.is_empty() {
                    true => String::new(),
                    false => format!("replica {index} of "),
                };
                let text =
                    format!("{replica}generation {} fails its health check: {why}", incumbent.generation);
                ailing.insert(service.clone(), Refusal::new(Reason::Unhealthy, text));
            }
        }
        ailing
    }
}
