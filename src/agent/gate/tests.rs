use std::path::{Path, PathBuf};

use git2::{Oid, Repository as Git, Signature, Time};

use super::*;
use crate::config::agent::{RepoConfig, TrustConfig};
use crate::reconcile::arrival::Arrival;

const WAVES: &str = "format = 1\n[[wave]]\nhosts = [\"a-1\"]\n[[wave]]\nhosts = [\"b-1\"]\n";

/// A repo of which the head waits for a-1, and what b-1 makes of it.
struct Lab {
    dir: tempfile::TempDir,
    git: Git,
    trust: TrustConfig,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init_bare(dir.path().join("config.git")).unwrap();
        Self { dir, git, trust: TrustConfig::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The next commit of the branch, `number` hours after the epoch.
    fn commit(&self, number: i64, parent: Option<&CommitId>, waves: &str) -> CommitId {
        let mut index = git2::Index::new().unwrap();
        let shop = format!("image = \"r.io/shop:{number}\"\n");
        for (path, text) in [("gitopsd.toml", waves), ("services/shop.toml", &shop)] {
            let entry = git2::IndexEntry {
                ctime: git2::IndexTime::new(0, 0),
                mtime: git2::IndexTime::new(0, 0),
                dev: 0,
                ino: 0,
                mode: 0o100_644,
                uid: 0,
                gid: 0,
                file_size: 0,
                id: self.git.blob(text.as_bytes()).unwrap(),
                flags: 0,
                flags_extended: 0,
                path: path.as_bytes().to_vec(),
            };
            index.add(&entry).unwrap();
        }
        let tree = self.git.find_tree(index.write_tree_to(&self.git).unwrap()).unwrap();
        let who = Signature::new("Ann", "ann@example.org", &Time::new(number * 3600, 0)).unwrap();
        let parent = parent.map(|id| self.git.find_commit(Oid::from_str(id.as_str()).unwrap()).unwrap());
        let parents: Vec<_> = parent.iter().collect();
        let made = self.git.commit(None, &who, &who, "shop", &tree, &parents).unwrap();
        self.git.reference("refs/heads/main", made, true, "").unwrap();
        made.to_string().parse().unwrap()
    }

    /// Commits 1 to 4; `fourth` is the head, and a-1 is well at those of `well`.
    fn four(&self, well: &[usize]) -> Vec<CommitId> {
        let mut all: Vec<CommitId> = Vec::new();
        for number in 1..=4 {
            all.push(self.commit(number, all.last(), WAVES));
        }
        let repository = self.open("cache-a-1");
        repository.admit(&repository.fetch().unwrap(), None).unwrap();
        let a: HostName = "a-1".parse().unwrap();
        for number in well {
            let commit = &all[*number - 1];
            let word = Arrival::new(&a, &[], commit, None, Timestamp::UNIX_EPOCH);
            let line = serde_json::to_string(&word).unwrap();
            repository.publish(None, &a, &[(commit.clone(), word.id, line)]).unwrap();
        }
        all
    }

    fn open(&self, cache: &str) -> Repository {
        let url = self.path("config.git").display().to_string().parse().unwrap();
        let config = RepoConfig { trust: self.trust.clone(), ..RepoConfig::new(url) };
        Repository::open(&config, Path::new(&self.path(cache))).unwrap()
    }

    /// What b-1 comes to: what is to be in force, and whether the head waits.
    fn look(&self, in_force: Option<&CommitId>, mark: Mark<'_>) -> (Option<CommitId>, bool) {
        let repository = Arc::new(self.open("cache"));
        let head = repository.admit(&repository.fetch().unwrap(), mark.commit).unwrap();
        let porter = Porter {
            repository,
            host: HostIdentity { name: "b-1".parse().unwrap(), labels: Vec::new() },
            policy: Policy::default(),
            remote: None,
            in_force: in_force.cloned(),
            first: true,
            follow: false,
            concerns: Arc::default(),
        };
        let passed = porter.pass(porter.read(head).unwrap(), mark).unwrap();
        (passed.read.map(|read| read.commit.id().clone()), passed.waits.is_some())
    }
}

const NEW: Mark<'_> = Mark { commit: None, acted_on: true };

fn mark(commit: &CommitId, acted_on: bool) -> Mark<'_> {
    Mark { commit: Some(commit), acted_on }
}

#[test]
fn a_new_host_begins_with_nothing_that_the_first_contact_refuses() {
    let mut lab = Lab::new();
    let all = lab.four(&[1, 2]);
    assert_eq!(lab.look(None, NEW), (Some(all[1].clone()), true));
    lab.trust.first_commit = Some(all[2].clone());
    assert_eq!(lab.look(None, NEW), (None, true));
    lab.trust.first_commit = Some(all[1].clone());
    assert_eq!(lab.look(None, NEW), (Some(all[1].clone()), true));
    lab.trust = TrustConfig {
        min_commit_time: Some(Timestamp::from_second(3 * 3600).unwrap()),
        ..TrustConfig::default()
    };
    assert_eq!(lab.look(None, NEW), (None, true));
}

#[test]
fn nothing_before_the_mark_is_begun_with() {
    let lab = Lab::new();
    let all = lab.four(&[1, 2]);
    // What was wanted is lost or of before, and the mark is not: it goes on there, whatever the waves say of it now.
    assert_eq!(lab.look(None, mark(&all[2], true)), (Some(all[2].clone()), true));
    assert_eq!(lab.look(Some(&all[1]), mark(&all[2], true)), (Some(all[2].clone()), true));
    assert_eq!(lab.look(None, mark(&all[3], true)), (Some(all[3].clone()), false));
    // A word of an operator says what is believed, and not that others are well on it.
    assert_eq!(lab.look(None, mark(&all[2], false)), (None, true));
    assert_eq!(lab.look(None, mark(&all[1], false)), (Some(all[1].clone()), true));
}

#[test]
fn a_mark_that_is_gone_is_no_leave_to_go_behind_it() {
    let lab = Lab::new();
    let refused = lab.commit(1, None, "format = 1\nnonsense = 1\n");
    let second = lab.commit(2, Some(&refused), WAVES);
    let head = lab.commit(3, Some(&second), WAVES);
    // It cannot be read as it was: what is remembered of it has to do.
    assert_eq!(lab.look(Some(&refused), mark(&refused, true)), (None, true));
    assert_eq!(lab.look(None, mark(&refused, true)), (None, true));
    assert_eq!(lab.look(Some(&second), mark(&second, true)), (Some(second.clone()), true));
    // After a reset to another history, what is in force is read again, though the head does not descend from it.
    let other = lab.commit(4, None, WAVES);
    assert_ne!(head, other);
    assert_eq!(lab.look(Some(&second), mark(&other, false)), (Some(second), true));
}
