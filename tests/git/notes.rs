//! Receipts as git notes, read back with the real git.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use gitopsd::git::Repository;
use gitopsd::types::{CommitId, HostName, Reason};

use crate::git_server::Lab;
use crate::{config, follow, id};

pub fn receipt(commit: &CommitId, id: &str) -> (CommitId, String, String) {
    let json = format!(
        r#"{{"id":"{id}","host":"web-1","service":"shop","commit":"{commit}","to":{{"generation":2,"image":"r.io/shop:1.4.2","digest":null}},"result":"deployed","started_at":"2026-01-01T10:00:00Z","finished_at":"2026-01-01T10:00:03.1Z"}}"#
    );
    (commit.clone(), id.to_owned(), json)
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn log(lab: &Lab, at: &str) -> String {
    lab.git(at, &["log", "--notes=gitopsd/*", "main"])
}

fn count(lab: &Lab, at: &str, host: &str) -> usize {
    let list = format!("refs/notes/gitopsd/{host}");
    lab.git(at, &["rev-list", "--count", &list]).parse().unwrap()
}

#[test]
fn git_log_shows_the_receipts_of_two_hosts() {
    let lab = Lab::new().with_repo();
    let one = lab.open();
    let two = Repository::open(&config(&lab.url()), &lab.path("cache2")).unwrap();
    let commit = follow(&one, None).unwrap().id().clone();
    follow(&two, None).unwrap();
    one.publish(None, &host("web-1"), &[receipt(&commit, "a"), receipt(&commit, "b")]).unwrap();
    two.publish(None, &host("web-2"), &[receipt(&commit, "c")]).unwrap();
    let text = log(&lab, "config.git");
    println!("{text}");
    let (first, second) = text.split_once("Notes (gitopsd/web-2):").unwrap();
    assert!(
        first.contains(
            "Notes (gitopsd/web-1):\n    shop 1.4.2: deployed on web-1 in 3.1 s\n    {\"id\":\"a\""
        ),
        "{text}"
    );
    assert!(first.contains("{\"id\":\"b\"") && second.contains("{\"id\":\"c\""), "{text}");
    let who = lab.git("config.git", &["log", "--format=%an <%ae> %cn <%ce>", "refs/notes/gitopsd/web-1"]);
    assert_eq!(who, "gitopsd <gitopsd@web-1> gitopsd <gitopsd@web-1>");
    assert_eq!(lab.git("config.git", &["fsck", "--strict"]), "");
}

#[test]
fn publishing_twice_is_publishing_once() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let first = follow(&repository, None).unwrap().id().clone();
    let name = host("web-1");
    repository.publish(None, &name, &[receipt(&first, "a"), receipt(&first, "a")]).unwrap();
    repository.publish(None, &name, &[receipt(&first, "a")]).unwrap();
    assert_eq!(count(&lab, "config.git", "web-1"), 1);
    // Part of it is new, and another commit's.
    let second = id(&lab.commit("services/shop.toml", "2", "2"));
    follow(&repository, Some(&first)).unwrap();
    repository
        .publish(None, &name, &[receipt(&first, "a"), receipt(&first, "b"), receipt(&second, "c")])
        .unwrap();
    assert_eq!(count(&lab, "config.git", "web-1"), 2);
    let note = lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", first.as_str()]);
    assert_eq!(note.matches("\"id\":\"a\"").count(), 1);
    assert_eq!(note.lines().count(), 4, "{note}");
    let note = lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", second.as_str()]);
    assert!(note.contains("\"id\":\"c\""));
}

#[test]
fn receipts_survive_the_loss_of_the_state() {
    let lab = Lab::new().with_repo();
    let name = host("web-1");
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap().id().clone();
    repository.publish(None, &name, &[receipt(&commit, "a")]).unwrap();
    drop(repository);
    fs::remove_dir_all(lab.cache()).unwrap();
    let repository = lab.open();
    follow(&repository, None).unwrap();
    repository.publish(None, &name, &[receipt(&commit, "a"), receipt(&commit, "b")]).unwrap();
    assert_eq!(count(&lab, "config.git", "web-1"), 2, "on top of what was there");
    let note = lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", commit.as_str()]);
    assert_eq!(note.lines().count(), 4, "{note}");
}

