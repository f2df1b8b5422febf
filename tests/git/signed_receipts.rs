//! Receipts signed by the host's own key, judged by the real git.

use std::fs;
use std::process::{Command, Output};

use gitopsd::git::Repository;
use gitopsd::types::Reason;

use super::notes::receipt;
use super::signatures::{key, public};
use crate::follow;
use crate::git_server::{Lab, scrub};

const NOTES: &str = "refs/notes/gitopsd/web-1";

fn signing(lab: &Lab, name: &str) -> Repository {
    lab.open().signing_with(Some(lab.path(name)))
}

/// `git ARGS` in the remote, by whom signatures of these lines are believed.
fn judge(lab: &Lab, allowed: &str, args: &[&str]) -> Output {
    fs::write(lab.path("hosts"), allowed).unwrap();
    let mut command = Command::new("git");
    command.current_dir(lab.path("config.git"));
    scrub(&mut command, &lab.path(""));
    command.args(["-c", &format!("gpg.ssh.allowedSignersFile={}", lab.path("hosts").display())]);
    command.args(args).output().unwrap()
}

#[test]
fn git_verifies_what_hosts_sign() {
    let lab = Lab::new().with_repo();
    let name = "web-1".parse().unwrap();
    let kinds: [(&str, &[&str]); 3] =
        [("ed", &["ed25519"]), ("p256", &["ecdsa", "-b", "256"]), ("p384", &["ecdsa", "-b", "384"])];
    let mut last = None;
    // Several of each: numbers of ECDSA come with and without a zero before them.
    for round in 0..8 {
        for (kind, args) in kinds {
            if round == 0 {
                key(&lab, kind, args);
            }
            let repository = signing(&lab, kind);
            let commit = follow(&repository, last.as_ref()).unwrap().id().clone();
            repository.publish(None, &name, &[receipt(&commit, &format!("{kind}-{round}"))]).unwrap();
            let allowed = format!("gitopsd@web-1 namespaces=\"git\" {}\n", public(&lab, kind));
            let output = judge(&lab, &allowed, &["verify-commit", "-v", NOTES]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("for gitopsd@web-1"), "{kind}: {said}");
            let output = judge(&lab, &allowed, &["log", "-1", "--format=%G? %GS", NOTES]);
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "G gitopsd@web-1", "{kind}");
            last = Some(commit);
        }
    }
    // Somebody else's key is not taken for it.
    key(&lab, "eve", &["ed25519"]);
    let allowed = format!("gitopsd@web-1 {}\n", public(&lab, "eve"));
    assert!(!judge(&lab, &allowed, &["verify-commit", NOTES]).status.success());
    assert_eq!(lab.git("config.git", &["fsck", "--strict"]), "");
    // They are read like all others.
    let text = lab.git("config.git", &["log", "--notes=gitopsd/*", "main"]);
    assert!(text.contains("\"id\":\"ed-0\"") && text.contains("\"id\":\"p384-7\""), "{text}");
}

#[test]
fn a_receipt_that_somebody_forged_is_seen() {
    let lab = Lab::new().with_repo();
    key(&lab, "host", &["ed25519"]);
    let repository = signing(&lab, "host");
    let commit = follow(&repository, None).unwrap().id().clone();
    let name = "web-1".parse().unwrap();
    repository.publish(None, &name, &[receipt(&commit, "a")]).unwrap();
    let honest = lab.git("config.git", &["rev-parse", NOTES]);
    // Somebody who can push replaces the whole ref.
    lab.git("config.git", &["update-ref", "-d", NOTES]);
    lab.git(
        "config.git",
        &["notes", "--ref=gitopsd/web-1", "add", "-m", "{\"id\":\"forged\"}", commit.as_str()],
    );
    let forged = lab.git("config.git", &["rev-parse", NOTES]);
    repository.publish(None, &name, &[receipt(&commit, "b")]).unwrap();
    let allowed = format!("gitopsd@web-1 {}\n", public(&lab, "host"));
    let good = |commit: &str| judge(&lab, &allowed, &["verify-commit", commit]).status.success();
    // What the host wrote is there again and signed, on top of what it did not write, which is neither gone nor signed.
    assert!(good(NOTES) && !good(&forged));
    lab.git("config.git", &["merge-base", "--is-ancestor", &forged, NOTES]);
    let note = lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", commit.as_str()]);
    for id in ["\"a\"", "\"b\"", "\"forged\""] {
        assert_eq!(note.matches(&format!("\"id\":{id}")).count(), 1, "{id} in {note}");
    }
    // Rewound to its first one, it comes back as it was.
    let tip = lab.git("config.git", &["rev-parse", NOTES]);
    lab.git("config.git", &["update-ref", NOTES, &forged]);
    repository.publish(None, &name, &[]).unwrap();
    assert_eq!(lab.git("config.git", &["rev-parse", NOTES]), tip);
    assert_ne!(tip, honest);
}

