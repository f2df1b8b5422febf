//! Waves of hosts: twelve real agents, one repo, no server but git.

use serde_json::Value;

use crate::image::Kind;
use crate::lab::hosts::{Fleet, inside};
use crate::lab::wait_for;

const WAVES: &str = r#"format = 1
repo_id = "lab"
[[wave]]
hosts = ["a-*"]
[[wave]]
hosts = ["b-*"]
wait = "1s"
[[wave]]
hosts = ["c-*"]
min_healthy = "50%"
"#;

const HOSTS: [&str; 12] =
    ["a-1", "a-2", "b-1", "b-2", "b-3", "b-4", "c-1", "c-2", "c-3", "c-4", "c-5", "c-6"];

/// When the deploys of a commit began and were over on hosts of a wave: the first and the last of them.
fn times(fleet: &Fleet, wave: &str, commit: &str) -> (String, String) {
    let mut receipts = Vec::new();
    for host in fleet.of(wave) {
        let own = host.receipts().into_iter().find(|receipt| receipt["commit"] == commit);
        receipts.push(own.unwrap_or_else(|| panic!("{} did not deploy {commit}", host.name)));
    }
    let of = |key: &str| receipts.iter().map(|it| it[key].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    (of("started_at").into_iter().min().unwrap(), of("finished_at").into_iter().max().unwrap())
}

#[track_caller]
fn in_order(fleet: &Fleet, commit: &str) {
    let [a, b, c] = ["a-", "b-", "c-"].map(|wave| times(fleet, wave, commit));
    assert!(a.1 < b.0 && b.1 < c.0, "{a:?} {b:?} {c:?}");
}

fn row<'a>(seen: &'a Value, host: &str) -> &'a Value {
    seen["hosts"].as_array().unwrap().iter().find(|row| row["host"] == host).unwrap()
}

#[test]
fn twelve_hosts_in_three_waves_and_a_failure_stops_the_rest() {
    let mut fleet = Fleet::new();
    fleet.lab.write("gitopsd.toml", WAVES);
    let good = fleet.image("1", Kind::Good);
    let first = fleet.lab.deploy("web", &inside(&good), "web 1");
    fleet.start(&HOSTS);
    for host in &fleet.hosts {
        host.wait_serving("web", &good);
    }
    // Who has never said anything is not known yet: the first commit of a fleet is no rollout. But it was one of all.
    for wave in ["a-", "b-", "c-"] {
        times(&fleet, wave, &first);
    }
    wait_for("all to be in step", || {
        let seen = fleet.seen();
        let hosts = seen["hosts"].as_array().unwrap();
        (hosts.len() == 12 && hosts.iter().all(|host| host["state"] == "in-step")).then_some(())
    });

    // It fails in wave one: nobody else moves.
    let sick = fleet.image("2", Kind::Sick);
    let second = fleet.lab.deploy("web", &inside(&sick), "web 2");
    for host in fleet.of("b-").chain(fleet.of("c-")) {
        let why = host.wait_repo("wave-failed");
        assert!(why.contains("wave 1 failed on a-") && why.contains("web: "), "{why}");
    }
    let status = fleet.host("c-6").status();
    assert_eq!(
        (&status["agent"]["state"], &status["revision"]["commit"]),
        (&"degraded".into(), &first.into())
    );
    let why = fleet.host("b-1").command(&["why", "web", "--json"]).output().unwrap();
    let why: Value = serde_json::from_slice(&why.stdout).unwrap();
    assert_eq!(why["repo"]["reason"], "wave-failed");
    let seen = wait_for("word of both hosts of wave one", || {
        let seen = fleet.seen();
        let hosts = seen["waves"][0]["hosts"].as_array().unwrap();
        hosts.iter().all(|host| host["state"] == "failed").then_some(seen.clone())
    });
    for host in ["b-1", "c-6"] {
        let row = row(&seen, host);
        assert_eq!(
            (&row["state"], &row["waits"]["reason"]),
            (&"waiting".into(), &"wave-failed".into()),
            "{row}"
        );
        assert!(row["waits"]["message"].as_str().unwrap().contains("a-1, and 1 more host"), "{row}");
    }
    assert_eq!(row(&seen, "a-2")["state"], "failed");
    for host in fleet.of("b-").chain(fleet.of("c-")) {
        assert_eq!(host.receipts().len(), 1, "{}", host.name);
        assert_eq!(host.serves("web").as_ref(), Some(&good), "{}", host.name);
    }
    // A new host begins with what its peers run, and an agent that starts again waits as before.
    fleet.start(&["c-7"]);
    fleet.host("c-7").wait_serving("web", &good);
    fleet.host("c-7").wait_repo("wave-failed");
    fleet.hosts.iter_mut().find(|host| host.name == "b-2").unwrap().restart();
    assert!(fleet.host("b-2").wait_repo("wave-failed").contains(&second[..10]));

    // The fix goes through all of them again.
    let fixed = fleet.image("3", Kind::Good);
    let third = fleet.lab.deploy("web", &inside(&fixed), "web 3");
    for host in &fleet.hosts {
        host.wait_serving("web", &fixed);
    }
    in_order(&fleet, &third);
    let skipped = fleet.hosts.iter().filter(|host| host.name.as_str() > "b");
    for host in skipped {
        assert!(host.receipts().iter().all(|receipt| receipt["commit"] != second), "{}", host.name);
    }
}

