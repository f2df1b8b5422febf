//! What `gitopsd plan` says before anything is begun, and of what is not begun yet.

use std::collections::BTreeMap;
use std::time::Duration;

use gitopsd::reconcile::postponed::Circumstances;
use gitopsd::reconcile::preview::{Change, preview};
use gitopsd::reconcile::step::{Next, Step};
use gitopsd::types::{Reason, Refusal, ServiceName};
use proptest::prelude::*;

use super::model::Host;
use super::properties::{config, history, lived};
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

proptest! {
    #![proptest_config(config())]

    /// At any instant: what the core holds for one of the three reasons is said to be postponed, and what it begins is not.
    #[test]
    fn what_is_postponed_is_what_the_core_holds(events in history()) {
        let host = lived(&events);
        let Some(desired) = &host.desired else { return Ok(()) };
        let declared: BTreeMap<_, _> = host
            .repo
            .declared
            .iter()
            .map(|(name, spec)| (name.clone(), spec.clone().map_err(|why| Refusal::new(Reason::ConfigInvalid, why))))
            .collect();
        let changes = preview(&declared, &host.records);
        let observed = host.observe();
        let circumstances = Circumstances {
            head: Some(&desired.commit.id),
            waives_window: desired.window_waived,
            zones: &observed.zones,
            now: host.now,
        };
        let postponed = circumstances.postponed(&changes, &declared, &host.records);
        for (name, planned) in &host.plan().services {
            let Some(change) = changes.get(name).filter(|change| change.is_change()) else { continue };
            let failure = host.records.get(name).and_then(|record| record.failure.as_ref());
            let why = postponed.get(name);
            match &planned.next {
                Next::Do(Step::Begin { .. }) => prop_assert_eq!(why, None, "{} is begun\n{}", name, host.tail()),
                Next::Held { refusal, .. } => {
                    let by_word = matches!(refusal.reason, Reason::Held | Reason::OperatorRollback | Reason::Window);
                    let kept = by_word || failure.is_some_and(|failure| failure.refusal == *refusal);
                    prop_assert!(!kept || why.is_some(), "{}: {}, and {}\n{}", name, change, refusal, host.tail());
                }
                _ => {}
            }
        }
    }
}
