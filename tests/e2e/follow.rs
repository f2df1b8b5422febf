//! A tag that moves between two hosts: those that follow run the same bytes.

use crate::image::{self, Kind};
use crate::lab::hosts::{Fleet, inside};
use crate::lab::wait_for;

/// What a host runs, by its digest.
fn digest(fleet: &Fleet, host: &str) -> String {
    let status = fleet.host(host).status();
    status["services"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_tag_that_moves_between_two_hosts_is_one_image() {
    let mut fleet = Fleet::new();
    fleet.more = "[images]\nfollow = true\n";
    let tag = fleet.image("1", Kind::Good);
    let first = fleet.lab.deploy("web", &inside(&tag), "web 1");
    fleet.start(&["a-1"]);
    fleet.host("a-1").wait_serving("web", &tag);
    // What it stood for is in git.
    let shown = |commit: &str| {
        let clone = fleet.clone_of();
        fleet.lab.git(&clone, &["notes", "--ref=gitopsd/a-1", "show", commit])
    };
    wait_for("the note", || {
        let ready = !fleet.lab.git(&fleet.lab.path("repo.git"), &["for-each-ref", "refs/notes/"]).is_empty();
        (ready && shown(&first).contains("\"kind\":\"tags\"")).then_some(())
    });
    assert!(shown(&first).contains("a-1: found what 1 tag stood for"), "{}", shown(&first));
    // The tag moves: the next host takes what the first one found, and says that it has moved.
    image::push(&image::build(&fleet.lab.path("moved"), "other", Kind::Good), &tag);
    fleet.start(&["a-2"]);
    fleet.host("a-2").wait_serving("web", &tag);
    assert_eq!(digest(&fleet, "a-2"), digest(&fleet, "a-1"));
    wait_for("word of the tag that moved", || fleet.host("a-2").log().contains("found").then_some(()));
    let events = fleet.host("a-2").command(&["events"]).output().unwrap();
    let events = String::from_utf8(events.stdout).unwrap();
    assert!(events.contains("\"tag-moved\"") && events.contains("a-1 found"), "{events}");
    // A commit that changes something else of the service asks again what the tag stands for: the answer is the same
    // for all. So it is for a host that comes later still.
    fleet.lab.deploy("web", &format!("environment = {{ A = \"1\" }}\n{}", inside(&tag)), "web 1, with A");
    for host in ["a-1", "a-2"] {
        wait_for("the second commit", || (fleet.host(host).receipts().len() == 2).then_some(()));
    }
    assert_eq!(digest(&fleet, "a-2"), digest(&fleet, "a-1"));
    fleet.start(&["a-3"]);
    fleet.host("a-3").wait_serving("web", &tag);
    assert_eq!(digest(&fleet, "a-3"), digest(&fleet, "a-1"));
    // Who does not follow finds the tag as it is.
    fleet.more = "";
    fleet.start(&["b-1"]);
    fleet.host("b-1").wait_serving("web", &tag);
    assert_ne!(digest(&fleet, "b-1"), digest(&fleet, "a-1"));
}
