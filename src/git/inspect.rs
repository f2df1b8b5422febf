//! A look at what is trusted, for people: reads the agent's copy of the repo beside the agent, and changes nothing.

use std::path::Path;

use super::signature::{Signer, Signers, TrustedSigner};
use super::trust::{check, time_of};
use super::{GitError, library, oid_of, tree};
use crate::config::agent::SignatureConfig;
use crate::types::{CommitId, CommitInfo, Reason};

/// A commit in the agent's copy.
#[derive(Debug)]
pub struct Inspected {
    /// What it says.
    pub info: CommitInfo,
    /// Who signed it, or why that counts for nothing, by the files of now; `None`: signatures are not asked for.
    pub signed: Option<Result<Signer, String>>,
}

/// Those whose signatures count.
#[derive(Debug)]
pub struct TrustedSigners {
    /// In the order of their files.
    pub signers: Vec<TrustedSigner>,
    /// Fingerprints of keys that count no more.
    pub revoked: Vec<String>,
}

/// Reads a commit in the copy below `cache_dir`; takes no lock, so it works while an agent runs.
///
/// # Errors
/// `git-unreachable`: there is no copy, or it does not hold the commit.
pub fn inspect(
    cache_dir: &Path,
    commit: &CommitId,
    signatures: Option<&SignatureConfig>,
) -> Result<Inspected, GitError> {
    let failed = |error| {
        GitError::with(Reason::GitUnreachable, format!("look for commit {commit} in the copy"), error)
    };
    library::init().map_err(failed)?;
    let cache = git2::Repository::open_bare(cache_dir.join("repo.git")).map_err(failed)?;
    let oid = oid_of(commit)?;
    let found = cache.find_commit(oid).map_err(failed)?;
    let raw = cache.odb().and_then(|odb| Ok(odb.read(oid)?.data().to_vec())).map_err(failed)?;
    let signed = signatures
        .map(|config| Signers::load(config).and_then(|signers| check(&raw, &signers, time_of(&found))));
    Ok(Inspected { info: tree::info(&found)?, signed })
}

/// Who may sign, by the files of now.
///
/// # Errors
/// Why nobody's signature counts.
pub fn trusted_signers(config: &SignatureConfig) -> Result<TrustedSigners, String> {
    let signers = Signers::load(config)?;
    Ok(TrustedSigners { signers: signers.listed(), revoked: signers.revoked().iter().cloned().collect() })
}
