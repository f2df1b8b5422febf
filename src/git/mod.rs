//! The config repo: fetched, believed, read, and written back to as notes.
//!
//! [`Repository`] is the one door: `fetch` brings bytes, `admit` decides whether they are believed, `files` reads a
//! believed commit out of its objects, `publish` writes receipts back. All of it blocks: call it off the async
//! threads. Nothing is ever checked out, no hook, filter or helper program is ever run, and no git configuration but
//! the agent's own counts.

mod at;
mod blame;
mod cache;
mod clone;
mod credentials;
mod error;
mod evidence;
mod fetch;
mod heard;
mod hostkey;
mod library;
mod local;
mod notes;
mod patterns;
mod publish;
mod remote;
mod signature;
mod tree;
mod trust;
mod watch;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use git2::Oid;
use sha2::{Digest as _, Sha256};

pub use at::files_at;
pub use blame::BlamedLine;
pub use clone::{CommitLine, LocalClone, Written};
pub use error::GitError;
pub use evidence::{Evidence, Tags};
pub use fetch::FetchedHead;
pub use heard::Heard;
pub use signature::Signer;
pub use trust::TrustedCommit;
pub use watch::{RefWatch, watch_paths};

use crate::config::agent::RepoConfig;
use crate::types::{CommitId, HostName, Reason};

/// The config repo, by way of the agent's own copy of it. Shared freely between threads.
#[derive(Debug)]
pub struct Repository {
    config: RepoConfig,
    cache: cache::Cache,
    /// Held by the one fetch that is under way.
    fetching: Mutex<()>,
    /// Held by the one publication that is under way.
    publishing: Mutex<()>,
    /// The cache wants to be made anew by the next fetch.
    damaged: AtomicBool,
    /// The notes that the remote listed when the branch was looked at last.
    listing: Mutex<Option<Vec<Heard>>>,
}

impl Repository {
    /// Opens the copy below `cache_dir`, making or repairing it as needed; asks nobody. One `Repository` a
    /// `cache_dir` at a time: what looks like a dead process's lock in there is removed.
    ///
    /// # Errors
    /// `config-invalid`: the address is not one git can use here. `tls`: `repo.ca_file` cannot be read.
    /// `disk-space`, `storage-io`: the copy cannot be written.
    pub fn open(config: &RepoConfig, cache_dir: &Path) -> Result<Self, GitError> {
        library::init().map_err(|e| GitError::with(Reason::Internal, "set libgit2 up", e))?;
        remote::Remote::parse(&config.url)?;
        let branch = format!("refs/heads/{}", config.branch);
        if !git2::Reference::is_valid_name(&branch) {
            return Err(GitError::plain(
                Reason::ConfigInvalid,
                format!("repo.branch `{}` is not a branch name", config.branch),
            ));
        }
        tree::split_path(&config.path)?;
        credentials::trust_authorities(config.ca_file.as_ref())?;
        let (cache, sound) = cache::Cache::open(cache_dir)?;
        Ok(Self {
            config: config.clone(),
            cache,
            fetching: Mutex::new(()),
            publishing: Mutex::new(()),
            damaged: AtomicBool::new(!sound),
            listing: Mutex::new(None),
        })
    }
}

/// How much later than others this host polls: stable, and up to a tenth of `poll`, so that a fleet started at once
/// does not ask the server at once.
pub fn splay(host: &HostName, poll: Duration) -> Duration {
    let hash = Sha256::digest(host.as_str().as_bytes());
    let number = hash.iter().take(4).fold(0_u32, |sum, byte| (sum << 8) | u32::from(*byte));
    poll.mul_f64(f64::from(number) / f64::from(u32::MAX) / 10.0)
}

fn id_of(oid: Oid) -> Result<CommitId, GitError> {
    oid.to_string().parse().map_err(|e| GitError::with(Reason::Internal, "name a commit", e))
}

fn oid_of(id: &CommitId) -> Result<Oid, GitError> {
    id.as_str().parse().map_err(|e: git2::Error| {
        GitError::with(Reason::Unsupported, format!("commit {id} is not of a SHA-1 repository"), e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splay_is_stable_and_small() {
        let poll = Duration::from_secs(30);
        let of = |name: &str| splay(&name.parse().unwrap(), poll);
        assert_eq!(of("web-1"), of("web-1"));
        let all: std::collections::BTreeSet<Duration> = (0..100).map(|n| of(&format!("web-{n}"))).collect();
        assert!(all.len() > 90 && all.iter().all(|splay| *splay <= poll / 10));
        assert!(all.last() > Some(&Duration::from_secs(2)));
    }
}
