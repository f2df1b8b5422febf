//! What is promised, asked of one history.

use std::collections::BTreeMap;
use std::time::Duration;

use gitopsd::reconcile::plan;
use gitopsd::reconcile::record::{Down, Phase, Spec};
use gitopsd::reconcile::step::{Next, Planned, Situation, Step};
use gitopsd::reconcile::world::DesiredService;
use gitopsd::types::{ContainerState, Reason, Refusal, ServiceName};
use proptest::prelude::*;

use super::model::audit_changes::share;
use super::model::{Crash, Host};
use super::properties::{Event, SERVICES, calm, happen, lived, name};
use super::rest;
use super::scenario::declared_for;

/// What a property says of a history.
pub type Judged = Result<(), TestCaseError>;

/// It comes to rest: what can serve serves, and what does not says why.
pub fn converges(events: &[Event]) -> Judged {
    let mut host = lived(events);
    calm(&mut host);
    host.run(Duration::from_secs(1800));
    let plan = host.plan();
    for (name, planned) in &plan.services {
        let crash_loops = host
            .incumbent(name)
            .is_some_and(|incumbent| !host.behaviour_of_spec(&incumbent.spec).keeps_serving());
        // Waiting for another service, or for what that one is to leave, is the only rest with a candidate under
        // way.
        let blocked = rest::waits_for(&planned.next).is_some();
        let unfinished = rest::is_unfinished(&host, &plan, name);
        prop_assert!(!blocked || unfinished, "{name} waits for nothing: {}\n{}", planned.next, host.tail());
        // There is only the way forward, and it is tried for as long as it takes.
        let forward = host.records.get(name).and_then(|record| record.rollout.as_ref());
        let forward = forward
            .is_some_and(|rollout| !rollout.to.spec.deploy.reversible && rollout.phase >= Phase::Starting);
        // The last one-shot of a generation may be as long as it likes.
        let still = matches!(planned.next, Next::Settled | Next::Held { .. }) || blocked;
        let rests = still || crash_loops || forward;
        prop_assert!(rests, "{name} does not rest: {}\n{}", planned.next, host.tail());
        // The network that it shares went with its container, and the only try at this commit has failed.
        let guest = host.incumbent(name).is_some_and(|incumbent| incumbent.spec.joins().is_some());
        let lost = guest && matches!(planned.next, Next::Held { .. });
        let closed = matches!(&planned.next, Next::Held { refusal, .. } if refusal.reason == Reason::Window);
        let down =
            matches!(&planned.next, Next::Held { refusal, .. } if refusal.reason == Reason::Irreversible);
        if crash_loops || lost || forward || down {
            continue;
        }
        if blocked || closed {
            let serves = rest::keeps_serving(&host, name);
            prop_assert!(serves, "{name} is held, and does not serve\n{}", host.tail());
            continue;
        }
        host.audit_rest_of(name);
        // One that ended for good is where it is to be.
        if host
            .incumbent(name)
            .is_some_and(|incumbent| incumbent.down != Some(Down::Ended) && incumbent.spec.schedule.is_none())
        {
            prop_assert!(runs(&host, name), "{name} does not run\n{}", host.tail());
            prop_assert!(host.routes.contains_key(name), "{name} has no traffic\n{}", host.tail());
        }
        if planned.next == Next::Settled
            && let Some(DesiredService::Run(spec)) =
                host.desired.as_ref().and_then(|desired| desired.services.get(name))
        {
            let incumbent = host.incumbent(name).map(|incumbent| &incumbent.spec);
            prop_assert_eq!(incumbent, Some(&**spec), "settled is what the repo wants");
        }
    }
    Ok(())
}

/// What is settled does nothing for a day, nor after a crash.
pub fn stays_settled(events: &[Event]) -> Judged {
    let mut host = lived(events);
    calm(&mut host);
    for behaviour in host.behaviours.values_mut() {
        *behaviour = Default::default();
    }
    for service in SERVICES {
        host.resume(&name(service));
        host.repo.declared.insert(name(service), Ok(declared_for(service, "img:9")));
    }
    host.commit();
    host.run(Duration::from_secs(1800));
    let before = host.plan();
    prop_assert!(before.in_sync(), "not in sync: {before}\n{}", host.tail());
    host.audit_rest();
    let records = host.records.clone();
    let lines = host.log.len();
    host.run(Duration::from_secs(86_400));
    host.crash(Crash::Kill);
    host.run(Duration::from_secs(60));
    prop_assert_eq!(&host.plan(), &before);
    prop_assert_eq!(&host.records, &records);
    // Nothing happened but the crash, and that the new agent said the same again.
    prop_assert!(host.log[lines..].iter().all(|line| line.contains("killed") || line.contains("settled")));
    Ok(())
}

/// A repo without services changes nothing.
pub fn keeps_all(events: &[Event]) -> Judged {
    let mut host = lived(events);
    calm(&mut host);
    host.run(Duration::from_secs(1800));
    let incumbents = |host: &Host| -> BTreeMap<ServiceName, _> {
        host.records
            .iter()
            .filter(|(_, record)| record.rollout.is_none())
            .map(|(name, record)| (name.clone(), record.incumbent.as_ref().map(|it| it.generation)))
            .collect()
    };
    let before = incumbents(&host);
    host.repo.declared.clear();
    host.repo.removed.clear();
    host.commit();
    host.run(Duration::from_secs(600));
    let after = incumbents(&host);
    for (name, generation) in before {
        prop_assert_eq!(after.get(&name), Some(&generation), "{} changed\n{}", name, host.tail());
    }
    Ok(())
}

