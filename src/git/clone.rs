//! What hosts wrote into git, read out of any clone: for `gitopsd fleet`, `at` and `blame`, which believe their own user.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use git2::{BranchType, ErrorCode, Oid};

use super::tree::{clean, says_now};
use super::{GitError, id_of, library, notes, oid_of};
use crate::reconcile::arrival::Arrival;
use crate::reconcile::tagged::Tagged;
use crate::state::receipts::{Receipt, TrustReceipt};
use crate::types::{CommitId, HostName, Reason, Timestamp};

/// A git repository on disk, its notes included.
pub struct LocalClone {
    pub(super) repository: git2::Repository,
    dir: PathBuf,
}

/// What one host wrote.
#[derive(Debug)]
pub struct Written {
    /// By the time they were over.
    pub receipts: Vec<Receipt>,
    /// What it said of whole commits, in no order.
    pub arrivals: Vec<Arrival>,
    /// What it found that tags stood for, in no order.
    pub tagged: Vec<Tagged>,
    /// Lines that this version cannot read: those of a later one.
    pub unreadable: usize,
}

/// A commit, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CommitLine {
    /// Its id.
    pub commit: CommitId,
    /// Who wrote it: `Name <address>`.
    pub author: String,
    /// The first line of its message.
    pub subject: String,
    /// When it was committed.
    pub committed_at: Timestamp,
}

impl LocalClone {
    /// Opens the repository that holds `dir`.
    ///
    /// # Errors
    /// `git-unreachable`: there is none.
    pub fn open(dir: &Path) -> Result<Self, GitError> {
        let failed = |error: git2::Error| {
            GitError::with(
                Reason::GitUnreachable,
                format!("open the git repository at {}", dir.display()),
                error,
            )
        };
        library::init().map_err(failed)?;
        let repository = git2::Repository::discover(dir).map_err(failed)?;
        Ok(Self { repository, dir: dir.to_owned() })
    }

    /// Opens the copy that an agent keeps in its state directory.
    ///
    /// # Errors
    /// `git-unreachable`: it has none yet.
    pub fn of_agent(state_dir: &Path) -> Result<Self, GitError> {
        Self::open(&state_dir.join("git").join(super::cache::NAME))
    }

    /// The commit that hosts are held against: `revision`, or what the checked-out branch follows, or that branch itself.
    ///
    /// # Errors
    /// `git-unreachable`: there is no such commit.
    pub fn head(&self, revision: Option<&str>) -> Result<CommitId, GitError> {
        let name = revision.unwrap_or("HEAD");
        let found = match (revision, self.upstream()) {
            (None, Some(tip)) => Ok(tip),
            _ => self
                .repository
                .revparse_single(name)
                .and_then(|object| object.peel_to_commit())
                .map(|commit| commit.id()),
        };
        id_of(found.map_err(|error| self.failed(format!("look for revision {name}"), error))?)
    }

    fn upstream(&self) -> Option<Oid> {
        let head = self.repository.head().ok()?;
        let branch = self.repository.find_branch(head.shorthand().ok()?, BranchType::Local).ok()?;
        branch.upstream().ok()?.get().target()
    }

    /// The hosts that have written receipts, and what each wrote: in notes, on branches of this clone, or on those that it
    /// has fetched. What is there twice counts once.
    ///
    /// # Errors
    /// `git-unreachable`: the notes cannot be read.
    pub fn written(&self) -> Result<Vec<(HostName, Written)>, GitError> {
        let failed = |error| self.failed("read the receipts".to_owned(), error);
        let mut lines: BTreeMap<HostName, BTreeSet<String>> = BTreeMap::new();
        for heard in self.heard().map_err(failed)? {
            let written = notes::receipts(&self.repository, heard.tip).map_err(failed)?;
            lines.entry(heard.host).or_default().extend(written);
        }
        let read = |lines: BTreeSet<String>| {
            let mut written =
                Written { receipts: Vec::new(), arrivals: Vec::new(), tagged: Vec::new(), unreadable: 0 };
            for json in lines {
                if let Ok(receipt) = serde_json::from_str::<Receipt>(&json) {
                    written.receipts.push(receipt);
                } else if let Ok(arrival) = serde_json::from_str::<Arrival>(&json) {
                    written.arrivals.push(arrival);
                } else if let Ok(tagged) = serde_json::from_str::<Tagged>(&json) {
                    written.tagged.push(tagged);
                } else if serde_json::from_str::<TrustReceipt>(&json).is_err() {
                    // It is not what an operator said either, which is about no service.
                    written.unreadable += 1;
                }
            }
            written.receipts.sort_by_key(|receipt| receipt.transition.finished_at);
            written
        };
        Ok(lines.into_iter().map(|(host, lines)| (host, read(lines))).collect())
    }

    /// How many commits lead from `commit` to `head`; `None` where none do: another branch, or a commit that is not here.
    pub fn distance(&self, commit: &CommitId, head: &CommitId) -> Option<usize> {
        let (commit, head) = (oid_of(commit).ok()?, oid_of(head).ok()?);
        match self.repository.graph_ahead_behind(head, commit) {
            Ok((ahead, 0)) => Some(ahead),
            _ => None,
        }
    }

    /// Whether a commit's message says that hosts do not wait for one another: `Gitopsd-Waves: now`.
    pub fn waives_waves(&self, commit: &CommitId) -> bool {
        let found = oid_of(commit).ok().and_then(|oid| self.repository.find_commit(oid).ok());
        found.is_some_and(|commit| says_now(commit.message_bytes(), "gitopsd-waves"))
    }

    /// A commit, for people; `None` where it is not here.
    pub fn describe(&self, commit: &CommitId) -> Option<CommitLine> {
        let found = self.repository.find_commit(oid_of(commit).ok()?).ok()?;
        let author = found.author();
        let name = String::from_utf8_lossy(author.name_bytes()).into_owned();
        let email = String::from_utf8_lossy(author.email_bytes()).into_owned();
        Some(CommitLine {
            commit: commit.clone(),
            author: clean(&format!("{name} <{email}>")),
            subject: clean(&String::from_utf8_lossy(found.summary_bytes().unwrap_or_default())),
            committed_at: Timestamp::from_second(found.time().seconds()).ok()?,
        })
    }

    pub(super) fn failed(&self, what: String, error: git2::Error) -> GitError {
        let what = format!("{what} in {}", self.dir.display());
        let what =
            if error.code() == ErrorCode::NotFound { format!("{what}: it is not there") } else { what };
        GitError::with(Reason::GitUnreachable, what, error)
    }
}
