//! The core meets records and observations that no honest agent would have written: it answers, and does not panic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use gitopsd::reconcile::errors::ErrorHistory;
use gitopsd::reconcile::health::{EffectiveCheck, ProbeHistory, judge};
use gitopsd::reconcile::jobs::{JobRun, Jobs};
use gitopsd::reconcile::operator;
use gitopsd::reconcile::plan;
use gitopsd::reconcile::preview::preview;
use gitopsd::reconcile::record::{
    Amending, Cause, Deployed, Down, Failure, Hold, Phase, PullCost, Removing, Replica, Retiring, Rollout,
    ServiceRecord, Spec,
};
use gitopsd::reconcile::replicas;
use gitopsd::reconcile::step::Step;
use gitopsd::reconcile::transition::{self, Addresses, Outcome};
use gitopsd::reconcile::world::{Busy, Desired, DesiredService, Ending, Observed, Room};
use gitopsd::types::{
    CommitInfo, ContainerState, Counters, Exit, Generation, HealthCheck, InstanceId, Job, PinnedImage,
    Policy, Probe, Reason, Refusal, ReplicaIndex, Route, ServiceName, Timestamp, Zones,
};
use proptest::collection::{btree_map, btree_set};
use proptest::option;
use proptest::prelude::*;

use super::model::images::Behaviour;
use super::properties::config;
use super::scenario::declared;

fn time() -> BoxedStrategy<Timestamp> {
    prop_oneof![
        8 => (0..10_000i64).prop_map(|s| Timestamp::from_second(1_800_000_000 + s).unwrap()),
        1 => Just(Timestamp::MIN),
        1 => Just(Timestamp::MAX),
    ]
    .boxed()
}

fn generation() -> BoxedStrategy<Generation> {
    prop_oneof![8 => 0..5u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1)].prop_map(Generation).boxed()
}

fn name() -> impl Strategy<Value = ServiceName> {
    "[abc]".prop_map(|text| text.parse().unwrap())
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    (0..4u8).prop_map(|n| Ipv4Addr::new(10, 98, 0, n))
}

fn length() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => (0..100u64).prop_map(Duration::from_millis),
        4 => (0..1000u64).prop_map(Duration::from_secs),
        1 => Just(Duration::MAX),
    ]
}

fn spec() -> BoxedStrategy<Spec> {
    let settings = prop_oneof![
        Just(""),
        Just(",volume=data"),
        Just(",after=b"),
        Just(",bind=/srv"),
        Just(",mem=64m"),
        Just(",pre"),
        Just(",check=none"),
        Just(",check=none,ports=none"),
        Just(",check=none,ports=none,restart=no"),
        Just(",restart=on-failure:2"),
        Just(",healthy=b,post,irreversible"),
        Just(",volume=data,pre,irreversible"),
        Just(",window=01:00-02:00"),
        Just(",schedule=minutely"),
        Just(",canary=10%:20s"),
        Just(",replicas=3"),
        Just(",replicas=5,parallelism=2"),
        Just(",replicas=3,canary=10%:20s"),
        Just(",replicas=64,after=b"),
    ];
    (0..3u8, settings, length(), length(), length(), 0..4u32)
        .prop_map(|(image, settings, a, b, c, retries)| {
            let mut spec = declared(&format!("img:{image}{settings}"));
            (spec.deploy.bake, spec.deploy.drain, spec.deploy.timeout) = (a, b, c);
            spec.deploy.min_healthy_time = b;
            if let Some(check) = &mut spec.healthcheck {
                (check.interval, check.start_period, check.retries) = (b, c, retries);
                (check.success_threshold, check.start_interval) = (retries, (retries > 1).then_some(a));
            }
            let reference = spec.image.clone();
            let digest = Behaviour::default().digest(&reference.to_string());
            spec.with_image(PinnedImage { reference, digest })
        })
        .boxed()
}

