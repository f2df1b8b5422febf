//! `deploy.parallelism`: replicas that are replaced some at a time, and a canary of a service that has several.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::image::Kind;
use super::lab::{Lab, free_port, names, wait_for};
use super::load::{Load, get};
use super::replicas::{containers, serving, several, who};

/// [`several`] of which one is replaced at a time, slowly enough to be seen.
fn by_ones(image: &str, port: u16, count: u32) -> String {
    format!("{}parallelism = 1\nmin_healthy_time = \"2s\"\n", several(image, port, count))
}

/// A lab whose agent serves version 1 with so many containers, on a port of the host.
fn serve(count: u32) -> (Lab, u16) {
    let (mut lab, port) = (Lab::new(), free_port());
    let v1 = lab.image("1", Kind::Good);
    lab.deploy("web", &by_ones(&v1, port, count), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(serving(&lab), usize::try_from(count).unwrap());
    (lab, port)
}

/// The names of the containers of a generation.
fn all(generation: u64, count: u32) -> Vec<String> {
    let name = |index| match index {
        1 => format!("web.{generation}"),
        _ => format!("web.{generation}-{index}"),
    };
    (1..=count).map(name).collect()
}

/// Waits until the rollout of `web` has this part of new connections, in a phase.
#[track_caller]
fn with_part(lab: &Lab, phase: &str, share: &str) -> serde_json::Value {
    wait_for(&format!("{phase} with {share}"), || {
        let rollout = lab.service("web")["rollout"].clone();
        (rollout["phase"] == phase && rollout["share"] == share).then_some(rollout)
    })
}

/// How many containers of the host were there at once, at the most and at the least, from now on.
struct Count {
    stop: Arc<AtomicBool>,
    seen: Arc<(AtomicUsize, AtomicUsize)>,
    thread: JoinHandle<()>,
}

impl Count {
    fn begin(lab: &Lab) -> Self {
        let folder: PathBuf = lab.path("run/containers");
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new((AtomicUsize::new(0), AtomicUsize::new(usize::MAX)));
        let thread = {
            let (stop, seen) = (stop.clone(), seen.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let count = names(&folder).len();
                    seen.0.fetch_max(count, Ordering::Relaxed);
                    seen.1.fetch_min(count, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
        };
        Self { stop, seen, thread }
    }

    /// At the most, and at the least.
    fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        (self.seen.0.load(Ordering::Relaxed), self.seen.1.load(Ordering::Relaxed))
    }
}

#[test]
fn four_are_replaced_one_at_a_time_and_nobody_notices() {
    let (lab, port) = serve(4);
    let v2 = lab.image("2", Kind::Good);
    let (load, count) = (Load::begin(port, 100), Count::begin(&lab));
    lab.write("services/web.toml", &by_ones(&v2, port, 4));
    let plan = String::from_utf8(lab.run(&["plan", lab.path("work").to_str().unwrap()]).stdout).unwrap();
    assert!(plan.contains("(blue-green, 1 of 4 containers at a time)"), "{plan}");
    lab.commit("web 2");
    let rollout = with_part(&lab, "batches", "25%");
    assert_eq!((&rollout["from"], &rollout["to"]), (&1.into(), &2.into()));
    let service = lab.service("web");
    assert_eq!((&service["state"], &service["generation"]), (&"deploying".into(), &1.into()));
    let shown = lab.ok(&["status"]);
    assert!(shown.contains("batches ") && shown.contains("% of new connections"), "{shown}");
    // Both answer, each container as often as any other.
    with_part(&lab, "batches", "50%");
    let second = (0..200).filter(|_| get(port, "/").unwrap() == "version 2\n").count();
    assert!((40..=200).contains(&second), "{second} of 200, expected 100 or more");
    lab.sync();
    let (most, least) = count.end();
    assert_eq!((most, least), (5, 4), "never more than one beside four, and never less than four");
    assert_eq!((serving(&lab), lab.service("web")["generation"].clone()), (4, 2.into()));
    assert_eq!(who(port, 80).len(), 4, "each of them answers");
    assert!((0..50).all(|_| get(port, "/").unwrap() == "version 2\n"));
    wait_for("the end of the old ones", || (containers(&lab) == all(2, 4)).then_some(()));
    load.end_without_failure();
    let receipts = lab.history();
    let last = receipts.last().unwrap();
    assert_eq!((receipts.len(), &last["result"], &last["replicas"]), (2, &"deployed".into(), &4.into()));
    assert!(last["canary_at"].as_str() < last["switched_at"].as_str(), "{last}");
    let events = lab.ok(&["events"]);
    assert_eq!(events.matches("\"batch-taken\"").count(), 3, "and the last one by the switch: {events}");
    assert!(events.rfind("\"batch-taken\"") < events.rfind("\"switched\""), "{events}");
}

#[test]
fn one_that_falls_sick_gives_all_places_back() {
    let (lab, port) = serve(4);
    let v2 = lab.image("2", Kind::Good);
    let load = Load::begin(port, 50);
    // The last one takes long enough to be proved for the third to fall sick meanwhile.
    let file = by_ones(&v2, port, 4).replace("min_healthy_time = \"2s\"", "min_healthy_time = \"6s\"");
    lab.deploy("web", &file, "web 2");
    with_part(&lab, "batches", "75%");
    for index in ["1", "3"] {
        let sick = if index == "3" { "; /bin/busybox rm /w/healthz" } else { "" };
        let command = format!("echo this is {index} > /proc/1/fd/1{sick}");
        lab.ok(&["exec", "web", "--generation", "2", "--index", index, "--", "/bin/sh", "-c", &command]);
    }
    let output = lab.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    wait_for("four of the old one", || (serving(&lab) == 4).then_some(()));
    assert_eq!(containers(&lab), all(1, 4));
    assert!((0..50).all(|_| get(port, "/").unwrap() == "version 1\n"));
    assert_eq!(who(port, 80).len(), 4, "each of them answers");
    load.end_without_failure();
    let last = lab.history().pop().unwrap();
    assert_eq!((&last["result"], &last["reason"]), (&"rolled-back".into(), &"unhealthy".into()), "{last}");
    assert!(last["canary_at"].is_string() && last["switched_at"].is_null(), "{last}");
    let message = last["message"].as_str().unwrap();
    assert!(message.contains("replica 3") && message.contains(" of 4 containers"), "{message}");
    // What it wrote, and not what the first one did.
    let (third, log) = (serde_json::json!(3), serde_json::json!(["this is 3"]));
    assert_eq!((&last["replica"], &last["log"]), (&third, &log), "{last}");
    let why: serde_json::Value = serde_json::from_str(&lab.ok(&["why", "web", "--json"])).unwrap();
    assert_eq!(why["log"], log, "{why}");
    let service = lab.service("web");
    assert_eq!((&service["state"], &service["reason"]), (&"failed".into(), &"unhealthy".into()), "{service}");
}

#[test]
fn a_newer_commit_is_next_and_an_operator_goes_back_at_once() {
    let (lab, port) = serve(3);
    let (v2, v3, v4) = (lab.image("2", Kind::Good), lab.image("3", Kind::Good), lab.image("4", Kind::Good));
    let load = Load::begin(port, 50);
    lab.deploy("web", &by_ones(&v2, port, 3), "web 2");
    with_part(&lab, "batches", "33.3%");
    lab.deploy("web", &by_ones(&v3, port, 3), "web 3");
    lab.sync();
    assert_eq!(lab.service("web")["image"], v3);
    let results: Vec<_> = lab.history().iter().map(|receipt| receipt["result"].clone()).collect();
    assert_eq!(results, ["deployed", "deployed", "deployed"], "the one under way was finished first");
    lab.deploy("web", &by_ones(&v4, port, 3), "web 4");
    with_part(&lab, "batches", "66.7%");
    lab.ok(&["rollback", "web"]);
    wait_for("the end of it", || lab.service("web")["rollout"].is_null().then_some(()));
    wait_for("three of the old one", || (serving(&lab) == 3).then_some(()));
    assert_eq!(containers(&lab), all(3, 3));
    assert!((0..50).all(|_| get(port, "/").unwrap() == "version 3\n"));
    load.end_without_failure();
    assert_eq!(lab.history().pop().unwrap()["reason"], "operator-rollback");
}

#[test]
fn a_canary_of_three_is_one_of_them() {
    let (lab, port) = serve(3);
    let v2 = lab.image("2", Kind::Good);
    let (load, count) = (Load::begin(port, 50), Count::begin(&lab));
    let file = format!("{}canary = \"30%\"\ncanary_time = \"20s\"\n", several(&v2, port, 3));
    lab.deploy("web", &file, "web 2");
    with_part(&lab, "canary", "30%");
    wait_for("its part", || (get(port, "/").unwrap() == "version 2\n").then_some(()));
    assert_eq!(
        containers(&lab),
        ["web.1", "web.1-2", "web.1-3", "web.2"],
        "one of the new ones, and all old ones"
    );
    let answers: Vec<_> =
        (0..200).map(|_| (get(port, "/").unwrap(), who(port, 1).pop_first().unwrap())).collect();
    let second = answers.iter().filter(|(body, _)| body == "version 2\n").count();
    assert!((30..100).contains(&second), "{second} of 200, expected about 60");
    let each: std::collections::BTreeSet<_> = answers.into_iter().map(|(_, who)| who).collect();
    assert_eq!(each.len(), 4, "three of the old ones, and it");
    lab.sync();
    assert_eq!((serving(&lab), lab.service("web")["generation"].clone()), (3, 2.into()));
    assert_eq!(count.end(), (6, 3), "all of it beside all of the old one, as it is not replaced in batches");
    assert_eq!(who(port, 80).len(), 3, "each of them answers");
    wait_for("the end of the old ones", || (containers(&lab) == all(2, 3)).then_some(()));
    load.end_without_failure();
    let events = lab.ok(&["events"]);
    assert!(events.contains("\"canary-begun\"") && !events.contains("\"batch-taken\""), "{events}");
}

#[test]
fn a_batch_needs_addresses_for_itself_alone() {
    let (mut lab, port) = (Lab::new(), free_port());
    let text = std::fs::read_to_string(lab.config()).unwrap();
    let subnet = text.lines().find(|line| line.starts_with("subnet = ")).unwrap();
    std::fs::write(lab.config(), text.replace(subnet, &subnet.replace("/24", "/28"))).unwrap();
    // Of sixteen addresses nine are for containers.
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    lab.deploy("web", &several(&v1, port, 6), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.deploy("web", &several(&v2, port, 6), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let service = lab.service("web");
    assert_eq!(service["reason"], "network", "{service}");
    let message = service["message"].as_str().unwrap();
    assert!(message.contains("6 more containers are wanted") && message.contains("parallelism"), "{message}");
    lab.deploy("web", &format!("{}parallelism = 2\n", several(&v2, port, 6)), "web 2, by twos");
    lab.sync();
    assert_eq!((serving(&lab), lab.service("web")["generation"].clone()), (6, 2.into()));
    assert_eq!(lab.ok(&["events"]).matches("\"batch-taken\"").count(), 2);
}
