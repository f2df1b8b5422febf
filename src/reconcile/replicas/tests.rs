//! Which containers get new connections, and what is remembered of how many there are.

use std::collections::BTreeMap;

use super::*;
use crate::reconcile::health::ProbeHistory;
use crate::types::{CommitInfo, Exit, HealthCheck, PinnedImage, Probe, ServiceSpec};

const START: Timestamp = Timestamp::UNIX_EPOCH;

fn name() -> ServiceName {
    "web".parse().unwrap()
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 98, 0, last)
}

fn index(number: u32) -> ReplicaIndex {
    ReplicaIndex::new(number).unwrap()
}

/// Generation 7 with so many containers, at 10.98.0.1 and on.
fn deployed(count: u32) -> Deployed {
    let reference = "r.io/web:1".parse().unwrap();
    let digest = crate::types::Digest::from_sha256(&[7; 32]);
    let mut spec = ServiceSpec::new(PinnedImage { reference, digest });
    spec.deploy.replicas = count;
    spec.healthcheck = Some(HealthCheck::new(Probe::http("/", 80)));
    let replica = |number: u32| (index(number), Replica::new(address(u8::try_from(number).unwrap())));
    Deployed {
        generation: Generation(7),
        address: address(1),
        spec,
        commit: CommitInfo {
            id: "c".repeat(40).parse().unwrap(),
            subject: String::new(),
            author: String::new(),
            committed_at: START,
        },
        since: START,
        restarts: 0,
        restarted_at: None,
        joined: None,
        untold: None,
        last_exit: None,
        ends: 0,
        down: None,
        amending: None,
        replicas: (2..=count).map(replica).collect(),
        quota: None,
    }
}

/// What is seen of a container.
#[derive(Clone, Copy)]
enum Is {
    Well,
    Sick,
    New,
    Over,
}

fn observed(states: &[Is], route: &[u8]) -> Observed {
    let mut observed = Observed::default();
    for (state, number) in states.iter().zip(1..) {
        let id = InstanceId::replica(&name(), Generation(7), index(number));
        let running = ContainerState::Running { pid: 1, started_at: START };
        let exit = Exit { code: Some(1), signal: None, oom_killed: false, at: START };
        let up = !matches!(state, Is::Over);
        observed.containers.insert(id.clone(), if up { running } else { ContainerState::Exited(exit) });
        let mut history = ProbeHistory::new(START);
        match state {
            Is::Well => {
                (history.ever_passed, history.passes, history.passing_since) = (true, 9, Some(START));
                history.last = Some((START, Ok(())));
            }
            Is::Sick => history.sick = Some("500".to_owned()),
            Is::New | Is::Over => continue,
        }
        observed.health.insert(id, history);
    }
    if let [first, also @ ..] = route {
        let route = Route {
            service: name(),
            service_address: address(200),
            generation: Generation(7),
            address: address(*first),
            also: also.iter().copied().map(address).collect(),
            ports: Vec::new(),
            canary: None,
        };
        observed.routes.insert(name(), route);
    }
    observed
}

fn spread(deployed: &Deployed, states: &[Is], route: &[u8]) -> Vec<u8> {
    let now = later(START, std::time::Duration::from_secs(60));
    let (first, also) = lanes(&name(), deployed, &observed(states, route), now);
    std::iter::once(first).chain(also).map(|lane| lane.octets()[3]).collect()
}

#[test]
fn what_is_well_shares_new_connections() {
    use Is::{New, Over, Sick, Well};
    let three = deployed(3);
    assert_eq!(spread(&three, &[Well, Well, Well], &[]), [1, 2, 3]);
    assert_eq!(spread(&three, &[Well, Sick, Well], &[1, 2, 3]), [1, 3]);
    assert_eq!(
        spread(&three, &[Over, Well, Well], &[1, 2, 3]),
        [2, 3],
        "the first is no other than the rest"
    );
    // Undecided: it stays where it is, so that an agent that has just started takes none out.
    assert_eq!(spread(&three, &[New, New, New], &[1, 2, 3]), [1, 2, 3]);
    assert_eq!(spread(&three, &[Well, New, Well], &[1, 3]), [1, 3]);
    assert_eq!(spread(&three, &[Well, New, Well], &[1, 2, 3]), [1, 2, 3]);
    // A sick answer is better than none.
    assert_eq!(spread(&three, &[Sick, Sick, Sick], &[1, 2, 3]), [1, 2, 3]);
    assert_eq!(spread(&three, &[Sick, Over, Sick], &[1, 2, 3]), [1, 3]);
    assert_eq!(spread(&three, &[Sick, Sick, New], &[1, 2]), [1, 2, 3]);
    // Nobody is there: the route leads where it always did.
    assert_eq!(spread(&three, &[Over, Over, Over], &[1, 2, 3]), [1]);
    // Whatever is seen of it: one container is its route.
    for state in [Well, Sick, New, Over] {
        assert_eq!(spread(&deployed(1), &[state], &[]), [1]);
    }
    // One too many has no new connections from the moment on that the commit says so.
    let mut fewer = deployed(3);
    fewer.spec.deploy.replicas = 2;
    assert_eq!(spread(&fewer, &[Well, Well, Well], &[1, 2, 3]), [1, 2]);
    fewer.spec.deploy.replicas = 1;
    assert_eq!(spread(&fewer, &[Well, Well, Well], &[1, 2, 3]), [1]);
    // But it goes on as long as nothing that stays is well.
    assert_eq!(spread(&fewer, &[Sick, Well, Well], &[1, 2, 3]), [2, 3]);
    assert_eq!(spread(&fewer, &[Sick, Sick, Over], &[1, 2, 3]), [1, 2]);
    assert_eq!(spread(&fewer, &[Sick, Well, Well], &[1]), [1], "what had lost them gets none again");
    // What was told to end takes none, however things are.
    let mut over = deployed(3);
    for replica in over.replicas.values_mut() {
        (replica.leaving_since, replica.is_ending) = (Some(START), true);
    }
    assert_eq!(spread(&over, &[Sick, Well, Well], &[1, 2, 3]), [1]);
}

