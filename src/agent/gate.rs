//! Whether this host may act on a commit that it believes: beside the loop, before anything of it is wanted.
//!
//! What runs is never touched by waiting: the commit in force stays in force.

use std::sync::{Arc, Mutex, PoisonError};

use super::clock;
use crate::config::agent::HostIdentity;
use crate::config::repo::{self, RepoFiles, RepoView};
use crate::git::{GitError, Heard, Repository, Tags, TrustedCommit};
use crate::reconcile::waves::{Gate, gate};
use crate::report::waves::{At, Concerns};
use crate::types::{CommitId, CommitInfo, HostName, Policy, Refusal, SafeUrl, Timestamp, Wave};

/// How many commits back a new host looks for one that it may begin with.
const BACK: usize = 50;

/// A commit that is believed and not acted on yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Waits {
    /// Which.
    pub commit: CommitInfo,
    /// Why not.
    pub refusal: Refusal,
    /// When that is over by itself.
    pub until: Option<Timestamp>,
    /// An earlier wave has failed.
    pub stopped: bool,
}

/// What the gate is asked with.
#[derive(Debug, Clone)]
pub struct Porter {
    pub repository: Arc<Repository>,
    pub host: HostIdentity,
    pub policy: Policy,
    /// Where hosts write to, if not to the repo itself.
    pub remote: Option<SafeUrl>,
    /// The commit in force.
    pub in_force: Option<CommitId>,
    /// This agent has not taken anything over yet.
    pub first: bool,
    /// Whether tags stand for what other hosts found.
    pub follow: bool,
    pub concerns: Arc<Mutex<Concerns>>,
}

/// What a commit has to descend from to be acted on.
#[derive(Debug, Clone, Copy)]
pub struct Mark<'a> {
    /// This one; `None`: whatever a new host may begin with.
    pub commit: Option<&'a CommitId>,
    /// It is what this host acted on last, and not an operator's word.
    pub acted_on: bool,
}

impl<'a> Mark<'a> {
    /// What this host acted on last.
    fn last(self) -> Option<&'a CommitId> {
        self.commit.filter(|_| self.acted_on)
    }
}

/// A believed commit, read.
pub struct Read {
    pub commit: TrustedCommit,
    pub files: RepoFiles,
    pub view: RepoView,
}

/// What a look comes to.
pub struct Passed {
    /// What is to be in force; `None`: the commit that is, which cannot be read just now.
    pub read: Option<Read>,
    /// The head, where that is another one.
    pub waits: Option<Waits>,
}

impl Porter {
    /// What is in force now that the branch is at `head`: that, or what was before, or for a host without anything the
    /// newest commit that it may begin with.
    pub fn pass(&self, head: Read, mark: Mark<'_>) -> Result<Passed, Refusal> {
        let done = |read| Passed { read: Some(read), waits: None };
        // The mark is durable before what is wanted of it: where the two differ, it is the one that holds.
        let in_force = mark.last().or(self.in_force.as_ref());
        if head.view.place == 0 || in_force == Some(head.commit.id()) || self.waived(&head)? {
            return Ok(done(head));
        }
        let former = self.former(in_force)?;
        let info = self.repository.info(&head.commit).map_err(told)?;
        let shut = match self.look(&head, former.as_ref()) {
            Ok(Gate::Open) => return Ok(done(head)),
            Ok(Gate::Wait { refusal, until }) => (refusal, until, false),
            Ok(Gate::Stopped(refusal)) => (refusal, None, true),
            // Who cannot hear the others waits for them.
            Err(error) => {
                let message = format!("what the hosts of earlier waves wrote cannot be read: {error}");
                (Refusal::new(error.reason, message), None, false)
            }
        };
        let (refusal, until, stopped) = shut;
        let message = format!("commit {} is not acted on yet: {}", info.id.short(), refusal.message);
        let refusal = Refusal::new(refusal.reason, message);
        let waits = Some(Waits { commit: info, refusal, until, stopped });
        let read = match former {
            Some(former) => Some(former),
            None if self.in_force.is_some() => None,
            None => self.beginning(&head, mark)?,
        };
        Ok(Passed { read, waits })
    }

