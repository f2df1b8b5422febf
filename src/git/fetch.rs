//! Bytes from the remote into the cache. What arrives here is not believed yet: `trust` decides.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use git2::{Direction, Oid};

use super::cache::FETCHED;
use super::credentials::{Session, named, proxy};
use super::depth::ALL;
use super::error::is_damage;
use super::heard::receipts_in;
use super::login::without_user;
use super::remote::Remote;
use super::{GitError, Repository, id_of, library, local};
use crate::types::{CommitId, Reason, SafeUrl};

/// The tip of the branch as the remote shows it now, its objects in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedHead {
    pub(super) id: CommitId,
    /// Whether objects had to be fetched: the branch moved, or the cache was made anew.
    pub moved: bool,
}

impl FetchedHead {
    /// The name of the commit; nothing else may be known of it before it is admitted.
    pub fn id(&self) -> &CommitId {
        &self.id
    }
}

/// A ref that no remote has.
const NOTHING: &str = "refs/gitopsd/nothing";

/// libgit2 takes the place of known_hosts from one variable a process: one ssh handshake at a time.
static SSH_HOME: Mutex<()> = Mutex::new(());

impl Repository {
    /// Asks the remote for the branch's tip, and fetches when it is not the one in the cache. A damaged cache is made
    /// anew here. Network silence ends it after 30 s, any slowness after 10 min.
    ///
    /// # Errors
    /// `git-unreachable` (also: no such branch, repo gone), `auth`, `tls`, `hostkey`, `disk-space`, `storage-io`.
    pub fn fetch(&self) -> Result<FetchedHead, GitError> {
        let _one_at_a_time = self.fetching.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !self.damaged.load(Ordering::Acquire) {
            match self.fetch_into_cache() {
                // The remote's trouble is told as it is; the cache's own is healed at once.
                Err(Failed::Cache(error)) => {
                    tracing::warn!("{error}; it is made anew");
                    self.damaged.store(true, Ordering::Release);
                }
                Err(Failed::Remote(error)) => return Err(error),
                Ok(head) => {
                    if head.moved && self.cache.is_scattered() {
                        // Housekeeping: that it fails is no reason not to deploy.
                        self.compact().unwrap_or_else(|error| tracing::warn!("{error}"));
                    }
                    return Ok(head);
                }
            }
        }
        let fresh = self.cache.make_beside()?;
        let tip = self.download(&fresh, &self.config.url, &self.branch_ref(), FETCHED, None, self.depth())?;
        let tip = tip.ok_or_else(|| self.no_branch())?;
        self.replace_by(fresh)?;
        self.damaged.store(false, Ordering::Release);
        Ok(FetchedHead { id: id_of(tip)?, moved: true })
    }

    /// Puts all that the cache's refs lead to into one pack, beside: asking nobody, but where history ends somewhere, which
    /// only a fetch can tell the copy of.
    fn compact(&self) -> Result<(), GitError> {
        let fresh = self.cache.make_beside()?;
        let old = self.cache.repository()?;
        if old.is_shallow() {
            let (url, branch) = (&self.config.url, self.branch_ref());
            let tip = self.download(&fresh, url, &branch, FETCHED, None, self.depth())?;
            return tip.map_or(Ok(()), |_| self.replace_by(fresh));
        }
        local::Repo::of_cache(old, &self.config.url).download(&fresh, FETCHED, FETCHED, None)?;
        self.replace_by(fresh)
    }

    /// Puts `fresh` in the cache's place, with what only the cache knows. No receipt is written meanwhile.
    pub(super) fn replace_by(&self, fresh: git2::Repository) -> Result<(), GitError> {
        let _no_receipts = self.publishing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        local::keep(&self.cache, &fresh, &self.config.url);
        drop(fresh);
        self.cache.swap_in()
    }

    fn fetch_into_cache(&self) -> Result<FetchedHead, Failed> {
        let cache = self.cache.repository().map_err(Failed::Cache)?;
        let known =
            cache.find_reference(FETCHED).ok().and_then(|r| r.target()).filter(|id| has_tree(&cache, *id));
        // What is there already stays as deep as it is.
        let depth = if cache.find_reference(FETCHED).is_ok() { ALL } else { self.depth() };
        let tip = self.download(&cache, &self.config.url, &self.branch_ref(), FETCHED, known, depth);
        // A write that failed halfway says nothing about who is at fault: the cache is the one that can be replaced.
        let tip = tip.map_err(|error| match error.reason {
            Reason::StorageIo => Failed::Cache(error),
            _ => Failed::Remote(error),
        })?;
        let tip = tip.ok_or_else(|| Failed::Remote(self.no_branch()))?;
        if !has_tree(&cache, tip) {
            let error = GitError::plain(Reason::StorageIo, format!("commit {tip} is not whole in the cache"));
            return Err(Failed::Cache(error));
        }
        Ok(FetchedHead { id: id_of(tip).map_err(Failed::Remote)?, moved: known != Some(tip) })
    }

    pub(super) fn branch_ref(&self) -> String {
        format!("refs/heads/{}", self.config.branch)
    }

    pub(super) fn no_branch(&self) -> GitError {
        GitError::plain(
            Reason::GitUnreachable,
            format!("{} has no branch `{}` (see repo.branch)", named(&self.config.url), self.config.branch),
        )
    }

