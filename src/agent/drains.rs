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

/// The containers of a service that have had no new connections since then: those of generations that drain, and those of
/// which there are too many.
fn leaving<'a>(
    service: &'a ServiceName,
    record: &'a ServiceRecord,
) -> impl Iterator<Item = (InstanceId, Timestamp)> {
    let all =
        Drain::all(record).flat_map(move |it| it.of().instances(service).map(move |id| (id, it.since())));
    let one_too_many = record.incumbent.iter().flat_map(move |it| {
        it.replicas.iter().filter_map(move |(index, replica)| {
            Some((InstanceId::replica(service, it.generation, *index), replica.leaving_since?))
        })
    });
    all.chain(one_too_many)
}

impl Agent {
    /// Counts the connections of containers that drain, and the looks at which there were none.
    pub(super) fn look_at_drains(&mut self, seen: &mut Observed, now: Timestamp) {
        let mut before = std::mem::take(&mut self.drains);
        for (id, since) in self.journal.records.iter().flat_map(|(service, record)| leaving(service, record))
        {
            if !seen.runs(&id) || now < later(since, GRACE) {
                continue;
            }
            let last = before.remove(&id);
            let looked = match last {
                // Not one of a clock that was set back.
                Some(last) if last.at <= now && now < later(last.at, IDLE_POLL.mul_f64(0.8)) => last,
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

    /// The same of several containers; `None` where none of them was counted.
    fn connections_of(&self, ids: &[InstanceId]) -> Option<usize> {
        let counts: Vec<usize> = ids.iter().filter_map(|id| self.connections(id)).collect();
        (!counts.is_empty()).then(|| counts.iter().sum())
    }

    /// The drain of a service, for its status.
    pub(super) fn drain(&self, service: &ServiceName) -> Option<DrainStatus> {
        let drain = Drain::all(self.journal.records.get(service)?).next()?;
        let ids: Vec<InstanceId> = drain.of().instances(service).collect();
        Some(DrainStatus {
            generation: drain.of().generation,
            connections: self.connections_of(&ids),
            since: drain.since(),
            until: drain.over(),
        })
    }

    /// What is said of how a drain ended, before what was drained is stopped: a former generation, or a container that is
    /// too many.
    pub(super) fn drained(&self, service: &ServiceName, step: &Step) -> Option<Message> {
        let record = self.journal.records.get(service)?;
        let (drain, generation) = match step {
            Step::Retire(generation) | Step::Discard(generation) => (Drain::all(record).next()?, *generation),
            Step::Remove(_) => Drain::unwanted(record).map(|drain| (drain, drain.of().generation))?,
            Step::DropReplica(generation, index) => (Drain::too_many(record, *index)?, *generation),
            _ => return None,
        };
        let of = drain.of();
        if of.generation != generation {
            return None;
        }
        let (ids, who, lost) = match step {
            Step::DropReplica(_, index) => {
                let id = InstanceId::replica(service, generation, *index);
                (vec![id], format!("replica {index} of generation {generation}"), "it left the others")
            }
            _ => {
                let lost = match step {
                    Step::Discard(_) => "it was given up",
                    Step::Remove(_) => "it left the repo",
                    _ => "the switch",
                };
                (of.instances(service).collect(), format!("generation {generation}"), lost)
            }
        };
        // It has ended by itself.
        if !ids.iter().any(|id| self.seen.runs(id)) {
            return None;
        }
        let now = clock::now();
        let seconds = |time: Duration| format_duration(Duration::from_secs(time.as_secs()));
        let lasted = seconds(Duration::try_from(now.duration_since(drain.since())).unwrap_or_default());
        let text = match self.connections_of(&ids) {
            left if drain.is_early() => {
                let patience = seconds(drain.patience(now));
                let many = left.map_or_else(String::new, |left| {
                    format!(" with {}", plural(left, "connection", "connections"))
                });
                format!("{who} is told to end{many}, {lasted} after {lost}; it has {patience}")
            }
            Some(0) => format!("{who} has no connection left, {lasted} after {lost}"),
            Some(left) => {
                let many = plural(left, "connection", "connections");
                format!("{who} is stopped with {many} left, {lasted} after {lost}")
            }
            None => format!("{who} is stopped, {lasted} after {lost}"),
        };
        let mut message = Message::of(Kind::Drained, service, format!("{service}: {text}"));
        message.generation = Some(generation);
        message.image = Some(of.spec.image.reference.clone());
        message.commit = Some(of.commit.id.clone());
        Some(message)
    }
}
