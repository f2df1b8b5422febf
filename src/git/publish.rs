//! Receipts to the remote: fast-forward only, from the value that was seen there, never by force.

use std::cell::RefCell;

use git2::{Direction, Oid, PushOptions, RemoteRedirect};

use super::credentials::{Session, named, proxy};
use super::depth::ALL;
use super::error::is_damage;
use super::fetch::listed;
use super::notes::{self, Entries};
use super::place::{self, Place};
use super::remote::Remote;
use super::{GitError, Repository, local};
use crate::types::{CommitId, HostName, Reason, SafeUrl};

/// How often to begin again when the remote's ref moves meanwhile. One host writes to it: once is rare.
const ATTEMPTS: usize = 4;

/// Where the remote's notes are fetched to.
const THEIRS: &str = "refs/gitopsd/notes";

/// The ref that is written to, and what it was when it was looked at.
struct Target<'a> {
    name: &'a str,
    theirs: Option<Oid>,
}

/// What one attempt came to.
enum Attempt {
    /// The remote holds all receipts.
    Done,
    /// The remote has notes that the cache lacks.
    Fetch,
    /// The remote did not take the push, and says why; it was at this value before.
    Refused(Option<Oid>, String),
    /// It does not take it at all, and says why.
    Final(String),
}

impl Repository {
    /// Adds receipts (commit, id, one line of JSON with that id) to the notes of this host and pushes them to
    /// `remote`, or to `repo.url`: to the notes' own ref, or to a branch where the server refuses that for good. Receipts
    /// that are there already are not added again, so that after any error the same call may be made again. Receipts the
    /// remote has and the cache lacks are kept.
    ///
    /// # Errors
    /// `notes-refused`: the server lets this host write neither. `auth`, `git-unreachable` and the others of
    /// [`Repository::fetch`].
    pub fn publish(
        &self,
        remote: Option<&SafeUrl>,
        host: &HostName,
        receipts: &[(CommitId, String, String)],
    ) -> Result<Place, GitError> {
        let _one_at_a_time = self.publishing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let url = remote.unwrap_or(&self.config.url);
        let entries = notes::entries(receipts)?;
        let dir = self.cache.parent();
        let on_branch = place::is_branch(dir, url)?;
        let name = place::ref_at(on_branch, host);
        let Some(why) = self.publish_to(url, &name, host, &entries)? else {
            return Ok(if on_branch { Place::Branch } else { Place::Notes });
        };
        let refused = |what: String| Err(GitError::plain(Reason::NotesRefused, what));
        let first = format!("push {name} to {}: {why}", named(url));
        // Of a directory there is no server to refuse anything.
        if on_branch || matches!(Remote::parse(url)?, Remote::Local(_)) {
            return refused(first);
        }
        let branch = place::ref_at(true, host);
        if let Some(again) = self.publish_to(url, &branch, host, &entries)? {
            return refused(format!("{first}; and {branch}: {again}"));
        }
        place::remember(dir, url)?;
        let branch = branch.strip_prefix("refs/heads/").unwrap_or(&branch).to_owned();
        Ok(Place::NewBranch { branch, why })
    }

    /// Pushes to one ref of the remote. `Some`: the server refuses it for good, with its words.
    fn publish_to(
        &self,
        url: &SafeUrl,
        name: &str,
        host: &HostName,
        entries: &Entries,
    ) -> Result<Option<String>, GitError> {
        let target = Remote::parse(url)?;
        let mut refused: Option<(Option<Oid>, String)> = None;
        // A refusal with nothing changed since is final; otherwise somebody else was first.
        let is_final = |refused: &Option<(Option<Oid>, String)>, now: Option<Oid>| {
            refused.as_ref().filter(|(then, _)| *then == now).map(|(_, why)| Attempt::Final(why.clone()))
        };
        for _ in 0..ATTEMPTS {
            let cache = self.cache.repository()?;
            let attempt = match &target {
                Remote::Local(path) => {
                    let repo = local::Repo::open(path, url)?;
                    let theirs = repo.tip(name)?;
                    match is_final(&refused, theirs) {
                        Some(end) => end,
                        None => self.publish_to_directory(&cache, repo, name, theirs, host, entries)?,
                    }
                }
                _ => self.with_connection(&cache, url, &target, Direction::Push, |remote, session| {
                    let theirs = listed(remote, session, url, name)?;
                    match is_final(&refused, theirs) {
                        Some(end) => Ok(end),
                        None => self.publish_over(
                            &cache,
                            remote,
                            session,
                            url,
                            Target { name, theirs },
                            host,
                            entries,
                        ),
                    }
                })?,
            };
            match attempt {
                Attempt::Done => return Ok(None),
                Attempt::Fetch => match self.download(&cache, url, name, THEIRS, None, ALL) {
                    Ok(_) => {}
                    Err(error) => {
                        // The walk for what both sides have met the end of history here.
                        if error.reason == Reason::StorageIo && cache.is_shallow() {
                            self.want_all();
                        }
                        return Err(error);
                    }
                },
                Attempt::Refused(at, why) => refused = Some((at, why)),
                Attempt::Final(why) => return Ok(Some(why)),
            }
        }
        let message = format!("{name} of {} moves faster than this host can follow", named(url));
        Err(GitError::plain(Reason::NotesRefused, message))
    }

