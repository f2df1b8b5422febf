//! Sizes add up to what du(1) says, and what is removed is what was said.

use std::path::Path;
use std::process::Command;

use gitopsd::state::atomic;
use serde_json::Value;

use super::command::Machine;
use super::damage::{other, rich};

pub fn du(path: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn images_add_up_to_du_and_gc_frees_what_it_says() {
    let machine = Machine::new();
    let (code, found) = machine.json(&["images"]);
    assert_eq!((code, number(&found[0]["total"])), (0, 0), "before the first pull");
    machine.server.push("1", &[other(1), rich(1)]).await;
    machine.server.push("2", &[other(1), rich(2), other(3)]).await;
    machine.server.push("3", &[rich(4)]).await;
    for tag in ["1", "2", "3"] {
        assert_eq!(machine.say(&["pull", &machine.image(tag)]).0, 0);
    }
    // A second name of the same bytes.
    machine.server.push("latest", &[rich(4)]).await;
    assert_eq!(machine.say(&["pull", &machine.image("latest")]).0, 0);
    let store = machine.path("state/store");
    let (code, found) = machine.json(&["images"]);
    let found = &found[0];
    assert_eq!(code, 0);
    assert_eq!(number(&found["total"]), du(&store), "{found:#}");
    let images = found["images"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    let sum = |key: &str| images.iter().map(|image| number(&image[key])).sum::<u64>();
    assert_eq!(sum("unique"), number(&found["unique"]));
    // One layer, in two images.
    assert_eq!(sum("shared"), 2 * number(&found["shared"]));
    assert!(number(&found["shared"]) >= 200_000, "{found:#}");
    let parts = ["unique", "shared", "unused", "other"].map(|key| number(&found[key]));
    assert_eq!(parts.iter().sum::<u64>(), number(&found["total"]));
    assert_eq!(number(&found["unused"]), 0);
    for image in images {
        assert_eq!(number(&image["size"]), number(&image["unique"]) + number(&image["shared"]));
        assert!(image["pulled_at"].is_string() && image["used_at"].is_null());
        assert_eq!(image["users"].as_array().unwrap().len(), 0);
    }
    let names = images.iter().find(|image| image["references"].as_array().unwrap().len() == 2).unwrap();
    assert_eq!(names["references"], serde_json::json!([machine.image("3"), machine.image("latest")]));
    let (_, text) = machine.say(&["images"]);
    assert!(text.contains("IMAGE") && text.contains("3 images, "), "{text}");
    assert!(text.contains(&format!("{} {}", machine.image("3"), machine.image("latest"))), "{text}");

    // All of it was pulled ahead a moment ago: it stays.
    let (code, gone) = machine.json(&["gc"]);
    assert_eq!((code, number(&gone[0]["freed"])), (0, 0), "{gone:?}");
    // Nothing is kept for a time, and two of the repository.
    machine.configure("[images]\nkeep = \"0s\"\nkeep_count = 2\nmin_free = \"0%\"\n");
    let (_, dry) = machine.json(&["gc", "--dry-run"]);
    let before = du(&store);
    let (code, real) = machine.json(&["gc"]);
    assert_eq!(code, 0);
    let (mut dry, mut real) = (dry[0].clone(), real[0].clone());
    assert_eq!((dry["dry_run"].take(), real["dry_run"].take()), (true.into(), false.into()));
    assert_eq!(dry, real);
    assert_eq!(real["images"].as_array().unwrap().len(), 1, "{real:#}");
    assert_eq!(real["images"][0]["references"][0], machine.image("1"), "the oldest");
    assert_eq!(before - du(&store), number(&real["freed"]));
    let (_, found) = machine.json(&["images"]);
    assert_eq!(number(&found[0]["total"]), du(&store));
    assert_eq!(machine.say(&["fsck", "--full"]).0, 0);
    // It comes back with the one layer that is missing.
    let (_, lines) = machine.json(&["pull", &machine.image("1")]);
    let pulled = &lines.last().unwrap()["images"][0];
    assert_eq!(pulled["layers_here"], 1);
    // Pulled again while it is here, it counts as pulled then.
    let hex = pulled["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let path = store.join("images").join(format!("{hex}.json"));
    let mut record = atomic::read::<Value>(&path).unwrap().unwrap();
    record["pulled_at"] = "2026-01-02T03:04:05Z".into();
    atomic::write(&path, &record).unwrap();
    assert_eq!(machine.say(&["pull", &machine.image("1")]).0, 0);
    let (_, found) = machine.json(&["images"]);
    let images = found[0]["images"].as_array().unwrap();
    let image = images.iter().find(|image| image["references"][0] == machine.image("1").as_str()).unwrap();
    assert!(image["pulled_at"].as_str().unwrap() > "2026-01-03", "{image:#}");
}
