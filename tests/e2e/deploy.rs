//! The main job: deploy, bump, a sick version, what operators say, what is reported.

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

#[test]
fn a_tag_bump_is_served_without_losing_a_request_and_a_sick_one_is_not() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2, v3) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good), lab.image("3", Kind::Sick));
    let first = lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    let status = lab.status();
    assert_eq!(status["agent"]["state"], "in-sync");
    assert_eq!(status["host"], "host-1");
    assert_eq!(status["revision"]["commit"], first.as_str());
    let blamed = lab.ok(&["blame", "web"]);
    assert!(blamed.contains("image = "), "{blamed}");
    let service = lab.service("web");
    assert_eq!(service["generation"], 1);
    assert_eq!(service["color"], "blue");
    assert_eq!(service["health"], "healthy");
    assert_eq!(service["ports"][0], format!("127.0.0.1:{port}->8080/tcp"));

    let load = Load::begin(port, 100);
    let second = lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    lab.sync();
    let requests = load.end_without_failure();
    println!("{requests} requests during the swap");
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_eq!(lab.service("web")["commit"], second.as_str());

    let load = Load::begin(port, 100);
    let third = lab.deploy("web", &web(&v3, port, ""), "web 3");
    let output = lab.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    load.end_without_failure();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    let service = lab.service("web");
    assert_eq!(service["state"], "failed");
    assert_eq!(service["reason"], "unhealthy");
    assert_eq!(service["image"], v2.as_str());
    assert_eq!(lab.status()["agent"]["state"], "degraded");

    let history = lab.history();
    let results: Vec<_> = history.iter().map(|receipt| receipt["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["deployed", "deployed", "failed"]);
    assert_eq!(history[1]["from"]["generation"], 1);
    assert_eq!(history[1]["to"]["generation"], 2);
    assert!(history[1]["pulled_bytes"].as_u64().unwrap() < 10_000, "only the page's layer is new");
    assert_eq!(history[2]["reason"], "unhealthy");
    assert!(history.iter().all(|receipt| receipt["host"] == "host-1" && receipt["boot_id"] != ""));

    // The audit trail, as anybody with a clone reads it.
    let work = lab.path("work");
    let notes = wait_for("the receipts in git", || {
        lab.git(&work, &["fetch", "-q", "origin", "+refs/notes/gitopsd/*:refs/notes/gitopsd/*"]);
        let text = lab.git(&work, &["log", "--notes=gitopsd/*"]);
        (text.matches("\"result\"").count() == 3).then_some(text)
    });
    for (commit, result) in [(&first, "deployed"), (&second, "deployed"), (&third, "failed")] {
        let at = notes.find(commit.as_str()).unwrap();
        let part = &notes[at..];
        let end = part[1..].find("\ncommit ").map_or(part.len(), |end| end + 1);
        assert!(part[..end].contains(&format!("\"result\":\"{result}\"")), "{part}");
    }

    // The same commit is not tried again; the next good one heals it.
    lab.ok(&["sync"]);
    assert_eq!(lab.history().len(), 3);
    lab.deploy("web", &web(&v1, port, ""), "back to web 1");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    assert_eq!(lab.status()["agent"]["state"], "in-sync");
}

#[test]
fn a_version_that_falls_sick_after_the_switch_loses_its_traffic_again() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Decays));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let load = Load::begin(port, 50);
    lab.deploy("web", &web(&v2, port, "").replace("bake = \"500ms\"", "bake = \"30s\""), "web 2");
    wait_for("the switch", || (get(port, "/").unwrap() == "version 2\n").then_some(()));
    let output = lab.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    load.end_without_failure();
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    let last = lab.history().pop().unwrap();
    assert_eq!(last["result"], "rolled-back");
    assert_eq!(last["reason"], "unhealthy");
    assert!(last["switched_at"].is_string());
    assert_eq!(lab.service("web")["generation"], 1);
}

#[test]
fn a_version_that_ends_at_once_is_not_deployed_and_its_words_are_kept() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Exits));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(lab.service("web")["reason"], "exited");
    let why = lab.ok(&["why", "web"]);
    assert!(why.contains("exited with code 3") && why.contains("no luck"), "{why}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    let planned = planned(&lab, &[]);
    assert!(planned.contains("; not now: this commit failed here and is not tried again: "), "{planned}");
    assert!(planned.contains("1 of 1 service would change, 1 of them not now"), "{planned}");
}

