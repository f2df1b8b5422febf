//! Generations that drain: their connections are counted, shown and told of.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Agent, clock};
use crate::reconcile::drain::{Drain, GRACE, IDLE_POLL};
use crate::reconcile::later;
use crate::reconcile::record::ServiceRecord;
use crate::reconcile::step::Step;
use crate::reconcile::world::Observed;
use crate::report::Message;
use crate::report::message::Kind;
use crate::report::status::DrainStatus;
use crate::types::{InstanceId, ServiceName, Timestamp, format_duration, plural};

/// What was seen of one that drains.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Looks in a row without a connection.
    idle: u32,
    /// When the last look was.
    at: Timestamp,
    /// How many connections there were; `None` = they could not be counted.
    connections: Option<usize>,
}

/// Every container that drains.
pub type Drains = BTreeMap<InstanceId, Seen>;

/// The containers of a service that have had no new connections since then: those of a former generation, and those of
/// which there are too many.
fn leaving<'a>(
    service: &'a ServiceName,
    record: &'a ServiceRecord,
) -> impl Iterator<Item = (InstanceId, Timestamp)> {
    let retiring = record.retiring.iter();
    let former = retiring.flat_map(move |it| it.old.instances(service).map(move |id| (id, it.since)));
    let one_too_many = record.incumbent.iter().flat_map(move |it| {
        it.replicas.iter().filter_map(move |(index, replica)| {
            Some((InstanceId::replica(service, it.generation, *index), replica.leaving_since?))
        })
    });
    former.chain(one_too_many)
}

impl Agent {
    /// Counts the connections of retiring containers, and the looks at which there were none.
    pub(super) fn look_at_drains(&mut self, seen: &mut Observed, now: Timestamp) {
        let mut before = std::mem::take(&mut self.drains);
        for (id, since) in self.journal.records.iter().flat_map(|(service, record)| leaving(service, record))
        {
            if !seen.runs(&id) || now < later(since, GRACE) {
                continue;
            }
            let last = before.remove(&id);
            let looked = match last {
                Some(last) if now < later(last.at, IDLE_POLL.mul_f64(0.8)) => last,
                _ => {
                    let connections = match self.hands.traffic.connections(&id) {
                        Ok(connections) => Some(connections),
                        Err(error) => {
                            tracing::debug!("{id}: {}", error.to_refusal());
                            None
                        }
                    };
                    let idle = match connections {
                        Some(0) => last.map_or(0, |last| last.idle).saturating_add(1),
                        _ => 0,
                    };
                    Seen { idle, at: now, connections }
                }
            };
            seen.idle_polls.insert(id.clone(), looked.idle);
            self.drains.insert(id, looked);
        }
    }

    /// Connections of a container that drains; `None` until they were counted.
    pub(super) fn connections(&self, id: &InstanceId) -> Option<usize> {
        self.drains.get(id).and_then(|seen| seen.connections)
    }

    /// The drain of a service, for its status.
    pub(super) fn drain(&self, service: &ServiceName) -> Option<DrainStatus> {
        let record = self.journal.records.get(service)?;
        let retiring = record.retiring.as_ref()?;
        let counts: Vec<usize> =
            retiring.old.instances(service).filter_map(|id| self.connections(&id)).collect();
        Some(DrainStatus {
            generation: retiring.old.generation,
            connections: (!counts.is_empty()).then(|| counts.iter().sum()),
            since: retiring.since,
            until: Drain::former(record)?.over(),
        })
    }

    /// What is said of how a drain ended, before what was drained is stopped.
    pub(super) fn drained(&self, service: &ServiceName, step: &Step) -> Option<Message> {
        let Step::Retire(generation) = step else { return None };
        let (drain, record) = (self.drain(service)?, self.journal.records.get(service)?);
        let former = Drain::former(record)?;
        let old = record.retiring.as_ref().map(|retiring| &retiring.old);
        let now = clock::now();
        let whole = |time: Duration| format_duration(Duration::from_secs(time.as_secs()));
        let lasted = whole(Duration::try_from(now.duration_since(drain.since)).unwrap_or_default());
        let left = drain.connections;
        let text = match left {
            // It has ended by itself.
            _ if old.is_none_or(|old| !self.any_runs(service, old)) => return None,
            _ if former.is_early() => {
                let patience = whole(former.patience(now));
                let many = left.map_or_else(String::new, |left| {
                    format!(" with {}", plural(left, "connection", "connections"))
                });
                format!(
                    "generation {generation} is told to end{many}, {lasted} after the switch; it has {patience}"
                )
            }
            Some(0) => format!("generation {generation} has no connection left, {lasted} after the switch"),
            Some(left) => {
                let many = plural(left, "connection", "connections");
                format!("generation {generation} is stopped with {many} left, {lasted} after the switch")
            }
            None => format!("generation {generation} is stopped, {lasted} after the switch"),
        };
        let mut message = Message::of(Kind::Drained, service, format!("{service}: {text}"));
        message.generation = Some(*generation);
        message.image = old.map(|old| old.spec.image.reference.clone());
        message.commit = old.map(|old| old.commit.id.clone());
        Some(message)
    }
}