fn commit() -> BoxedStrategy<CommitInfo> {
    (0..4u8, time())
        .prop_map(|(n, committed_at)| CommitInfo {
            id: format!("{n:040}").parse().unwrap(),
            subject: String::new(),
            author: String::new(),
            committed_at,
        })
        .boxed()
}

fn deployed() -> BoxedStrategy<Deployed> {
    let down = option::of(prop_oneof![Just(Down::Ended), Just(Down::Wanted), Just(Down::Barred)]);
    let life = (any::<u32>(), option::of(time()), option::of(exit()), down);
    (generation(), address(), spec(), commit(), time(), life)
        .prop_map(|(generation, address, spec, commit, since, life)| {
            (generation, address, spec, commit, since, life)
        })
        .prop_map(|(generation, address, spec, commit, since, (restarts, restarted_at, last_exit, down))| {
            Deployed {
                generation,
                address,
                spec,
                commit,
                since,
                restarts,
                restarted_at,
                joined: restarted_at.map(|_| generation),
                untold: restarted_at.filter(|_| restarts % 2 == 0),
                last_exit,
                ends: restarts / 2,
                down,
                amending: untold_commit(restarts, since),
                replicas: some_replicas(address, restarts, restarted_at),
                quota: restarted_at.map(|_| restarts % 5).filter(|_| restarts % 3 == 0),
            }
        })
        .boxed()
}

fn some_replicas(address: Ipv4Addr, odd: u32, at: Option<Timestamp>) -> BTreeMap<ReplicaIndex, Replica> {
    let replica = |index: u32| Replica {
        restarts: odd.wrapping_mul(index),
        started_at: at.filter(|_| !odd.is_multiple_of(index)),
        untold: at.filter(|_| odd % 3 == 1),
        leaving_since: at.filter(|_| odd % 5 == index % 5),
        ..Replica::new(address)
    };
    let indices =
        (2..7u32).filter(|index| odd.is_multiple_of(*index)).chain((odd % 11 == 3).then_some(u32::MAX));
    indices.map(|index| (ReplicaIndex::new(index).unwrap(), replica(index))).collect()
}

fn untold_commit(odd: u32, since: Timestamp) -> Option<Amending> {
    (odd % 5 == 1).then(|| Amending {
        since,
        commit: format!("{:040}", odd % 4).parse().unwrap(),
        refused: (odd % 2 == 1).then(|| Refusal::new(Reason::Memory, "because")),
    })
}

fn refusal() -> BoxedStrategy<Refusal> {
    (0..Reason::ALL.len()).prop_map(|n| Refusal::new(Reason::ALL[n], "because")).boxed()
}

fn phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![
        Phase::Pulling,
        Phase::Preparing,
        Phase::Yielding,
        Phase::Starting,
        Phase::Proving,
        Phase::Canary,
        Phase::Batches,
        Phase::Switching,
        Phase::Baking,
        Phase::Abandoning,
    ])
}

fn rollout() -> BoxedStrategy<Rollout> {
    let times = (time(), time(), option::of(time()), option::of(time()), option::of(time()));
    let rest = (option::of(refusal()), any::<u32>(), any::<bool>(), any::<u64>(), any::<f64>());
    (deployed(), phase(), times, rest)
        .prop_map(|(to, phase, times, rest)| Rollout {
            to,
            cause: if rest.2 { Cause::Commit } else { Cause::Rollback },
            phase,
            started_at: times.0,
            phase_since: times.1,
            candidate_started_at: times.2,
            canary_since: times.3.filter(|_| rest.1 % 2 == 0),
            switched_at: times.3,
            healthy_seconds: None,
            pull: PullCost { bytes: rest.3, seconds: rest.4 },
            attempts: rest.1,
            retry_at: times.4,
            trouble: rest.0,
            culprit: None,
            yielded_at: times.3,
            returned_at: times.2.filter(|_| rest.1 % 3 == 0),
        })
        .boxed()
}

