//! Receipts to the remote: fast-forward only, from the value that was seen there, never by force.

use std::cell::RefCell;

use git2::{Direction, Oid, PushOptions, RemoteRedirect};

use super::credentials::{Session, named};
use super::fetch::{listed, proxy};
use super::notes::{self, Entries};
use super::remote::Remote;
use super::{GitError, Repository, local};
use crate::types::{CommitId, HostName, Reason, SafeUrl};

/// How often to begin again when the remote's ref moves meanwhile. One host writes to it: once is rare.
const ATTEMPTS: usize = 4;

/// Where the remote's notes are fetched to.
const THEIRS: &str = "refs/gitopsd/notes";

/// What one attempt came to.
enum Attempt {
    /// The remote holds all receipts.
    Done,
    /// The remote has notes that the cache lacks.
    Fetch,
    /// The remote did not take the push, and says why; it was at this value before.
    Refused(Option<Oid>, String),
}

impl Repository {
    /// Adds receipts (commit, id, one line of JSON with that id) to the notes of this host and pushes them to
    /// `remote`, or to `repo.url`. Receipts that are there already are not added again, so that after any error the
    /// same call may be made again. Receipts the remote has and the cache lacks are kept.
    ///
    /// # Errors
    /// `notes-refused`: the server does not let this host write its ref. `auth`, `git-unreachable` and the others of
    /// [`Repository::fetch`].
    pub fn publish(
        &self,
        remote: Option<&SafeUrl>,
        host: &HostName,
        receipts: &[(CommitId, String, String)],
    ) -> Result<(), GitError> {
        let _one_at_a_time = self.publishing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let url = remote.unwrap_or(&self.config.url);
        let target = Remote::parse(url)?;
        let entries = notes::entries(receipts)?;
        let name = notes::ref_of(host);
        let mut refused: Option<(Option<Oid>, String)> = None;
        for _ in 0..ATTEMPTS {
            let cache = self.cache.repository()?;
            let attempt = match &target {
                Remote::Local(path) => {
                    let repo = local::Repo::open(path, url)?;
                    let theirs = repo.tip(&name)?;
                    self.stop_if_unmoved(&name, url, theirs, &refused)?;
                    self.publish_to_directory(&cache, repo, theirs, host, &entries)?
                }
                _ => {
                    let session = Session::new(&self.config, &target)?;
                    self.with_connection(&cache, url, &target, &session, Direction::Push, |connection| {
                        let theirs = listed(connection, &session, url, &name)?;
                        self.stop_if_unmoved(&name, url, theirs, &refused)?;
                        self.publish_over(&cache, connection, &session, url, theirs, host, &entries)
                    })?
                }
            };
            match attempt {
                Attempt::Done => return Ok(()),
                Attempt::Fetch => drop(self.download(&cache, url, &name, THEIRS, None)?),
                Attempt::Refused(at, why) => refused = Some((at, why)),
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

    /// A refusal with nothing changed since is final; otherwise somebody else was first.
    fn stop_if_unmoved(
        &self,
        name: &str,
        url: &SafeUrl,
        now: Option<Oid>,
        refused: &Option<(Option<Oid>, String)>,
    ) -> Result<(), GitError> {
        match refused {
            Some((then, why)) if *then == now => {
                Err(GitError::plain(Reason::NotesRefused, format!("push {name} to {}: {why}", named(url))))
            }
            _ => Ok(()),
        }
    }

    fn publish_to_directory(
        &self,
        cache: &git2::Repository,
        repo: local::Repo,
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
        Ok(match repo.push(objects, &notes::ref_of(host), theirs, new)? {
            true => Attempt::Done,
            false => Attempt::Refused(theirs, "the ref is locked".to_owned()),
        })
    }

    fn publish_over(
        &self,
        cache: &git2::Repository,
        connection: &mut git2::RemoteConnection<'_, '_, '_>,
        session: &Session<'_>,
        url: &SafeUrl,
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
        let name = notes::ref_of(host);
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
        options.proxy_options(proxy());
        options.follow_redirects(RemoteRedirect::None);
        options.packbuilder_parallelism(1);
        let pushed = connection.remote().push(&[format!("{name}:{name}")], Some(&mut options));
        drop(options);
        match (pushed, status.into_inner()) {
            (Ok(()), None) => Ok(Attempt::Done),
            (Ok(()), Some(why)) => Ok(Attempt::Refused(theirs, why)),
            (Err(e), _) if e.code() == git2::ErrorCode::NotFastForward => {
                Ok(Attempt::Refused(theirs, e.message().to_owned()))
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
