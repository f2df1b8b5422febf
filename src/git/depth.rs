//! How much history the agent's own copy holds: as much as this host's rules of trust ask about, and no more.
//!
//! A first contact takes the newest commits alone; every later fetch brings what is new. Where a rule asks about an older
//! commit (the one that was believed last, `repo.first_commit`), all history is fetched, once. Where every commit has to be
//! signed, all of it is fetched from the first: history that ends somewhere could hide what came before.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use git2::{Oid, Signature};

use super::cache::FETCHED;
use super::{GitError, Repository, oid_of};
use crate::config::agent::SignatureConfig;
use crate::types::{CommitId, HostName, Reason};

/// So many commits on every path from the head: more than a host misses while it is rebuilt, more than are looked at for
/// the last word of another host, and more than the 256 that libgit2 walks when it tells a server what is here.
const DEPTH: i32 = 512;

/// All of them.
pub(super) const ALL: i32 = 0;

impl Repository {
    /// How many commits a fetch into an empty copy takes.
    pub(super) fn depth(&self) -> i32 {
        if self.asks_for_all() { ALL } else { DEPTH }
    }

    /// Has the next fetch make the copy anew, with all history in it.
    pub(super) fn want_all(&self) {
        self.wants_all.store(true, Ordering::Release);
        self.damaged.store(true, Ordering::Release);
    }

    fn asks_for_all(&self) -> bool {
        let every = |signatures: &SignatureConfig| !signatures.head_only;
        self.wants_all.load(Ordering::Acquire) || self.config.trust.signatures.as_ref().is_some_and(every)
    }

    /// The copy, with all the history that judging `head` takes.
    pub(super) fn deep_enough(
        &self,
        head: Oid,
        high_water: Option<&CommitId>,
    ) -> Result<git2::Repository, GitError> {
        let cache = self.cache.repository()?;
        if !cache.is_shallow() {
            return Ok(cache);
        }
        let asked = high_water.or(self.config.trust.first_commit.as_ref()).map(oid_of).transpose()?;
        let is_there = asked.is_none_or(|asked| reaches(&cache, head, asked));
        if is_there && !self.asks_for_all() {
            return Ok(cache);
        }
        drop(cache);
        self.deepen()?;
        let cache = self.cache.repository()?;
        let is_there = cache.find_commit(head).is_ok();
        match is_there {
            true => Ok(cache),
            false => {
                let message = format!(
                    "{}: the branch moved away from {head} while its history was fetched",
                    self.config.url
                );
                Err(GitError::plain(Reason::GitUnreachable, message))
            }
        }
    }

    /// Fetches all history, beside what is there.
    pub(super) fn deepen(&self) -> Result<(), GitError> {
        let _one_at_a_time = self.fetching.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tracing::info!("fetching the whole history of {}", self.config.url);
        let fresh = self.cache.make_beside()?;
        let tip = self.download(&fresh, &self.config.url, &self.branch_ref(), FETCHED, None, ALL)?;
        tip.ok_or_else(|| self.no_branch())?;
        self.replace_by(fresh)
    }
}

/// As whom, and when, a commit of receipts is made: after the branch's head, where history ends somewhere.
///
/// A push has libgit2 walk back from the heads of the remote, by date, until all that is left is older than what it sends. A
/// clock that is behind would have it walk past the end.
pub(super) fn author(cache: &git2::Repository, host: &HostName) -> Result<Signature<'static>, git2::Error> {
    let (name, mail) = ("gitopsd", format!("gitopsd@{host}"));
    let now = Signature::now(name, &mail)?;
    let head = cache.find_reference(FETCHED).and_then(|head| head.peel_to_commit());
    match head.map(|head| head.time().seconds()) {
        Ok(seconds) if cache.is_shallow() && seconds >= now.when().seconds() => {
            Signature::new(name, &mail, &git2::Time::new(seconds.saturating_add(1), 0))
        }
        _ => Ok(now),
    }
}

/// Whether `mark` is `tip` or one of its ancestors, as far as a copy goes whose history ends somewhere.
///
/// libgit2's own walks do not know where it ends: they take the commits beyond for missing ones. Reading a commit does.
pub(super) fn reaches(cache: &git2::Repository, tip: Oid, mark: Oid) -> bool {
    let mut seen = HashSet::new();
    let mut next = vec![tip];
    while let Some(id) = next.pop() {
        if id == mark {
            return true;
        }
        if seen.insert(id)
            && let Ok(commit) = cache.find_commit(id)
        {
            next.extend(commit.parent_ids());
        }
    }
    false
}
