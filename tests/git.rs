//! The config repo, against real git: local repositories, `git http-backend` over http and https, sshd.

// clippy takes only functions marked #[test] for tests, not what they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "support/git_server.rs"]
mod git_server;

#[path = "git/access.rs"]
mod access;
#[path = "git/branch.rs"]
mod branch;
#[path = "git/collision.rs"]
mod collision;
#[path = "git/depth.rs"]
mod depth;
#[path = "git/fleet.rs"]
mod fleet;
#[path = "git/hostile.rs"]
mod hostile;
#[path = "git/named.rs"]
mod named;
#[path = "git/network.rs"]
mod network;
#[path = "git/notes.rs"]
mod notes;
#[path = "git/openpgp.rs"]
mod openpgp;
#[path = "git/plan.rs"]
mod plan;
#[path = "git/settled.rs"]
mod settled;
#[path = "git/signatures.rs"]
mod signatures;
#[path = "git/signed_receipts.rs"]
mod signed_receipts;
#[path = "git/trust.rs"]
mod trust;
#[path = "git/watch.rs"]
mod watch;
#[path = "git/waves.rs"]
mod waves;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use git_server::Lab;
use gitopsd::config::agent::RepoConfig;
use gitopsd::git::{FetchedHead, GitError, Repository, TrustedCommit};
use gitopsd::types::{CommitId, Reason};

fn config(url: &str) -> RepoConfig {
    RepoConfig::new(url.parse().unwrap())
}

impl Lab {
    fn url(&self) -> String {
        self.path("config.git").display().to_string()
    }

    fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    fn open(&self) -> Repository {
        Repository::open(&config(&self.url()), &self.cache()).unwrap()
    }
}

fn id(text: &str) -> CommitId {
    text.parse().unwrap()
}

/// Fetches and admits.
fn follow(repository: &Repository, mark: Option<&CommitId>) -> Result<TrustedCommit, GitError> {
    repository.admit(&repository.fetch()?, mark)
}

fn file(repository: &Repository, commit: &TrustedCommit, name: &str) -> String {
    String::from_utf8(repository.files(commit).unwrap().remove(name).unwrap()).unwrap()
}

#[test]
fn a_bare_repo_is_fetched_and_read() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let head = repository.fetch().unwrap();
    assert!(head.moved);
    let commit = repository.admit(&head, None).unwrap();
    let names: Vec<String> = repository.files(&commit).unwrap().into_keys().collect();
    assert_eq!(names, ["gitopsd.toml", "services/shop.toml"]);
    assert_eq!(file(&repository, &commit, "services/shop.toml"), "image = \"r.io/shop:1.0\"\n");
    let info = repository.info(&commit).unwrap();
    assert_eq!((info.subject.as_str(), info.author.as_str()), ("shop 1.0", "Ann Admin <ann@example.org>"));

    assert!(!repository.fetch().unwrap().moved, "nothing moved");
    let second = lab.commit("services/db.toml", "image = \"r.io/db:1\"\n", "db");
    let commit = follow(&repository, Some(commit.id())).unwrap();
    assert_eq!(commit.id().as_str(), second);
    let change = repository.last_change(&commit, "services/shop.toml").unwrap().unwrap();
    assert_eq!(change.subject, "shop 1.0");
    assert_eq!(repository.last_change(&commit, "services/db.toml").unwrap().unwrap().id, *commit.id());
    assert_eq!(repository.last_change(&commit, "services/none.toml").unwrap(), None);
}