/// What `plan` says, where something would change.
fn planned(lab: &Lab, from: &[&str]) -> String {
    let output = lab.run(&[&["plan"], from].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn operators_roll_back_hold_and_resume() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2, v3) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good), lab.image("3", Kind::Good));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(lab.run(&["rollback", "web"]).status.code(), Some(1), "there is nothing to go back to");
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.sync();

    lab.ok(&["rollback", "web"]);
    wait_for("the rollback", || (get(port, "/").unwrap() == "version 1\n").then_some(()));
    lab.run(&["sync", "--wait"]);
    assert_eq!(get(port, "/").unwrap(), "version 1\n", "it is held while the commit stays");
    let service = lab.service("web");
    assert_eq!(service["state"], "held");
    assert_eq!(service["reason"], "operator-rollback");
    assert_eq!(lab.history().pop().unwrap()["result"], "rolled-back");
    let said = planned(&lab, &[]);
    assert!(said.contains("; not now: held by "), "{said}");
    lab.write("services/web.toml", &web(&v3, port, ""));
    let said = planned(&lab, &[lab.path("work").to_str().unwrap()]);
    assert!(said.contains("replace") && !said.contains("not now"), "a new commit ends it: {said}");
    lab.commit("web 3");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 3\n", "a new commit ends it");

    lab.ok(&["hold", "web", "--reason", "an audit"]);
    lab.deploy("web", &web(&v2, port, ""), "web 2 again");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(get(port, "/").unwrap(), "version 3\n");
    assert_eq!(lab.service("web")["reason"], "held");
    for from in [&[][..], &[lab.path("work").to_str().unwrap()]] {
        let said = planned(&lab, from);
        assert!(said.contains("; not now: held by ") && said.contains(": an audit"), "{from:?}: {said}");
    }
    let (desired, aside) = (lab.path("state/desired.json"), lab.path("state/aside"));
    std::fs::rename(&desired, &aside).unwrap();
    std::fs::write(&desired, "garbage").unwrap();
    assert!(planned(&lab, &[]).contains("; not now: held by "), "what is damaged is lost, as for the agent");
    std::fs::rename(&aside, &desired).unwrap();
    lab.ok(&["resume", "web"]);
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");

    lab.ok(&["hold", "web", "--reason", "short", "--for", "1s"]);
    wait_for("the hold to end", || (lab.service("web")["state"] == "running").then_some(()));
}

