//! The promises, over random histories of commits, failures, operators, crashes and reboots.
//!
//! `model/audit.rs` asks most of them at every instant of every story; what only shows at the end of one stands in `promises.rs`.

use std::time::Duration;

use gitopsd::reconcile::later;
use gitopsd::types::{ReplicaIndex, ServiceName};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed};

use super::model::{Crash, Host};
use super::promises;
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
    /// The same, and its message says that windows do not count; an operator says so.
    Urgent,
    Waive,
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

pub const SERVICES: [&str; 3] = ["web", "api", "db"];

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
        ",window=00:02-00:03,bake=5s,drain=1s",
        ",window=00:02-00:03,volume=data,pre",
        ",schedule=minutely",
        ",schedule=*:*:0/20,limit=10s",
        ",schedule=minutely,forgets,volume=data",
        ",joins=db",
        ",joins=db,bake=5s,drain=1s",
        ",joins=db,window=00:02-00:03",
        ",joins=db,mem=64m",
        ",joins=db,mem=64m,window=00:02-00:03,pre",
        ",window=00:02-00:03,replicas=3,parallelism=1",
        ",window=00:02-00:03,pre",
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
        1 => Just(Event::Urgent),
        1 => Just(Event::Waive),
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

pub fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

pub fn happen(host: &mut Host, event: &Event) {
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
        Event::Urgent => {
            host.repo.now = true;
            host.commit();
            host.repo.now = false;
        }
        Event::Waive => host.waive_windows(),
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

proptest! {
    #![proptest_config(config())]

    /// Promises 1 to 4, at every instant and at the end: what is asked at every instant stands in `model/audit.rs`.
    #[test]
    fn after_any_history_the_host_converges_without_a_human(events in history()) {
        promises::converges(&events)?;
    }

    /// Promise 10.
    #[test]
    fn settled_stays_settled(events in history()) {
        promises::stays_settled(&events)?;
    }

    /// Promise 6.
    #[test]
    fn an_empty_repo_changes_nothing(events in history()) {
        promises::keeps_all(&events)?;
    }

    /// Promise 6, for a commit that takes more away than the host allows.
    #[test]
    fn a_removal_beyond_the_limit_removes_nothing(events in history(), first in 0..3usize) {
        promises::removes_nothing(&events, first)?;
    }

    /// Promise 7: at any instant of any story, a service that goes bad leaves the others' plans as they are.
    #[test]
    fn one_bad_service_stops_that_service_only(events in history(), bad in service(), how in 0..3u8) {
        promises::stops_only(&events, bad, how)?;
    }
}
