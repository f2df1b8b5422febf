//! What is believed, on a whole agent: signatures that count, `gitopsd trust`, and its `reset` with and without an agent.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, wait_for, web};
use super::load::get;

fn trust(lab: &Lab) -> Value {
    serde_json::from_str(&lab.ok(&["trust", "--json"])).unwrap()
}

/// More of `[repo]`, in a file beside the lab's configuration.
fn repo(lab: &Lab, keys: &str) {
    fs::create_dir_all(lab.path("conf.d")).unwrap();
    fs::write(lab.path("conf.d/trust.toml"), format!("[repo]\n{keys}\n")).unwrap();
}

/// A key of SSH that the lab's git signs with, allowed to by the host.
fn signing(lab: &Lab) -> PathBuf {
    let key = lab.path("signer");
    let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    let public = fs::read_to_string(lab.path("signer.pub")).unwrap();
    fs::write(lab.path("allowed"), format!("ada@example.org {public}")).unwrap();
    key
}

/// Has the work tree's commits signed, or not.
fn sign(lab: &Lab, key: Option<&PathBuf>) {
    let work = lab.path("work");
    let key = key.map(|key| key.display().to_string());
    for (name, value) in [
        ("gpg.format", "ssh"),
        ("user.signingkey", key.as_deref().unwrap_or("")),
        ("commit.gpgsign", if key.is_some() { "true" } else { "false" }),
    ] {
        lab.git(&work, &["config", name, value]);
    }
}

/// Rewrites the branch: its last commit becomes another one. Gives the new head.
fn rewrite(lab: &Lab, message: &str) -> String {
    let work = lab.path("work");
    lab.git(&work, &["add", "-A"]);
    lab.git(&work, &["commit", "-q", "--amend", "-m", message]);
    lab.git(&work, &["push", "-q", "--force", "origin", "HEAD:main"]);
    lab.git(&work, &["rev-parse", "HEAD"])
}

fn receipts(lab: &Lab) -> String {
    lab.git(&lab.path("repo.git"), &["log", "--notes=gitopsd/*", "main"])
}

#[test]
fn a_reset_is_told_in_the_journal_the_events_and_git_with_its_reason() {
    let (mut lab, port) = Lab::serving();
    let head = trust(&lab)["mark"]["commit"].clone();
    assert_eq!(head, lab.status()["revision"]["commit"]);
    let v2 = lab.image("2", Kind::Good);
    lab.write("services/web.toml", &web(&v2, port, ""));
    let rewritten = rewrite(&lab, "another history");
    wait_for("the refusal", || (trust(&lab)["refused"]["standing"] == true).then_some(()));
    assert!(lab.ok(&["trust"]).contains("(not-fast-forward)"), "{}", lab.ok(&["trust"]));
    // While it runs: its first head is believed as on a new host.
    lab.ok(&["trust", "reset", "--reason", "history was cleaned of a secret"]);
    lab.wait_serving("web", &v2);
    let said = trust(&lab);
    assert_eq!(
        (&said["mark"]["commit"], &said["reset"]["admitted"]),
        (&rewritten.as_str().into(), &rewritten.as_str().into())
    );
    assert_eq!((&said["reset"]["former"], &said["refused"]["standing"]), (&head, &false.into()), "{said}");
    let events = lab.ok(&["events"]);
    assert!(events.contains("\"trust-reset\"") && events.contains("cleaned of a secret"), "{events}");
    wait_for("the receipt in git", || {
        receipts(&lab).contains("history was cleaned of a secret").then_some(())
    });
    let text = receipts(&lab);
    assert!(text.contains("trust: ") && text.contains("\"kind\":\"trust-reset\""), "{text}");
    // It is no service's receipt, and none that cannot be read.
    let fleet = lab.ok(&["fleet", lab.path("work").to_str().unwrap(), "--json"]);
    assert!(!fleet.contains("\"unreadable\": 1"), "{fleet}");
    // It was for this once.
    lab.write("services/web.toml", &web(&lab.reference("1"), port, ""));
    let second = rewrite(&lab, "yet another history");
    wait_for("the refusal", || (trust(&lab)["refused"]["standing"] == true).then_some(()));
    // Without an agent: kept for the next one, which tells the journal.
    lab.stop_agent();
    lab.ok(&["trust", "reset", "--to", &second, "--reason", "meant as well"]);
    assert_eq!(trust(&lab)["reset"]["admitted"], Value::Null);
    lab.start_agent();
    lab.wait_agent();
    lab.wait_serving("web", &lab.reference("1"));
    assert!(lab.ok(&["events"]).contains("meant as well"), "{}", lab.ok(&["events"]));
    assert_eq!(trust(&lab)["mark"]["commit"], second.as_str());
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
}