/// `gitopsd trust receipts` in the remote: exit code and JSON.
fn provenance(lab: &Lab) -> (i32, serde_json::Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
        .args(["--json", "trust", "receipts", "--signers"])
        .args([lab.path("hosts"), lab.path("config.git")])
        .output()
        .unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), value)
}

#[test]
fn what_is_a_hosts_own_is_told_from_what_is_not() {
    let lab = Lab::new().with_repo();
    for name in ["host", "other"] {
        key(&lab, name, &["ed25519"]);
    }
    fs::write(
        lab.path("hosts"),
        format!("gitopsd@web-1 {}\ngitopsd@web-3 {}\n", public(&lab, "host"), public(&lab, "other")),
    )
    .unwrap();
    let commit = follow(&lab.open(), None).unwrap().id().clone();
    let write = |key: Option<&str>, host: &str, id: &str| {
        let repository = lab.open().signing_with(key.map(|key| lab.path(key)));
        repository.publish(None, &host.parse().unwrap(), &[receipt(&commit, id)]).unwrap();
    };
    // One from before it had a key, then its own ones; a host that has none.
    write(None, "web-1", "a");
    write(Some("host"), "web-1", "b");
    write(Some("host"), "web-1", "c");
    write(None, "web-2", "d");
    let (code, said) = provenance(&lab);
    assert_eq!(code, 0, "{said}");
    let hosts = said["hosts"].as_array().unwrap();
    assert_eq!(
        (&hosts[0]["signed"], &hosts[0]["before"], &hosts[0]["known"]),
        (&2.into(), &1.into(), &true.into())
    );
    assert_eq!(
        (&hosts[1]["host"], &hosts[1]["known"], &hosts[1]["ok"]),
        (&"web-2".into(), &false.into(), &true.into())
    );
    // Another host's key, and none, under its name; a host with a key that never used it.
    write(Some("other"), "web-1", "e");
    lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "append", "-m", "forged", commit.as_str()]);
    write(Some("host"), "web-1", "f");
    write(None, "web-3", "g");
    let (code, said) = provenance(&lab);
    assert_eq!((code, &said["ok"]), (1, &false.into()), "{said}");
    let hosts = said["hosts"].as_array().unwrap();
    let foreign: Vec<&str> =
        hosts[0]["foreign"].as_array().unwrap().iter().map(|it| it["why"].as_str().unwrap()).collect();
    assert_eq!(foreign, ["it is signed by gitopsd@web-3", "it is not signed"], "{said}");
    assert_eq!((&hosts[0]["signed"], &hosts[2]["ok"]), (&3.into(), &false.into()));
    fs::write(lab.path("hosts"), "rubbish").unwrap();
    assert_eq!(provenance(&lab).0, 1);
}

#[test]
fn without_its_key_nothing_is_written() {
    let lab = Lab::new().with_repo();
    let name = "web-1".parse().unwrap();
    key(&lab, "rsa", &["rsa", "-b", "2048"]);
    key(&lab, "locked", &["ed25519"]);
    let locked = Command::new("ssh-keygen")
        .args(["-q", "-p", "-P", "", "-N", "hunter22", "-f"])
        .arg(lab.path("locked"))
        .status();
    assert!(locked.unwrap().success());
    fs::write(lab.path("rubbish"), "hunter22").unwrap();
    for (file, why) in [
        ("none", "No such file"),
        ("rsa", "keys of the kind `ssh-rsa` do not sign here"),
        ("rsa.pub", "it is no private key of OpenSSH"),
        ("locked", "it has a passphrase"),
        ("rubbish", "it is no private key of OpenSSH"),
    ] {
        let repository = signing(&lab, file);
        let commit = follow(&repository, None).unwrap().id().clone();
        let error = repository.publish(None, &name, &[receipt(&commit, "a")]).unwrap_err();
        assert_eq!(error.reason, Reason::SigningKey, "{error}");
        let text = error.to_string();
        assert!(text.contains(why) && text.contains(&format!("/{file}:")), "{file}: {text}");
        assert!(!text.contains("hunter22"), "{text}");
    }
    assert_eq!(lab.git("config.git", &["for-each-ref", "refs/notes"]), "");
    // The key is back: nothing was lost, and nothing is there twice.
    key(&lab, "none", &["ed25519"]);
    let repository = signing(&lab, "none");
    let commit = follow(&repository, None).unwrap().id().clone();
    repository.publish(None, &name, &[receipt(&commit, "a")]).unwrap();
    assert_eq!(lab.git("config.git", &["rev-list", "--count", NOTES]), "1");
}