#[test]
fn services_reach_each_other_and_keep_their_data() {
    let mut lab = Lab::new();
    let port = free_port();
    let v1 = lab.image("1", Kind::Good);
    let v2 = lab.image("2", Kind::Good);
    lab.write(
        "services/web.toml",
        &web(&v1, port, "environment = { COLOUR = \"teal\" }\nmem_limit = \"64m\""),
    );
    let db = |image: &str| {
        format!(
            "image = \"{image}\"\nvolumes = [\"data:/data\"]\ndepends_on = [\"web\"]\nstop_grace_period = \"1s\"\n[healthcheck]\ntcp = 8080\ninterval = \"200ms\"\n[deploy]\nbake = \"300ms\"\ndrain = \"1s\"\n"
        )
    };
    lab.write("services/db.toml", &db(&v1));
    lab.commit("web and db");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(lab.ok(&["exec", "web", "--", "/bin/sh", "-c", "echo $COLOUR"]), "teal\n");
    assert_eq!(lab.ok(&["exec", "db", "--", "/bin/wget", "-qO-", "http://web:8080/"]), "version 1\n");
    assert_eq!(lab.run(&["exec", "db", "--", "/bin/sh", "-c", "exit 7"]).status.code(), Some(7));
    lab.ok(&["exec", "db", "--", "/bin/sh", "-c", "echo kept > /data/file"]);
    lab.write("services/db.toml", &db(&v2));
    lab.commit("db 2");
    lab.sync();
    assert_eq!(lab.service("db")["generation"], 2);
    assert_eq!(lab.ok(&["exec", "db", "--", "/bin/cat", "/data/file"]), "kept\n");
    assert!(lab.ok(&["logs", "web"]).contains("serving"));
    let events = lab.ok(&["events"]);
    let events: Vec<serde_json::Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["event"] == "deployed" && event["service"] == "db"));

    // A service that comes later is known by its name to those that run already.
    lab.write("services/late.toml", &web(&v1, free_port(), ""));
    lab.commit("a late one");
    lab.sync();
    assert_eq!(lab.ok(&["exec", "web", "--", "/bin/wget", "-qO-", "http://late:8080/"]), "version 1\n");

    // A removal, and what the plan says of it before.
    std::fs::remove_file(lab.path("work").join("services/db.toml")).unwrap();
    let output = lab.run(&["plan", lab.path("work").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stdout).contains("remove"), "{output:?}");
    lab.commit("no db");
    lab.sync();
    assert!(lab.service("db").is_null());
    assert_eq!(lab.history().pop().unwrap()["result"], "removed");
    let output = lab.run(&["plan"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn every_kind_of_port_settles_and_answers() {
    let mut lab = Lab::new();
    let (one, two, udp) = (free_port(), free_port(), free_port());
    let image = lab.image("1", Kind::Good);
    // Neither sorted nor alike: what the kernel gives back has to be known again.
    let (high, low) = (one.max(two), one.min(two));
    let ports = format!("ports = [\"{high}:8080\", \"127.0.0.1:{udp}:53/udp\", \"127.0.0.1:{low}:8080\"]");
    let file = web(&image, 1, "").replace("ports = [\"127.0.0.1:1:8080\"]", &ports);
    lab.deploy("web", &file, "three ports");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    for port in [one, two] {
        assert_eq!(get(port, "/").unwrap(), "version 1\n");
    }
    lab.sync();
    let events = lab.ok(&["events"]);
    assert!(!events.contains("route-restored"), "{events}");
    // A commit that takes a port away.
    let fewer = format!("ports = [\"{high}:8080\"]");
    lab.deploy("web", &file.replace(&ports, &fewer), "one port");
    lab.sync();
    assert_eq!(get(high, "/").unwrap(), "version 1\n");
    assert!(get(low, "/").is_err());
}

#[test]
fn a_port_moves_from_one_service_to_another_in_one_commit() {
    let mut lab = Lab::new();
    let (port, other) = (free_port(), free_port());
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    lab.write("services/a.toml", &web(&v1, port, ""));
    lab.commit("a has the port");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.write("services/a.toml", &web(&v1, other, ""));
    lab.write("services/b.toml", &web(&v2, port, ""));
    lab.commit("b has it, and a another one");
    wait_for(&format!("both to settle; {}", lab.agent_log()), || {
        (lab.run(&["sync", "--wait"]).status.code() == Some(0)).then_some(())
    });
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_eq!(get(other, "/").unwrap(), "version 1\n");
    assert!(lab.history().iter().all(|receipt| receipt["result"] == "deployed"), "{:?}", lab.history());
}

#[test]
fn a_pre_that_fails_leaves_the_old_version_alone() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    let pre = |image: &str, script: &str| {
        web(image, port, "")
            .replace("[deploy]", &format!("[deploy]\npre = [\"/bin/sh\", \"-c\", \"{script}\"]"))
    };
    lab.deploy("web", &pre(&v1, "exit 0"), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let load = Load::begin(port, 50);
    lab.deploy("web", &pre(&v2, "echo cannot migrate; exit 9"), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    load.end_without_failure();
    let service = lab.service("web");
    assert_eq!((&service["reason"], &service["generation"]), (&"pre-failed".into(), &1.into()));
    let message = service["message"].as_str().unwrap();
    assert!(message.contains("code 9") && message.contains("cannot migrate"), "{message}");
    // The operator asks for another try of the same commit, and it fails the same way.
    lab.ok(&["resume", "web"]);
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let failed = lab.history().iter().filter(|receipt| receipt["reason"] == "pre-failed").count();
    assert_eq!(failed, 2);
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
}

#[test]
fn a_pre_that_does_not_end_in_time_is_ended_and_the_old_version_serves() {
    let (lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    let file = web(&v2, port, "").replace("timeout = \"20s\"", "timeout = \"3s\"");
    let load = Load::begin(port, 50);
    lab.deploy("web", &file.replace("[deploy]", "[deploy]\npre = [\"/bin/sleep\", \"600\"]"), "web 2");
    let receipt = lab.wait_receipt("failed");
    load.end_without_failure();
    assert_eq!(receipt["reason"], "pre-failed", "{receipt}");
    let message = receipt["message"].as_str().unwrap();
    assert!(message.contains("deploy.pre `/bin/sleep 600` did not end within 3s"), "{message}");
    wait_for("its container to be away", || {
        (!lab.traces().iter().any(|trace| trace.contains("web.2"))).then_some(())
    });
    let service = lab.service("web");
    assert_eq!((&service["reason"], &service["generation"]), (&"pre-failed".into(), &1.into()), "{service}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
}
