//! `gitopsd trust` where no agent is running: what it says of a host's files, and what `reset` leaves for the next agent.

use std::fs;
use std::process::Command;

use gitopsd::report::events::{Event, EventLog};
use gitopsd::report::message::{Kind, Message};
use gitopsd::state::StateDir;
use gitopsd::state::trust::{HighWater, read_trust};
use gitopsd::types::{Reason, Refusal};
use serde_json::Value;

use super::signatures::{commit, key, public, refused, trusting};
use crate::follow;
use crate::git_server::Lab;

/// `gitopsd trust ARGS` with the lab's configuration: exit code and both outputs.
fn run(lab: &Lab, args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
        .arg("--config")
        .arg(lab.path("gitopsd.toml"))
        .arg("trust")
        .args(args)
        .env("SUDO_USER", "ada")
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

fn json(lab: &Lab) -> Value {
    let (code, text) = run(lab, &["--json"]);
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn configure(lab: &Lab, repo: &str) {
    let root = lab.path("").display().to_string();
    let text = format!(
        "state_dir = \"{root}state\"\nrun_dir = \"{root}run\"\ninstance = \"trust\"\n[repo]\nurl = \"{root}config.git\"\n\
         {repo}\n[host]\nname = \"web-1\"\n"
    );
    fs::write(lab.path("gitopsd.toml"), text).unwrap();
}

/// Believes the head as an agent does, and remembers it.
fn believe(lab: &Lab) -> gitopsd::types::CommitId {
    let config = gitopsd::config::load(&lab.path("gitopsd.toml")).unwrap();
    let state = StateDir::open(&config.state_dir).unwrap();
    let repository = gitopsd::git::Repository::open(&config.repo, &config.state_dir.join("git")).unwrap();
    let commit = follow(&repository, None).unwrap().id().clone();
    let admitted_at = "2026-06-02T00:00:00Z".parse().unwrap();
    state.save_high_water(&HighWater { commit: commit.clone(), admitted_at }).unwrap();
    commit
}

#[test]
fn it_says_what_is_believed_by_whom_and_what_was_refused() {
    let lab = Lab::new().with_repo();
    configure(&lab, "");
    let (code, text) = run(&lab, &[]);
    assert!(code == 0 && text.contains("nothing yet") && text.contains("whatever the branch has"), "{text}");
    assert!(text.contains("not asked for"), "{text}");
    for name in ["ann", "bob"] {
        key(&lab, name, &["ed25519"]);
    }
    let lines = format!(
        "# who\nann@example.org namespaces=\"git\" {}\n*@example.org cert-authority,valid-before=\"20300101Z\" {}\n",
        public(&lab, "ann"),
        public(&lab, "bob")
    );
    fs::write(lab.path("allowed"), lines).unwrap();
    let allowed = lab.path("allowed").display().to_string();
    configure(&lab, &format!("repo_id = \"lab\"\nverify = \"ssh\"\nallowed_signers = \"{allowed}\""));
    let head = commit(&lab, "shop 1.1", Some("ann"), None);
    assert_eq!(believe(&lab), head);
    let refusal = Refusal::new(Reason::Signature, "commit 00 by Eve: it is not signed");
    let told = Message::new(Kind::RevisionRefused, refusal.message.clone()).because(&refusal);
    let mut events = EventLog::open(&lab.path("state"));
    events.append(&Event::of(&told, "2026-06-03T00:00:00Z".parse().unwrap()));

    let said = json(&lab);
    let mark = &said["mark"];
    assert_eq!((&mark["commit"], &mark["subject"]), (&head.as_str().into(), &"shop 1.1".into()), "{said}");
    assert_eq!((&mark["author"], &mark["unsigned"]), (&"Ann Admin <ann@example.org>".into(), &Value::Null));
    assert_eq!(mark["signer"]["principal"], "ann@example.org");
    assert_eq!((&said["repo"]["repo_id"], &said["verify"][0]), (&"lab".into(), &"ssh".into()));
    assert_eq!(said["verify_commits"], "strict");
    let signers = said["signers"].as_array().unwrap();
    assert_eq!((signers.len(), &signers[0]["line"], &signers[1]["authority"]), (2, &2.into(), &true.into()));
    assert_eq!(mark["signer"]["fingerprint"], signers[0]["fingerprint"]);
    assert_eq!(signers[1]["valid_before"], "2030-01-01T00:00:00Z");
    assert_eq!(
        (&said["refused"]["reason"], &said["refused"]["standing"]),
        (&"signature".into(), &true.into())
    );
    let (_, text) = run(&lab, &[]);
    for part in [
        head.as_str(),
        "signed by ann@example.org with SHA256:",
        &format!("a descendant of {}", head.short()),
        "still so: commit 00 by Eve: it is not signed (signature)",
        "as an authority, until 2030-01-01T00:00:00Z",
        "allowed:3",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    // It is followed again; a key is taken out of the list; the list cannot be read.
    events.append(&Event::of(&Message::new(Kind::SourceFound, ""), "2026-06-04T00:00:00Z".parse().unwrap()));
    assert_eq!(json(&lab)["refused"]["standing"], false);
    fs::write(lab.path("allowed"), format!("bob {}\n", public(&lab, "bob"))).unwrap();
    let said = json(&lab);
    assert!(said["mark"]["unsigned"].as_str().unwrap().contains("is no allowed signer"), "{said}");
    fs::write(lab.path("allowed"), "bob\n").unwrap();
    assert!(json(&lab)["trouble"].as_str().unwrap().contains("allowed:1: a key is missing"));
    fs::remove_dir_all(lab.path("state/git")).unwrap();
    assert!(run(&lab, &[]).1.contains("the agent's copy of the repo does not hold it"));
}

#[test]
fn a_reset_is_kept_for_the_agent_with_its_reason() {
    let lab = Lab::new().with_repo();
    configure(&lab, "");
    let head = believe(&lab);
    assert_eq!(run(&lab, &["reset"]).0, 64, "a reason is wanted");
    assert_eq!(run(&lab, &["reset", "--reason", " "]).0, 64);
    assert_eq!(run(&lab, &["reset", "--reason", "x", "--to", "abc"]).0, 64, "in full");
    assert_eq!(read_trust(&lab.path("state")).unwrap().1, None);
    let other = "0123456789012345678901234567890123456789";
    let (code, text) = run(&lab, &["reset", "--reason", "moved to a new forge", "--to", other]);
    assert!(code == 0 && text.contains("it counts when one looks"), "{text}");
    let (mark, reset) = read_trust(&lab.path("state")).unwrap();
    let reset = reset.unwrap();
    // The mark stays until something else is believed.
    assert_eq!(mark.unwrap().commit, head);
    assert_eq!((reset.by.as_str(), reset.reason.as_str()), ("ada", "moved to a new forge"));
    assert_eq!((reset.commit.unwrap().as_str(), reset.former), (other, Some(head.clone())));
    assert!(reset.admitted.is_none() && !reset.told);
    let (_, text) = run(&lab, &[]);
    assert!(
        text.contains(&format!("0123456789 or a descendant of it, or one of {}", head.short())),
        "{text}"
    );
    assert!(text.contains("moved to a new forge (in force until a head is believed)"), "{text}");
    // A word that cannot be read was not said, and is not one of before either.
    fs::write(lab.path("state/trust-reset.json"), "{").unwrap();
    assert_eq!(run(&lab, &[]).0, 1);
    // Anew, this time without a commit.
    assert_eq!(run(&lab, &["reset", "--reason", "begin anew"]).0, 0);
    assert!(run(&lab, &[]).1.contains("whatever the branch has"));
}

#[test]
fn a_hosts_own_key_signs_no_config() {
    let lab = Lab::new().with_repo();
    for name in ["ann", "host"] {
        key(&lab, name, &["ed25519"]);
    }
    fs::write(lab.path("allowed"), format!("ann {}\n", public(&lab, "ann"))).unwrap();
    let signatures = gitopsd::config::agent::SignatureConfig {
        allowed_signers: Some(lab.path("allowed")),
        ..Default::default()
    };
    let trust = gitopsd::config::agent::TrustConfig { signatures: Some(signatures), ..Default::default() };
    let repository = trusting(&lab, trust).signing_with(Some(lab.path("host")));
    let mark = commit(&lab, "ann's", Some("ann"), None);
    let trusted = follow(&repository, None).unwrap();
    repository.publish(None, &"web-1".parse().unwrap(), &[super::notes::receipt(trusted.id(), "a")]).unwrap();
    // Whoever has a host's keys can push to the branch where the forge cannot tell refs apart.
    commit(&lab, "a thief's", Some("host"), None);
    assert!(refused(follow(&repository, Some(&mark))).contains("which is no allowed signer"));
    // Nor does the commit of receipts itself pass for one of the branch.
    lab.git("config.git", &["update-ref", "refs/heads/main", "refs/notes/gitopsd/web-1"]);
    let error = follow(&repository, Some(&mark)).unwrap_err();
    assert_eq!(error.reason, Reason::NotFastForward, "{error}");
}

#[test]
fn the_repo_says_nothing_about_who_may_sign() {
    let lab = Lab::new().with_repo();
    for name in ["ann", "eve"] {
        key(&lab, name, &["ed25519"]);
    }
    fs::write(lab.path("allowed"), format!("ann {}\n", public(&lab, "ann"))).unwrap();
    let signatures = gitopsd::config::agent::SignatureConfig {
        allowed_signers: Some(lab.path("allowed")),
        ..Default::default()
    };
    let trust = gitopsd::config::agent::TrustConfig { signatures: Some(signatures), ..Default::default() };
    let repository = trusting(&lab, trust);
    let mark = commit(&lab, "ann's", Some("ann"), None);
    follow(&repository, None).unwrap();
    // Whoever can push adds files by the names that hosts have for them.
    for name in ["allowed_signers", ".gitopsd/allowed_signers", "gitopsd.allowed_signers"] {
        let path = lab.path("work").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("eve {}\n", public(&lab, "eve"))).unwrap();
    }
    commit(&lab, "eve's", Some("eve"), None);
    assert!(refused(follow(&repository, Some(&mark))).contains("which is no allowed signer"));
}
