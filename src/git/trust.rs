//! Which fetched commits are believed: the only place that makes a [`TrustedCommit`].

use std::sync::atomic::Ordering;

use git2::{ErrorCode, Oid};

use super::cache::TRUSTED;
use super::{FetchedHead, GitError, Repository, id_of, oid_of};
use crate::types::{CommitId, Reason};

/// A commit that passed every check of this host. There is no other way to get one than [`Repository::admit`], or
/// [`Repository::trusted`] for one that passed them before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedCommit {
    id: CommitId,
    oid: Oid,
}

impl TrustedCommit {
    /// Its name.
    pub fn id(&self) -> &CommitId {
        &self.id
    }

    pub(super) fn oid(&self) -> Oid {
        self.oid
    }
}

impl Repository {
    /// Believes a fetched commit if it is the high-water mark (the commit that was last acted on) or a descendant of
    /// it; without a mark, any.
    ///
    /// # Errors
    /// `not-fast-forward`: history was rewritten, or the server shows older history.
    /// `storage-io`: the cache is damaged; the next fetch makes it anew.
    pub fn admit(
        &self,
        head: &FetchedHead,
        high_water: Option<&CommitId>,
    ) -> Result<TrustedCommit, GitError> {
        let cache = self.cache.repository()?;
        let oid = oid_of(head.id())?;
        self.reading(cache.find_commit(oid).and_then(|commit| commit.tree()).map(drop))?;
        if let Some(mark) = high_water
            && !self.descends(&cache, oid, oid_of(mark)?)?
        {
            return Err(GitError::plain(
                Reason::NotFastForward,
                format!(
                    "branch `{}` of {} is at {}, which does not descend from {}, the commit this host acted on",
                    self.config.branch,
                    self.config.url,
                    // In full: who accepts it has to name it so.
                    head.id(),
                    mark.short()
                ),
            ));
        }
        // A note to itself, so that `trusted` needs no network; the mark that counts is the caller's.
        if cache.refname_to_id(TRUSTED).ok() != Some(oid) {
            self.reading(cache.reference(TRUSTED, oid, true, "").map(drop))?;
        }
        Ok(TrustedCommit { id: head.id().clone(), oid })
    }

    /// A commit that was admitted earlier, as after a restart; asks nobody.
    ///
    /// # Errors
    /// `git-unreachable`: the cache does not hold it (any more), so that it takes a fetch.
    /// `not-fast-forward`: it never was admitted.
    pub fn trusted(&self, id: &CommitId) -> Result<TrustedCommit, GitError> {
        let cache = self.cache.repository()?;
        let oid = oid_of(id)?;
        let gone = || GitError::plain(Reason::GitUnreachable, format!("commit {id} is not in the cache"));
        let last = match cache.refname_to_id(TRUSTED) {
            Err(error) if error.code() == ErrorCode::NotFound => return Err(gone()),
            other => self.reading(other)?,
        };
        if !has(&cache, oid) {
            return Err(gone());
        }
        if !self.descends(&cache, last, oid)? {
            let message = format!("commit {id} was not admitted by this host");
            return Err(GitError::plain(Reason::NotFastForward, message));
        }
        self.reading(cache.find_commit(oid).and_then(|commit| commit.tree()).map(drop))?;
        Ok(TrustedCommit { id: id_of(oid)?, oid })
    }

    /// Whether `mark` is `tip` or one of its ancestors. A mark that the cache lacks is no ancestor of anything in it.
    fn descends(&self, cache: &git2::Repository, tip: Oid, mark: Oid) -> Result<bool, GitError> {
        if tip == mark {
            return Ok(true);
        }
        Ok(has(cache, mark) && self.reading(cache.graph_descendant_of(tip, mark))?)
    }

    /// Names a failure to read the cache, and has the next fetch make it anew.
    pub(super) fn reading<T>(&self, result: Result<T, git2::Error>) -> Result<T, GitError> {
        result.map_err(|error| {
            self.damaged.store(true, Ordering::Release);
            self.cache.error("read", error)
        })
    }
}

fn has(cache: &git2::Repository, oid: Oid) -> bool {
    cache.odb().is_ok_and(|odb| odb.exists(oid))
}
