//! The promises, over random histories of commits, failures, operators, crashes and reboots.
//!
//! `model/audit.rs` asks most of them at every instant of every story; what only shows at the end of one is asked here.

use std::collections::BTreeMap;
use std::time::Duration;

use gitopsd::reconcile::record::{Down, Phase, Spec};
use gitopsd::reconcile::step::{Next, Planned, Situation, Step};
use gitopsd::reconcile::world::DesiredService;
use gitopsd::reconcile::{later, plan};
use gitopsd::types::{ContainerState, Reason, Refusal, ReplicaIndex, ServiceName};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed};

use super::model::audit_changes::share;
use super::model::{Crash, Host};
use super::rest;
use super::scenario::{declared_for, image};

/// 256 cases, the same ones in every run, so that a change fails by what it changes; with `PROPTEST_CASES` so many others.
/// What once failed is kept under `proptest-regressions` and tried first.
pub fn config() -> Config {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/plan.txt");
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() && config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        // Some histories do not lead to where a property begins.
        max_global_rejects: config.cases * 50,
        ..config
    }
}

/// One thing that happens to a host.
#[derive(Debug, Clone)]
pub enum Event {
    /// A commit: a service runs an image with settings, or has a broken file, or is gone.
    Run(&'static str, String),
    Break(&'static str),
    Drop(&'static str),
    /// It is gone, and named as meant to go.
    Meant(&'static str),
    Unrelated,
    /// An image begins to behave in another way.
    Image(String, &'static str),
    Registry(bool),
    Traffic(bool),
    /// What the host has left of memory, in MiB.
    Memory(Option<u64>),
    /// The agent is killed now, or after so many points of its work; the host loses its power.
    Crash(Crash),
    CrashAfter(u32, Crash),
    Away(u64),
    Hold(&'static str, bool),
    Resume(&'static str),
    Rollback(&'static str),
    KillContainer(&'static str),
    KillReplica(&'static str, u32),
    LoseRoute(&'static str),
    LoseImages,
    Debris(&'static str),
    /// The clock is set, by so many milliseconds.
    Clock(i64),
    Run10ms(u32),
    RunSeconds(u64),
}

const SERVICES: [&str; 3] = ["web", "api", "db"];

fn service() -> impl Strategy<Value = &'static str> {
    prop::sample::select(SERVICES.to_vec())
}

fn tag() -> impl Strategy<Value = String> {
    (1..6u8).prop_map(|n| format!("img:{n}"))
}

fn settings() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "",
        "",
        ",bake=5s,drain=1s",
        ",bake=0s",
        ",bake=10s,drain=20s",
        ",bake=5s,drain=20s,signal=early",
        ",timeout=5s",
        ",volume=data",
        ",volume=data",
        ",volume=data,bake=5s",
        ",volume=data,pre",
        ",pre",
        ",check=none",
        ",check=none,ports=none",
        ",after=db",
        ",healthy=db",
        ",optional=db,pre",
        ",completed=db,post",
        ",post,bake=5s,drain=1s",
        ",pre,irreversible,bake=10s",
        ",volume=data,pre,irreversible",
        ",window=00:02-00:03",
        ",schedule=minutely",
        ",schedule=*:*:0/20,limit=10s",
        ",schedule=minutely,forgets,volume=data",
        ",joins=db",
        ",joins=db,bake=5s,drain=1s",
        ",restart=no",
        ",restart=on-failure:2,volume=data",
        ",restart=no,check=none,ports=none",
        ",env=1",
        ",steady=3s",
        ",steady=8s,passes=3,timeout=60s",
        ",passes=4,bake=20s",
        ",mem=64m",
        ",mem=128m",
        ",mem=128m,label=x",
        ",port=7",
        ",port=8",
        ",port=7,volume=data",
        ",port=8,bake=5s,drain=1s",
        ",bind=/srv",
        ",bind=/srv,bake=5s",
        ",bind=/srv/a,green,bake=5s,drain=1s",
        ",bind=/srv,pre,bake=5s",
        ",bind=/srv,after=db,bake=5s",
        ",bind=/var/b,bake=5s",
        ",bind=/var/b,green,bake=5s",
        ",canary=10%:20s",
        ",canary=10%:20s,bake=5s,drain=1s",
        ",canary=50%:2s,bake=0s",
        ",canary=10%:20s,volume=data",
        ",canary=10%:20s,after=db,steady=3s",
        ",canary=10%:20s,irreversible,bake=5s",
        ",canary=10%:5s,check=none",
        ",canary=10%:5s,restart=no,check=none,ports=none",
        ",replicas=3",
        ",replicas=3,bake=5s,drain=1s",
        ",replicas=2,bake=0s,drain=20s",
        ",replicas=2,check=none",
        ",replicas=2,after=db,mem=64m",
        ",replicas=4,bake=10s,pre,irreversible",
        ",replicas=2,bake=5s,drain=20s,signal=early",
        ",replicas=4,parallelism=1,bake=5s,drain=1s",
        ",replicas=5,parallelism=2,bake=0s,drain=5s,after=db",
        ",replicas=3,parallelism=1,check=none,bake=5s,drain=0s",
        ",replicas=3,parallelism=2,canary=10%:5s,bake=5s,drain=1s",
        ",replicas=2,canary=10%:5s,bake=5s",
    ])
}

pub fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![3 => Just(Crash::Kill), 1 => Just(Crash::Reboot)]
}

fn event() -> impl Strategy<Value = Event> {
    let behaviour = prop::sample::select(vec![
        "missing",
        "exists",
        "corrupt",
        "intact",
        "nostart",
        "pre-fails",
        "retag",
        "pull=0s",
        "pull=30s",
        "healthy=0s",
        "healthy=20s",
        "healthy=never",
        "healthy=never",
        "sick=3s",
        "sick=30s",
        "exits=0s",
        "exits=2s",
        "exits=40s",
        "ends=2s",
        "ends=40s",
        "lingers=15s",
        "refuses=0s",
        "refuses=30s",
        "oom=5s",
        "oom=10s",
        "checks-itself",
        "uses=30m",
        "uses=100m",
        "job=0s",
        "job=15s",
        "job=90s",
        "pre-works",
        "stubborn",
        "well",
        "well",
    ]);
    prop_oneof![
        8 => (service(), tag(), settings()).prop_map(|(service, tag, settings)| {
            // Nothing depends on itself: the config refuses that.
            let own = service == "db" && settings.contains("=db");
            let settings = if own { "" } else { settings };
            Event::Run(service, format!("{tag}{settings}"))
        }),
        1 => service().prop_map(Event::Break),
        1 => service().prop_map(Event::Drop),
        1 => service().prop_map(Event::Meant),
        1 => Just(Event::Unrelated),
        4 => (tag(), behaviour).prop_map(|(tag, word)| Event::Image(tag, word)),
        2 => any::<bool>().prop_map(Event::Registry),
        1 => any::<bool>().prop_map(Event::Traffic),
        1 => prop::option::of(10..200u64).prop_map(Event::Memory),
        1 => crash().prop_map(Event::Crash),
        5 => (0..25u32, crash()).prop_map(|(points, crash)| Event::CrashAfter(points, crash)),
        1 => (1..400u64).prop_map(Event::Away),
        1 => (service(), any::<bool>()).prop_map(|(service, ends)| Event::Hold(service, ends)),
        1 => service().prop_map(Event::Resume),
        2 => service().prop_map(Event::Rollback),
        1 => service().prop_map(Event::KillContainer),
        2 => (service(), 2..5u32).prop_map(|(service, index)| Event::KillReplica(service, index)),
        1 => service().prop_map(Event::LoseRoute),
        1 => Just(Event::LoseImages),
        1 => service().prop_map(Event::Debris),
        1 => (-86_400_000..86_400_000i64).prop_map(Event::Clock),
        1 => (-40_000..40_000i64).prop_map(Event::Clock),
        6 => (1..400u32).prop_map(Event::Run10ms),
        6 => (1..120u64).prop_map(Event::RunSeconds),
    ]
}

/// A story of random length.
pub fn history() -> impl Strategy<Value = Vec<Event>> {
    vec(event(), 1..24)
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn happen(host: &mut Host, event: &Event) {
    host.say_all(&format!("{event:?}"));
    match event {
        Event::Run(service, text) => {
            host.repo.removed.remove(&name(service));
            host.repo.declared.insert(name(service), Ok(declared_for(service, text)));
            host.commit();
        }
        Event::Break(service) => {
            host.repo.removed.remove(&name(service));
            host.repo.declared.insert(name(service), Err("line 3".to_owned()));
            host.commit();
        }
        Event::Drop(service) => {
            host.repo.declared.remove(&name(service));
            host.commit();
        }
        Event::Meant(service) => {
            host.repo.declared.remove(&name(service));
            host.repo.removed.insert(name(service));
            host.commit();
        }
        Event::Unrelated => host.commit(),
        Event::Image(tag, word) => image(host, tag, &[word]),
        Event::Registry(up) => host.registry_up = *up,
        Event::Traffic(works) => host.traffic_works = *works,
        Event::Memory(left) => host.memory = left.map(|left| left << 20),
        Event::Crash(crash) => host.crash(*crash),
        Event::CrashAfter(points, crash) => host.crash_in = Some((*points, *crash)),
        Event::Away(seconds) => {
            host.crash(Crash::Kill);
            host.agent_up = false;
            host.run(Duration::from_secs(*seconds));
            host.agent_starts();
        }
        Event::Hold(service, ends) => host.hold(&name(service), ends.then(|| Duration::from_secs(60))),
        Event::Resume(service) => host.resume(&name(service)),
        Event::Rollback(service) => drop(host.rollback(&name(service))),
        Event::KillContainer(service) => host.kill_container(&name(service)),
        Event::KillReplica(service, index) => {
            host.kill_replica(&name(service), ReplicaIndex::new(*index).unwrap());
        }
        Event::LoseRoute(service) => host.lose_route(&name(service)),
        Event::LoseImages => host.lose_images(),
        Event::Debris(service) => host.debris(&name(service), 1_000_000),
        Event::Clock(by) => {
            let step = Duration::from_millis(by.unsigned_abs());
            host.set_clock(match *by < 0 {
                true => host.now.checked_sub(step).unwrap(),
                false => later(host.now, step),
            });
        }
        Event::Run10ms(n) => host.run(Duration::from_millis(10 * u64::from(*n))),
        Event::RunSeconds(n) => host.run(Duration::from_secs(*n)),
    }
}

/// The host after a story.
pub fn lived(events: &[Event]) -> Host {
    let mut host = Host::new();
    for event in events {
        happen(&mut host, event);
    }
    host
}

/// All that fails from outside stops failing: registry, traffic rules, images that serve.
pub fn calm(host: &mut Host) {
    host.say_all("calm");
    host.crash_in = None;
    host.registry_up = true;
    host.traffic_works = true;
    host.memory = None;
    for behaviour in host.behaviours.values_mut() {
        behaviour.exists = true;
        behaviour.intact = true;
    }
}

fn runs(host: &Host, name: &ServiceName) -> bool {
    host.incumbent(name).is_some_and(|incumbent| {
        let up =
            |id| matches!(host.containers.get(&id).map(|it| &it.state), Some(ContainerState::Running { .. }));
        incumbent.instances(name).all(up)
    })
}

proptest! {
    #![proptest_config(config())]

    /// Promises 1 to 4, at every instant and at the end: what is asked at every instant stands in `model/audit.rs`.
    #[test]
    fn after_any_history_the_host_converges_without_a_human(events in history()) {
        let mut host = lived(&events);
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
            let down = matches!(&planned.next, Next::Held { refusal, .. } if refusal.reason == Reason::Irreversible);
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
            if host.incumbent(name).is_some_and(|incumbent| {
                incumbent.down != Some(Down::Ended) && incumbent.spec.schedule.is_none()
            }) {
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
    }

    /// Promise 10.
    #[test]
    fn settled_stays_settled(events in history()) {
        let mut host = lived(&events);
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
    }

    /// Promise 6.
    #[test]
    fn an_empty_repo_changes_nothing(events in history()) {
        let mut host = lived(&events);
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
    }

    /// Promise 6, for a commit that takes more away than the host allows.
    #[test]
    fn a_removal_beyond_the_limit_removes_nothing(events in history(), first in 0..3usize) {
        let all = SERVICES.map(|service| Event::Run(service, "img:9".to_owned()));
        let mut host = lived(&[&all[..], &[Event::RunSeconds(60)], &events[..]].concat());
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
    }

    /// Promise 7: at any instant of any story, a service that goes bad leaves the others' plans as they are.
    #[test]
    fn one_bad_service_stops_that_service_only(events in history(), bad in service(), how in 0..3u8) {
        let mut host = lived(&events);
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
            live.into_iter().any(|deployed| deployed.spec.needs().any(|needed| *needed == bad))
                || shares(other)
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
            let goes_on = matches!(now, Some(Planned { situation: Situation::Retiring, next: Next::Wait { .. } | Next::Do(Step::Retire(_)) }));
            let right = Some(planned) == now || is_to_depend(other) && waits || was_kept(other) && goes_on;
            prop_assert!(right, "{}: {:?}, {:?}", other, planned, now);
        }
    }
}