#[test]
fn a_repo_with_a_work_tree_and_a_folder_is_read() {
    let lab = Lab::new().with_repo();
    lab.commit("prod/eu/services/a.toml", "x", "a");
    lab.commit("prod/eu/hosts/web-1.toml", "y", "b");
    let mut config = config(&format!("file://{}", lab.path("work").display()));
    config.path = "./prod/eu/".to_owned();
    let repository = Repository::open(&config, &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let names: Vec<String> = repository.files(&commit).unwrap().into_keys().collect();
    assert_eq!(names, ["hosts/web-1.toml", "services/a.toml"]);
    assert_eq!(repository.last_change(&commit, "services/a.toml").unwrap().unwrap().subject, "a");

    config.path = "prod/us".to_owned();
    let repository = Repository::open(&config, &lab.path("cache2")).unwrap();
    let error = repository.files(&follow(&repository, None).unwrap()).unwrap_err();
    assert_eq!(error.reason, Reason::ConfigEmpty, "{error}");
    assert!(error.to_string().contains("prod/us"), "{error}");
}

#[test]
fn a_force_push_is_refused_and_healed_by_a_descendant() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let first = lab.git("work", &["rev-parse", "HEAD"]);
    let mark = id(&lab.commit("services/shop.toml", "2", "shop 2"));
    follow(&repository, None).unwrap();

    lab.git("work", &["reset", "-q", "--hard", &first]);
    let rewritten = lab.commit("services/shop.toml", "3", "rewritten");
    let error = follow(&repository, Some(&mark)).unwrap_err();
    assert_eq!(error.reason, Reason::NotFastForward, "{error}");
    assert!(
        error.to_string().contains(&rewritten[..10]) && error.to_string().contains(mark.short()),
        "{error}"
    );

    // Older history, as a server put back from a backup shows it.
    lab.git("config.git", &["update-ref", "refs/heads/main", &first]);
    assert_eq!(follow(&repository, Some(&mark)).unwrap_err().reason, Reason::NotFastForward);

    // The same with a cache that never saw the mark.
    let blank = Repository::open(&config(&lab.url()), &lab.path("cache2")).unwrap();
    assert_eq!(follow(&blank, Some(&mark)).unwrap_err().reason, Reason::NotFastForward);

    lab.git("work", &["reset", "-q", "--hard", mark.as_str()]);
    let healed = lab.commit("services/shop.toml", "4", "healed");
    assert_eq!(follow(&repository, Some(&mark)).unwrap().id().as_str(), healed);
    assert_eq!(follow(&blank, Some(&mark)).unwrap().id().as_str(), healed);

    // Many commits at once: the newest only.
    for n in 0..5 {
        lab.commit("services/shop.toml", &n.to_string(), "n");
    }
    let newest = lab.git("work", &["rev-parse", "HEAD"]);
    assert_eq!(follow(&repository, Some(&id(&healed))).unwrap().id().as_str(), newest);
}

#[test]
fn a_missing_branch_or_repo_is_unreachable_and_comes_back() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap();
    lab.git("config.git", &["branch", "-m", "main", "trunk"]);
    let error = repository.fetch().unwrap_err();
    assert_eq!(error.reason, Reason::GitUnreachable);
    assert!(error.to_string().contains("`main`") && error.to_string().contains("repo.branch"), "{error}");
    lab.git("config.git", &["branch", "-m", "trunk", "main"]);
    assert!(!repository.fetch().unwrap().moved);

    fs::rename(lab.path("config.git"), lab.path("away.git")).unwrap();
    let error = repository.fetch().unwrap_err();
    assert_eq!(error.reason, Reason::GitUnreachable, "{error}");
    // Restart without the remote.
    let repository = lab.open();
    let again = repository.trusted(commit.id()).unwrap();
    assert_eq!(file(&repository, &again, "services/shop.toml"), "image = \"r.io/shop:1.0\"\n");
    fs::rename(lab.path("away.git"), lab.path("config.git")).unwrap();
    follow(&repository, Some(commit.id())).unwrap();

    lab.git("", &["init", "-q", "--bare", "-b", "main", "empty.git"]);
    let empty =
        Repository::open(&config(&lab.path("empty.git").display().to_string()), &lab.path("cache2")).unwrap();
    let error = empty.fetch().unwrap_err();
    assert_eq!(error.reason, Reason::GitUnreachable, "{error}");
}

#[test]
fn only_admitted_commits_are_trusted_again() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    assert_eq!(repository.trusted(&id(&"1".repeat(40))).unwrap_err().reason, Reason::GitUnreachable);
    let first = follow(&repository, None).unwrap();
    let second = lab.commit("services/shop.toml", "2", "2");
    repository.fetch().unwrap();
    let error = repository.trusted(&id(&second)).unwrap_err();
    assert_eq!(error.reason, Reason::NotFastForward, "{error}");
    follow(&repository, Some(first.id())).unwrap();
    repository.trusted(&id(&second)).unwrap();
    repository.trusted(first.id()).unwrap();
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("repo.git/objects/pack")).unwrap();
    entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "pack")).collect()
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let lab = Lab::new().with_repo();
    let commit = follow(&lab.open(), None).unwrap();
    let mark = commit.id().clone();
    let cache = lab.cache().join("repo.git");
    let truncate = |path: &Path, to: u64| {
        let _ = fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644));
        fs::File::options().write(true).open(path).unwrap().set_len(to).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 9] = [
        ("stale locks", &|| {
            for name in
                ["config.lock", "HEAD.lock", "refs/gitopsd/fetched.lock", "packed-refs.lock", "shallow.lock"]
            {
                fs::write(cache.join(name), "").unwrap();
            }
            lab.commit("services/shop.toml", "locked", "while it was locked");
        }),
        ("empty ref", &|| truncate(&cache.join("refs/gitopsd/fetched"), 0)),
        ("truncated pack", &|| packs(&lab.cache()).iter().for_each(|pack| truncate(pack, 60))),
        ("empty pack", &|| packs(&lab.cache()).iter().for_each(|pack| truncate(pack, 0))),
        ("no objects", &|| fs::remove_dir_all(cache.join("objects")).unwrap()),
        ("broken config", &|| fs::write(cache.join("config"), "[core\nbare").unwrap()),
        ("empty config", &|| truncate(&cache.join("config"), 0)),
        ("no HEAD", &|| fs::remove_file(cache.join("HEAD")).unwrap()),
        ("a file in its place", &|| {
            fs::remove_dir_all(&cache).unwrap();
            fs::write(&cache, "").unwrap();
        }),
    ];
    for (name, damage) in damages {
        damage();
        let repository = lab.open();
        let commit = follow(&repository, Some(&mark)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(repository.files(&commit).unwrap().contains_key("services/shop.toml"), "{name}");
        assert!(!repository.fetch().unwrap().moved, "{name}: settled");
        let settings = fs::read_to_string(cache.join("config")).unwrap();
        assert!(settings.contains("followRedirects = false"), "{name}: {settings}");
        assert!(!lab.cache().join("repo.git.new").exists() && !lab.cache().join("repo.git.old").exists());
    }
}

