//! The config repo: fetched, believed, read, and written back to as notes.
//!
//! [`Repository`] is the one door: `fetch` brings bytes, `admit` decides whether they are believed, `files` reads a
//! believed commit out of its objects, `publish` writes receipts back. All of it blocks: call it off the async
//! threads. Nothing is ever checked out, no hook, filter or helper program is ever run, and no git configuration but
//! the agent's own counts.

mod at;
mod blame;
mod cache;
mod clock;
mod clone;
mod credential_helper;
mod credentials;
mod depth;
mod error;
mod evidence;
mod fetch;
mod heard;
mod hostkey;
mod inspect;
mod library;
mod local;
mod login;
mod notes;
mod patterns;
mod place;
mod poll;
mod provenance;
mod publish;
mod remote;
mod signature;
mod tree;
mod trust;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use git2::Oid;

pub use at::files_at;
pub use blame::BlamedLine;
pub use clone::{CommitLine, LocalClone, Written};
pub use error::GitError;
pub use evidence::{Evidence, Tags};
pub use fetch::FetchedHead;
pub use heard::Heard;
pub use inspect::{Inspected, TrustedSigners, inspect, trusted_signers};
pub use place::Place;
pub use poll::Poll;
pub use provenance::Provenance;
pub use signature::{Signer, TrustedSigner};
pub use trust::TrustedCommit;
pub use watch::{RefWatch, watch_paths};

use crate::config::agent::{RemoteAccess, RepoConfig};
use crate::types::{CommitId, Reason, SafeUrl};

/// The config repo, by way of the agent's own copy of it. Shared freely between threads.
#[derive(Debug)]
pub struct Repository {
    config: RepoConfig,
    /// How the remote of receipts is reached, where it is another one with credentials of its own.
    audit: Option<RepoConfig>,
    cache: cache::Cache,
    /// Held by the one fetch that is under way.
    fetching: Mutex<()>,
    /// Held by the one publication that is under way.
    publishing: Mutex<()>,
    /// The cache wants to be made anew by the next fetch.
    damaged: AtomicBool,
    /// What commits of receipts are signed with.
    key: Option<PathBuf>,
    /// With all history in it.
    wants_all: AtomicBool,
    /// The receipts that the remote listed when the branch was looked at last.
    listing: Mutex<Option<Vec<Heard>>>,
    /// What servers take of what they asked for.
    logins: login::Logins,
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
            audit: None,
            cache,
            fetching: Mutex::new(()),
            publishing: Mutex::new(()),
            damaged: AtomicBool::new(!sound),
            wants_all: AtomicBool::new(false),
            key: None,
            listing: Mutex::new(None),
            logins: login::Logins::default(),
        })
    }

    /// Signs the commits that hold receipts with this private key of OpenSSH's. It is read anew for each publication.
    pub fn signing_with(mut self, key: Option<PathBuf>) -> Self {
        self.key = key;
        self
    }

    /// `signing-key`: unsigned receipts would pass for those of somebody who has no key, so there are none then.
    fn signing_key(&self) -> Result<Option<signature::SigningKey>, GitError> {
        let Some(path) = &self.key else { return Ok(None) };
        let key = signature::SigningKey::load(path);
        key.map(Some).map_err(|why| {
            GitError::plain(
                Reason::SigningKey,
                format!("receipts cannot be signed: {}: {why}", path.display()),
            )
        })
    }

    /// Has receipts for `remote` pushed with credentials of its own: those of the repo are not shown there.
    ///
    /// # Errors
    /// `config-invalid`: the address is not one git can use here. `tls`: `report.ca_file` cannot be read.
    pub fn with_audit(mut self, remote: &SafeUrl, access: &RemoteAccess) -> Result<Self, GitError> {
        remote::Remote::parse(remote)?;
        credentials::trust_authorities(access.ca_file.as_ref())?;
        self.audit = Some(RepoConfig {
            url: remote.clone(),
            ssh_key: access.ssh_key.clone(),
            known_hosts: access.known_hosts.clone().or_else(|| self.config.known_hosts.clone()),
            username: access.username.clone(),
            password_file: access.password_file.clone(),
            token_file: access.token_file.clone(),
            credential_helper: access.credential_helper.clone(),
            ca_file: access.ca_file.clone(),
            ..self.config.clone()
        });
        Ok(self)
    }

    /// What a remote is reached with.
    fn access(&self, url: &SafeUrl) -> &RepoConfig {
        self.audit.as_ref().filter(|audit| audit.url == *url).unwrap_or(&self.config)
    }
}

fn id_of(oid: Oid) -> Result<CommitId, GitError> {
    oid.to_string().parse().map_err(|e| GitError::with(Reason::Internal, "name a commit", e))
}

fn oid_of(id: &CommitId) -> Result<Oid, GitError> {
    id.as_str().parse().map_err(|e: git2::Error| {
        GitError::with(Reason::Unsupported, format!("commit {id} is not of a SHA-1 repository"), e)
    })
}
