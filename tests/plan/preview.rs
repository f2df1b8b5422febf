//! What `gitopsd plan` says before anything is begun.

use std::collections::BTreeMap;
use std::time::Duration;

use gitopsd::reconcile::preview::{Change, preview};
use gitopsd::types::{Reason, ServiceName};

use super::model::Host;
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
