//! What a clone says of a whole fleet: `gitopsd fleet`, `at` and `blame`, on notes that real hosts' code wrote.

use std::process::Command;

use gitopsd::git::Repository;
use gitopsd::reconcile::tagged::Tagged;
use gitopsd::types::{CommitId, Timestamp};
use serde_json::{Value, json};

use crate::git_server::Lab;
use crate::{config, follow, id};

/// `gitopsd ARGS` in a directory of the lab, without a host's configuration: exit code, output, errors.
pub fn gitopsd(lab: &Lab, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
        .args(["--config", "/nonexistent/gitopsd.toml"])
        .args(args)
        .current_dir(lab.path("ops"))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The tag of what the service ran before, of what it was to run; what came of it, when.
pub struct Story<'a>(pub &'a str, pub Option<&'a str>, pub Option<&'a str>, pub &'a str, pub &'a str);

/// A host that writes one receipt.
pub fn write(lab: &Lab, host: &str, commit: &CommitId, story: &Story<'_>) {
    let Story(service, from, to, result, at) = story;
    let side = |tag: &Option<&str>, generation: u64| {
        tag.map(|tag| {
            let digest = format!("sha256:{}", tag.repeat(64).chars().take(64).collect::<String>());
            json!({ "generation": generation, "image": format!("r.io/{service}:{tag}"), "digest": digest })
        })
    };
    let number = |tag: &Option<&str>| tag.map_or(0, |tag| tag.parse().unwrap());
    let bad = !["deployed", "removed"].contains(result);
    let id = format!("{service}-{at}");
    let receipt = json!({
        "id": id, "host": host, "service": service, "commit": commit, "result": result,
        "from": side(from, number(from)), "to": side(to, number(to)),
        "reason": bad.then_some("unhealthy"), "message": if bad { "GET /: 500" } else { "serves" },
        "started_at": at, "finished_at": at, "pulled_bytes": 1, "pull_seconds": 0.1, "healthy_seconds": null,
        "switched_at": null, "agent_version": "0.1.0", "boot_id": "b",
    });
    let repository = Repository::open(&config(&lab.url()), &lab.path(&format!("cache-{host}"))).unwrap();
    follow(&repository, None).unwrap();
    repository.publish(None, &host.parse().unwrap(), &[(commit.clone(), id, receipt.to_string())]).unwrap();
}

/// A clone of the repo, with notes, as people have it.
fn clone(lab: &Lab) {
    lab.git("", &["clone", "-q", "config.git", "ops"]);
    lab.git("ops", &["fetch", "-q", "origin", "refs/notes/gitopsd/*:refs/notes/gitopsd/*"]);
}

pub fn fleet_of_four() -> (Lab, CommitId, CommitId) {
    let lab = Lab::new().with_repo();
    lab.commit("services/db.toml", "image = \"r.io/db:1\"\nhosts = [\"role=db\"]\n", "db");
    for host in ["web-1", "web-2", "web-3", "web-4"] {
        lab.commit(&format!("hosts/{host}.toml"), "labels = [\"zone=a\"]\n", host);
    }
    let first = id(&lab.commit("services/shop.toml", "image = \"r.io/shop:1\"\n", "shop 1"));
    for host in ["web-1", "web-2", "web-3"] {
        write(
            &lab,
            host,
            &first,
            &Story("shop", None, Some("1"), "deployed", &format!("2026-01-01T10:00:0{}Z", &host[4..])),
        );
    }
    // It runs this by a label of its own.
    write(&lab, "web-1", &first, &Story("db", None, Some("1"), "deployed", "2026-01-01T10:01:00Z"));
    let second = id(&lab.commit("services/shop.toml", "image = \"r.io/shop:2\"\n", "shop 2"));
    write(&lab, "web-1", &second, &Story("shop", Some("1"), Some("2"), "deployed", "2026-01-01T11:00:00Z"));
    write(&lab, "web-2", &second, &Story("shop", Some("1"), Some("2"), "failed", "2026-01-01T11:00:02Z"));
    clone(&lab);
    (lab, first, second)
}

fn states(fleet: &Value) -> Vec<(&str, &str, Option<u64>)> {
    let hosts = fleet["hosts"].as_array().unwrap();
    hosts
        .iter()
        .map(|host| {
            (host["host"].as_str().unwrap(), host["state"].as_str().unwrap(), host["behind"].as_u64())
        })
        .collect()
}

