//! What a service's record says of the containers beside the first one of a generation.

use std::net::Ipv4Addr;

use super::wanted;
use crate::reconcile::later;
use crate::reconcile::record::{Deployed, Replica, ServiceRecord};
use crate::reconcile::repair::RECOVERED_AFTER;
use crate::types::{Generation, ReplicaIndex, Timestamp};

/// Writes down the containers that a generation is to have: `addresses` are for those it has not yet, and what is one too
/// many has lost its traffic.
pub fn scale(
    record: &ServiceRecord,
    generation: Generation,
    addresses: &[Ipv4Addr],
    now: Timestamp,
) -> ServiceRecord {
    let mut record = record.clone();
    let Some(deployed) = live_mut(&mut record, generation) else { return record };
    let mut addresses = addresses.iter();
    for index in wanted(deployed).collect::<Vec<_>>() {
        match deployed.replicas.get_mut(&index) {
            // Its end has to be over first.
            Some(replica) if replica.is_ending => {}
            Some(replica) => replica.leaving_since = None,
            None => {
                // Without an address there is nothing to write down: it is tried again.
                let Some(address) = addresses.next() else { break };
                deployed.replicas.insert(index, Replica::new(*address));
            }
        }
    }
    let most = deployed.size();
    for (_, replica) in deployed.replicas.iter_mut().filter(|(index, _)| index.number() > most) {
        replica.leaving_since.get_or_insert(now);
    }
    record
}

/// Takes in that a container of the incumbent is about to be started.
pub(in crate::reconcile) fn begins(
    record: &mut ServiceRecord,
    generation: Generation,
    index: ReplicaIndex,
    now: Timestamp,
) {
    let incumbent = record.incumbent.as_mut().filter(|incumbent| incumbent.generation == generation);
    let Some(replica) = incumbent.and_then(|incumbent| incumbent.replicas.get_mut(&index)) else { return };
    if let Some(last) = replica.started_at {
        let recovered = now >= later(last, RECOVERED_AFTER);
        replica.restarts = if recovered { 1 } else { replica.restarts.saturating_add(1) };
        if replica.restarts == 1 {
            replica.untold.get_or_insert(now);
        }
    }
    replica.started_at = Some(now);
}

/// Takes in that one is about to be told to end.
pub(in crate::reconcile) fn ends(record: &mut ServiceRecord, generation: Generation, index: ReplicaIndex) {
    let replica = live_mut(record, generation).and_then(|deployed| deployed.replicas.get_mut(&index));
    if let Some(replica) = replica.filter(|replica| replica.leaving_since.is_some()) {
        replica.is_ending = true;
    }
}

/// Takes in that one is away.
pub(in crate::reconcile) fn dropped(record: &mut ServiceRecord, generation: Generation, index: ReplicaIndex) {
    if let Some(deployed) = live_mut(record, generation)
        && deployed.replicas.get(&index).is_some_and(|replica| replica.leaving_since.is_some())
    {
        deployed.replicas.remove(&index);
    }
}

/// Takes in that a candidate is the incumbent now: its containers were started by then.
pub(in crate::reconcile) fn promoted(deployed: &mut Deployed, now: Timestamp) {
    for replica in deployed.replicas.values_mut() {
        replica.started_at.get_or_insert(now);
    }
}

fn live_mut(record: &mut ServiceRecord, generation: Generation) -> Option<&mut Deployed> {
    let candidate = record.rollout.as_mut().map(|rollout| &mut rollout.to);
    let retiring = record.retiring.as_mut().map(|retiring| &mut retiring.old);
    let mut live = record.incumbent.iter_mut().chain(candidate).chain(retiring);
    live.find(|deployed| deployed.generation == generation)
}
