//! What servers may do to a host: move a tag, show an older or another repo, be away for long.

use std::fs;

use super::image::{self, Kind};
use super::lab::{Lab, wait_for, web};
use super::load::get;

fn drop_in(lab: &Lab, text: &str) {
    fs::create_dir_all(lab.path("conf.d")).unwrap();
    fs::write(lab.path("conf.d/more.toml"), text).unwrap();
}

#[track_caller]
fn wait_repo_reason(lab: &Lab, reason: &str) {
    wait_for(&format!("{reason}; {}", lab.agent_log()), || {
        (lab.status()["repo"]["reason"] == reason).then_some(())
    });
}

#[test]
fn a_tag_that_moves_changes_nothing_by_itself() {
    let (mut lab, port) = Lab::serving();
    drop_in(&lab, "[images]\ncheck_tags = \"1s\"\n");
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    let before = lab.service("web");
    // Other bytes under the same name.
    image::push(&image::build(&lab.path(""), "2", Kind::Good), &lab.reference("1"));
    let words = |lab: &Lab| lab.ok(&["events"]).matches("\"tag-moved\"").count();
    wait_for("word of it", || (words(&lab) > 0).then_some(()));
    lab.sync();
    // Nor with a commit about something else, a restart of the agent, or one of the container.
    lab.write("services/web.toml", &format!("# a remark\n{}", web(&lab.reference("1"), port, "")));
    lab.commit("a remark");
    lab.sync();
    assert_eq!(words(&lab), 1, "it is said once");
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let after = lab.service("web");
    assert_eq!((&before["digest"], &before["generation"]), (&after["digest"], &after["generation"]));
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    // What it stood for is in the receipt, in git too.
    let receipt = lab.history().remove(0);
    assert_eq!(receipt["to"]["digest"], before["digest"], "{receipt}");
    let digest = before["digest"].as_str().unwrap();
    wait_for("the receipt in git", || {
        lab.git(&lab.path("repo.git"), &["log", "--notes=gitopsd/*", "main"]).contains(digest).then_some(())
    });
    // A commit that changes the service takes what the tag stands for now.
    let changed = format!("working_dir = \"/\"\n{}", web(&lab.reference("1"), port, ""));
    lab.deploy("web", &changed, "changed");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_ne!(lab.service("web")["digest"], before["digest"]);
}

/// A server that always shows the same commit, as far as a host can tell: here nobody commits.
#[test]
fn a_repo_without_the_sign_of_life_that_it_promised_is_told_of() {
    let (mut lab, port) = Lab::serving();
    drop_in(&lab, "[repo]\npoll = \"1s\"\nmax_age = \"6s\"\n");
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    for times in 1..=2 {
        wait_repo_reason(&lab, "repo-old");
        let status = lab.status();
        assert_eq!(status["agent"]["state"], "stale");
        let commit = lab.git(&lab.path("work"), &["rev-parse", "--short=10", "HEAD"]);
        let message = status["repo"]["message"].as_str().unwrap();
        assert!(message.contains(&commit) && message.contains("repo.max_age is 6s"), "{message}");
        // Looks go on, and say no more; what runs does so too, and a sync is no failure.
        lab.sync();
        lab.sync();
        assert_eq!(lab.ok(&["events"]).matches("\"source-old\"").count(), times);
        assert_eq!(get(port, "/").unwrap(), "version 1\n");
        lab.commit("still here");
        wait_for("the sign of life", || {
            let status = lab.status();
            (status["repo"]["reason"].is_null() && status["agent"]["state"] == "in-sync").then_some(())
        });
    }
}

#[test]
fn an_older_copy_and_another_repo_change_nothing_after_a_restart() {
    let (mut lab, port) = Lab::serving();
    drop_in(&lab, "[repo]\nrepo_id = \"lab\"\n");
    let (repo, older, newest) = (lab.path("repo.git"), lab.path("older.git"), lab.path("newest.git"));
    lab.git(&lab.path(""), &["clone", "-q", "--mirror", "repo.git", "older.git"]);
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    // A backup is put back, and the agent starts without its copy of the repo.
    lab.stop_agent();
    fs::rename(&repo, &newest).unwrap();
    fs::rename(&older, &repo).unwrap();
    fs::remove_dir_all(lab.path("state/git")).unwrap();
    lab.start_agent();
    lab.wait_agent();
    wait_repo_reason(&lab, "not-fast-forward");
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    // The right one again, whose next commit calls it something else: a copy for tests, say.
    fs::rename(&repo, &older).unwrap();
    fs::rename(&newest, &repo).unwrap();
    lab.sync();
    lab.write("gitopsd.toml", "format = 1\nrepo_id = \"staging\"\n");
    lab.deploy("web", &web(&lab.reference("1"), port, ""), "for staging");
    wait_repo_reason(&lab, "repo-id-mismatch");
    let message = lab.status()["repo"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("`staging`") && message.contains("`lab`"), "{message}");
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

#[test]
fn receipts_outlive_a_forge_that_is_away() {
    let (mut lab, port) = Lab::serving();
    lab.stop_agent();
    drop_in(&lab, &format!("[report]\nremote = \"{}\"\n", lab.path("audit.git").display()));
    lab.start_agent();
    lab.wait_agent();
    for version in ["2", "3"] {
        let image = lab.image(version, Kind::Good);
        lab.deploy("web", &web(&image, port, ""), version);
        lab.wait_serving("web", &image);
        lab.wait_receipt("deployed");
        // Killed with receipts on their way.
        lab.kill_agent();
        lab.start_agent();
        lab.wait_agent();
    }
    lab.sync();
    wait_for("the word on it", || lab.ok(&["events"]).contains("\"receipts-stuck\"").then_some(()));
    assert!(lab.status()["outbox"].as_u64() >= Some(2), "{}", lab.status());
    let history = lab.history();
    assert!(history.len() >= 3, "the host's own history is whole: {history:?}");
    lab.git(&lab.path(""), &["init", "-q", "--bare", "audit.git"]);
    lab.ok(&["sync"]);
    wait_for("all of them", || (lab.status()["outbox"] == 0).then_some(()));
    let audit = lab.path("audit.git");
    let notes = "refs/notes/gitopsd/host-1";
    let listed = lab.git(&audit, &["notes", &format!("--ref={notes}"), "list"]);
    let text: String = listed
        .lines()
        .map(|line| lab.git(&audit, &["cat-file", "blob", line.split(' ').next().unwrap()]) + "\n")
        .collect();
    for receipt in history.iter().filter(|receipt| receipt["to"]["generation"].as_u64() > Some(1)) {
        let id = format!("\"id\":{}", receipt["id"]);
        assert_eq!(text.matches(&id).count(), 1, "{id} in {text}");
    }
}