#[test]
fn who_is_in_step_behind_failed_and_silent() {
    let (lab, first, second) = fleet_of_four();
    let (code, text, _) = gitopsd(&lab, &["fleet", "--json"]);
    let fleet: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 0, "{text}");
    assert_eq!(fleet["head"]["commit"], second.as_str());
    assert_eq!(
        states(&fleet),
        [
            ("web-1", "in-step", Some(0)),
            ("web-2", "failed", Some(0)),
            ("web-3", "behind", Some(1)),
            ("web-4", "silent", None),
        ]
    );
    let services = fleet["hosts"][0]["services"].as_array().unwrap();
    let names: Vec<_> = services.iter().map(|service| service["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["db", "shop"]);
    let failed = &fleet["hosts"][1]["services"][0];
    assert_eq!((&failed["reason"], &failed["wanted"]), (&json!("unhealthy"), &json!("r.io/shop:2")));
    assert_eq!(failed["serving"]["image"], "r.io/shop:1");
    let (_, text, _) = gitopsd(&lab, &["fleet"]);
    println!("{text}");
    for line in [
        "1 of 4 hosts in step",
        "shop: r.io/shop:1 serves: GET /: 500 (unhealthy)",
        "shop: r.io/shop:1 serves, r.io/shop:2 is wanted",
        "(1 commit ago)",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    // Held against the commit before, the other one is in step, and so is the one whose try of the next one failed.
    let (_, text, _) = gitopsd(&lab, &["fleet", "--json", "--rev", first.as_str()]);
    let fleet: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        states(&fleet),
        [
            ("web-1", "behind", None),
            ("web-2", "in-step", None),
            ("web-3", "in-step", Some(0)),
            ("web-4", "silent", None),
        ]
    );
}

#[test]
fn a_removed_service_is_not_missed() {
    let (lab, ..) = fleet_of_four();
    std::fs::remove_file(lab.path("work/services/db.toml")).unwrap();
    let third = id(&lab.commit("README.md", "x", "no db"));
    let state = |lab: &Lab| {
        lab.git("ops", &["pull", "-q"]);
        lab.git("ops", &["fetch", "-q", "origin", "refs/notes/gitopsd/*:refs/notes/gitopsd/*"]);
        let fleet: Value = serde_json::from_str(&gitopsd(lab, &["fleet", "--json"]).1).unwrap();
        fleet["hosts"][0]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state(&lab), "behind");
    write(&lab, "web-1", &third, &Story("db", Some("1"), None, "removed", "2026-01-01T12:00:00Z"));
    assert_eq!(state(&lab), "in-step");
}

#[test]
fn a_clone_without_notes_says_how_to_get_them() {
    let (lab, ..) = fleet_of_four();
    lab.git("", &["clone", "-q", "config.git", "plain"]);
    let plain = lab.path("plain").display().to_string();
    let (code, text, _) = gitopsd(&lab, &["fleet", &plain]);
    assert_eq!(code, 0);
    assert!(text.contains("git fetch origin 'refs/notes/gitopsd/*:refs/notes/gitopsd/*'"), "{text}");
    let (code, _, errors) = gitopsd(&lab, &["at", "now", &plain]);
    assert_eq!(code, 1);
    assert!(errors.contains("hint: git fetch"), "{errors}");
    let (code, _, errors) = gitopsd(&lab, &["fleet", "/"]);
    assert!(code == 1 && errors.contains("open the git repository at /"), "{errors}");
    let (code, _, errors) = gitopsd(&lab, &["fleet", "--rev", "no-such"]);
    assert!(code == 1 && errors.contains("look for revision no-such"), "{errors}");
}

#[test]
fn what_ran_when_on_every_host() {
    let (lab, first, second) = fleet_of_four();
    let at = |time: &str| {
        let (code, text, errors) = gitopsd(&lab, &["at", time, ".", "--json"]);
        assert_eq!(code, 0, "{errors}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let early = at("2026-01-01T10:30:00Z");
    assert_eq!(early["hosts"]["web-1"]["shop"]["serving"]["image"], "r.io/shop:1");
    assert_eq!(early["hosts"]["web-1"]["shop"]["commit"], first.as_str());
    let late = at("2026-01-01 12:00");
    assert_eq!(late["hosts"]["web-1"]["shop"]["commit"], second.as_str());
    assert_eq!(late["hosts"]["web-2"]["shop"]["commit"], first.as_str(), "what failed never had traffic");
    assert_eq!(at("2026-01-01T09:00:00Z")["hosts"]["web-3"], json!({}));
    let (_, text, _) = gitopsd(&lab, &["at", "2026-01-01T12:00:00Z", ".", "--host", "web-2"]);
    assert!(text.contains("r.io/shop:1") && !text.contains("web-1"), "{text}");
}

#[test]
fn each_line_has_its_author() {
    let (lab, ..) = fleet_of_four();
    let file = "image = \"r.io/shop:2\"\n\n# the limit\nmem_limit = \"64m\"\n";
    let third = lab.commit("services/shop.toml", file, "shop: a limit");
    let defaults = "format = 1\n\n[defaults]\nrestart = \"always\"\n\n[defaults.deploy]\ndrain = \"3s\"\n\n[networks.x]\n";
    let fourth = lab.commit("gitopsd.toml", defaults, "defaults");
    let own = "labels = []\n[services.other]\nimage = \"x\"\n[services.shop]\ncpus = 2\n";
    let fifth = lab.commit("hosts/web-1.toml", own, "more for web-1");
    lab.git("ops", &["pull", "-q"]);
    let (code, text, errors) = gitopsd(&lab, &["blame", "shop", ".", "--host", "web-1", "--json"]);
    assert_eq!(code, 0, "{errors}");
    let lines: Value = serde_json::from_str(&text).unwrap();
    let lines: Vec<(&str, u64, &str, &str)> = lines
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap();
            (text("file"), line["line"].as_u64().unwrap(), text("text"), text("commit"))
        })
        .collect();
    let image = lab.git("ops", &["log", "-1", "--format=%H", "--grep=^shop 2$"]);
    assert_eq!(
        lines,
        [
            ("gitopsd.toml", 3, "[defaults]", fourth.as_str()),
            ("gitopsd.toml", 4, "restart = \"always\"", fourth.as_str()),
            ("gitopsd.toml", 6, "[defaults.deploy]", fourth.as_str()),
            ("gitopsd.toml", 7, "drain = \"3s\"", fourth.as_str()),
            ("services/shop.toml", 1, "image = \"r.io/shop:2\"", image.as_str()),
            ("services/shop.toml", 4, "mem_limit = \"64m\"", third.as_str()),
            ("hosts/web-1.toml", 4, "[services.shop]", fifth.as_str()),
            ("hosts/web-1.toml", 5, "cpus = 2", fifth.as_str()),
        ]
    );
    let (_, text, _) = gitopsd(&lab, &["blame", "shop", "."]);
    assert!(text.contains("Ann Admin <ann@example.org>") && text.contains("services/shop.toml:1"), "{text}");
    let (code, _, errors) = gitopsd(&lab, &["blame", "nothing", "."]);
    assert!(code == 1 && errors.contains("there is no services/nothing.toml"), "{errors}");
}

/// It is waited for, so it has to be seen: also where the repo has no file for it.
#[test]
fn a_host_that_a_wave_names_and_that_never_wrote_is_seen() {
    let lab = Lab::new().with_repo();
    let first = id(&lab.commit("services/shop.toml", "image = \"r.io/shop:1\"\n", "shop 1"));
    write(&lab, "web-1", &first, &Story("shop", None, Some("1"), "deployed", "2026-01-01T10:00:00Z"));
    let waves = "format = 1\n[[wave]]\nhosts = [\"ghost-9\"]\n[[wave]]\nhosts = [\"web-*\"]\n";
    lab.commit("gitopsd.toml", waves, "waves");
    lab.commit("services/shop.toml", "image = \"r.io/shop:2\"\n", "shop 2");
    clone(&lab);
    let (code, text, _) = gitopsd(&lab, &["fleet", "--json"]);
    let fleet: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 0, "{text}");
    assert_eq!(states(&fleet), [("ghost-9", "silent", None), ("web-1", "waiting", Some(2))]);
    let waits = fleet["hosts"][1]["waits"]["message"].as_str().unwrap();
    assert!(waits.contains("ghost-9 has never said how it is"), "{waits}");
    let (_, text, _) = gitopsd(&lab, &["fleet"]);
    assert!(text.contains("wave 1: 0 of 1 host healthy; ghost-9 has never said how it is"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("ghost-9") && line.contains("never")), "{text}");
}

