//! How much history a host fetches: as much as its rules of trust ask about.

use std::fs;

use gitopsd::config::agent::{RepoConfig, SignatureConfig, TrustConfig};
use gitopsd::git::Repository;
use gitopsd::types::Reason;

use crate::git_server::{HttpServer, Lab};
use crate::notes::receipt;
use crate::{config, file, follow, id};

/// `main` gets so many commits more, each with another image.
pub fn grow(lab: &Lab, count: usize) {
    let time = lab.git("config.git", &["log", "-1", "--format=%ct", "main"]).parse().unwrap();
    grow_at(lab, count, time);
}

/// The same, from a time on.
fn grow_at(lab: &Lab, count: usize, time: i64) {
    let mut stream = String::new();
    let from = lab.git("config.git", &["rev-parse", "main"]);
    for n in 1..=count {
        let (text, subject) = (format!("image = \"r.io/shop:{n}\"\n"), format!("shop {n}"));
        stream.push_str(&format!(
            "commit refs/heads/main\ncommitter Ann <ann@example.org> {} +0000\ndata {}\n{subject}\n",
            time + i64::try_from(n).unwrap() / 100,
            subject.len()
        ));
        if n == 1 {
            stream.push_str(&format!("from {from}\n"));
        }
        stream.push_str(&format!("M 100644 inline services/shop.toml\ndata {}\n{text}\n", text.len()));
    }
    lab.git_stdin("config.git", &["fast-import", "--quiet"], stream.as_bytes());
}

fn large() -> (Lab, HttpServer) {
    let lab = Lab::new().with_repo();
    grow(&lab, 1_000);
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    let server = HttpServer::start(&lab.path(""), None);
    (lab, server)
}

/// Commits in the agent's copy, and whether its history ends somewhere.
fn held(lab: &Lab, cache: &str) -> (usize, bool) {
    let at = format!("{cache}/repo.git");
    let count = lab.git(&at, &["rev-list", "--count", "refs/gitopsd/fetched"]).parse().unwrap();
    (count, lab.git(&at, &["rev-parse", "--is-shallow-repository"]) == "true")
}

#[test]
fn a_first_contact_takes_the_newest_and_later_ones_what_is_new() {
    let (lab, server) = large();
    let settings = config(&server.url("config.git"));
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    let mut commit = follow(&repository, None).unwrap();
    assert_eq!(file(&repository, &commit, "services/shop.toml"), "image = \"r.io/shop:1000\"\n");
    assert_eq!(held(&lab, "cache"), (512, true));
    assert_eq!(lab.git("cache/repo.git", &["fsck", "--no-dangling"]), "");
    for (count, all) in [(1, 513), (30, 543), (500, 1_043)] {
        grow(&lab, count);
        commit = follow(&repository, Some(commit.id())).unwrap();
        assert_eq!(held(&lab, "cache"), (all, true));
        // And it may be written to.
        repository
            .publish(None, &"web-1".parse().unwrap(), &[receipt(commit.id(), &all.to_string())])
            .unwrap();
    }
    let before = server.requests.load(std::sync::atomic::Ordering::SeqCst);
    assert!(!repository.fetch().unwrap().moved);
    assert_eq!(server.requests.load(std::sync::atomic::Ordering::SeqCst) - before, 1);
    // A restart without the server.
    drop(server);
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    let again = repository.trusted(commit.id()).unwrap();
    assert!(repository.files(&again).unwrap().contains_key("services/shop.toml"));
}

#[test]
fn a_mark_that_is_older_is_found_and_a_rewritten_history_is_not_believed() {
    let (lab, server) = large();
    let settings = config(&server.url("config.git"));
    let ancestor = |back: &str| id(&lab.git("config.git", &["rev-parse", &format!("main~{back}")]));
    let (near, far) = (ancestor("150"), ancestor("700"));
    // The copy is lost, the mark is not.
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    follow(&repository, Some(&near)).unwrap();
    assert_eq!(held(&lab, "cache"), (512, true));
    follow(&repository, Some(&far)).unwrap();
    assert_eq!(held(&lab, "cache"), (1_001, false));
    assert!(!repository.fetch().unwrap().moved, "it stays so");
    follow(&repository, Some(&far)).unwrap();

    // Rewritten: what is not an ancestor is none, however much history there is.
    let tree = lab.git("config.git", &["rev-parse", "main^{tree}"]);
    let other = lab.git("config.git", &["commit-tree", "-p", "main~5", "-m", "rewritten", &tree]);
    let mark = id(&lab.git("config.git", &["rev-parse", "main"]));
    let shallow = Repository::open(&settings, &lab.path("cache2")).unwrap();
    follow(&shallow, Some(&mark)).unwrap();
    lab.git("config.git", &["update-ref", "refs/heads/main", &other]);
    for repository in [&repository, &shallow] {
        let error = follow(repository, Some(&mark)).unwrap_err();
        assert_eq!(error.reason, Reason::NotFastForward, "{error}");
    }
    // One that has nothing in common with what was there.
    let orphan = lab.git("config.git", &["commit-tree", "-m", "orphan", &tree]);
    lab.git("config.git", &["update-ref", "refs/heads/main", &orphan]);
    let shallow = Repository::open(&settings, &lab.path("cache2")).unwrap();
    assert_eq!(follow(&shallow, Some(&mark)).unwrap_err().reason, Reason::NotFastForward);
}

