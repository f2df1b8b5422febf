//! What `gitopsd plan` says before anything is begun, and of what is not begun yet.

use std::collections::BTreeMap;
use std::time::Duration;

use gitopsd::reconcile::limits::{Named, removal_refusal};
use gitopsd::reconcile::postponed::Circumstances;
use gitopsd::reconcile::preview::{Change, preview};
use gitopsd::reconcile::step::{Next, Step};
use gitopsd::reconcile::world::DesiredService;
use gitopsd::types::{Reason, Refusal, ServiceName};
use proptest::prelude::*;

use super::model::Host;
use super::properties::{Event, config, history, lived};
use super::scenario::declared_for;

#[test]
fn services_that_are_to_take_each_others_directories_are_refused() {
    let name = |text: &str| text.parse::<ServiceName>().unwrap();
    let mut host = Host::new();
    for (service, text) in [("api", "img:1,bind=/srv/a"), ("web", "img:1,bind=/srv/b")] {
        host.repo.declared.insert(name(service), Ok(declared_for(service, text)));
    }
    host.commit();
    host.run(Duration::from_secs(60));
    let changes = |files: &[(&str, &str)]| {
        let declared: BTreeMap<_, _> =
            files.iter().map(|(service, text)| (name(service), Ok(declared_for(service, text)))).collect();
        preview(&declared, &host.records)
    };
    let refused = |change: &Change| match change {
        Change::Refuse(refusal) => Some((refusal.reason, refusal.message.clone())),
        _ => None,
    };

    let both = changes(&[("api", "img:1,bind=/srv/b"), ("web", "img:1,bind=/srv/a")]);
    for (service, place, other) in [("api", "/srv/b", "web"), ("web", "/srv/a", "api")] {
        let (reason, message) = refused(&both[&name(service)]).unwrap();
        assert_eq!(reason, Reason::VolumeInUse);
        assert!(message.starts_with(&format!("it is to take {place} from {other}, ")), "{message}");
    }
    // One that waits for the other is no circle, nor are two that share a directory.
    for files in [
        [("api", "img:1,bind=/srv/b"), ("web", "img:1,bind=/srv/c")],
        [("api", "img:1,bind=/srv/b"), ("web", "img:2,bind=/srv/b")],
        [("api", "img:2,bind=/srv/a"), ("web", "img:2,bind=/srv/b")],
    ] {
        let all = changes(&files);
        assert!(all.values().all(|change| refused(change).is_none()), "{all:?}");
    }
}

/// What `gitopsd plan` would say on this host of what its branch holds.
fn said(host: &Host) -> (BTreeMap<ServiceName, Change>, BTreeMap<ServiceName, String>) {
    let desired = host.desired.as_ref().unwrap();
    let refused = |why: &String| Refusal::new(Reason::ConfigInvalid, why.clone());
    let declared = host.repo.declared.iter();
    let declared: BTreeMap<_, _> =
        declared.map(|(name, spec)| (name.clone(), spec.clone().map_err(|why| refused(&why)))).collect();
    let changes = preview(&declared, &host.records);
    let observed = host.observe();
    let named = Named {
        by: "the commit".to_owned(),
        declared_in_repo: desired.declared_in_repo,
        wanted: declared.keys().collect(),
        removed: &desired.removed,
    };
    let removals = removal_refusal(&named, &host.records, 0, &host.policy);
    let circumstances = Circumstances {
        head: Some(&desired.commit.id),
        waives_window: desired.window_waived,
        zones: &observed.zones,
        now: host.now,
        removals: removals.as_ref(),
    };
    let postponed = circumstances.postponed(&changes, &declared, &host.records);
    (changes, postponed)
}