fn record() -> BoxedStrategy<ServiceRecord> {
    let failure =
        (commit(), generation(), refusal(), time()).prop_map(|(commit, generation, refusal, at)| Failure {
            commit,
            generation,
            refusal,
            at,
            secrets: Vec::new(),
        });
    let hold = (option::of(time()), option::of(commit()), time()).prop_map(|(until, commit, since)| Hold {
        reason: String::new(),
        by: String::new(),
        since,
        until,
        while_commit: commit.map(|commit| commit.id),
    });
    let retiring = (deployed(), time()).prop_map(|(old, since)| Retiring { old, since });
    let removing = (commit(), time()).prop_map(|(commit, since)| Removing { commit, since });
    (
        (address(), generation(), option::of(deployed()), option::of(deployed())),
        (option::of(rollout()), option::of(retiring), option::of(failure)),
        (option::weighted(0.2, hold), option::weighted(0.1, time()), option::weighted(0.1, removing), jobs()),
    )
        .prop_map(|((service_address, last_generation, incumbent, previous), a, b)| ServiceRecord {
            service_address,
            last_generation,
            incumbent,
            previous,
            rollout: a.0,
            retiring: a.1,
            failure: a.2,
            hold: b.0,
            leaving_since: b.1,
            removing: b.2,
            jobs: b.3,
        })
        .boxed()
}

fn exit() -> BoxedStrategy<Exit> {
    let code = prop_oneof![Just(None), Just(Some(0)), Just(Some(1))];
    (code, option::of(1..64i32), any::<bool>(), time())
        .prop_map(|(code, signal, oom_killed, at)| Exit { code, signal, oom_killed, at })
        .boxed()
}

fn state() -> BoxedStrategy<ContainerState> {
    prop_oneof![
        3 => time().prop_map(|started_at| ContainerState::Running { pid: 1, started_at }),
        1 => exit().prop_map(ContainerState::Exited),
        1 => Just(ContainerState::Remains),
    ]
    .boxed()
}

fn history() -> BoxedStrategy<ProbeHistory> {
    let last = option::of((time(), prop_oneof![Just(Ok(())), Just(Err("no".to_owned()))]));
    let counts = (any::<u32>(), any::<u32>(), option::of(Just("no".to_owned())));
    (time(), option::of(time()), any::<bool>(), counts, option::of(time()), last)
        .prop_map(|(started_at, passing_since, ever_passed, counts, counted_at, last)| ProbeHistory {
            started_at,
            passing_since,
            ever_passed,
            passes: counts.0,
            failures: counts.1,
            sick: counts.2,
            counted_at,
            last,
        })
        .boxed()
}

fn errors() -> BoxedStrategy<ErrorHistory> {
    let counters = || (any::<u64>(), any::<u64>()).prop_map(|(opened, failed)| Counters { opened, failed });
    (time(), time(), counters(), counters(), 0..5u32)
        .prop_map(|(started_at, now, old, new, bad)| ErrorHistory {
            bad,
            worst: new,
            ..ErrorHistory::new(started_at, old, new, now)
        })
        .boxed()
}

fn instance() -> impl Strategy<Value = InstanceId> {
    let job = option::weighted(0.4, prop::sample::select(Job::ALL.to_vec()));
    let index = prop_oneof![3 => Just(1u32), 2 => 2..5u32];
    (name(), generation(), job, index).prop_map(|(name, generation, job, index)| match job {
        Some(job) => InstanceId::of_job(&name, generation, job),
        None => InstanceId::replica(&name, generation, ReplicaIndex::new(index).unwrap()),
    })
}

fn jobs() -> BoxedStrategy<Jobs> {
    let run = || {
        (generation(), time(), option::of(time()), option::of(exit()), option::of(refusal())).prop_map(
            |(generation, due, begun, ended, trouble)| JobRun { generation, due, begun, ended, trouble },
        )
    };
    (option::of(run()), option::of(run()), option::of(run()), option::of(time()), 0..3u32)
        .prop_map(|(pre, post, run, served, failures)| Jobs { pre, post, run, served, failures })
        .boxed()
}