#[test]
fn a_tag_that_hosts_found_to_be_two_images_is_told_of() {
    let lab = Lab::new().with_repo();
    let first = id(&lab.commit("services/shop.toml", "image = \"r.io/shop:1\"\n", "shop 1"));
    let tell = |host: &str, commit: &CommitId, tag: &str, digit: char| {
        write(&lab, host, commit, &Story("shop", None, Some(tag), "deployed", "2026-01-01T10:00:00Z"));
        let repository = Repository::open(&config(&lab.url()), &lab.path(&format!("cache-{host}"))).unwrap();
        let found = format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap();
        let tags = std::iter::once((format!("r.io/shop:{tag}"), found)).collect();
        let name = host.parse().unwrap();
        let word = Tagged::new(&name, commit, tags, Timestamp::from_second(1_767_261_600).unwrap());
        let line = serde_json::to_string(&word).unwrap();
        repository.publish(None, &name, &[(commit.clone(), word.id, line)]).unwrap();
    };
    let divided = || {
        lab.git("ops", &["fetch", "-q", "origin", "refs/notes/gitopsd/*:refs/notes/gitopsd/*"]);
        let (code, text, _) = gitopsd(&lab, &["fleet", "--json"]);
        assert_eq!(code, 0, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["divided"].clone()
    };
    tell("web-1", &first, "1", 'a');
    tell("web-2", &first, "1", 'a');
    clone(&lab);
    assert_eq!(divided(), Value::Null, "the same for both");
    tell("web-3", &first, "1", 'b');
    let found = divided();
    let (a, b) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
    assert_eq!(
        found,
        json!([{ "image": "r.io/shop:1", "commit": first, "found": { a: ["web-1", "web-2"], b: ["web-3"] } }])
    );
    let (_, text, _) = gitopsd(&lab, &["fleet"]);
    assert!(text.contains("aaaaaaaaaaaa on web-1, web-2; bbbbbbbbbbbb on web-3"), "{text}");
}
