//! Bytes from the remote into the cache. What arrives here is not believed yet: `trust` decides.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use git2::{Direction, FetchOptions, Oid, ProxyOptions, RemoteRedirect};

use super::cache::FETCHED;
use super::credentials::{Session, named};
use super::depth::ALL;
use super::error::is_damage;
use super::heard::receipts_in;
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
        let session = Session::new(self.access(url), &target)?;
        self.with_connection(into, url, &target, &session, Direction::Fetch, |connection| {
            let tip = listed(connection, &session, url, remote_ref)?;
            if remote_ref == self.branch_ref() {
                let seen = connection.list().map(receipts_in).ok();
                *self.listing.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = seen;
            }
            if tip.is_some() && tip != known {
                let refspec = format!("+{remote_ref}:{local_ref}");
                let mut options = options(&session, url);
                options.depth(depth);
                connection
                    .remote()
                    .fetch(&[&refspec], Some(&mut options), None)
                    .map_err(|e| fetch_error(&session, url, e))?;
            }
            Ok(tip)
        })
    }

    /// Connects, calls, disconnects.
    pub(super) fn with_connection<T>(
        &self,
        cache: &git2::Repository,
        url: &SafeUrl,
        target: &Remote,
        session: &Session<'_>,
        direction: Direction,
        call: impl FnOnce(&mut git2::RemoteConnection<'_, '_, '_>) -> Result<T, GitError>,
    ) -> Result<T, GitError> {
        let mut remote = cache
            .remote_anonymous(url.as_str())
            .map_err(|e| GitError::with(Reason::ConfigInvalid, format!("use {}", named(url)), e))?;
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
        call(&mut connection)
    }
}

/// Whose fault a failed fetch is.
enum Failed {
    Remote(GitError),
    Cache(GitError),
}

/// The proxy of the unit's environment (`https_proxy`, `no_proxy`), if there is one. For plain http libgit2 has none: it would
/// speak to the server itself as to a proxy (1.9, httpclient.c).
pub(super) fn proxy<'a>(url: &SafeUrl) -> ProxyOptions<'a> {
    let mut options = ProxyOptions::new();
    if url.scheme() == Some("https") {
        options.auto();
    }
    options
}

/// How anything is fetched: what is asked for and nothing else, and from nowhere else.
pub(super) fn options<'a>(session: &'a Session<'_>, url: &SafeUrl) -> FetchOptions<'a> {
    let mut options = FetchOptions::new();
    options.remote_callbacks(session.callbacks());
    options.proxy_options(proxy(url));
    options.follow_redirects(RemoteRedirect::None);
    options.download_tags(git2::AutotagOption::None);
    options.update_fetchhead(false);
    options
}

/// What a connected remote says that a ref stands for.
pub(super) fn listed(
    connection: &git2::RemoteConnection<'_, '_, '_>,
    session: &Session<'_>,
    url: &SafeUrl,
    name: &str,
) -> Result<Option<Oid>, GitError> {
    let heads = connection.list().map_err(|e| session.error(format!("list {}", named(url)), e))?;
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