fn observed() -> BoxedStrategy<Observed> {
    let route = (name(), address(), generation()).prop_map(|(service, address, generation)| Route {
        service,
        service_address: address,
        generation,
        address,
        also: if generation.0 % 2 == 0 { vec![address] } else { Vec::new() },
        ports: declared("img:1").ports,
        canary: None,
    });
    let images: Vec<_> = (0..3)
        .map(|n| Behaviour::default().digest(&declared(&format!("img:{n}")).image.to_string()))
        .collect();
    let busy = (time(), any::<bool>()).prop_map(|(since, yields)| Busy {
        what: "at work".to_owned(),
        since,
        yields,
    });
    let ending = btree_set(instance(), 0..3).prop_map(|ids| Ending { what: "at work".to_owned(), ids });
    (
        btree_map(instance(), state(), 0..6),
        btree_map(name(), route, 0..3),
        prop::sample::subsequence(images, 0..=3),
        btree_map(instance(), history(), 0..6),
        (
            btree_map(name(), busy.clone(), 0..2),
            btree_map(name(), ending, 0..2),
            btree_map(name(), busy, 0..2),
        ),
        (btree_map(name(), refusal(), 0..2), btree_map(name(), refusal(), 0..2)),
        btree_map(instance(), any::<u32>(), 0..3),
        (btree_map(instance(), errors(), 0..6), btree_map(instance(), any::<u64>(), 0..6)),
        (
            option::of(any::<u64>()),
            btree_map(instance(), any::<u64>(), 0..4),
            btree_map(name(), refusal(), 0..2),
        ),
    )
        .prop_map(
            |(
                containers,
                routes,
                images,
                health,
                (busy, ending, pauses),
                (frozen, taken),
                idle_polls,
                bake,
                room,
            )| {
                Observed {
                    containers,
                    routes,
                    images: images.into_iter().collect::<BTreeSet<_>>(),
                    health,
                    busy,
                    ending,
                    pauses,
                    ports_taken: taken,
                    pulling: BTreeMap::new(),
                    frozen,
                    idle_polls,
                    errors: bake.0,
                    oom_kills: bake.1,
                    image_checks: BTreeMap::new(),
                    zones: Zones::default(),
                    secrets: BTreeMap::new(),
                    room: Room { memory: room.0, used: room.1, no_address: room.2 },
                }
            },
        )
        .boxed()
}