    /// Adds receipts to the notes in the cache alone, for hosts that push nothing.
    pub fn record(&self, host: &HostName, receipts: &[(CommitId, String, String)]) -> Result<(), GitError> {
        let _one_at_a_time = self.publishing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cache = self.cache.repository()?;
        self.prepare(&cache, None, host, &notes::entries(receipts)?).map(drop)
    }

    fn publish_to_directory(
        &self,
        cache: &git2::Repository,
        repo: local::Repo,
        name: &str,
        theirs: Option<Oid>,
        host: &HostName,
        entries: &Entries,
    ) -> Result<Attempt, GitError> {
        if lacks(cache, theirs) {
            return Ok(Attempt::Fetch);
        }
        let new = match self.prepare(cache, theirs, host, entries)? {
            Some(new) if theirs != Some(new) => new,
            _ => return Ok(Attempt::Done),
        };
        let objects = self.reading(repo.lacks(cache, new))?;
        Ok(match repo.push(objects, name, theirs, new)? {
            true => Attempt::Done,
            false => Attempt::Refused(theirs, "the ref is locked".to_owned()),
        })
    }

    fn publish_over(
        &self,
        cache: &git2::Repository,
        remote: &mut git2::Remote<'_>,
        session: &Session<'_>,
        url: &SafeUrl,
        Target { name, theirs }: Target<'_>,
        host: &HostName,
        entries: &Entries,
    ) -> Result<Attempt, GitError> {
        if lacks(cache, theirs) {
            return Ok(Attempt::Fetch);
        }
        let new = match self.prepare(cache, theirs, host, entries)? {
            Some(new) if theirs != Some(new) => new,
            _ => return Ok(Attempt::Done),
        };
        let ours = notes::ref_of(host);
        let status = RefCell::new(None);
        let mut callbacks = session.callbacks();
        callbacks.push_update_reference(|_, message| {
            *status.borrow_mut() = message.map(str::to_owned);
            Ok(())
        });
        callbacks.push_negotiation(|updates| {
            // What goes over the wire says `old` and `new`: both have to be the ones decided on here.
            let expected = theirs.unwrap_or(Oid::ZERO_SHA1);
            match updates {
                [update] if update.src() == expected && update.dst() == new => Ok(()),
                _ => Err(git2::Error::from_str("the remote moved while it was pushed to")),
            }
        });
        let mut options = PushOptions::new();
        options.remote_callbacks(callbacks);
        options.proxy_options(proxy(url));
        options.follow_redirects(RemoteRedirect::None);
        options.packbuilder_parallelism(1);
        let pushed = remote.push(&[format!("{ours}:{name}")], Some(&mut options));
        drop(options);
        match (pushed, status.into_inner()) {
            (Ok(()), None) => Ok(Attempt::Done),
            (Ok(()), Some(why)) => Ok(Attempt::Refused(theirs, why)),
            (Err(e), _) if e.code() == git2::ErrorCode::NotFastForward => {
                Ok(Attempt::Refused(theirs, e.message().to_owned()))
            }
            (Err(e), _) if cache.is_shallow() && is_damage(&e) => {
                // libgit2 has walked past the end of the copy's history: the next fetch brings all of it.
                self.want_all();
                Err(session.error(format!("push {name} to {}", named(url)), e))
            }
            (Err(e), _) => Err(session.error(format!("push {name} to {}", named(url)), e)),
        }
    }

    /// Brings the cache's notes to what the remote shall hold: theirs, ours that they lack, and the new ones. Gives
    /// the tip, which `theirs` is an ancestor of.
    fn prepare(
        &self,
        cache: &git2::Repository,
        theirs: Option<Oid>,
        host: &HostName,
        entries: &Entries,
    ) -> Result<Option<Oid>, GitError> {
        let name = notes::ref_of(host);
        let key = self.signing_key()?;
        let ours = match cache.refname_to_id(&name) {
            Err(error) if error.code() == git2::ErrorCode::NotFound => None,
            other => Some(self.reading(other)?),
        };
        let base = match (ours, theirs) {
            (None, base) | (base, None) => base,
            (Some(ours), Some(theirs)) if ours == theirs => Some(theirs),
            (Some(ours), Some(theirs)) => {
                if self.reading(cache.graph_descendant_of(ours, theirs))? {
                    Some(ours)
                } else if self.reading(cache.graph_descendant_of(theirs, ours))? {
                    Some(theirs)
                } else {
                    // Somebody else wrote to this host's ref, or another installation of this host did.
                    tracing::warn!(
                        "{name} of the remote is not what this host wrote; its own receipts go on top"
                    );
                    let own = self.reading(notes::all(cache, ours))?;
                    self.reading(notes::append(cache, Some(theirs), &own, host, key.as_ref()))?
                }
            }
        };
        let tip = self.reading(notes::append(cache, base, entries, host, key.as_ref()))?;
        if let Some(tip) = tip.filter(|tip| ours != Some(*tip)) {
            self.reading(cache.reference(&name, tip, true, "").map(drop))?;
        }
        Ok(tip)
    }
}

fn lacks(cache: &git2::Repository, id: Option<Oid>) -> bool {
    id.is_some_and(|id| cache.find_commit(id).is_err())
}
