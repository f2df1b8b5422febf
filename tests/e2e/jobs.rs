//! One-shots, schedules, windows and order, in the whole program.

use std::time::Duration;

use gitopsd::agent::clock;
use gitopsd::types::Timestamp;
use jiff::SignedDuration;
use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::get;

fn events(lab: &Lab, kind: &str) -> Vec<Value> {
    let text = lab.ok(&["events", "--json"]);
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["event"] == kind).collect()
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn a_scheduled_service_runs_at_its_times_and_a_new_version_from_the_next_one_on() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    let file = |script: &str| {
        format!(
            "image = \"{image}\"\nschedule = \"*:*:0/2\"\nentrypoint = [\"/bin/sh\", \"-c\"]\n\
             command = [\"{script}\"]\nvolumes = [\"data:/data\"]\n"
        )
    };
    lab.deploy(
        "tidy",
        &file("echo begin >> /data/log; sleep 3; echo end >> /data/log; echo tidied"),
        "tidy 1",
    );
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let service = lab.service("tidy");
    let next = time(&service["schedule"]["next_run"]);
    assert!(next > clock::now().checked_sub(SignedDuration::from_secs(60)).unwrap(), "{service}");
    wait_for("two runs", || (events(&lab, "job-ended").len() >= 2).then_some(()));
    // No two at once, though each takes longer than from one time to the next.
    let log = std::fs::read_to_string(lab.path("state/volumes/tidy/data/log")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.chunks(2).all(|pair| matches!(pair, ["begin", "end"] | ["begin"])), "{log}");
    assert!(lab.ok(&["logs", "tidy"]).contains("tidied"));
    wait_for("a time between two runs", || {
        (lab.service("tidy")["schedule"]["last_exit"]["code"] == 0).then_some(())
    });
    assert!(lab.ok(&["status"]).contains("next run in"), "{}", lab.ok(&["status"]));
    let receipts = lab.history().len();
    assert_eq!(receipts, 1, "runs that end well are no receipts");
    // A version that fails is told, once for a row, with its last line.
    lab.deploy("tidy", &file("echo no luck; exit 3"), "tidy 2");
    wait_for("a failure", || (events(&lab, "job-failed").len() >= 2).then_some(()));
    wait_for("a time between two runs", || (lab.service("tidy")["reason"] == "run-failed").then_some(()));
    let failed: Vec<Value> =
        lab.history().into_iter().filter(|receipt| receipt["reason"] == "run-failed").collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0]["message"].as_str().unwrap().contains("exited with code 3: no luck"), "{failed:?}");
    assert_eq!(failed[0]["to"]["generation"], 2);
}