fn desired() -> BoxedStrategy<Desired> {
    let service = prop_oneof![
        6 => spec().prop_map(|spec| DesiredService::Run(Box::new(spec))),
        1 => Just(DesiredService::Resolving),
        1 => (refusal(), option::of(time()))
            .prop_map(|(refusal, retry_at)| DesiredService::Refused { refusal, retry_at }),
    ];
    let ports = spec().prop_map(|spec| spec.ports);
    (commit(), 0..5usize, btree_map(name(), service, 0..4), btree_map(name(), ports, 0..4))
        .prop_map(|(commit, declared_in_repo, services, ports)| Desired {
            commit,
            declared_in_repo,
            services,
            ports,
            removed: BTreeSet::new(),
            window_waived: false,
        })
        .boxed()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_core_never_panics(
        desired in option::of(desired()),
        observed in observed(),
        records in btree_map(name(), record(), 0..4),
        max_removals in option::of(0..3u32),
        now in time(),
        refusal in refusal(),
        end in option::of(exit()),
    ) {
        let policy = Policy { max_removals, ..Policy::default() };
        let first = plan(desired.as_ref(), &observed, &records, &policy, now);
        prop_assert_eq!(&first, &plan(desired.as_ref(), &observed, &records, &policy, now));
        let _ = first.to_string();
        let addresses =
            Addresses { service: Ipv4Addr::LOCALHOST, generation: Ipv4Addr::LOCALHOST, joined: None };
        let names: BTreeSet<_> = records.keys().chain(observed.busy.keys()).collect();
        for (name, step) in first.steps() {
            let spread = matches!(step, Step::Route(_));
            let busy = observed.busy.get(name).is_some_and(|busy| {
                !(spread || busy.yields && matches!(step, Step::Fail(_)))
            });
            let started = step.starts(name);
            let beside = spread || started.is_some() || matches!(step, Step::Pull(_) | Step::Fail(_) | Step::Return { to: Some(_), .. });
            if let Some(ending) = observed.ending.get(name) {
                prop_assert!(beside, "containers are on their way out, and yet: {step}");
                let about = started.is_some_and(|id| ending.ids.contains(&id));
                prop_assert!(!about, "it is on its way out, and yet: {step}");
            }
            prop_assert!(!busy, "busy, and yet: {step}");
            prop_assert!(!observed.frozen.contains_key(name), "frozen, and yet: {step}");
            let _ = transition::begin(records.get(name), step, addresses, now);
            for record in records.values() {
                let record = transition::intend(record, step, end.as_ref(), now);
                if let Step::Scale(generation) = step {
                    let scaled = replicas::scale(&record, *generation, &[Ipv4Addr::LOCALHOST], now);
                    prop_assert_eq!(scaled.last_generation, record.last_generation);
                }
                for outcome in [
                    Outcome::Done,
                    Outcome::Pulled(PullCost { bytes: u64::MAX, seconds: f64::MAX }),
                    Outcome::Retry(refusal.clone()),
                    Outcome::Failed(refusal.clone()),
                    Outcome::Dropped,
                ] {
                    let applied = transition::conclude(name, &record, step, &outcome, now);
                    let _ = applied.receipt.map(|receipt| receipt.id());
                    let grows = applied.record.is_none_or(|it| it.last_generation >= record.last_generation);
                    prop_assert!(grows);
                }
            }
        }
        for name in names {
            let Some(record) = records.get(name) else { continue };
            if let Ok(step) = operator::rollback(record) {
                let _ = transition::begin(Some(record), &step, addresses, now);
                let _ = transition::conclude(name, record, &step, &Outcome::Done, now);
            }
        }
        let declared: BTreeMap<_, _> = records.keys().map(|name| (name.clone(), Ok(declared("img:1")))).collect();
        let _ = preview(&declared, &records);
        let _ = preview(&BTreeMap::new(), &records);
    }

    #[test]
    fn judging_never_panics(
        spec in spec(),
        mut history in history(),
        other in time(),
        now in time(),
        passes in any::<bool>(),
    ) {
        let own = passes.then(|| HealthCheck::new(Probe::Test { command: Vec::new() }));
        let check = EffectiveCheck::of(&spec, own.as_ref());
        let _ = judge(&check, Some(&history), other, now);
        let _ = history.next_probe_at(&check);
        history.record(&check, now, if passes { Ok(()) } else { Err("no".to_owned()) });
        let _ = judge(&check, Some(&history), history.started_at, now);
        let _ = history.next_probe_at(&check);
    }

    #[test]
    fn a_number_that_is_in_use_is_not_given_again(record in record(), spec in spec(), commit in commit(), now in time()) {
        let name: ServiceName = "a".parse().unwrap();
        let desired = Desired {
            commit,
            declared_in_repo: 1,
            ports: BTreeMap::new(),
            removed: BTreeSet::new(),
            window_waived: false,
            services: BTreeMap::from([(name.clone(), DesiredService::Run(Box::new(spec)))]),
        };
        let live: BTreeSet<_> = record.live_generations().map(|deployed| deployed.generation).collect();
        prop_assume!(live.iter().all(|generation| *generation <= record.last_generation));
        prop_assume!(record.last_generation.0 < u64::MAX);
        let records = BTreeMap::from([(name, record)]);
        let plan = plan(Some(&desired), &Observed::default(), &records, &Policy::default(), now);
        for (_, step) in plan.steps() {
            if let Step::Begin { generation, .. } = step {
                prop_assert!(!live.contains(generation));
            }
        }
    }
}