#[test]
fn the_first_commit_is_looked_for_at_the_first_contact() {
    let (lab, server) = large();
    let mut settings = config(&server.url("config.git"));
    let root = lab.git("config.git", &["rev-list", "--max-parents=0", "main"]);
    settings.trust.first_commit = Some(id(&root));
    follow(&Repository::open(&settings, &lab.cache()).unwrap(), None).unwrap();
    assert_eq!(held(&lab, "cache"), (1_001, false));
    settings.trust.first_commit = Some(id(&"1".repeat(40)));
    let repository = Repository::open(&settings, &lab.path("cache2")).unwrap();
    assert_eq!(follow(&repository, None).unwrap_err().reason, Reason::NotFastForward);
}

#[test]
fn where_every_commit_is_to_be_signed_all_are_there() {
    let (lab, server) = large();
    let mut settings = config(&server.url("config.git"));
    // A copy from before signatures were asked for.
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    repository.fetch().unwrap();
    assert_eq!(held(&lab, "cache"), (512, true));
    drop(repository);
    fs::write(lab.path("signers"), "").unwrap();
    let signed = |head_only| TrustConfig {
        signatures: Some(SignatureConfig {
            allowed_signers: Some(lab.path("signers")),
            trusted_keys: None,
            revoked_signers: None,
            head_only,
        }),
        ..TrustConfig::default()
    };
    settings.trust = signed(true);
    let fetch = |settings: &RepoConfig, cache: &str| {
        let repository = Repository::open(settings, &lab.path(cache)).unwrap();
        assert_eq!(follow(&repository, None).unwrap_err().reason, Reason::Signature);
    };
    fetch(&settings, "cache2");
    assert_eq!(held(&lab, "cache2"), (512, true), "only the head counts");
    settings.trust = signed(false);
    for cache in ["cache", "cache3"] {
        fetch(&settings, cache);
        assert_eq!(held(&lab, cache), (1_001, false), "{cache}");
    }
}

/// Receipts are older than what the copy ends with: libgit2 cannot push them, until the copy has no end.
#[test]
fn clocks_of_another_century_cost_one_fetch() {
    let lab = Lab::new().with_repo();
    let now = lab.git("config.git", &["log", "-1", "--format=%ct", "main"]).parse().unwrap();
    grow_at(&lab, 1_000, 4_000_000_000);
    grow_at(&lab, 1, now);
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    let server = HttpServer::start(&lab.path(""), None);
    let repository = Repository::open(&config(&server.url("config.git")), &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    assert_eq!(held(&lab, "cache"), (512, true));
    let publish = || repository.publish(None, &"web-1".parse().unwrap(), &[receipt(commit.id(), "1")]);
    publish().unwrap_err();
    follow(&repository, Some(commit.id())).unwrap();
    assert_eq!(held(&lab, "cache"), (1_002, false));
    publish().unwrap();
    assert!(lab.git("config.git", &["log", "--notes=gitopsd/*", "-1"]).contains("\"id\":\"1\""));
}

/// What a repo of 100,000 commits costs, and what it would cost in full: `cargo nextest run --test git --run-ignored only
/// --no-capture -E 'test(a_hundred_thousand)'`.
#[test]
#[ignore = "makes a repo of 100,000 commits"]
fn a_hundred_thousand_commits() {
    let lab = Lab::new().with_repo();
    grow(&lab, 100_000);
    let server = HttpServer::start(&lab.path(""), None);
    let mut settings = config(&server.url("config.git"));
    let timed = |what: &str, call: &mut dyn FnMut()| {
        let since = std::time::Instant::now();
        call();
        println!("{what}: {:.2} s", since.elapsed().as_secs_f64());
    };
    let size =
        |cache: &str| lab.git(&format!("{cache}/repo.git"), &["count-objects", "-vH"]).replace('\n', ", ");
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    let mut commit = None;
    timed("first fetch", &mut || commit = Some(follow(&repository, None).unwrap()));
    println!("{}", size("cache"));
    timed("a look at what has not moved", &mut || assert!(!repository.fetch().unwrap().moved));
    grow(&lab, 1);
    let mark = commit.unwrap();
    timed("one commit more", &mut || drop(follow(&repository, Some(mark.id())).unwrap()));
    settings.trust.first_commit = Some(id(&lab.git("config.git", &["rev-list", "--max-parents=0", "main"])));
    let repository = Repository::open(&settings, &lab.path("cache2")).unwrap();
    timed("all of it, for repo.first_commit", &mut || drop(follow(&repository, None).unwrap()));
    println!("{}", size("cache2"));
}
