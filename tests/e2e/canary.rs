//! `deploy.canary`: a part of new connections first, then all of them, or none again.

use std::time::Duration;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

/// [`web`] with a canary.
fn canary(image: &str, port: u16, more: &str, keys: &str) -> String {
    format!("{}{keys}\n", web(image, port, more))
}

/// The rollout under way, once it is in its phase `canary` and has its part.
fn with_its_part(lab: &Lab) -> serde_json::Value {
    wait_for("the canary", || {
        let rollout = lab.service("web")["rollout"].clone();
        (rollout["phase"] == "canary" && rollout["switches_at"].is_string()).then_some(rollout)
    })
}

#[test]
fn a_part_of_new_connections_then_all_of_them() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let load = Load::begin(port, 50);
    let file = canary(&v2, port, "", "canary = \"30%\"\ncanary_time = \"20s\"");
    lab.write("services/web.toml", &file);
    let plan = String::from_utf8(lab.run(&["plan", lab.path("work").to_str().unwrap()]).stdout).unwrap();
    assert!(plan.contains("(blue-green, 30% of new connections first)"), "{plan}");
    lab.deploy("web", &file, "web 2");
    let rollout = with_its_part(&lab);
    let time = |text: &str| text.parse::<gitopsd::types::Timestamp>().unwrap();
    let switches_at = time(rollout["switches_at"].as_str().unwrap());
    assert_eq!(rollout["share"], "30%");
    let service = lab.service("web");
    assert_eq!((&service["state"], &service["image"]), (&"deploying".into(), &v1.clone().into()));
    let shown = lab.ok(&["status"]);
    assert!(shown.contains("as generation 2 with 30% of new connections, gets all of them in "), "{shown}");
    let second = (0..300).filter(|_| get(port, "/").unwrap() == "version 2\n").count();
    let left = switches_at.duration_since(gitopsd::agent::clock::now());
    assert!(left.is_positive(), "too slow a machine to ask while it has its part");
    assert!((50..130).contains(&second), "{second} of 300, expected about 90");

    lab.sync();
    load.end_without_failure();
    assert!((0..100).all(|_| get(port, "/").unwrap() == "version 2\n"));
    let last = lab.history().pop().unwrap();
    assert_eq!(last["result"], "deployed");
    let (part, all) = (last["canary_at"].as_str().unwrap(), last["switched_at"].as_str().unwrap());
    let between = Duration::try_from(time(all).duration_since(time(part))).unwrap();
    assert!((20..40).contains(&between.as_secs()), "{between:?}");
    let events = lab.ok(&["events"]);
    let at =
        |word: &str| events.find(&format!("\"{word}\"")).unwrap_or_else(|| panic!("no {word}: {events}"));
    assert!(at("canary-begun") < events.rfind("\"switched\"").unwrap());
}

#[test]
fn one_that_falls_sick_with_its_part_gives_it_back_at_once() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Decays));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let load = Load::begin(port, 50);
    lab.deploy("web", &canary(&v2, port, "", "canary = \"50%\"\ncanary_time = \"5m\""), "web 2");
    let output = lab.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    load.end_without_failure();
    assert!((0..50).all(|_| get(port, "/").unwrap() == "version 1\n"));
    let last = lab.history().pop().unwrap();
    assert_eq!((&last["result"], &last["reason"]), (&"rolled-back".into(), &"unhealthy".into()));
    assert!(last["canary_at"].is_string() && last["switched_at"].is_null(), "{last}");
    assert!(last["message"].as_str().unwrap().ends_with(", with 50% of new connections"), "{last}");
    let why = lab.ok(&["why", "web"]);
    assert!(why.contains("with 50% of new connections"), "{why}");
}

#[test]
fn want_of_memory_with_its_part_is_sick() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    // A worker is killed, the server goes on and answers.
    let command = "command = [\"/bin/sh\", \"-c\", 'httpd -p 8080 -h /www; sleep 10; /bin/busybox tail /dev/zero; sleep 1000']\nmem_limit = \"24m\"";
    lab.deploy("web", &canary(&v2, port, command, "canary = \"50%\"\ncanary_time = \"5m\""), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let last = lab.history().pop().unwrap();
    assert_eq!(
        (&last["result"], &last["reason"]),
        (&"rolled-back".into(), &"out-of-memory".into()),
        "{last}"
    );
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
}

#[test]
fn it_stands_in_for_an_old_version_that_ends() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.deploy("web", &canary(&v2, port, "", "canary = \"10%\"\ncanary_time = \"5m\""), "web 2");
    with_its_part(&lab);
    let record = std::fs::read(lab.path("run/containers/web.1/run.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let pid = i32::try_from(record["init"]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("the new version in its place", || {
        let events = lab.ok(&["events"]);
        events.contains("all new connections go to generation 2 until the old one").then_some(())
    });
    // It comes back, and has most of it again.
    wait_for("both", || {
        let bodies: Vec<String> = (0..40).filter_map(|_| get(port, "/").ok()).collect();
        (bodies.iter().filter(|body| *body == "version 1\n").count() > 20).then_some(())
    });
    assert_eq!(lab.service("web")["rollout"]["phase"], "canary");
    lab.ok(&["rollback", "web"]);
    wait_for("the end of it", || lab.service("web")["rollout"].is_null().then_some(()));
    let results: Vec<_> = lab.history().iter().map(|receipt| receipt["result"].clone()).collect();
    assert_eq!(results, ["deployed", "restarted", "rolled-back"]);
}

#[test]
fn an_agent_that_ends_leaves_the_part_and_the_next_one_goes_on() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2, v3) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good), lab.image("3", Kind::Good));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let load = Load::begin(port, 50);
    lab.deploy("web", &canary(&v2, port, "", "canary = \"50%\"\ncanary_time = \"20s\""), "web 2");
    with_its_part(&lab);
    lab.kill_agent();
    let both = |lab: &Lab| {
        let bodies: Vec<String> = (0..60).map(|_| get(port, "/").unwrap()).collect();
        let has = |version: &str| bodies.iter().any(|body| body == version);
        assert!(has("version 1\n") && has("version 2\n"), "{bodies:?} {}", lab.agent_log());
    };
    both(&lab);
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(lab.service("web")["generation"], 2);

    // A person takes one back that has its part.
    lab.deploy("web", &canary(&v3, port, "", "canary = \"50%\"\ncanary_time = \"5m\""), "web 3");
    with_its_part(&lab);
    lab.ok(&["rollback", "web"]);
    wait_for("the end of it", || lab.service("web")["rollout"].is_null().then_some(()));
    assert!((0..50).all(|_| get(port, "/").unwrap() == "version 2\n"));
    load.end_without_failure();
    assert_eq!(lab.service("web")["generation"], 2);
    assert_eq!(lab.history().pop().unwrap()["reason"], "operator-rollback");
}
