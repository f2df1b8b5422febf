//! What goes wrong around a host: its containers stay, the reason is in the status, the next good commit heals it.

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

#[track_caller]
fn wait_reason(lab: &Lab, service: &str, reason: &str) {
    wait_for(&format!("{reason}; {}", lab.agent_log()), || {
        (lab.service(service)["reason"] == reason).then_some(())
    });
}

#[track_caller]
fn wait_repo_reason(lab: &Lab, reason: &str) {
    wait_for(&format!("{reason}; {}", lab.agent_log()), || {
        (lab.status()["repo"]["reason"] == reason).then_some(())
    });
}

#[test]
fn a_repo_that_is_gone_changes_nothing_and_comes_back() {
    let (mut lab, port) = Lab::serving();
    let load = Load::begin(port, 50);
    let (repo, aside) = (lab.path("repo.git"), lab.path("aside.git"));
    std::fs::rename(&repo, &aside).unwrap();
    lab.run(&["sync"]);
    wait_repo_reason(&lab, "git-unreachable");
    assert_eq!(lab.service("web")["state"], "running");
    // Also for an agent that starts without it.
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    wait_repo_reason(&lab, "git-unreachable");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    std::fs::rename(&aside, &repo).unwrap();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    load.end_without_failure();
}

#[test]
fn an_empty_commit_and_a_broken_file_change_nothing() {
    let (lab, port) = Lab::serving();
    let work = lab.path("work");
    std::fs::remove_dir_all(work.join("services")).unwrap();
    lab.commit("nothing left");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(lab.service("web")["reason"], "config-empty");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");

    let other = free_port();
    lab.write("services/web.toml", "image = 7\n");
    lab.write("services/other.toml", &web(&lab.reference("1"), other, ""));
    lab.commit("a broken file, and a good one");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(lab.service("web")["reason"], "config-invalid");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    assert_eq!(get(other, "/").unwrap(), "version 1\n", "a broken file stops its own service only");

    lab.write("gitopsd.toml", "format = \n");
    lab.commit("the repo's own file is broken");
    wait_repo_reason(&lab, "config-invalid");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");

    lab.write("gitopsd.toml", "format = 1\nrepo_id = \"lab\"\n");
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "mended");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

