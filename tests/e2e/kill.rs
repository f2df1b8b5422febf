//! `kill -9` of the agent around every effect: containers serve throughout, the next agent ends in the old or the new
//! version, and nothing is left over.

use std::collections::BTreeSet;

use gitopsd::agent::clock;
use gitopsd::reconcile::step::Step;
use gitopsd::types::Timestamp;
use jiff::SignedDuration;
use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::Load;

const PLACES: [&str; 4] = ["begin", "before", "after", "done"];

/// Walks a lab through one change for each failpoint, and gives the points that were hit.
fn kill_around(
    points: &[String],
    mut change: impl FnMut(&Lab, u16, usize),
    mut settle: impl FnMut(&Lab, u16, usize),
) -> BTreeSet<String> {
    let mut lab = Lab::new();
    let port = free_port();
    let v0 = lab.image("0", Kind::Good);
    lab.deploy("web", &web(&v0, port, ""), "web 0");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.kill_agent();
    let mut hit = BTreeSet::new();
    for (round, point) in points.iter().enumerate() {
        let load = Load::begin(port, 40);
        change(&lab, port, round);
        lab.start_agent_with(&[("FAILPOINTS", &format!("{point}=return"))]);
        // Either it kills itself, or the point is not on this way and all settles.
        let ended = wait_for("the failpoint, or rest", || {
            if lab.agent_ended() {
                return Some(true);
            }
            let output = lab.run(&["sync", "--wait"]);
            (output.status.code() == Some(0)).then_some(false)
        });
        if ended {
            hit.insert(point.clone());
        }
        lab.kill_agent();
        lab.start_agent();
        lab.wait_agent();
        settle(&lab, port, round);
        load.end_without_failure();
        let service = lab.service("web");
        let id = format!("web.{}", service["generation"]);
        // The shims' own group stays as long as the instance does.
        for trace in lab.traces().into_iter().filter(|trace| trace != "cgroup shims") {
            assert!(trace.contains(&id), "{point}: {trace} is left over; {id} is what should be there");
        }
        lab.kill_agent();
    }
    hit
}