    /// Downloads what `remote_ref` of a remote stands for and points `local_ref` there, over one connection that ends
    /// after the listing when the tip is `known`. Of a remote elsewhere it takes `depth` commits on each path, or
    /// [`ALL`]. `None`: the remote has no such ref, or hides it.
    pub(super) fn download(
        &self,
        into: &git2::Repository,
        url: &SafeUrl,
        remote_ref: &str,
        local_ref: &str,
        known: Option<Oid>,
        depth: i32,
    ) -> Result<Option<Oid>, GitError> {
        match self.download_to(depth, into, url, remote_ref, local_ref, known) {
            // Old and small servers (libgit2, smart_protocol.c).
            Err(error) if depth != ALL && error.to_string().contains("doesn't support shallow") => {
                self.download_to(ALL, into, url, remote_ref, local_ref, known)
            }
            result => result,
        }
    }

    fn download_to(
        &self,
        depth: i32,
        into: &git2::Repository,
        url: &SafeUrl,
        remote_ref: &str,
        local_ref: &str,
        known: Option<Oid>,
    ) -> Result<Option<Oid>, GitError> {
        let target = Remote::parse(url)?;
        if let Remote::Local(path) = &target {
            return local::Repo::open(path, url)?.download(into, remote_ref, local_ref, known);
        }
        self.with_connection(into, url, &target, Direction::Fetch, |remote, session| {
            let tip = listed(remote, session, url, remote_ref)?;
            if remote_ref == self.branch_ref() {
                let seen = remote.list().map(receipts_in).ok();
                *self.listing.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = seen;
            }
            if tip.is_some() && tip != known {
                let refspec = format!("+{remote_ref}:{local_ref}");
                let mut options = session.fetch_options();
                options.depth(depth);
                remote
                    .fetch(&[&refspec], Some(&mut options), None)
                    .map_err(|e| fetch_error(session, url, e))?;
            }
            Ok(tip)
        })
    }

    /// Connects, calls, disconnects. To fetch from a server that asked for credentials before and took them, it goes with them at
    /// once; a server that does not take them any more is asked again from the beginning.
    pub(super) fn with_connection<T>(
        &self,
        cache: &git2::Repository,
        url: &SafeUrl,
        target: &Remote,
        direction: Direction,
        call: impl FnOnce(&mut git2::Remote<'_>, &Session<'_>) -> Result<T, GitError>,
    ) -> Result<T, GitError> {
        let config = self.access(url);
        let mut remote = cache
            .remote_anonymous(&without_user(url))
            .map_err(|e| GitError::with(Reason::ConfigInvalid, format!("use {}", named(url)), e))?;
        if direction == Direction::Fetch
            && let Some(login) = self.logins.at_once(config, url, target)
        {
            let session = Session::new(config, url, target, Some(login))?;
            // libgit2 keeps pointers into these until it has disconnected.
            let mut options = session.fetch_options();
            // Of the calls that connect, this is the one that takes headers. What it names is nowhere: it only lists.
            let connected = remote.download(&[NOTHING], Some(&mut options));
            session.is_connected();
            let result = match connected {
                Ok(()) => call(&mut remote, &session),
                Err(error) if session.was_sent_elsewhere() => {
                    drop(options);
                    tracing::debug!("{}", session.error(format!("connect to {}", named(url)), error));
                    self.logins.must_ask(url);
                    return self.with_connection(cache, url, target, direction, call);
                }
                Err(error) => match session.error(format!("connect to {}", named(url)), error) {
                    error if error.reason == Reason::Auth => {
                        drop(options);
                        self.logins.forget(url);
                        return self.with_connection(cache, url, target, direction, call);
                    }
                    error => Err(error),
                },
            };
            if result.is_err() {
                self.logins.forget(url);
            }
            // That it was disconnected by the other side already is no loss.
            let _ = remote.disconnect();
            return result;
        }
        let session = Session::new(config, url, target, None)?;
        // The handshake is over when `connect_auth` returns: libgit2 needs its `~` no longer.
        let mut ssh_home = None;
        if let (Remote::Ssh { host, port, .. }, Some(known)) = (target, session.known_hosts()) {
            ssh_home = Some(SSH_HOME.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
            let home = self.cache.ssh_home(&known.lines_for(host, *port))?;
            library::set_home(&home).map_err(|e| GitError::with(Reason::Internal, "set libgit2 up", e))?;
        }
        let mut connection = remote
            .connect_auth(direction, Some(session.callbacks()), Some(proxy(url)))
            .map_err(|e| session.error(format!("connect to {}", named(url)), e))?;
        drop(ssh_home);
        let result = call(connection.remote(), &session)?;
        if let (Direction::Fetch, Some(login)) = (direction, session.take_shown()) {
            self.logins.remember(url, login);
        }
        Ok(result)
    }
}

/// Whose fault a failed fetch is.
enum Failed {
    Remote(GitError),
    Cache(GitError),
}

/// What a connected remote says that a ref stands for.
pub(super) fn listed(
    remote: &git2::Remote<'_>,
    session: &Session<'_>,
    url: &SafeUrl,
    name: &str,
) -> Result<Option<Oid>, GitError> {
    let heads = remote.list().map_err(|e| session.error(format!("list {}", named(url)), e))?;
    Ok(heads.iter().find(|head| head.name() == name).map(git2::RemoteHead::oid))
}

fn fetch_error(session: &Session<'_>, url: &SafeUrl, error: git2::Error) -> GitError {
    if is_damage(&error) {
        return GitError::disk(format!("fetch from {} into the cache", named(url)), error);
    }
    session.error(format!("fetch from {}", named(url)), error)
}

fn has_tree(repository: &git2::Repository, id: Oid) -> bool {
    repository.find_commit(id).and_then(|commit| commit.tree()).is_ok()
}