#[test]
fn their_number_is_written_down_before_anything_is_made() {
    let now = later(START, std::time::Duration::from_secs(60));
    let mut record = ServiceRecord::new(address(200));
    record.incumbent = Some(Deployed { replicas: BTreeMap::new(), ..deployed(3) });
    let incumbent = |record: &ServiceRecord| record.incumbent.clone().unwrap();
    assert_eq!(missing(&incumbent(&record)), 2);
    // Too few addresses: what can be is, and the rest is asked for again.
    let record = scale(&record, Generation(7), &[address(2)], now);
    assert_eq!((missing(&incumbent(&record)), is_off(&incumbent(&record))), (1, true));
    let mut record = scale(&record, Generation(7), &[address(3)], now);
    assert_eq!(incumbent(&record).addresses().collect::<Vec<_>>(), [1, 2, 3].map(address));
    assert!(!is_off(&incumbent(&record)));
    assert_eq!(scale(&record, Generation(7), &[address(9)], now), record, "asked twice, it does nothing");
    // Fewer: those too many leave, and keep their names and addresses until they are away.
    record.incumbent.as_mut().unwrap().spec.deploy.replicas = 1;
    assert!(is_off(&incumbent(&record)));
    let mut record = scale(&record, Generation(7), &[], now);
    assert!(incumbent(&record).replicas.values().all(|replica| replica.leaving_since == Some(now)));
    dropped(&mut record, Generation(7), index(3));
    assert_eq!(incumbent(&record).indices().count(), 2);
    // More again before the other has gone: it stays.
    record.incumbent.as_mut().unwrap().spec.deploy.replicas = 2;
    let mut record = scale(&record, Generation(7), &[], now);
    assert!(!is_off(&incumbent(&record)));
    dropped(&mut record, Generation(7), index(2));
    assert_eq!(incumbent(&record).indices().count(), 2, "only what leaves goes");
    // Told to end, it goes first, and another one comes in its place.
    let on_its_way = record.clone();
    ends(&mut record, Generation(7), index(2));
    assert_eq!(record, on_its_way, "only what leaves is told to end");
    record.incumbent.as_mut().unwrap().spec.deploy.replicas = 1;
    let mut record = scale(&record, Generation(7), &[], now);
    ends(&mut record, Generation(7), index(2));
    record.incumbent.as_mut().unwrap().spec.deploy.replicas = 2;
    let mut record = scale(&record, Generation(7), &[], now);
    assert_eq!(ending(&incumbent(&record)), Some(Step::DropReplica(Generation(7), index(2))));
    dropped(&mut record, Generation(7), index(2));
    assert_eq!((ending(&incumbent(&record)), missing(&incumbent(&record))), (None, 1));
}

#[test]
fn starts_in_a_row_are_counted_for_each() {
    let at = |seconds| later(START, std::time::Duration::from_secs(seconds));
    let mut record = ServiceRecord::new(address(200));
    record.incumbent = Some(deployed(2));
    let replica = |record: &ServiceRecord| record.incumbent.clone().unwrap().replicas[&index(2)].clone();
    begins(&mut record, Generation(7), index(2), at(0));
    assert_eq!((replica(&record).restarts, replica(&record).untold), (0, None), "the first is no restart");
    begins(&mut record, Generation(7), index(2), at(9));
    begins(&mut record, Generation(7), index(2), at(10));
    assert_eq!((replica(&record).restarts, replica(&record).untold), (2, Some(at(9))));
    begins(&mut record, Generation(7), index(2), at(10_000));
    assert_eq!(replica(&record).restarts, 1, "it had recovered");
    assert_eq!(record.incumbent.unwrap().restarts, 0, "the first one's are its own");
}

/// A service with one container is remembered as it always was.
#[test]
fn one_container_leaves_no_trace() {
    let text = serde_json::to_string(&deployed(1)).unwrap();
    assert!(!text.contains("replicas"), "{text}");
    let several = deployed(3);
    let read: Deployed = serde_json::from_str(&serde_json::to_string(&several).unwrap()).unwrap();
    assert_eq!(read, several);
}
