//! What other hosts wrote: their notes, fetched as far as somebody waits for them.
//!
//! The branch and the notes are listed by the same answer of the server. So a look at an unchanged remote stays one
//! request while a host waits for others, and only notes that have moved are fetched.

use git2::{Direction, FetchOptions, Oid, RemoteRedirect};

use super::credentials::{Session, named};
use super::fetch::proxy;
use super::remote::Remote;
use super::{GitError, Repository, local};
use crate::types::{HostName, Reason, SafeUrl};

/// Where receipts are on a remote, without the host.
pub(super) const NOTES: &str = "refs/notes/gitopsd/";

/// Where those of others are in the cache.
const HEARD: &str = "refs/gitopsd/heard/";

/// Most hosts that are listened to.
const MOST: usize = 10_000;

/// A host and the tip of its notes.
pub type Heard = (HostName, Oid);

impl Repository {
    /// Brings the notes of those hosts that are `wanted` up to what the remote has: `remote`, or `repo.url`, of which
    /// the last fetch of the branch has seen the list already. Gives each host's tip in the cache.
    ///
    /// # Errors
    /// Those of [`Repository::fetch`].
    pub fn hear(
        &self,
        remote: Option<&SafeUrl>,
        wanted: &dyn Fn(&HostName) -> bool,
    ) -> Result<Vec<Heard>, GitError> {
        let _one_at_a_time = self.fetching.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let url = remote.unwrap_or(&self.config.url);
        let cache = self.cache.repository()?;
        let target = Remote::parse(url)?;
        let fresh = |(host, tip): &Heard| {
            wanted(host) && cache.refname_to_id(&format!("{HEARD}{host}")).ok() != Some(*tip)
        };
        if let Remote::Local(path) = &target {
            let repo = local::Repo::open(path, url)?;
            let mut heard = repo.notes()?;
            heard.retain(|(host, _)| wanted(host));
            for (host, tip) in heard.iter().filter(|heard| fresh(heard)) {
                let known = cache.refname_to_id(&format!("{HEARD}{host}")).ok().filter(|known| known != tip);
                repo.download(&cache, &format!("{NOTES}{host}"), &format!("{HEARD}{host}"), known)?;
            }
            return Ok(heard);
        }
        // What the look at the branch has seen; it is not asked for twice.
        let seen = self.listing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(mut seen) = seen.filter(|_| url.as_str() == self.config.url.as_str()) {
            seen.retain(|(host, _)| wanted(host));
            if !seen.iter().any(fresh) {
                return Ok(seen);
            }
        }
        let session = Session::new(&self.config, &target)?;
        self.with_connection(&cache, url, &target, &session, Direction::Fetch, |connection| {
            let heads = connection.list().map_err(|e| session.error(format!("list {}", named(url)), e))?;
            let mut heard = notes_in(heads);
            heard.retain(|(host, _)| wanted(host));
            let specs: Vec<String> = heard
                .iter()
                .filter(|heard| fresh(heard))
                .map(|(host, _)| format!("+{NOTES}{host}:{HEARD}{host}"))
                .collect();
            if specs.is_empty() {
                return Ok(heard);
            }
            let mut options = FetchOptions::new();
            options.remote_callbacks(session.callbacks());
            options.proxy_options(proxy());
            options.follow_redirects(RemoteRedirect::None);
            options.download_tags(git2::AutotagOption::None);
            options.update_fetchhead(false);
            let result = connection.remote().fetch(&specs, Some(&mut options), None);
            result.map_err(|e| session.error(format!("fetch receipts from {}", named(url)), e))?;
            Ok(heard)
        })
    }
}

/// The notes among what a remote lists.
pub(super) fn notes_in(heads: &[git2::RemoteHead<'_>]) -> Vec<Heard> {
    let all = heads.iter().filter_map(|head| heard(head.name(), head.oid()));
    all.take(MOST).collect()
}

fn heard(name: &str, tip: Oid) -> Option<Heard> {
    Some((name.strip_prefix(NOTES)?.parse().ok()?, tip))
}

impl local::Repo {
    /// The notes of all hosts.
    fn notes(&self) -> Result<Vec<Heard>, GitError> {
        let failed =
            |e| GitError::with(Reason::GitUnreachable, format!("list the notes of {}", named(self.url())), e);
        let mut all = Vec::new();
        for found in self.repository().references_glob(&format!("{NOTES}*")).map_err(failed)? {
            let found = found.map_err(failed)?;
            if let (Ok(name), Some(tip)) = (found.name(), found.target()) {
                all.extend(heard(name, tip));
            }
        }
        Ok(all)
    }
}
