//! Which fetched commits are believed: the only place that makes a [`TrustedCommit`].

use std::sync::atomic::Ordering;

use git2::{ErrorCode, Oid};

use super::cache::TRUSTED;
use super::depth;
use super::signature::{self, Signer, Signers};
use super::{FetchedHead, GitError, Repository, id_of, oid_of};
use crate::config::agent::SignatureConfig;
use crate::types::{CommitId, Reason, Timestamp};

/// Most commits that are looked at for one step from the last commit believed to the head.
const MOST: usize = 10_000;

/// A commit that passed every check of this host. There is no other way to get one than [`Repository::admit`] and
/// [`Repository::may_begin`], or [`Repository::trusted`] and [`Repository::acted_on`] for one that passed them before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedCommit {
    id: CommitId,
    oid: Oid,
    signer: Option<Signer>,
}

impl TrustedCommit {
    /// Its name.
    pub fn id(&self) -> &CommitId {
        &self.id
    }

    /// Who signed it, where that was checked when it was admitted.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }

    pub(super) fn oid(&self) -> Oid {
        self.oid
    }
}

impl Repository {
    /// Believes a fetched commit if it is the high-water mark (the commit that was last acted on) or a descendant of
    /// it; without a mark, any that `repo.first_commit` and `repo.min_commit_time` let pass. Where `repo.verify` asks for
    /// signatures, it and what leads to it from the mark have to bear them.
    ///
    /// # Errors
    /// `not-fast-forward`: history was rewritten, or the server shows older history.
    /// `signature`: a commit is not signed by somebody who may.
    /// `storage-io`: the cache is damaged; the next fetch makes it anew.
    pub fn admit(
        &self,
        head: &FetchedHead,
        high_water: Option<&CommitId>,
    ) -> Result<TrustedCommit, GitError> {
        let oid = oid_of(head.id())?;
        let cache = self.deep_enough(oid, high_water)?;
        let trusted = self.judge(&cache, oid, high_water)?;
        // A note to itself, so that `trusted` needs no network; the mark that counts is the caller's.
        if cache.refname_to_id(TRUSTED).ok() != Some(oid) {
            self.reading(cache.reference(TRUSTED, oid, true, "").map(drop))?;
        }
        Ok(trusted)
    }

    /// Puts a commit before a believed head through what the head went through: that the head is believed says nothing of
    /// where one may begin. Asks nobody.
    ///
    /// # Errors
    /// Those of [`Repository::admit`].
    pub fn may_begin(
        &self,
        commit: &TrustedCommit,
        high_water: Option<&CommitId>,
    ) -> Result<TrustedCommit, GitError> {
        self.judge(&self.cache.repository()?, commit.oid, high_water)
    }

    /// All checks of one commit, of which the cache holds as much history as they take.
    fn judge(
        &self,
        cache: &git2::Repository,
        oid: Oid,
        high_water: Option<&CommitId>,
    ) -> Result<TrustedCommit, GitError> {
        self.reading(cache.find_commit(oid).and_then(|commit| commit.tree()).map(drop))?;
        if let Some(mark) = high_water
            && !self.descends(cache, oid, oid_of(mark)?)?
        {
            return Err(GitError::plain(
                Reason::NotFastForward,
                format!(
                    "branch `{}` of {} is at {}, which does not descend from {}, the commit this host acted on",
                    self.config.branch,
                    self.config.url,
                    // In full: who accepts it has to name it so.
                    oid,
                    mark.short()
                ),
            ));
        }
        if high_water.is_none() {
            self.check_first_contact(cache, oid)?;
        }
        let signer = match &self.config.trust.signatures {
            Some(config) => Some(self.check_signatures(cache, oid, high_water, config)?),
            None => None,
        };
        Ok(TrustedCommit { id: id_of(oid)?, oid, signer })
    }

    /// A commit that this host remembers having acted on, whatever was believed since: after a reset, the head need not
    /// descend from it. Asks nobody.
    ///
    /// # Errors
    /// `git-unreachable`: the cache does not hold it (any more).
    pub fn acted_on(&self, id: &CommitId) -> Result<TrustedCommit, GitError> {
        let cache = self.cache.repository()?;
        let oid = oid_of(id)?;
        if !has(&cache, oid) {
            let message = format!("commit {id} is not in the cache");
            return Err(GitError::plain(Reason::GitUnreachable, message));
        }
        self.reading(cache.find_commit(oid).and_then(|commit| commit.tree()).map(drop))?;
        Ok(TrustedCommit { id: id_of(oid)?, oid, signer: None })
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
        Ok(TrustedCommit { id: id_of(oid)?, oid, signer: None })
    }

