//! What hosts said of commits: read out of their receipts, wherever these are.

use std::cell::Cell;
use std::collections::BTreeMap;

use git2::{ErrorClass, Oid, Repository as Git};

use super::heard::{self, Heard};
use super::{GitError, LocalClone, Repository, TrustedCommit, id_of, notes, oid_of};
use crate::reconcile::arrival::Arrival;
use crate::reconcile::tagged::{self, Tagged};
use crate::types::{CommitId, Digest, HostName, Reason};

/// How many commits back somebody's last word is looked for.
const BACK: usize = 500;

/// What one host said.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// Who.
    pub host: HostName,
    /// Its last word on the commit that is asked about.
    pub on: Option<Arrival>,
    /// Its last word on the newest commit before that.
    pub before: Option<Arrival>,
}

impl Evidence {
    /// What it calls itself, as far as it said.
    pub fn labels(&self) -> &[String] {
        self.on.as_ref().or(self.before.as_ref()).map_or(&[], |arrival| &arrival.labels)
    }
}

/// The commits that lead to `commit` along first parents, itself first.
fn path(git: &Git, commit: Oid, limit: usize) -> Result<Vec<Oid>, git2::Error> {
    let mut path = vec![commit];
    let mut at = git.find_commit(commit)?;
    while path.len() < limit {
        let Ok(parent) = at.parent(0) else { break };
        path.push(parent.id());
        at = parent;
    }
    Ok(path)
}

/// What each host said of `commit` and of those before it. One whose receipts cannot be read has said nothing: what
/// somebody pushed under its name is its own trouble.
fn gather(git: &Git, notes: &Notes<'_>, commit: Oid, heard: &[Heard]) -> Result<Vec<Evidence>, git2::Error> {
    let path = path(git, commit, BACK)?;
    let mut all = Vec::new();
    for (host, tips) in heard::by_host(heard) {
        // Whoever moved to a branch, or back, has words in both.
        let word = |commit: &Oid| {
            let last = |tip: &Oid| {
                let lines = notes.lines_on(host, *tip, *commit);
                let mut words = lines.iter().filter_map(|line| serde_json::from_str::<Arrival>(line).ok());
                words.rfind(|word| word.host == *host)
            };
            tips.iter().filter_map(last).max_by_key(|word| word.since)
        };
        let on = word(&commit);
        // Who has said something of this commit needs no other word.
        let before = if on.is_none() { path.iter().skip(1).find_map(word) } else { None };
        all.push(Evidence { host: host.clone(), on, before });
    }
    Ok(all)
}

/// Where receipts are read.
struct Notes<'a> {
    git: &'a Git,
    /// Some could not be read, and it was not whoever wrote them.
    damaged: Cell<bool>,
}

impl<'a> Notes<'a> {
    fn of(git: &'a Git) -> Self {
        Self { git, damaged: Cell::new(false) }
    }

    /// A host's words on a commit. Receipts that cannot be read are none.
    fn lines_on(&self, host: &HostName, tip: Oid, commit: Oid) -> Vec<String> {
        notes::lines_on(self.git, tip, commit).unwrap_or_else(|error| {
            tracing::debug!("receipts of {host}: {error}");
            if matches!(error.class(), ErrorClass::Odb | ErrorClass::Zlib) {
                self.damaged.set(true);
            }
            Vec::new()
        })
    }
}

/// What these hosts found that tags stood for, at `commit` and before it: the newest commit's word counts.
fn tags(git: &Git, notes: &Notes<'_>, commit: Oid, heard: &[Heard]) -> Result<Tags, git2::Error> {
    let mut all = Tags::new();
    for commit in path(git, commit, BACK)? {
        let mut found = Vec::new();
        for heard in heard {
            let lines = notes.lines_on(&heard.host, heard.tip, commit);
            let words = lines.iter().filter_map(|line| serde_json::from_str::<Tagged>(line).ok());
            found.extend(words.filter(|word| word.host == heard.host));
        }
        for (image, word) in tagged::first(found) {
            all.entry(image).or_insert(word);
        }
    }
    Ok(all)
}

/// By reference: what it stands for, and by whose word.
pub type Tags = BTreeMap<String, (Digest, HostName)>;

impl Repository {
    /// What hosts said of a commit: of those whose notes were heard.
    ///
    /// # Errors
    /// `storage-io`: the cache is damaged.
    pub fn evidence(&self, commit: &TrustedCommit, heard: &[Heard]) -> Result<Vec<Evidence>, GitError> {
        self.by_heard(|cache, notes| gather(cache, notes, commit.oid(), heard))
    }

    /// What hosts found that tags stood for, at a commit and before it.
    ///
    /// # Errors
    /// `storage-io`: the cache is damaged.
    pub fn tags(&self, commit: &TrustedCommit, heard: &[Heard]) -> Result<Tags, GitError> {
        self.by_heard(|cache, notes| tags(cache, notes, commit.oid(), heard))
    }

    /// Reads commits and what was heard. Has what could not be read for want of objects heard again.
    fn by_heard<T>(
        &self,
        read: impl FnOnce(&Git, &Notes<'_>) -> Result<T, git2::Error>,
    ) -> Result<T, GitError> {
        let (cache, copy) = (self.cache.repository()?, self.cache.heard()?);
        let notes = Notes::of(&copy);
        let found = self.reading(read(&cache, &notes));
        if notes.damaged.get() {
            self.cache.forget_heard()?;
        }
        found
    }

    /// The believed commits before one, newest first, along first parents; at most `limit`.
    ///
    /// # Errors
    /// `storage-io`: the cache is damaged.
    pub fn before(&self, commit: &TrustedCommit, limit: usize) -> Result<Vec<TrustedCommit>, GitError> {
        let cache = self.cache.repository()?;
        let path = self.reading(path(&cache, commit.oid(), limit.saturating_add(1)))?;
        path.into_iter().skip(1).map(|oid| self.trusted(&id_of(oid)?)).collect()
    }
}

impl LocalClone {
    /// The refs of this clone that hold receipts.
    pub(super) fn heard(&self) -> Result<Vec<Heard>, git2::Error> {
        heard::receipts_of(&self.repository)
    }

    /// What hosts said of a commit, by the notes of this clone.
    ///
    /// # Errors
    /// `git-unreachable`: the notes cannot be read.
    pub fn evidence(&self, commit: &CommitId) -> Result<Vec<Evidence>, GitError> {
        let failed = |error| self.failed("read the receipts".to_owned(), error);
        let heard = self.heard().map_err(failed)?;
        let oid = oid_of(commit)?;
        gather(&self.repository, &Notes::of(&self.repository), oid, &heard).map_err(|error| {
            GitError::with(
                Reason::GitUnreachable,
                format!("read what hosts said of {}", commit.short()),
                error,
            )
        })
    }
}