/// The four places around each step.
fn points(words: &[&str]) -> Vec<String> {
    words.iter().flat_map(|word| PLACES.iter().map(move |place| format!("{word}::{place}"))).collect()
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn a_deploy_survives_a_kill_at_every_failpoint() {
    // Every word but those of the ways below, which a plain bump never takes.
    let words = ["begin", "pull", "start", "switch", "promote", "retire"];
    let hit = kill_around(
        &points(&words),
        |lab, port, round| {
            let image = lab.image(&format!("a{round}"), Kind::Good);
            lab.deploy("web", &web(&image, port, ""), &format!("web a{round}"));
        },
        |lab, _, round| {
            lab.sync();
            assert_eq!(lab.service("web")["image"], lab.reference(&format!("a{round}")));
        },
    );
    assert_eq!(hit, BTreeSet::from_iter(points(&words)), "every failpoint of a deploy is on its way");
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn a_failing_deploy_survives_a_kill_at_every_failpoint() {
    let words = ["fail", "discard", "conclude"];
    let hit = kill_around(
        &points(&words),
        |lab, port, round| {
            let image = lab.image(&format!("b{round}"), Kind::Exits);
            lab.deploy("web", &web(&image, port, ""), &format!("web b{round}"));
        },
        |lab, port, round| {
            assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
            let service = lab.service("web");
            assert_eq!(service["image"], lab.reference("0"), "the old version serves");
            assert_eq!(service["reason"], "exited");
            let commit = lab.git(&lab.path("work"), &["rev-parse", "HEAD"]);
            let receipts: Vec<_> =
                lab.history().into_iter().filter(|receipt| receipt["commit"] == commit.as_str()).collect();
            assert_eq!(receipts.len(), 1, "one receipt for one failure, round {round}: {receipts:?}");
            // Back to what runs, so that the next round begins in sync.
            lab.deploy("web", &web(&lab.reference("0"), port, ""), "web 0 again");
            lab.sync();
        },
    );
    assert_eq!(hit, BTreeSet::from_iter(points(&words)));
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn a_canary_survives_a_kill_at_every_failpoint() {
    let words = ["canary"];
    let hit = kill_around(
        &points(&words),
        |lab, port, round| {
            let image = lab.image(&format!("d{round}"), Kind::Good);
            let file = format!("{}canary = \"50%\"\ncanary_time = \"1s\"\n", web(&image, port, ""));
            lab.deploy("web", &file, &format!("web d{round}"));
        },
        |lab, _, round| {
            lab.sync();
            assert_eq!(lab.service("web")["image"], lab.reference(&format!("d{round}")));
        },
    );
    assert_eq!(hit, BTreeSet::from_iter(points(&words)));
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn scaling_survives_a_kill_at_every_failpoint() {
    let words = ["scale", "start-replica", "drop-replica"];
    let count = |round: usize| if round.is_multiple_of(2) { 3 } else { 1 };
    // Each on its way: more containers in even rounds, fewer in odd ones.
    let [more, fewer] = [&["scale", "start-replica"][..], &["scale", "drop-replica"]].map(points);
    let mut order = Vec::new();
    for place in 0..more.len() {
        order.extend([more[place].clone(), fewer[place].clone()]);
    }
    let hit = kill_around(
        &order,
        |lab, port, round| {
            let file = format!("{}replicas = {}\n", web(&lab.reference("0"), port, ""), count(round));
            lab.deploy("web", &file, &format!("web with {}", count(round)));
        },
        |lab, _, round| {
            lab.sync();
            let names = super::lab::names(&lab.path("run/containers"));
            assert_eq!(names.len(), count(round), "round {round}: {names:?}");
            assert_eq!(lab.service("web")["generation"], 1, "it was changed in place");
        },
    );
    assert_eq!(hit, BTreeSet::from_iter(points(&words)), "every failpoint is on its way");
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn batches_survive_a_kill_at_every_failpoint() {
    let words = ["batch", "widen"];
    let hit = kill_around(
        &points(&words),
        |lab, port, round| {
            let image = lab.image(&format!("e{round}"), Kind::Good);
            let file = format!("{}replicas = 2\nparallelism = 1\n", web(&image, port, ""));
            lab.deploy("web", &file.replace("drain = \"3s\"", "drain = \"1s\""), &format!("web e{round}"));
        },
        |lab, _, round| {
            lab.sync();
            assert_eq!(lab.service("web")["image"], lab.reference(&format!("e{round}")));
            let names = super::lab::names(&lab.path("run/containers"));
            assert_eq!(names.len(), 2, "round {round}: {names:?}");
        },
    );
    assert_eq!(hit, BTreeSet::from_iter(points(&words)), "every failpoint is on its way");
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn a_pull_survives_a_kill_before_and_after_each_name() {
    let points = ["pull::before_rename", "pull::after_rename", "pull::before_record", "pull::after_record"];
    let points = points.map(str::to_owned);
    let hit = kill_around(
        &points,
        |lab, port, round| {
            let image = lab.image(&format!("c{round}"), Kind::Good);
            lab.deploy("web", &web(&image, port, ""), &format!("web c{round}"));
        },
        |lab, _, round| {
            lab.sync();
            assert_eq!(lab.service("web")["image"], lab.reference(&format!("c{round}")));
            let left = std::fs::read_dir(lab.path("state/store/tmp")).unwrap().count();
            assert_eq!(left, 0, "nothing unfinished is left");
        },
    );
    assert_eq!(hit, BTreeSet::from(points));
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn a_change_in_place_survives_a_kill_at_every_failpoint() {
    let points: Vec<_> = ["begin", "before", "effect", "limited", "after", "done"]
        .map(|place| format!("amend::{place}"))
        .into();
    let other = free_port();
    let hit = kill_around(
        &points,
        |lab, port, round| {
            let more = format!("mem_limit = \"{}m\"", 64 + round);
            let file = web(&lab.reference("0"), port, &more);
            // A second port comes and goes with it.
            let second = format!(":8080\", \"127.0.0.1:{other}:8080\"]");
            let file = if round % 2 == 0 { file.replace(":8080\"]", &second) } else { file };
            lab.deploy("web", &file, &format!("web with {} MiB", 64 + round));
        },
        |lab, _, round| {
            lab.sync();
            assert_eq!(lab.service("web")["generation"], 1, "it was changed in place");
            let limit =
                "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
            let seen = lab.ok(&["exec", "web", "--", "/bin/sh", "-c", limit]);
            assert_eq!(seen.trim(), ((64 + round as u64) << 20).to_string(), "round {round}");
            assert_eq!(
                std::net::TcpStream::connect(("127.0.0.1", other)).is_ok(),
                round % 2 == 0,
                "round {round}"
            );
            let commit = lab.git(&lab.path("work"), &["rev-parse", "HEAD"]);
            let receipts = lab.history().into_iter().filter(|receipt| receipt["commit"] == commit.as_str());
            assert_eq!(receipts.count(), 1, "one receipt for one change, round {round}");
        },
    );
    assert_eq!(hit, BTreeSet::from_iter(points), "every failpoint is on its way");
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn one_shots_run_once_whenever_the_agent_is_killed() {
    let mut points = points(&["prepare", "ended", "clear", "finish"]);
    points.extend(["prepare::effect".to_owned(), "finish::effect".to_owned()]);
    let lines = |lab: &Lab| {
        let log = std::fs::read_to_string(lab.path("state/volumes/web/data/log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let hit = kill_around(
        &points,
        |lab, port, round| {
            let image = lab.image(&format!("d{round}"), Kind::Good);
            let deploy = format!(
                "[deploy]\nstrategy = \"blue-green\"\n\
                 pre = [\"/bin/sh\", \"-c\", \"echo pre {round} >> /data/log\"]\n\
                 post = [\"/bin/sh\", \"-c\", \"echo post {round} >> /data/log\"]"
            );
            let file = web(&image, port, "volumes = [\"data:/data\"]").replace("[deploy]", &deploy);
            lab.deploy("web", &file, &format!("web d{round}"));
        },
        |lab, _, round| {
            lab.sync();
            assert_eq!(lab.service("web")["image"], lab.reference(&format!("d{round}")));
            let seen: Vec<String> =
                lines(lab).into_iter().filter(|line| line.ends_with(&format!(" {round}"))).collect();
            assert_eq!(seen, [format!("pre {round}"), format!("post {round}")], "each once, in order");
        },
    );
    assert_eq!(hit, BTreeSet::from_iter(points));
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn a_time_of_a_schedule_has_one_run_whenever_the_agent_is_killed() {
    let mut points = points(&["run", "ended"]);
    points.push("run::effect".to_owned());
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    let file = |at: &str, round: usize| {
        let script = format!("echo begin {round} >> /data/log; sleep 1; echo end {round} >> /data/log");
        format!(
            "image = \"{image}\"\nschedule = \"{at}\"\nvolumes = [\"data:/data\"]\n\
             command = [\"/bin/sh\", \"-c\", \"{script}\"]\n"
        )
    };
    let log = lab.path("state/volumes/tidy/data/log");
    let lines = |round: usize| -> Vec<String> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter(|line| line.ends_with(&format!(" {round}"))).map(str::to_owned).collect()
    };
    // The time that was to come is behind it: one that is forgotten would not come again while this test waits.
    let in_an_hour = |service: &Value| {
        let next = service["schedule"]["next_run"].as_str().map(|at| at.parse::<Timestamp>().unwrap());
        next.is_some_and(|next| next.duration_since(clock::now()) > SignedDuration::from_mins(5))
    };
    for (round, point) in points.iter().enumerate() {
        let killed = (1..=5).any(|attempt| {
            let soon = clock::now().checked_add(SignedDuration::from_secs(5 * attempt)).unwrap();
            let at = soon.strftime("*:%M:%S UTC").to_string();
            let commit = lab.deploy("tidy", &file(&at, round), "another time");
            lab.start_agent_with(&[("FAILPOINTS", &format!("{point}=return"))]);
            // On a slow host that time may be over before the agent knows of it.
            let killed = wait_for("the failpoint", || {
                if lab.agent_ended() {
                    return Some(true);
                }
                let output = lab.run(&["status", "--json"]);
                let status: Value = serde_json::from_slice(&output.stdout).ok()?;
                let service = status["services"].as_array()?.iter().find(|it| it["name"] == "tidy")?;
                let missed =
                    service["commit"] == commit.as_str() && in_an_hour(service) && lines(round).is_empty();
                missed.then_some(false)
            });
            lab.kill_agent();
            killed
        });
        assert!(killed, "no run was due in time for {point}");
        lab.start_agent();
        lab.wait_agent();
        wait_for(&format!("the run of that time to be over, after {point}"), || {
            let left = || lab.traces().iter().any(|trace| trace.contains("tidy."));
            (in_an_hour(&lab.service("tidy")) && !left()).then_some(())
        });
        lab.sync();
        assert_eq!(lines(round), [format!("begin {round}"), format!("end {round}")], "{point}");
        lab.kill_agent();
    }
}

#[test]
fn every_word_is_tried_somewhere() {
    // The ways that a kill test walks, and the words that stand on none of them, each with the reason.
    let walked = [
        "begin",
        "pull",
        "start",
        "canary",
        "switch",
        "promote",
        "retire",
        "fail",
        "discard",
        "conclude",
        "prepare",
        "ended",
        "clear",
        "finish",
        "run",
        "amend",
        "scale",
        "start-replica",
        "drop-replica",
        "batch",
        "widen",
    ];
    let elsewhere = [
        ("advance", "only after a crash: tests/plan walks it with a crash at each point"),
        ("stop", "only under recreate: tests/plan"),
        ("return", "only after a switch: tests/e2e/returns.rs, tests/plan"),
        ("route", "one nft transaction, repeated by the next round"),
        ("report", "only after a crash: scenario 40 of tests/plan"),
        ("note", "writes a record, and nothing else"),
        ("sweep", "repeated by the next round"),
        ("withdraw", "repeated by the next round"),
        ("remove", "tests/plan"),
        ("release", "writes a record, and nothing else"),
    ];
    let known: BTreeSet<&str> = walked.into_iter().chain(elsewhere.map(|(word, _)| word)).collect();
    assert_eq!(known, Step::WORDS.iter().copied().collect::<BTreeSet<_>>());
}