#[test]
fn an_unknown_tag_waits_for_its_image() {
    let (lab, port) = Lab::serving();
    lab.deploy("web", &web(&lab.reference("2"), port, ""), "web 2, not pushed yet");
    wait_reason(&lab, "web", "image-not-found");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    let v2 = lab.image("2", Kind::Good);
    lab.wait_serving("web", &v2);
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

#[test]
fn a_registry_that_is_down_is_waited_for() {
    let (mut lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    lab.stop_registry();
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    wait_reason(&lab, "web", "registry-unreachable");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    lab.start_registry();
    lab.wait_serving("web", &v2);
}

#[test]
fn a_rewound_branch_is_refused() {
    let (lab, port) = Lab::serving();
    let work = lab.path("work");
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.sync();
    lab.git(&work, &["push", "-q", "--force", "origin", "HEAD~1:main"]);
    wait_repo_reason(&lab, "not-fast-forward");
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    lab.git(&work, &["push", "-q", "origin", "HEAD:main"]);
    lab.sync();
}

#[test]
fn containers_outlive_the_agent_and_what_breaks_is_mended() {
    let (mut lab, port) = Lab::serving();
    let load = Load::begin(port, 50);
    let before = lab.service("web");
    lab.kill_agent();
    assert_eq!(lab.run(&["status"]).status.code(), Some(69));
    lab.start_agent();
    lab.wait_agent();
    lab.stop_agent();
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    load.end_without_failure();
    let after = lab.service("web");
    assert_eq!((&before["generation"], &before["since"]), (&after["generation"], &after["since"]));
    assert_eq!(after["restarts"], 0);

    // A container that ends is started again, with a receipt.
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
    wait_for("the restart", || (lab.service("web")["restarts"] == 1).then_some(()));
    wait_for("it to serve", || get(port, "/").ok());
    lab.wait_receipt("restarted");

    // Rules that somebody deletes are put back, where the kernel does not keep others from them.
    let table = String::from_utf8(
        std::process::Command::new("nft").args(["list", "tables"]).output().unwrap().stdout,
    );
    let name = table.unwrap().lines().find(|line| line.contains(&lab.instance)).unwrap().to_owned();
    let name = name.trim_start_matches("table ").to_owned();
    let words: Vec<&str> = name.split(' ').collect();
    std::process::Command::new("nft").args(["delete", "table"]).args(&words).output().unwrap();
    lab.run(&["sync"]);
    wait_for("the route", || get(port, "/").ok());
}

#[test]
fn a_damaged_record_costs_its_own_service_only() {
    let (mut lab, port) = Lab::serving();
    let other = free_port();
    lab.deploy("other", &web(&lab.reference("1"), other, ""), "another one");
    lab.sync();
    let record = |name: &str| lab.path("state/services").join(name);
    let (current, former) = (record("web.json"), record("web.previous.json"));
    let load = Load::begin(port, 50);
    lab.kill_agent();
    // The former version stands in for a torn one.
    std::fs::write(&current, b"{\"format\":1,\"le").unwrap();
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(lab.service("web")["state"], "running");
    lab.kill_agent();
    // Without either, nothing of the service is touched.
    std::fs::write(&current, b"").unwrap();
    std::fs::write(&former, b"garbage").unwrap();
    lab.start_agent();
    lab.wait_agent();
    wait_reason(&lab, "web", "state-invalid");
    let plan = lab.run(&["plan"]);
    assert_eq!(plan.status.code(), Some(1), "{plan:?}");
    assert!(String::from_utf8_lossy(&plan.stdout).contains("(state-invalid)"), "{plan:?}");
    let v2 = lab.image("2", Kind::Good);
    lab.write("services/web.toml", &web(&v2, port, ""));
    lab.deploy("other", &web(&v2, other, ""), "both bumped");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    assert_eq!(get(other, "/").unwrap(), "version 2\n");
    load.end_without_failure();
}

/// What a power cut leaves: the disk. Processes, mounts, interfaces, rules and the run directory are gone, and so are
/// git and the registry.
#[test]
fn a_host_boots_its_last_good_state_alone() {
    let (mut lab, port) = Lab::serving();
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "echo mine > /kept"]);
    lab.kill_agent();
    lab.stop_registry();
    std::fs::rename(lab.path("repo.git"), lab.path("aside.git")).unwrap();
    lab.cut_power();
    assert!(get(port, "/").is_err());
    lab.start_agent();
    lab.wait_agent();
    wait_for(&format!("it to serve; {}", lab.agent_log()), || get(port, "/").ok());
    let service = lab.service("web");
    assert_eq!((&service["generation"], &service["state"]), (&1.into(), &"running".into()));
    wait_repo_reason(&lab, "git-unreachable");
    lab.wait_receipt("restarted");
    assert_eq!(lab.ok(&["exec", "web", "--", "/bin/cat", "/kept"]), "mine\n", "as Docker does");
}

/// The same in the middle of a deploy: it ends in the new version, without a human.
#[test]
fn a_power_cut_in_the_bake_ends_in_the_new_version() {
    let (mut lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    let file = web(&v2, port, "").replace("bake = \"500ms\"", "bake = \"15s\"");
    lab.deploy("web", &file, "web 2");
    wait_for("the bake", || (lab.service("web")["rollout"]["phase"] == "baking").then_some(()));
    lab.kill_agent();
    lab.cut_power();
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    let last = lab.history().pop().unwrap();
    assert_eq!(last["result"], "deployed", "{last}");
}

#[test]
fn a_settled_host_does_nothing() {
    let (lab, _port) = Lab::serving();
    let snapshot = || -> Vec<(std::path::PathBuf, std::time::SystemTime)> {
        ["state", "run"]
            .iter()
            .flat_map(|folder| walk(&lab.path(folder)))
            .filter(|path| !path.components().any(|part| part.as_os_str() == "logs"))
            .filter_map(|path| Some((path.clone(), path.symlink_metadata().ok()?.modified().ok()?)))
            .collect()
    };
    // The push of the last receipt is part of settling.
    wait_for("the outbox", || (lab.status()["outbox"] == 0).then_some(()));
    let before = snapshot();
    let looked = lab.status()["repo"]["reached_at"].clone();
    for _ in 0..3 {
        lab.sync();
    }
    assert_ne!(lab.status()["repo"]["reached_at"], looked);
    assert_eq!(snapshot(), before, "a round in sync writes nothing");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // What containers write is theirs; what git touches of its own cache is a question of its own.
        if ["containers", "volumes", "store"].iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}