#[test]
fn damage_under_a_running_agent_is_healed_by_the_next_fetch() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let commit = follow(&repository, None).unwrap();
    let pack = packs(&lab.cache()).remove(0);
    let away = pack.with_extension("away");
    fs::rename(&pack, &away).unwrap();
    let error = repository.files(&commit).unwrap_err();
    assert_eq!(error.reason, Reason::StorageIo, "{error}");
    // Not while the remote is away: what is left is kept.
    fs::rename(lab.path("config.git"), lab.path("away.git")).unwrap();
    assert_eq!(repository.fetch().unwrap_err().reason, Reason::GitUnreachable);
    fs::rename(lab.path("away.git"), lab.path("config.git")).unwrap();
    let healed = follow(&repository, Some(commit.id())).unwrap();
    assert!(repository.files(&healed).unwrap().contains_key("services/shop.toml"));
}

#[test]
fn a_shallow_clone_is_no_remote() {
    let lab = Lab::new().with_repo();
    lab.commit("services/shop.toml", "2", "2");
    let from = format!("file://{}", lab.url());
    lab.git("", &["clone", "-q", "--depth", "1", &from, "shallow"]);
    let config = config(&lab.path("shallow").display().to_string());
    let error = Repository::open(&config, &lab.cache()).unwrap().fetch().unwrap_err();
    assert_eq!(error.reason, Reason::Unsupported, "{error}");
    assert!(error.to_string().contains("--unshallow"), "{error}");
}

#[test]
fn bad_configuration_is_named() {
    let lab = Lab::new().with_repo();
    let open = |change: &dyn Fn(&mut RepoConfig)| {
        let mut config = config(&lab.url());
        change(&mut config);
        Repository::open(&config, &lab.cache()).unwrap_err()
    };
    for (field, error) in [
        ("repo.branch", open(&|c| c.branch = "a..b".into())),
        ("repo.path", open(&|c| c.path = "../x".into())),
        ("repo.url", open(&|c| c.url = "ext::sh".parse().unwrap())),
        ("repo.ca_file", open(&|c| c.ca_file = Some("/none".into()))),
    ] {
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn a_cache_in_many_pieces_is_put_together() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let mut mark = follow(&repository, None).unwrap().id().clone();
    let name = "web-1".parse().unwrap();
    repository.record(&name, &[notes::receipt(&mark, "kept")]).unwrap();
    let mut most = 0;
    for n in 0..120 {
        let tree = lab.git("config.git", &["rev-parse", "main^{tree}"]);
        let next = lab.git("config.git", &["commit-tree", "-p", "main", "-m", &n.to_string(), &tree]);
        lab.git("config.git", &["update-ref", "refs/heads/main", &next]);
        mark = follow(&repository, Some(&mark)).unwrap().id().clone();
        most = most.max(packs(&lab.cache()).len());
    }
    assert!((90..=110).contains(&most) && packs(&lab.cache()).len() < 50, "{most}");
    let commit = repository.trusted(&mark).unwrap();
    assert!(repository.files(&commit).unwrap().contains_key("services/shop.toml"));
    repository.publish(None, &name, &[]).unwrap();
    assert!(lab.git("config.git", &["log", "--notes=gitopsd/*"]).contains("\"id\":\"kept\""));
    // A settled look stays cheap.
    let since = std::time::Instant::now();
    for _ in 0..100 {
        assert!(!repository.fetch().unwrap().moved);
    }
    let each = since.elapsed() / 100;
    println!("a look at an unmoved local repo takes {each:?}");
    assert!(each < Duration::from_millis(50));
}

/// Nothing the caller may do with a head but admit it.
#[allow(dead_code)]
fn heads_are_only_named(head: &FetchedHead) -> &CommitId {
    head.id()
}