#[test]
fn a_remote_that_moved_is_added_to_and_one_that_lost_notes_gets_them_back() {
    let lab = Lab::new().with_repo();
    let name = host("web-1");
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap().id().clone();
    repository.publish(None, &name, &[receipt(&commit, "a")]).unwrap();
    let at_a = lab.git("config.git", &["rev-parse", "refs/notes/gitopsd/web-1"]);
    // Somebody adds a line by hand, in git's own layout.
    lab.git(
        "config.git",
        &["notes", "--ref=gitopsd/web-1", "append", "-m", "looked at it, fine", commit.as_str()],
    );
    repository.publish(None, &name, &[receipt(&commit, "b")]).unwrap();
    let note = lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", commit.as_str()]);
    assert!(
        note.contains("fine") && note.contains("\"id\":\"a\"") && note.contains("\"id\":\"b\""),
        "{note}"
    );
    // The ref is rewound to an older value.
    lab.git("config.git", &["update-ref", "refs/notes/gitopsd/web-1", &at_a]);
    repository.publish(None, &name, &[]).unwrap();
    assert_eq!(lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", commit.as_str()]), note);
    // The ref is replaced by an unrelated one.
    lab.git("config.git", &["update-ref", "-d", "refs/notes/gitopsd/web-1"]);
    lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "add", "-m", "other history", commit.as_str()]);
    let theirs = lab.git("config.git", &["rev-parse", "refs/notes/gitopsd/web-1"]);
    repository.publish(None, &name, &[receipt(&commit, "c")]).unwrap();
    let note = lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", commit.as_str()]);
    for part in ["other history", "\"id\":\"a\"", "\"id\":\"b\"", "\"id\":\"c\""] {
        assert_eq!(note.matches(part).count(), 1, "{part} in {note}");
    }
    lab.git("config.git", &["merge-base", "--is-ancestor", &theirs, "refs/notes/gitopsd/web-1"]);
    // The ref is deleted.
    lab.git("config.git", &["update-ref", "-d", "refs/notes/gitopsd/web-1"]);
    repository.publish(None, &name, &[]).unwrap();
    assert_eq!(lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", commit.as_str()]), note);
}

#[test]
fn unpushed_receipts_outlive_a_damaged_cache() {
    let lab = Lab::new().with_repo();
    let name = host("web-1");
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap().id().clone();
    repository.record(&name, &[receipt(&commit, "a")]).unwrap();
    assert!(!log(&lab, "config.git").contains("gitopsd/web-1"));
    fs::write(lab.cache().join("repo.git/refs/gitopsd/fetched"), "").unwrap();
    let repository = lab.open();
    follow(&repository, Some(&commit)).unwrap();
    repository.publish(None, &name, &[]).unwrap();
    assert!(log(&lab, "config.git").contains("\"id\":\"a\""));
}

