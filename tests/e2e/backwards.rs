//! The way back where it is not the usual one: what a recreated service had, directories that are exchanged, a word about
//! trust on a host that is new.

use std::fs;
use std::net::TcpListener;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::get;

/// A service file of which only one can run at a time, and which cannot be undone once it was begun.
fn irreversible(image: &str, port: u16) -> String {
    web(image, port, "volumes = [\"data:/data\"]")
        .replace("[deploy]", "[deploy]\npre = [\"/bin/sh\", \"-c\", \"exit 0\"]\nreversible = false")
        .replace("\"20s\"", "\"4s\"")
}

/// What was stopped for a version that did not make it, and could not be undone: an operator's word brings it back, and
/// it stays, also beyond the agent.
#[test]
fn a_rollback_brings_back_what_was_stopped_for_a_version_that_did_not_make_it() {
    let mut lab = Lab::new();
    let port = free_port();
    let v1 = lab.image("1", Kind::Good);
    lab.deploy("web", &web(&v1, port, "volumes = [\"data:/data\"]"), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    let v2 = lab.image("2", Kind::Sick);
    lab.deploy("web", &irreversible(&v2, port), "a migration, and a sick program");
    let wait_held = |under_way: bool| {
        wait_for(&format!("the end of it; {}", lab.agent_log()), || {
            let service = lab.service("web");
            (service["reason"] == "irreversible" && service["rollout"].is_null() != under_way).then_some(())
        });
    };
    wait_held(true);
    // It is given up for one that cannot be begun.
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let taken = (taken.local_addr().unwrap().port(), taken);
    lab.deploy("web", &web(&v1, taken.0, "volumes = [\"data:/data\"]"), "a port that another program has");
    wait_held(false);
    // Nothing serves: neither may run on what the other one made.
    assert!(get(port, "/").is_err());
    let said = lab.ok(&["rollback", "web"]);
    assert!(said.contains("brings generation 1 back"), "{said}");
    wait_for(&format!("version 1; {}", lab.agent_log()), || {
        get(port, "/").ok().filter(|page| page == "version 1\n")
    });
    let service = lab.service("web");
    assert_eq!((&service["generation"], &service["state"]), (&1.into(), &"held".into()), "{service}");
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    lab.run(&["sync"]);
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    assert_eq!(lab.service("web")["generation"], 1);
    // The next version goes on from there.
    let v3 = lab.image("3", Kind::Good);
    lab.deploy("web", &web(&v3, port, "volumes = [\"data:/data\"]"), "web 3");
    lab.wait_serving("web", &v3);
    assert_eq!(get(port, "/").unwrap(), "version 3\n");
}

/// Two services that take each other's directories in one commit: neither can be first. Both stay as they are.
#[test]
fn directories_that_are_exchanged_in_one_commit_are_refused() {
    let mut lab = Lab::new();
    let ports = [free_port(), free_port()];
    let image = lab.image("1", Kind::Good);
    let write = |lab: &Lab, folders: [&str; 2]| {
        for ((name, port), folder) in ["one", "two"].into_iter().zip(ports).zip(folders) {
            let volume = format!("volumes = [\"{}:/data\"]", lab.path(folder).display());
            lab.write(&format!("services/{name}.toml"), &web(&image, port, &volume));
        }
    };
    for folder in ["a", "b", "c"] {
        fs::create_dir(lab.path(folder)).unwrap();
    }
    write(&lab, ["a", "b"]);
    lab.commit("each its own");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    write(&lab, ["b", "a"]);
    lab.commit("exchanged");
    for name in ["one", "two"] {
        wait_for(&format!("{name} to be refused; {}", lab.agent_log()), || {
            (lab.service(name)["reason"] == "volume-in-use").then_some(())
        });
    }
    let plan = lab.run(&["plan"]);
    assert!(String::from_utf8_lossy(&plan.stdout).contains("cannot leave it before"), "{plan:?}");
    for (name, port) in ["one", "two"].into_iter().zip(ports) {
        assert_eq!(get(port, "/").unwrap(), "version 1\n");
        assert_eq!(lab.service(name)["generation"], 1);
    }
    // By a third one it goes.
    write(&lab, ["c", "b"]);
    lab.commit("one leaves its own");
    lab.sync();
    write(&lab, ["c", "a"]);
    lab.commit("two takes it");
    lab.sync();
    for port in ports {
        assert_eq!(get(port, "/").unwrap(), "version 1\n");
    }
    let generations = ["one", "two"].map(|name| lab.service(name)["generation"].clone());
    assert_eq!(generations, [2, 2].map(serde_json::Value::from));
}

/// A word about trust before the first agent has ever run here: kept for it, obeyed, and told in git with its reason.
#[test]
fn a_reset_on_a_new_host_is_told_by_its_first_agent() {
    let mut lab = Lab::new();
    let port = free_port();
    let v1 = lab.image("1", Kind::Good);
    let head = lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.ok(&["trust", "reset", "--to", &head, "--reason", "the disk was replaced"]);
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    let trust: serde_json::Value = serde_json::from_str(&lab.ok(&["trust", "--json"])).unwrap();
    assert_eq!(trust["mark"]["commit"], head.as_str());
    assert_eq!(trust["reset"]["admitted"], head.as_str(), "{trust}");
    let receipts = || lab.git(&lab.path("repo.git"), &["log", "--notes=gitopsd/*", "main"]);
    wait_for(&format!("the receipt in git; {}", lab.agent_log()), || {
        receipts().contains("the disk was replaced").then_some(())
    });
    assert!(receipts().contains("\"kind\":\"trust-reset\""), "{}", receipts());
    // The service's own receipt is beside it.
    lab.wait_receipt("deployed");
    wait_for("all receipts in git", || (lab.status()["outbox"] == 0).then_some(()));
    assert!(receipts().contains("\"result\":\"deployed\""), "{}", receipts());
}
