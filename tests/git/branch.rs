//! Receipts on a branch, where a server refuses notes by a hook of its own; and at a remote of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use gitopsd::config::agent::RemoteAccess;
use gitopsd::git::{LocalClone, Place, Repository};
use gitopsd::types::{CommitId, Reason};

use crate::git_server::{HttpServer, Lab};
use crate::{config, follow};

/// A whole receipt, as readers take it.
fn receipt(commit: &CommitId, id: &str) -> (CommitId, String, String) {
    let json = format!(
        r#"{{"id":"{id}","host":"web-1","service":"shop","commit":"{commit}","from":null,"to":null,"result":"removed","reason":null,"message":"","started_at":"2026-01-01T00:00:00Z","finished_at":"2026-01-01T00:00:0{}Z","pulled_bytes":0,"pull_seconds":0.0,"healthy_seconds":null,"switched_at":null,"agent_version":"0","boot_id":"b"}}"#,
        id.len() % 10
    );
    (commit.clone(), id.to_owned(), json)
}

fn hook(lab: &Lab, name: &str, text: &str) {
    let path = lab.path("config.git/hooks").join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn http(lab: &Lab) -> HttpServer {
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    HttpServer::start(&lab.path(""), None)
}

const BRANCH: &str = "gitopsd/receipts/web-1";

#[test]
fn notes_that_a_hook_refuses_go_to_a_branch() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    hook(&lab, "update", "case $1 in refs/notes/*) echo 'no notes here' >&2; exit 1;; esac");
    let settings = config(&server.url("config.git"));
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let name = "web-1".parse().unwrap();
    let publish =
        |repository: &Repository, id: &str| repository.publish(None, &name, &[receipt(commit.id(), id)]);

    match publish(&repository, "1").unwrap() {
        Place::NewBranch { branch, why } => {
            assert_eq!(branch, BRANCH);
            assert!(why.contains("hook declined"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert!(lab.git("config.git", &["for-each-ref", "refs/notes"]).is_empty());
    // From now on without asking for notes, also after a restart.
    assert_eq!(publish(&repository, "22").unwrap(), Place::Branch);
    drop(repository);
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    let before = server.requests.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(publish(&repository, "333").unwrap(), Place::Branch);
    assert_eq!(server.requests.load(std::sync::atomic::Ordering::SeqCst) - before, 2, "a listing and a push");
    // A host whose state is gone is refused once more, and keeps what is on the branch.
    fs::remove_dir_all(lab.cache()).unwrap();
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    follow(&repository, None).unwrap();
    assert!(matches!(publish(&repository, "4444").unwrap(), Place::NewBranch { .. }));
    // A server of another address is asked by itself.
    let elsewhere = lab.path("other.git").display().to_string().parse().unwrap();
    lab.git("", &["init", "-q", "--bare", "other.git"]);
    assert_eq!(
        repository.publish(Some(&elsewhere), &name, &[receipt(commit.id(), "5")]).unwrap(),
        Place::Notes
    );

    // Never forced: each push came on top of the former.
    assert_eq!(lab.git("config.git", &["rev-list", "--count", BRANCH]), "4");
    // Any clone has the branch, and reads it without another fetch.
    lab.git("", &["clone", "-q", "config.git", "reader"]);
    let written = LocalClone::open(&lab.path("reader")).unwrap().written().unwrap();
    assert_eq!(written.len(), 1);
    let (host, written) = &written[0];
    let ids: Vec<&str> = written.receipts.iter().map(|receipt| receipt.id.as_str()).collect();
    assert_eq!((host.as_str(), ids, written.unreadable), ("web-1", vec!["1", "22", "333", "4444"], 0));
    // Of one that is in notes too, as after a change of the server's mind, there is one.
    lab.git("reader", &["update-ref", "refs/notes/gitopsd/web-1", &format!("origin/{BRANCH}")]);
    let written = LocalClone::open(&lab.path("reader")).unwrap().written().unwrap();
    assert_eq!(written[0].1.receipts.len(), 4);
}

#[test]
fn a_refusal_of_the_whole_push_goes_to_a_branch_too() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    hook(
        &lab,
        "pre-receive",
        "while read old new ref; do case $ref in refs/heads/*) ;; *) exit 1;; esac; done",
    );
    let repository = Repository::open(&config(&server.url("config.git")), &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let placed = repository.publish(None, &"web-1".parse().unwrap(), &[receipt(commit.id(), "1")]).unwrap();
    assert!(matches!(placed, Place::NewBranch { .. }), "{placed:?}");
}

#[test]
fn a_server_in_trouble_is_no_server_that_refuses() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    let repository = Repository::open(&config(&server.url("config.git")), &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let publish = || repository.publish(None, &"web-1".parse().unwrap(), &[receipt(commit.id(), "1")]);
    for status in [401, 403, 500, 502] {
        server.behaviour.lock().unwrap().status = Some(status);
        publish().unwrap_err();
    }
    server.behaviour.lock().unwrap().status = None;
    assert_eq!(publish().unwrap(), Place::Notes);
}

#[test]
fn a_remote_of_its_own_has_credentials_of_its_own() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    server.behaviour.lock().unwrap().credentials = Some("reader:of the repo".to_owned());
    fs::create_dir(lab.path("vault")).unwrap();
    lab.git("vault", &["init", "-q", "--bare", "audit.git"]);
    lab.git("vault/audit.git", &["config", "http.receivepack", "true"]);
    let audit = HttpServer::start(&lab.path("vault"), None);
    audit.behaviour.lock().unwrap().credentials = Some("writer:of receipts".to_owned());
    let file = |name: &str, text: &str| {
        fs::write(lab.path(name), text).unwrap();
        Some(lab.path(name))
    };
    let mut settings = config(&server.url("config.git"));
    settings.username = Some("reader".to_owned());
    settings.password_file = file("repo-password", "of the repo\n");
    let remote = audit.url("audit.git").parse().unwrap();
    let mut access = RemoteAccess {
        username: Some("writer".to_owned()),
        password_file: file("audit-password", "of receipts\n"),
        ..RemoteAccess::default()
    };
    let open = |access: &RemoteAccess| {
        Repository::open(&settings, &lab.cache()).unwrap().with_audit(&remote, access).unwrap()
    };
    let repository = open(&access);
    let commit = follow(&repository, None).unwrap();
    let name = "web-1".parse().unwrap();
    let publish =
        |repository: &Repository| repository.publish(Some(&remote), &name, &[receipt(commit.id(), "1")]);
    assert_eq!(publish(&repository).unwrap(), Place::Notes);
    assert!(lab.git("config.git", &["for-each-ref", "refs/notes"]).is_empty(), "the repo has none");
    assert!(lab.git("vault/audit.git", &["for-each-ref"]).contains("refs/notes/gitopsd/web-1"));
    // The repo itself still has its own.
    assert!(!repository.fetch().unwrap().moved);
    drop(repository);
    // Without credentials of its own nothing is shown there, least of all those of the repo.
    access = RemoteAccess { username: Some("writer".to_owned()), ..RemoteAccess::default() };
    assert_eq!(publish(&open(&access)).unwrap_err().reason, Reason::Auth);
}