    /// A host that has believed nothing yet, or has lost its memory: an old commit is as well signed as a new one.
    fn check_first_contact(&self, cache: &git2::Repository, oid: Oid) -> Result<(), GitError> {
        let trust = &self.config.trust;
        let refused = |what: String| {
            let message =
                format!("branch `{}` of {} is at {oid}, {what}", self.config.branch, self.config.url);
            Err(GitError::plain(Reason::NotFastForward, message))
        };
        if let Some(first) = &trust.first_commit
            && !self.descends(cache, oid, oid_of(first)?)?
        {
            return refused(format!("which does not descend from {}, repo.first_commit", first.short()));
        }
        let time = time_of(&self.reading(cache.find_commit(oid))?);
        match trust.min_commit_time {
            Some(least) if time < least => {
                refused(format!("of {time}, and repo.min_commit_time is {least}: is it an old copy?"))
            }
            _ => Ok(()),
        }
    }

    /// Checks the head's signature and, unless only that counts, those of all commits on its first-parent path that the
    /// mark does not hold: what a signed merge brings in is vouched for by who signed the merge.
    fn check_signatures(
        &self,
        cache: &git2::Repository,
        head: Oid,
        high_water: Option<&CommitId>,
        config: &SignatureConfig,
    ) -> Result<Signer, GitError> {
        let signers = Signers::load(config)
            .map_err(|why| GitError::plain(Reason::Signature, format!("nobody's signature counts: {why}")))?;
        let mark = high_water.or(self.config.trust.first_commit.as_ref()).map(oid_of).transpose()?;
        // A key that has expired meanwhile cannot sign with yesterday's date: time goes on from the mark.
        let floor = match mark {
            Some(mark) if has(cache, mark) => time_of(&self.reading(cache.find_commit(mark))?),
            _ => Timestamp::UNIX_EPOCH,
        };
        let signer = self.signed(cache, head, head, floor, &signers)?;
        let Some(mark) = mark.filter(|_| !config.head_only) else { return Ok(signer) };
        let mut at = head;
        for _ in 0..MOST {
            let parent = self.reading(cache.find_commit(at))?.parent_id(0).ok();
            let Some(parent) = parent.filter(|parent| *parent != mark) else { return Ok(signer) };
            // The mark came in by a merge: what it holds was believed with it.
            if self.descends(cache, mark, parent)? {
                return Ok(signer);
            }
            self.signed(cache, parent, head, floor, &signers)?;
            at = parent;
        }
        let message = format!("commit {head} is more than {MOST} commits ahead of the last one believed");
        Err(GitError::plain(Reason::Signature, message))
    }

    /// Who signed one commit.
    fn signed(
        &self,
        cache: &git2::Repository,
        oid: Oid,
        head: Oid,
        floor: Timestamp,
        signers: &Signers,
    ) -> Result<Signer, GitError> {
        let commit = self.reading(cache.find_commit(oid))?;
        let author = String::from_utf8_lossy(commit.author().name_bytes()).into_owned();
        let refused = |why: &str| {
            let author: String = author.chars().filter(|c| !c.is_control()).take(100).collect();
            let before = if oid == head { String::new() } else { format!(", on the way to {head}") };
            let message = format!("commit {oid} by {author}{before}: {why}");
            GitError::plain(Reason::Signature, message)
        };
        let raw = self.reading(cache.odb().and_then(|odb| Ok(odb.read(oid)?.data().to_vec())))?;
        check(&raw, signers, time_of(&commit).max(floor)).map_err(|why| refused(&why))
    }

    /// Whether a fetched head is `mark`, or descends from it.
    ///
    /// # Errors
    /// `storage-io`: the cache is damaged.
    pub fn leads_to(&self, head: &FetchedHead, mark: &CommitId) -> Result<bool, GitError> {
        let tip = oid_of(head.id())?;
        self.descends(&self.deep_enough(tip, Some(mark))?, tip, oid_of(mark)?)
    }

    /// Whether `mark` is `tip` or one of its ancestors. A mark that the cache lacks is no ancestor of anything in it.
    fn descends(&self, cache: &git2::Repository, tip: Oid, mark: Oid) -> Result<bool, GitError> {
        if tip == mark {
            return Ok(true);
        }
        if cache.is_shallow() {
            return Ok(depth::reaches(cache, tip, mark));
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

/// Who signed a commit, of which these are the bytes, made at `time`; or why that counts for nothing.
pub(super) fn check(raw: &[u8], signers: &Signers, time: Timestamp) -> Result<Signer, String> {
    let (armored, message) = signature::split(raw)?;
    let armored = std::str::from_utf8(&armored).map_err(|_| "its signature is not text")?;
    signers.verify(armored, &message, time)
}

/// The committer's time. One of another millennium counts as none.
pub(super) fn time_of(commit: &git2::Commit<'_>) -> Timestamp {
    Timestamp::from_second(commit.time().seconds()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn has(cache: &git2::Repository, oid: Oid) -> bool {
    cache.odb().is_ok_and(|odb| odb.exists(oid))
}