#[test]
fn a_commit_waits_for_its_window_unless_somebody_says_otherwise() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2, v3) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good), lab.image("3", Kind::Good));
    // It opens two hours from now, whatever the time is.
    let clock = |hours: i64| {
        clock::now().checked_add(SignedDuration::from_hours(hours)).unwrap().strftime("%H:%M").to_string()
    };
    let window = format!("[deploy]\nwindow = \"{}-{} UTC\"", clock(2), clock(3));
    let file = |image: &str| web(image, port, "").replace("[deploy]", &window);
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.deploy("web", &file(&v2), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let service = lab.service("web");
    assert_eq!((&service["reason"], &service["image"]), (&"window".into(), &v1.clone().into()), "{service}");
    let opens = time(&service["retry_at"]).duration_since(clock::now());
    assert!(opens > SignedDuration::from_mins(115) && opens < SignedDuration::from_mins(125), "{service}");
    let postponed = |lab: &Lab| {
        let output = lab.run(&["plan", "--json"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        plan["changes"][0]["postponed"].as_str().map(str::to_owned)
    };
    let why = postponed(&lab).unwrap();
    assert!(why.starts_with("it is changed only within its window (") && why.contains(" opens at "), "{why}");
    lab.ok(&["sync", "--now", "--wait"]);
    assert_eq!(lab.service("web")["image"], v2);
    // That was for this head alone; the message of a commit says it for itself.
    lab.deploy("web", &file(&v3), "web 3");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(lab.service("web")["reason"], "window");
    assert!(postponed(&lab).is_some());
    lab.kill_agent();
    lab.deploy(
        "web",
        &format!("# urgent\n{}", file(&v3)),
        "web 3, now\n\nIt cannot wait.\n\nGitopsd-Window: now",
    );
    assert_eq!(postponed(&lab), None);
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(lab.service("web")["image"], v3);
    // A commit that brings back what ran before never waits.
    lab.deploy("web", &file(&v2), "back to web 2");
    lab.sync();
    assert_eq!(lab.service("web")["image"], v2);
}

#[test]
fn a_post_that_fails_is_told_and_what_was_deployed_serves() {
    let (mut lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    // Beside its service, in its network.
    let post =
        "[deploy]\npost = [\"/bin/sh\", \"-c\", \"wget -qO- http://127.0.0.1:8080/; echo not warm; exit 4\"]";
    lab.deploy("web", &web(&v2, port, "").replace("[deploy]", post), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let service = lab.service("web");
    assert_eq!(
        (&service["reason"], &service["health"]),
        (&"post-failed".into(), &"healthy".into()),
        "{service}"
    );
    let message = service["message"].as_str().unwrap();
    assert!(message.contains("exited with code 4: version 2 | not warm"), "{message}");
    assert_eq!(service["image"], v2);
    assert!(lab.ok(&["logs", "web"]).contains("not warm"));
    let results: Vec<Value> = lab.history().iter().map(|receipt| receipt["result"].clone()).collect();
    assert_eq!(results[results.len() - 2..], ["deployed", "failed"], "{results:?}");
    lab.ok(&["resume", "web"]);
    lab.sync();
    lab.stop_agent();
}

#[test]
fn what_one_commit_changes_is_changed_in_order_and_recreate_says_its_gap() {
    let mut lab = Lab::new();
    let ports = [free_port(), free_port()];
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    let text = std::fs::read_to_string(lab.config()).unwrap();
    std::fs::write(lab.config(), text.replace("max_removals = 1", "max_removals = 2")).unwrap();
    let files = |image: &str, lab: &Lab| {
        let needs = "[depends_on]\ndb = { condition = \"service_healthy\" }\n";
        lab.write("services/web.toml", &format!("{}{needs}", web(image, ports[0], "")));
        lab.write("services/db.toml", &web(image, ports[1], "volumes = [\"data:/data\"]"));
    };
    files(&v1, &lab);
    lab.commit("both 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    files(&v2, &lab);
    let plan = lab.run(&["plan", lab.path("work").to_str().unwrap()]);
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.contains("(recreate, as it writes to /data)"), "{plan}");
    lab.commit("both 2");
    lab.sync();
    let done = |service: &str| {
        let mut receipts = lab.history().into_iter().filter(|receipt| receipt["service"] == service);
        receipts.next_back().unwrap()
    };
    let (web, db) = (done("web"), done("db"));
    assert!(time(&web["switched_at"]) >= time(&db["finished_at"]), "{web}\n{db}");
    let gap = db["gap_seconds"].as_f64().unwrap();
    assert!(gap > 0.0 && Duration::from_secs_f64(gap) < Duration::from_secs(60), "{db}");
    assert!(db["message"].as_str().unwrap().contains("; nothing served for "), "{db}");
    let told = std::fs::read_to_string(lab.path("agent.log")).unwrap();
    let said = "; generation 1 is stopped before it starts, as it writes to /data";
    assert!(told.contains(said), "the journal says aloud what nobody asked for by name");
    assert_eq!(web.get("gap_seconds"), None, "{web}");
    // Away: what depends goes first.
    lab.git(&lab.path("work"), &["rm", "-q", "services/web.toml", "services/db.toml"]);
    lab.write("services/other.toml", &super::lab::web(&v1, free_port(), ""));
    lab.commit("neither");
    lab.sync();
    let removed: Vec<Value> = lab
        .history()
        .into_iter()
        .filter(|receipt| receipt["result"] == "removed")
        .map(|receipt| receipt["service"].clone())
        .collect();
    assert_eq!(removed, ["web", "db"]);
}

#[test]
fn a_service_starts_after_its_migration_has_ended_well_and_never_after_one_that_failed() {
    let mut lab = Lab::new();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    let write = |lab: &Lab, image: &str, script: &str| {
        let needs = "[depends_on]\nmigrate = { condition = \"service_completed_successfully\" }\n";
        lab.write("services/web.toml", &format!("{}{needs}", web(image, port, "")));
        let migrate = format!(
            "image = \"{image}\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\nrestart = \"no\"\n\
             [deploy]\nbake = \"0s\"\ndrain = \"0s\"\n"
        );
        lab.write("services/migrate.toml", &migrate);
    };
    write(&lab, &v1, "sleep 4; echo migrated");
    lab.commit("both 1");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_serving("web", &v1);
    let started = |lab: &Lab| -> Vec<Value> {
        let all = events(lab, "candidate-started").into_iter();
        all.filter(|event| event["service"] == "web").map(|event| event["at"].clone()).collect()
    };
    let ended = events(&lab, "ended").into_iter().find(|event| event["service"] == "migrate").unwrap();
    let first = started(&lab);
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(time(&first[0]) >= time(&ended["at"]), "{first:?}, {ended}");

    // It fails: what needs it stays as it is.
    write(&lab, &v2, "echo no luck; exit 5");
    lab.commit("both 2");
    let service = wait_for("what web says of it", || {
        let service = lab.service("web");
        let message = service["message"].as_str().unwrap_or_default();
        message.contains("migrate, which it depends on, did not get to commit").then_some(service)
    });
    assert_eq!((&service["reason"], &service["image"]), (&"dependency".into(), &v1.into()), "{service}");
    wait_for("what migrate says", || (lab.service("migrate")["reason"] == "exited").then_some(()));
    assert_eq!(started(&lab), first, "nothing of the new version was started");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");

    // Mended by another commit, it lets the new version in.
    write(&lab, &v2, "echo migrated");
    lab.commit("another migration");
    lab.wait_serving("web", &v2);
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_eq!(started(&lab).len(), 2);
}