#[test]
fn a_repo_of_another_user_stays_theirs() {
    let lab = Lab::new().with_repo();
    let repo = lab.path("config.git");
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let walk = |visit: &mut dyn FnMut(&std::path::Path)| {
        let mut next = vec![repo.clone()];
        while let Some(path) = next.pop() {
            visit(&path);
            if path.is_dir() && !path.is_symlink() {
                next.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
        }
    };
    walk(&mut |path| {
        std::os::unix::fs::lchown(path, Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap()
    });
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap().id().clone();
    let receipts: Vec<_> = (0..20).map(|n| receipt(&commit, &n.to_string())).collect();
    for one in receipts.chunks(1) {
        repository.publish(None, &host("web-1"), one).unwrap();
    }
    walk(&mut |path| {
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!(metadata.uid(), nobody.uid.as_raw(), "{}", path.display());
        assert_eq!(metadata.gid(), nobody.gid.as_raw(), "{}", path.display());
    });
    assert!(log(&lab, "config.git").contains("\"id\":\"19\""));
    // This thread is still root.
    assert!(nix::unistd::setfsuid(nix::unistd::Uid::from_raw(u32::MAX)).is_root());

    // A link of theirs out of their repo leads nowhere they could not write.
    let target = lab.path("roots-own");
    fs::create_dir(&target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_dir_all(repo.join("refs/notes")).unwrap();
    std::os::unix::fs::symlink(&target, repo.join("refs/notes")).unwrap();
    let error = repository.publish(None, &host("web-1"), &[receipt(&commit, "x")]).unwrap_err();
    assert_eq!(error.reason, Reason::NotesRefused, "{error}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[test]
fn a_repo_with_a_work_tree_takes_receipts() {
    let lab = Lab::new().with_repo();
    let url = lab.path("work").display().to_string();
    let repository = Repository::open(&config(&url), &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap().id().clone();
    repository.publish(None, &host("web-1"), &[receipt(&commit, "a")]).unwrap();
    assert!(log(&lab, "work").contains("\"id\":\"a\""));
    assert_eq!(lab.git("work", &["status", "--porcelain"]), "");
}

#[test]
fn receipts_can_go_to_another_repo() {
    let lab = Lab::new().with_repo();
    lab.git("", &["init", "-q", "--bare", "audit.git"]);
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap().id().clone();
    let audit = lab.path("audit.git").display().to_string().parse().unwrap();
    repository.publish(Some(&audit), &host("web-1"), &[receipt(&commit, "a")]).unwrap();
    assert_eq!(count(&lab, "audit.git", "web-1"), 1);
    assert!(!log(&lab, "config.git").contains("gitopsd/web-1"));
}

#[test]
fn two_writers_of_one_ref_lose_nothing() {
    let lab = Lab::new().with_repo();
    let commit = follow(&lab.open(), None).unwrap().id().clone();
    std::thread::scope(|scope| {
        for writer in ["a", "b"] {
            let (lab, commit) = (&lab, &commit);
            scope.spawn(move || {
                let repository = Repository::open(&config(&lab.url()), &lab.path(writer)).unwrap();
                for n in 0..10 {
                    let one = [receipt(commit, &format!("{writer}{n}"))];
                    let mut tries = 0;
                    // A refusal for contention is an error like others: the outbox sends it again.
                    while let Err(error) = repository.publish(None, &host("web-1"), &one) {
                        assert_eq!(error.reason, Reason::NotesRefused, "{error}");
                        tries += 1;
                        assert!(tries < 50, "{error}");
                    }
                }
            });
        }
    });
    let note = lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "show", commit.as_str()]);
    for writer in ["a", "b"] {
        for n in 0..10 {
            assert_eq!(note.matches(&format!("\"id\":\"{writer}{n}\"")).count(), 1, "{writer}{n}");
        }
    }
}

#[test]
fn a_lock_that_a_kill_left_behind_is_taken_away() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap().id().clone();
    repository.publish(None, &host("web-1"), &[receipt(&commit, "a")]).unwrap();
    let lock = lab.path("config.git/refs/notes/gitopsd/web-1.lock");
    let file = fs::File::create(&lock).unwrap();
    // One of somebody who may be alive.
    let error = repository.publish(None, &host("web-1"), &[receipt(&commit, "b")]).unwrap_err();
    assert_eq!(error.reason, Reason::NotesRefused, "{error}");
    assert!(error.to_string().contains("locked") && lock.exists(), "{error}");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    repository.publish(None, &host("web-1"), &[receipt(&commit, "b")]).unwrap();
    assert!(!lock.exists() && log(&lab, "config.git").contains("\"id\":\"b\""));
}

#[test]
fn a_thousand_receipts_stay_cheap() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap().id().clone();
    let since = std::time::Instant::now();
    for batch in 0..20 {
        // As if each were of a commit of its own.
        let receipts: Vec<_> = (0..50)
            .map(|n| {
                let (_, id, json) = receipt(&commit, &format!("{batch}-{n}"));
                (format!("{:040x}", (batch * 50 + n) * 7_919).parse().unwrap(), id, json)
            })
            .collect();
        repository.publish(None, &host("web-1"), &receipts).unwrap();
    }
    println!("1000 receipts in 20 pushes: {:?}", since.elapsed());
    let list = lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "list"]);
    assert_eq!(list.lines().count(), 1_000);
    lab.git("config.git", &["gc", "-q"]);
    let counted = lab.git("config.git", &["count-objects", "-v"]);
    println!("packed: {counted}");
    // In KiB (git-count-objects(1)): the budget of a thousand deploys.
    let size: u64 =
        counted.lines().find_map(|line| line.strip_prefix("size-pack: ")).unwrap().parse().unwrap();
    assert!(size < 1024, "a thousand receipts take {size} KiB");
}
