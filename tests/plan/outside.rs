//! The promises about what is outside of a host: that it comes back without the repo, the registry and the network, that tags may
//! move, and that its receipts say what it does. Over the same random histories as in `properties.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gitopsd::reconcile::record::{Deployed, Down, Phase, ServiceRecord};
use gitopsd::reconcile::world::DesiredService;
use gitopsd::types::{ContainerState, Digest, InstanceId, ServiceName};
use proptest::collection::vec;
use proptest::prelude::*;

use super::model::{Crash, Host};
use super::properties::{Event, calm, config, crash, history, lived};
use super::scenario::image;

/// A history in which tags are moved to other bytes now and then.
fn history_of_tags() -> impl Strategy<Value = Vec<Event>> {
    let moves = vec((any::<prop::sample::Index>(), 1..6u8), 0..8);
    (history(), moves).prop_map(|(mut events, moves)| {
        for (at, n) in moves {
            events.insert(at.index(events.len() + 1), Event::Image(format!("img:{n}"), "retag"));
        }
        events
    })
}

/// Whether its program can be started, and goes on until it is stopped.
fn goes_on(host: &Host, deployed: &Deployed) -> bool {
    let behaviour = host.behaviour_of_spec(&deployed.spec);
    behaviour.starts && behaviour.exits_after.is_none()
}

/// Whether nothing is to run of it: it comes and goes, has ended for good, or was stopped for what cannot be undone.
fn is_down(deployed: &Deployed) -> bool {
    deployed.spec.schedule.is_some() || matches!(deployed.down, Some(Down::Ended | Down::Barred))
}

/// Whether a service is to come back by itself after a boot: nobody wants it gone or down, and its image is here.
fn is_to_come_back(host: &Host, name: &ServiceName, record: &ServiceRecord) -> bool {
    let wanted = host.desired.as_ref().is_none_or(|desired| desired.services.contains_key(name));
    let local =
        |it: &&Deployed| host.images.contains(&it.spec.image.digest) && goes_on(host, it) && !is_down(it);
    wanted && record.removing.is_none() && record.incumbent.as_ref().filter(local).is_some()
}

/// Whether there is only the way forward, or the network that it shared is gone for good.
fn is_stranded(host: &Host, record: &ServiceRecord, serving: &Deployed) -> bool {
    let forward = record
        .rollout
        .as_ref()
        .is_some_and(|rollout| !rollout.to.spec.deploy.reversible && rollout.phase >= Phase::Starting);
    let host_of_network = serving.spec.joins().map(|other| host.records.get(other));
    let joined = |other: Option<&ServiceRecord>| {
        other.is_some_and(|other| serving.joined.is_some_and(|joined| other.live(joined).is_some()))
    };
    forward || host_of_network.is_some_and(|other| !joined(other))
}

/// Why a service does not serve; `None` = it does.
fn trouble(host: &Host, name: &ServiceName) -> Option<String> {
    let record = &host.records[name];
    let Some(serving) = record.serving() else { return Some("nothing serves".to_owned()) };
    if is_down(serving) || !goes_on(host, serving) || is_stranded(host, record, serving) {
        return None;
    }
    let up = |id: &InstanceId| {
        matches!(host.containers.get(id).map(|it| &it.state), Some(ContainerState::Running { .. }))
    };
    let mut to_run = serving.instances(name).filter(|id| id.index.number() <= serving.size());
    if let Some(id) = to_run.find(|id| !up(id)) {
        return Some(format!("{id} does not run"));
    }
    let routed = host.routes.get(name).map(|route| route.generation);
    (routed != Some(serving.generation)).then(|| format!("traffic goes to {routed:?}"))
}

/// Every tag stands for bytes that it never stood for before: which those are.
fn move_all_tags(host: &mut Host) -> BTreeSet<Digest> {
    let tags: BTreeSet<String> = (1..6).map(|n| format!("img:{n}")).collect();
    for tag in &tags {
        image(host, tag, &["retag"]);
    }
    host.behaviours.iter().map(|(tag, behaviour)| behaviour.digest(tag)).collect()
}

proptest! {
    #![proptest_config(config())]

    /// Promise 5. `remembers`: the last thing that the repo wanted is still on its disk; `again`: another power cut comes so many
    /// points of the agent's work after the first.
    #[test]
    fn a_host_boots_what_it_ran_with_everything_gone(
        events in history(),
        remembers in prop::bool::weighted(0.8),
        again in prop::option::of(0..25u32),
    ) {
        let mut host = lived(&events);
        host.say_all("repo, registry and network are gone");
        (host.registry_up, host.traffic_works) = (false, true);
        if !remembers {
            host.desired = None;
        }
        let ran: Vec<ServiceName> = host
            .records
            .iter()
            .filter(|(name, record)| is_to_come_back(&host, name, record))
            .map(|(name, _)| name.clone())
            .collect();
        let images = host.images.clone();
        host.crash(Crash::Reboot);
        host.crash_in = again.map(|points| (points, Crash::Reboot));
        host.run(Duration::from_secs(60));
        host.crash_in = None;
        host.run(Duration::from_secs(600));
        for name in &ran {
            let trouble = trouble(&host, name);
            prop_assert!(trouble.is_none(), "{name} did not come back: {trouble:?}\n{}", host.tail());
        }
        // That what is local is not pulled is asked at every instant.
        prop_assert_eq!(&host.images, &images);
    }

    /// Promise 8. That what a commit says is looked up once is asked at every instant, too.
    #[test]
    fn a_tag_that_moves_changes_nothing_by_itself(
        events in history_of_tags(),
        crash in prop::option::of(crash()),
        unrelated in any::<bool>(),
    ) {
        let mut host = lived(&events);
        calm(&mut host);
        // All that was to be looked up has been.
        host.run(Duration::from_secs(60));
        let new = move_all_tags(&mut host);
        if let Some(crash) = crash {
            host.crash(crash);
        }
        if unrelated {
            host.commit();
        }
        host.run(Duration::from_secs(600));
        prop_assert!(host.images.is_disjoint(&new), "what nobody asked for was pulled\n{}", host.tail());
        for (name, record) in &host.records {
            let mut known = record.live_generations().chain(&record.previous);
            let moved = known.any(|it| new.contains(&it.spec.image.digest));
            prop_assert!(!moved, "{name} followed its tag\n{}", host.tail());
        }
        // A commit that says something else of a service asks what its tag stands for now.
        for declared in host.repo.declared.values_mut().flatten() {
            declared.environment.insert("ASKED".to_owned(), "again".to_owned());
        }
        host.commit();
        let wanted: BTreeMap<_, _> = host.desired.iter().flat_map(|desired| &desired.services).collect();
        for (name, wanted) in wanted {
            if let DesiredService::Run(spec) = wanted {
                prop_assert!(new.contains(&spec.image.digest), "{name} was asked about, and is as it was");
            }
        }
    }

    /// Promise 9. That a receipt is there before its transition is remembered is asked at every instant.
    #[test]
    fn receipts_alone_say_what_runs_and_how_it_came_to_that(events in history()) {
        let mut host = lived(&events);
        calm(&mut host);
        host.run(Duration::from_secs(1800));
        for name in host.records.keys() {
            host.audit_receipts_of(name);
        }
    }
}