    /// What others found that the tags of a commit stand for. Where this host goes by it and cannot read it, it does not
    /// act: it would run other bytes than they do.
    pub fn tags(&self, read: &Read) -> Result<Tags, Refusal> {
        let known = !self.first && self.in_force.as_ref() == Some(read.commit.id());
        if !self.follow || known {
            return Ok(Tags::new());
        }
        let heard = self.repository.hear(self.remote.as_ref(), &|_| true).map_err(told)?;
        self.repository.tags(&read.commit, &heard).map_err(told)
    }

    fn waived(&self, head: &Read) -> Result<bool, Refusal> {
        self.repository.waives_waves(&head.commit).map_err(told)
    }

    /// The commit in force, read again. A cache that was made anew may lack it, and a newer version may refuse what it
    /// says: then what is remembered of it has to do.
    fn former(&self, in_force: Option<&CommitId>) -> Result<Option<Read>, Refusal> {
        let Some(id) = in_force else { return Ok(None) };
        match self.repository.acted_on(id) {
            Ok(commit) => Ok(Some(self.read(commit)?).filter(|read| read.view.fatal.is_none())),
            Err(_) => Ok(None),
        }
    }

    /// Reads a believed commit for this host.
    pub fn read(&self, commit: TrustedCommit) -> Result<Read, Refusal> {
        let files = self.repository.files(&commit).map_err(told)?;
        let view = repo::read(&files, &self.host, &self.policy);
        Ok(Read { commit, files, view })
    }

    fn look(&self, next: &Read, former: Option<&Read>) -> Result<Gate, GitError> {
        let heard = self.hear(earlier(&next.view))?;
        self.judge(next, former, &heard)
    }

    /// The notes of those that are waited for. Who is in a wave by a label can only be told from the notes.
    fn hear(&self, earlier: &[Wave]) -> Result<Vec<Heard>, GitError> {
        let labels = earlier.iter().flat_map(|wave| &wave.hosts).any(|entry| entry.contains('='));
        let wanted = |host: &HostName| {
            *host != self.host.name && (labels || earlier.iter().any(|wave| wave.holds(host, &[])))
        };
        self.repository.hear(self.remote.as_ref(), &wanted)
    }

    fn judge(&self, next: &Read, former: Option<&Read>, heard: &[Heard]) -> Result<Gate, GitError> {
        let said = self.repository.evidence(&next.commit, heard)?;
        let now = former.map(|former| At { commit: former.commit.id(), files: &former.files });
        let at = At { commit: next.commit.id(), files: &next.files };
        let mut concerns = self.concerns.lock().unwrap_or_else(PoisonError::into_inner);
        let members = concerns.members(now, at, &next.view.waves, &said);
        Ok(gate(&next.view.waves, next.view.place, &members, clock::now()))
    }

    /// For a host that does not know of anything it acted on: the newest commit that it may begin with, by what it
    /// believes, and that the earlier waves are well on.
    fn beginning(&self, head: &Read, mark: Mark<'_>) -> Result<Option<Read>, Refusal> {
        let mut candidates = Vec::new();
        let mut waited_for = Vec::new();
        for commit in self.repository.before(&head.commit, BACK).map_err(told)? {
            let last = mark.commit == Some(commit.id());
            if let Ok(commit) = self.repository.may_begin(&commit, mark.commit)
                // One that cannot be read is not the one.
                && let Ok(Read { commit, view, .. }) = self.read(commit)
                && view.fatal.is_none()
                && view.repo_id == head.view.repo_id
                // Of before there were waves: nothing says that it is well.
                && !view.waves.is_empty()
            {
                candidates.push(commit);
                if view.place == 0 {
                    break;
                }
                waited_for.extend_from_slice(earlier(&view));
            }
            if last {
                break;
            }
        }
        // Once for all of them.
        let heard = match waited_for.is_empty() {
            true => Ok(Vec::new()),
            false => self.hear(&waited_for),
        };
        for commit in candidates {
            let read = self.read(commit)?;
            let open = |heard: &Vec<Heard>| matches!(self.judge(&read, None, heard), Ok(Gate::Open));
            if read.view.place == 0 || heard.as_ref().is_ok_and(open) {
                return Ok(Some(read));
            }
        }
        Ok(None)
    }
}

/// The waves before that of this host.
fn earlier(view: &RepoView) -> &[Wave] {
    view.waves.get(..view.place).unwrap_or(&view.waves)
}

fn told(error: GitError) -> Refusal {
    error.to_refusal()
}

#[cfg(test)]
mod tests;