#[test]
fn a_reset_loosens_neither_signatures_nor_the_first_contact() {
    let (mut lab, port) = Lab::serving();
    let key = signing(&lab);
    let first = lab.status()["revision"]["commit"].as_str().unwrap().to_owned();
    let allowed = lab.path("allowed").display().to_string();
    repo(&lab, &format!("verify = \"ssh\"\nallowed_signers = \"{allowed}\"\nfirst_commit = \"{first}\""));
    lab.stop_agent();
    sign(&lab, Some(&key));
    let v2 = lab.image("2", Kind::Good);
    let signed = lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_serving("web", &v2);
    assert_eq!(trust(&lab)["mark"]["signer"]["principal"], "ada@example.org");
    // Unsigned, and of a history that the first commit is not a part of.
    sign(&lab, None);
    let unsigned = lab.deploy("web", &web(&lab.reference("1"), port, ""), "nobody's");
    wait_for("the refusal", || (lab.status()["repo"]["reason"] == "signature").then_some(()));
    let output = lab.run(&["trust", "reset", "--reason", "let it in", "--to", &unsigned]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let work = lab.path("work");
    sign(&lab, Some(&key));
    lab.git(&work, &["checkout", "-q", "--orphan", "other"]);
    lab.git(&work, &["commit", "-q", "-m", "signed, and of nowhere"]);
    lab.git(&work, &["push", "-q", "--force", "origin", "HEAD:main"]);
    let output = lab.run(&["trust", "reset", "--reason", "begin anew"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("repo.first_commit"), "{output:?}");
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_eq!(trust(&lab)["mark"]["commit"], signed.as_str());
    // A word is over with the next head that is believed, by whatever rule.
    lab.git(&work, &["checkout", "-q", "-B", "main", &signed]);
    lab.write("services/web.toml", &web(&v2, port, "").replace("500ms", "600ms"));
    lab.git(&work, &["add", "-A"]);
    lab.git(&work, &["commit", "-q", "-m", "on the old history"]);
    lab.git(&work, &["push", "-q", "--force", "origin", "HEAD:main"]);
    let head = lab.git(&work, &["rev-parse", "HEAD"]);
    wait_for("it to be believed", || (trust(&lab)["mark"]["commit"] == head.as_str()).then_some(()));
    assert_eq!(trust(&lab)["reset"]["admitted"], head.as_str());
}

#[test]
fn receipts_of_an_agent_are_signed_and_wait_where_they_cannot_be() {
    let (mut lab, port) = Lab::serving();
    lab.stop_agent();
    fs::create_dir_all(lab.path("conf.d")).unwrap();
    let key = lab.path("host-key");
    fs::write(lab.path("conf.d/key.toml"), format!("[report]\nkey = \"{}\"\n", key.display())).unwrap();
    lab.start_agent();
    lab.wait_agent();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_receipt("deployed");
    lab.wait_serving("web", &v2);
    wait_for("the word on it", || lab.ok(&["events"]).contains("signing-key").then_some(()));
    assert!(lab.status()["outbox"].as_u64() > Some(0), "{}", lab.status());
    // The key comes; nothing has to be restarted.
    let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    lab.ok(&["sync"]);
    wait_for("all receipts in git", || (lab.status()["outbox"] == 0).then_some(()));
    let public = fs::read_to_string(lab.path("host-key.pub")).unwrap();
    fs::write(lab.path("hosts"), format!("gitopsd@host-1 namespaces=\"git\" {public}")).unwrap();
    let file = format!("gpg.ssh.allowedSignersFile={}", lab.path("hosts").display());
    let notes = "refs/notes/gitopsd/host-1";
    lab.git(&lab.path("repo.git"), &["-c", &file, "verify-commit", notes]);
}
