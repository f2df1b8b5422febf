//! What other hosts wrote: their notes, or their branches of receipts, fetched as far as somebody waits for them.
//!
//! The branch and the receipts are listed by the same answer of the server. So a look at an unchanged remote stays one
//! request while a host waits for others, and only what has moved is fetched.

use std::collections::BTreeMap;

use git2::{Direction, Oid};

use super::credentials::named;
use super::error::is_damage;
use super::remote::Remote;
use super::{GitError, Repository, local, place};
use crate::types::{HostName, Reason, SafeUrl};

/// Where they are in the copy of them: below it are their names on the remote.
const HEARD: &str = "refs/gitopsd/heard/";

/// Most hosts that are listened to.
const MOST: usize = 10_000;

/// A host, and the tip of one of its refs: of its notes, or of its branch. Who moved to a branch has both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Who.
    pub host: HostName,
    /// The newest commit of receipts.
    pub tip: Oid,
    /// The ref on the remote.
    name: String,
}

impl Heard {
    /// `None`: a ref holds something else.
    pub(super) fn of(name: &str, tip: Oid) -> Option<Self> {
        Some(Self { host: place::host_of(name)?, tip, name: name.to_owned() })
    }

    /// The ref in the copy.
    fn cached(&self) -> String {
        format!("{HEARD}{}", self.name.trim_start_matches("refs/"))
    }
}

impl Repository {
    /// Brings the receipts of those hosts that are `wanted` up to what the remote has: `remote`, or `repo.url`, of which
    /// the last fetch of the branch has seen the list already. Gives each host's tip in the copy of them.
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
        let copy = self.cache.heard()?;
        let target = Remote::parse(url)?;
        let fresh = |heard: &Heard| copy.refname_to_id(&heard.cached()).ok() != Some(heard.tip);
        if let Remote::Local(path) = &target {
            let repo = local::Repo::open(path, url)?;
            let mut all = receipts_of(repo.repository()).map_err(|e| {
                GitError::with(Reason::GitUnreachable, format!("list the receipts of {}", named(url)), e)
            })?;
            all.retain(|heard| wanted(&heard.host));
            for heard in all.iter().filter(|heard| fresh(heard)) {
                let known = copy.refname_to_id(&heard.cached()).ok();
                // One that holds no commits is the trouble of whoever pushed it.
                if let Err(error) = repo.download(&copy, &heard.name, &heard.cached(), known) {
                    tracing::debug!("receipts of {}: {error}", heard.host);
                }
            }
            return Ok(all);
        }
        // What the look at the branch has seen; it is not asked for twice.
        let seen = self.listing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(mut seen) = seen.filter(|_| url.as_str() == self.config.url.as_str()) {
            seen.retain(|heard| wanted(&heard.host));
            if !seen.iter().any(fresh) {
                return Ok(seen);
            }
        }
        self.with_connection(&copy, url, &target, Direction::Fetch, |remote, session| {
            let heads = remote.list().map_err(|e| session.error(format!("list {}", named(url)), e))?;
            let mut all = receipts_in(heads);
            all.retain(|heard| wanted(&heard.host));
            let specs: Vec<String> = all
                .iter()
                .filter(|heard| fresh(heard))
                .map(|heard| format!("+{}:{}", heard.name, heard.cached()))
                .collect();
            if specs.is_empty() {
                return Ok(all);
            }
            let result = remote.fetch(&specs, Some(&mut session.fetch_options()), None);
            result.map_err(|e| {
                if is_damage(&e) {
                    // It is no loss; where it cannot be removed, the next look says the same.
                    let _ = self.cache.forget_heard();
                }
                session.error(format!("fetch receipts from {}", named(url)), e)
            })?;
            Ok(all)
        })
    }
}

/// The refs that hold receipts, among what a remote lists.
pub(super) fn receipts_in(heads: &[git2::RemoteHead<'_>]) -> Vec<Heard> {
    heads.iter().filter_map(|head| Heard::of(head.name(), head.oid())).take(MOST).collect()
}

/// The same of a repository on this host.
pub(super) fn receipts_of(repository: &git2::Repository) -> Result<Vec<Heard>, git2::Error> {
    let mut all = Vec::new();
    for found in repository.references()? {
        // A name that is no text is none of ours.
        let Ok(found) = found else { continue };
        if let (Ok(name), Some(tip)) = (found.name(), found.target()) {
            all.extend(Heard::of(name, tip));
        }
    }
    Ok(all)
}

/// Each host's tips: who moved to a branch, or back, has several.
pub(super) fn by_host(heard: &[Heard]) -> BTreeMap<&HostName, Vec<Oid>> {
    let mut tips: BTreeMap<&HostName, Vec<Oid>> = BTreeMap::new();
    for heard in heard {
        tips.entry(&heard.host).or_default().push(heard.tip);
    }
    tips
}
