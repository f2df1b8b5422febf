//! Commits in a local repository are seen at once.

use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use gitopsd::git::{RefWatch, watch_paths};

use crate::git_server::Lab;

/// How long an event may take on a machine that does much else.
const SOON: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_millis(150);

fn watch(url: &str) -> (RefWatch, Receiver<()>) {
    let (tell, told) = channel();
    let paths = watch_paths(&url.parse().unwrap()).unwrap();
    let watch = RefWatch::new(paths, move || tell.send(()).unwrap_or_default()).unwrap();
    (watch, told)
}

/// Waits until nothing has been told for a while.
fn settle(told: &Receiver<()>) {
    while told.recv_timeout(QUIET).is_ok() {}
}

#[test]
fn a_commit_is_seen_within_200_ms() {
    let lab = Lab::new().with_repo();
    let (_watch, told) = watch(&lab.url());
    settle(&told);
    let head = lab.git("work", &["rev-parse", "HEAD"]);
    let tree = lab.git("work", &["rev-parse", "HEAD^{tree}"]);
    let next = lab.git("config.git", &["commit-tree", "-p", &head, "-m", "next", &tree]);
    let (mut best, mut worst) = (SOON, Duration::ZERO);
    for to in [&next, &head, &next, &head, &next] {
        // From before git starts: the figure includes git's own time.
        let since = Instant::now();
        lab.git("config.git", &["update-ref", "refs/heads/main", to]);
        told.recv_timeout(SOON).expect("the commit is seen");
        (best, worst) = (best.min(since.elapsed()), worst.max(since.elapsed()));
        settle(&told);
    }
    println!("a commit in a local bare repo is seen after {worst:?} at worst");
    // The best of five says what it costs; the worst, what else the machine does.
    assert!(best < Duration::from_millis(200), "{best:?}");
}

#[test]
fn pushes_packed_refs_and_new_branches_are_seen() {
    let lab = Lab::new().with_repo();
    let (_watch, told) = watch(&lab.url());
    lab.commit("services/shop.toml", "2", "2");
    told.recv_timeout(SOON).expect("a push");
    settle(&told);
    lab.git("config.git", &["pack-refs", "--all"]);
    told.recv_timeout(SOON).expect("pack-refs");
    settle(&told);
    lab.git("config.git", &["branch", "team/one", "main"]);
    told.recv_timeout(SOON).expect("a branch in a new directory");
    settle(&told);
    lab.git("config.git", &["branch", "-f", "team/one", "main~1"]);
    told.recv_timeout(SOON).expect("its move");
}

#[test]
fn reading_and_notes_wake_nobody() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let (_watch, told) = watch(&lab.url());
    settle(&told);
    let commit = crate::follow(&repository, None).unwrap();
    let receipt = crate::notes::receipt(commit.id(), "1");
    repository.publish(None, &"web-1".parse().unwrap(), &[receipt]).unwrap();
    assert_eq!(told.recv_timeout(QUIET * 2), Err(RecvTimeoutError::Timeout));
}

#[test]
fn a_repo_that_is_deleted_and_made_again_is_still_watched() {
    let lab = Lab::new().with_repo();
    let (_watch, told) = watch(&lab.url());
    settle(&told);
    fs::remove_dir_all(lab.path("config.git")).unwrap();
    told.recv_timeout(SOON).expect("the deletion");
    settle(&told);
    lab.git("", &["init", "-q", "--bare", "-b", "main", "config.git"]);
    told.recv_timeout(SOON).expect("the new repo");
    settle(&told);
    lab.git("work", &["push", "-q", "origin", "main"]);
    told.recv_timeout(SOON).expect("a push to it");
    settle(&told);
    // And by renaming, parents included.
    fs::rename(lab.path("config.git"), lab.path("away.git")).unwrap();
    told.recv_timeout(SOON).expect("the rename");
    settle(&told);
    fs::rename(lab.path("away.git"), lab.path("config.git")).unwrap();
    told.recv_timeout(SOON).expect("the rename back");
    settle(&told);
    lab.commit("services/shop.toml", "3", "3");
    told.recv_timeout(SOON).expect("a push afterwards");
}

#[test]
fn a_repo_that_comes_into_being_file_by_file_is_seen() {
    let lab = Lab::new().with_repo();
    let (_watch, told) = watch(&lab.path("slow").display().to_string());
    settle(&told);
    // As `git init` makes them, with all the time in the world in between.
    for folder in ["slow", "slow/.git", "slow/.git/refs", "slow/.git/refs/heads"] {
        fs::create_dir(lab.path(folder)).unwrap();
        told.recv_timeout(SOON).expect(folder);
        settle(&told);
    }
    for file in ["slow/.git/HEAD", "slow/.git/refs/heads/main"] {
        fs::write(lab.path(file), "0").unwrap();
        told.recv_timeout(SOON).expect(file);
        settle(&told);
    }
}

#[test]
fn a_repo_that_is_not_there_yet_is_waited_for() {
    let lab = Lab::new().with_repo();
    let (_watch, told) = watch(&lab.path("deep/er/new").display().to_string());
    settle(&told);
    fs::create_dir_all(lab.path("deep/er")).unwrap();
    lab.git("", &["clone", "-q", "config.git", "deep/er/new"]);
    told.recv_timeout(SOON).expect("the clone");
    settle(&told);
    lab.git("deep/er/new", &["commit", "-q", "--allow-empty", "-m", "x"]);
    told.recv_timeout(SOON).expect("a commit in a repo with a work tree");
}