/// A hold comes too late for what has no way back: the old version is down already.
#[test]
fn what_only_goes_forward_is_not_said_to_be_held() {
    let run = |text: &str| Event::Run("web", text.to_owned());
    let until_it_proves = |text| {
        let slow = Event::Image("img:2".to_owned(), "healthy=20s");
        let events = [run("img:1,volume=data"), Event::RunSeconds(60), slow, run(text), Event::RunSeconds(8)];
        lived(&[&events[..], &[Event::Hold("web", false)]].concat())
    };
    for (text, held) in [("img:2,volume=data,pre", true), ("img:2,volume=data,pre,irreversible", false)] {
        let host = until_it_proves(text);
        let web = "web".parse::<ServiceName>().unwrap();
        let (changes, postponed) = said(&host);
        assert!(changes[&web].is_change(), "{}", host.tail());
        assert_eq!(postponed.contains_key(&web), held, "{text}: {postponed:?}");
        let given_up = matches!(host.plan().services[&web].next, Next::Do(Step::Fail(_)));
        assert_eq!(given_up, held, "{text}: {}", host.tail());
    }
}

proptest! {
    #![proptest_config(config())]

    /// At any instant: what the core holds for one of the three reasons is said to be postponed, and what it begins is not.
    #[test]
    fn what_is_postponed_is_what_the_core_holds(events in history()) {
        let host = lived(&events);
        let Some(desired) = &host.desired else { return Ok(()) };
        let (changes, postponed) = said(&host);
        for (name, planned) in &host.plan().services {
            let Some(change) = changes.get(name) else { continue };
            let begins = matches!(planned.next, Next::Do(Step::Begin { .. }));
            // What is refused may be begun all the same: whose port it is depends on whether the other one's tag can be looked up.
            let kept = matches!(change, Change::Keep { .. });
            prop_assert!(!begins || !kept, "{} is begun: {}\n{}", name, change, host.tail());
            if !change.is_change() {
                continue;
            }
            let record = host.records.get(name);
            let failure = record.and_then(|record| record.failure.as_ref());
            // Tags are looked up by the agent alone: `plan` does not know that one has moved.
            let incumbent = record.and_then(|record| record.incumbent.as_ref());
            let before = incumbent.into_iter().chain(record.and_then(|record| record.previous.as_ref()));
            let moved = match desired.services.get(name) {
                Some(DesiredService::Run(spec)) => before.into_iter().any(|old| {
                    let (new, old) = (&spec.image, &old.spec.image);
                    new.reference == old.reference && new.digest != old.digest
                }),
                _ => false,
            };
            // No window keeps what follows its network, once that has moved.
            let joined = match desired.services.get(name) {
                Some(DesiredService::Run(spec)) => spec.joins(),
                _ => None,
            };
            let follows = joined.is_some_and(|it| matches!(changes.get(it), Some(Change::Replace { .. })));
            let why = postponed.get(name);
            let rollout = host.records.get(name).and_then(|record| record.rollout.as_ref());
            let under_way = rollout.is_some_and(|it| it.to.commit.id == desired.commit.id);
            match &planned.next {
                Next::Do(Step::Prepare(_) | Step::Canary(_) | Step::Batch { .. } | Step::Switch(_)) if under_way => {
                    prop_assert_eq!(why, None, "{} goes on\n{}", name, host.tail());
                }
                Next::Do(Step::Amend(amendment)) if !amendment.differences.is_empty() => {
                    prop_assert_eq!(why, None, "{} is amended: {}\n{}", name, change, host.tail());
                }
                Next::Do(Step::Begin { .. }) => prop_assert_eq!(why, None, "{} is begun\n{}", name, host.tail()),
                Next::Held { refusal, .. } => {
                    let by_word = matches!(refusal.reason, Reason::Held | Reason::OperatorRollback | Reason::Window | Reason::TooManyRemovals | Reason::ConfigEmpty);
                    let failed = failure.is_some_and(|failure| failure.refusal == *refusal);
                    let kept = by_word || failed;
                    let by_window = refusal.reason == Reason::Window;
                    let replaced = moved && (failed || by_window) || follows && by_window;
                    prop_assert!(!kept || replaced || why.is_some(), "{}: {}, and {}\n{}", name, change, refusal, host.tail());
                }
                _ => {}
            }
        }
    }
}
