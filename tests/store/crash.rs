//! `kill -9` in the middle of a repair and of a collection: nothing that is needed is lost, the next one goes on.

#![cfg(feature = "failpoints")]

use std::fs;

use super::command::Machine;
use super::damage::{other, rich};

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_killed_is_done_again() {
    let machine = Machine::new();
    machine.server.push("1", &[other(1), rich(1)]).await;
    assert_eq!(machine.say(&["pull", &machine.image("1")]).0, 0);
    let layer = rich(1).diff_id["sha256:".len()..].to_owned();
    let file = machine.path("state/store/layers").join(layer).join("fs/data/small");
    // Before the exchange the damaged one is still there, after it the good one.
    for (point, code) in [("repair::before_exchange", 1), ("repair::after_exchange", 0)] {
        fs::write(&file, "jello").unwrap();
        machine.killed_at(point, &["fsck", "--repair"]);
        assert_eq!(machine.say(&["fsck", "--full"]).0, code, "{point}");
        let (code, text) = machine.say(&["fsck", "--full", "--repair"]);
        assert_eq!(code, 0, "{point}: {text}");
        assert_eq!(machine.say(&["fsck", "--full"]).0, 0, "{point}");
        assert_eq!(fs::read(&file).unwrap(), b"hello\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_killed_goes_on() {
    let machine = Machine::new();
    machine.configure("[images]\nkeep = \"0s\"\nkeep_count = 1\nmin_free = \"0%\"\n");
    for tag in ["1", "2", "3"] {
        let number = tag.parse().unwrap();
        machine.server.push(tag, &[other(9), rich(number), other(number)]).await;
        assert_eq!(machine.say(&["pull", &machine.image(tag)]).0, 0);
    }
    machine.killed_at("gc::after_record", &["gc"]);
    // An image is gone, its layers are not: that is no damage.
    let (_, found) = machine.json(&["images"]);
    assert_eq!(found[0]["images"].as_array().unwrap().len(), 2);
    assert!(found[0]["unused"].as_u64().unwrap() > 3_000_000, "{:#}", found[0]);
    assert_eq!(machine.say(&["fsck", "--full"]).0, 0);
    assert_eq!(machine.say(&["gc"]).0, 0);
    let (_, found) = machine.json(&["images"]);
    assert_eq!(found[0]["images"].as_array().unwrap().len(), 1);
    assert_eq!(found[0]["unused"], 0);
    let layers = fs::read_dir(machine.path("state/store/layers")).unwrap().count();
    assert_eq!(layers, 3);
    assert_eq!(machine.say(&["fsck", "--full"]).0, 0);
}