#[test]
fn nobody_waits_for_an_emergency_or_for_what_changes_nothing_there() {
    let mut fleet = Fleet::new();
    // There is no a-9: the second wave would wait for ever.
    fleet.lab.write("gitopsd.toml", "format = 1\n[[wave]]\nhosts = [\"a-9\"]\n[[wave]]\nhosts = [\"b-*\"]\n");
    let one = fleet.image("1", Kind::Good);
    fleet.lab.deploy("web", &inside(&one), "web 1");
    fleet.start(&["b-1", "d-1"]);
    let why = fleet.host("b-1").wait_repo("wave");
    assert!(why.contains("wave 1: 0 of 1 host healthy, 1 needed: a-9 has never said how it is"), "{why}");
    assert_eq!(fleet.host("b-1").status()["agent"]["state"], "progressing");
    assert_eq!(fleet.host("b-1").status()["services"], Value::Array(Vec::new()));
    // An operator of that host does not wait.
    let sync = fleet.host("b-1").command(&["sync", "--wait"]).output().unwrap();
    assert_eq!(sync.status.code(), Some(1), "{sync:?}");
    // What is believed by an operator's word waits all the same, and who said so hears it.
    let reset = fleet.host("b-1").command(&["trust", "reset", "--reason", "anew"]).output().unwrap();
    let said = String::from_utf8_lossy(&reset.stderr);
    assert!(reset.status.code() == Some(1) && said.contains("a-9 has never said"), "{reset:?}");
    let sync = fleet.host("b-1").command(&["sync", "--now", "--wait"]).output().unwrap();
    assert!(sync.status.success(), "{sync:?}");
    fleet.host("b-1").wait_serving("web", &one);
    // Who is in no wave comes last.
    fleet.host("d-1").wait_repo("wave");
    let two = fleet.image("2", Kind::Good);
    fleet.lab.deploy("web", &inside(&two), "web 2\n\nIt cannot wait.\n\nGitopsd-Waves: now");
    for host in &fleet.hosts {
        host.wait_serving("web", &two);
    }
    // It would go from a-9 too: so that one counts.
    let only = |image: &str| format!("hosts = [\"[bd]-*\"]\n{}", inside(image));
    fleet.lab.deploy("web", &only(&two), "web 2, not on a-9");
    assert!(fleet.host("b-1").wait_repo("wave").contains("a-9"));
    fleet.lab.commit("so be it\n\nGitopsd-Waves: now");
    wait_for("the end of the wait", || fleet.host("b-1").status()["repo"]["reason"].is_null().then_some(()));
    // What wave one need not do, nobody waits for.
    let three = fleet.image("3", Kind::Good);
    let last = fleet.lab.deploy("web", &only(&three), "web 3");
    for host in &fleet.hosts {
        host.wait_serving("web", &three);
        assert_eq!(host.status()["revision"]["commit"], last);
    }
}