/// A commit that leaves only the service of that number, where one removal is allowed, removes nothing.
pub fn removes_nothing(events: &[Event], first: usize) -> Judged {
    let all = SERVICES.map(|service| Event::Run(service, "img:9".to_owned()));
    let mut host = lived(&[&all[..], &[Event::RunSeconds(60)], events].concat());
    calm(&mut host);
    host.run(Duration::from_secs(1800));
    let left = SERVICES[first];
    // What a history has taken away comes back, so that few of them end before the question.
    let gone = |service: &&str| *service != left && host.incumbent(&name(service)).is_none();
    let back: Vec<Event> =
        SERVICES.into_iter().filter(gone).map(|service| Event::Run(service, "img:9".to_owned())).collect();
    back.iter().for_each(|event| happen(&mut host, event));
    if !back.is_empty() {
        host.run(Duration::from_secs(300));
    }
    host.policy.max_removals = Some(1);
    let leaving = |host: &Host| {
        host.records
            .iter()
            .filter(|(name, record)| name.as_str() != left && record.incumbent.is_some())
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    prop_assume!(leaving(&host).len() == 2);
    prop_assume!(leaving(&host).iter().all(|name| host.records[name].rollout.is_none()));
    host.repo.removed.clear();
    host.repo.declared.retain(|name, _| name.as_str() == left);
    host.repo.declared.entry(name(left)).or_insert(Ok(declared_for(left, "img:9")));
    host.commit();
    let before = leaving(&host);
    host.run(Duration::from_secs(600));
    prop_assert_eq!(leaving(&host), before);
    Ok(())
}

/// `bad` becomes bad in one of three ways, and the plans of the others stay as they are.
pub fn stops_only(events: &[Event], bad: &str, how: u8) -> Judged {
    let mut host = lived(events);
    host.memory = None;
    prop_assume!(host.desired.is_some());
    let bad = name(bad);
    // Who writes to a directory of its, or publishes a port of its, comes after it, or before it.
    let shares = |other: &ServiceName| {
        let of = |name: &ServiceName| host.records.get(name).into_iter().flat_map(|it| it.live_generations());
        let wanted = |name: &ServiceName| match host.desired.as_ref()?.services.get(name)? {
            DesiredService::Run(spec) => Some(&**spec),
            _ => None,
        };
        let all = |name| of(name).map(|live| &live.spec).chain(wanted(name));
        // A port that it gives away, or keeps.
        let clash = |ours: &Spec, theirs: &Spec| {
            ours.ports.iter().any(|port| theirs.ports.iter().any(|other| port.clashes(other)))
        };
        all(other).any(|ours| all(&bad).any(|theirs| share(ours, theirs) || clash(ours, theirs)))
    };
    let depends = |other: &ServiceName| {
        let record = host.records.get(other);
        let live = record.into_iter().flat_map(|record| record.live_generations());
        live.into_iter().any(|deployed| deployed.spec.needs().any(|needed| *needed == bad)) || shares(other)
    };
    let mut desired = host.desired.clone().unwrap();
    let mut observed = host.observe();
    let mut records = host.readable();
    let broken = Refusal::new(Reason::ConfigInvalid, "line 3");
    prop_assume!(desired.services.contains_key(&bad));
    match how {
        0 => {
            let refused = DesiredService::Refused { refusal: broken, retry_at: None };
            desired.services.insert(bad.clone(), refused);
        }
        1 if records.get(&bad).is_some_and(|record| !record.is_absent()) => {
            observed.frozen.insert(bad.clone(), broken);
            records.remove(&bad);
        }
        _ => {
            // Its world is turned upside down.
            observed.containers.retain(|id, _| id.service != bad);
            observed.routes.remove(&bad);
            observed.health.retain(|id, _| id.service != bad);
        }
    }
    let before = host.plan();
    let after = plan(Some(&desired), &observed, &records, &host.policy, host.now);
    let is_to_depend = |other: &ServiceName| match desired.services.get(other) {
        Some(DesiredService::Run(spec)) => spec.needs().any(|needed| *needed == bad),
        _ => false,
    };
    // A former generation whose network it shares.
    let was_kept = |other: &ServiceName| {
        let old = host.records.get(other).and_then(|record| record.retiring.as_ref());
        let live = host.records.get(&bad).into_iter().flat_map(|record| record.live_generations());
        let joined = live.into_iter().filter(|live| live.spec.joins() == Some(other)).map(|live| live.joined);
        old.is_some_and(|retiring| joined.into_iter().any(|joined| joined == Some(retiring.old.generation)))
    };
    // What is to go waits for what still needs it.
    let goes = |other: &ServiceName| !desired.services.contains_key(other);
    for (other, planned) in
        before.services.iter().filter(|(other, _)| **other != bad && !depends(other) && !goes(other))
    {
        let now = after.services.get(other);
        // What is to need it, and does not yet, may wait for it: what runs of it stays.
        let waits = matches!(now, Some(Planned { next: Next::Held { .. } | Next::Wait { .. }, .. }));
        // What it shares a network with is kept for it while it can move on. It cannot, and is not waited for.
        let goes_on = matches!(
            now,
            Some(Planned {
                situation: Situation::Retiring,
                next: Next::Wait { .. } | Next::Do(Step::Retire(_))
            })
        );
        let right = Some(planned) == now || is_to_depend(other) && waits || was_kept(other) && goes_on;
        prop_assert!(right, "{}: {:?}, {:?}", other, planned, now);
    }
    Ok(())
}

fn runs(host: &Host, name: &ServiceName) -> bool {
    host.incumbent(name).is_some_and(|incumbent| {
        let up =
            |id| matches!(host.containers.get(&id).map(|it| &it.state), Some(ContainerState::Running { .. }));
        incumbent.instances(name).all(up)
    })
}
