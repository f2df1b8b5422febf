//! Which commits of receipts are by the hosts that they are said to be of: read out of any clone, for people.

use std::path::Path;

use git2::Sort;

use super::GitError;
use super::clone::LocalClone;
use super::heard::by_host;
use super::patterns::covers;
use super::signature::Signers;
use super::tree::info;
use super::trust::{check, time_of};
use crate::config::agent::SignatureConfig;
use crate::types::{CommitInfo, HostName, Reason};

/// The commits that hold the receipts of one host.
#[derive(Debug)]
pub struct Provenance {
    /// Which host.
    pub host: HostName,
    /// A key of it is in the list.
    pub known: bool,
    /// So many are signed by it.
    pub signed: usize,
    /// So many were there before the first of those.
    pub before: usize,
    /// The others, oldest first, and why they are none of its.
    pub foreign: Vec<(CommitInfo, String)>,
}

impl LocalClone {
    /// Looks at every commit of every host's receipts. `signers` is a list of OpenSSH's, in which a host is called
    /// `gitopsd@HOST`.
    ///
    /// # Errors
    /// `signature`: the list cannot be read. `git-unreachable`: the notes cannot be.
    pub fn provenance(&self, signers: &Path) -> Result<Vec<Provenance>, GitError> {
        let config =
            SignatureConfig { allowed_signers: Some(signers.to_owned()), ..SignatureConfig::default() };
        let signers = Signers::load(&config).map_err(|why| GitError::plain(Reason::Signature, why))?;
        let mut all = Vec::new();
        let heard = self.heard().map_err(|error| self.failed("read the receipts".to_owned(), error))?;
        for (host, tips) in by_host(&heard) {
            let failed = |error| self.failed(format!("read the receipts of {host}"), error);
            let name = format!("gitopsd@{host}");
            let known = signers.listed().iter().any(|signer| covers(&signer.principals, &name));
            let mut found =
                Provenance { host: host.clone(), known, signed: 0, before: 0, foreign: Vec::new() };
            let mut walk = self.repository.revwalk().map_err(failed)?;
            walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE).map_err(failed)?;
            for tip in tips {
                walk.push(tip).map_err(failed)?;
            }
            for oid in walk {
                let oid = oid.map_err(failed)?;
                let odb = self.repository.odb().map_err(failed)?;
                let raw = odb.read(oid).map_err(failed)?;
                let commit = self.repository.find_commit(oid).map_err(failed)?;
                let why = match check(raw.data(), &signers, time_of(&commit)) {
                    Ok(signer) if covers(&signer.principal, &name) => None,
                    Ok(signer) => Some(format!("it is signed by {}", signer.principal)),
                    Err(why) => Some(why),
                };
                match why {
                    None => found.signed += 1,
                    Some(_) if found.signed == 0 => found.before += 1,
                    Some(why) => found.foreign.push((info(&commit)?, why)),
                }
            }
            all.push(found);
        }
        Ok(all)
    }
}

impl Provenance {
    /// Whether nothing speaks against it: all since its first signed one are its, and there are some where its key is
    /// known.
    pub fn is_sound(&self) -> bool {
        self.foreign.is_empty() && (self.signed > 0 || !self.known)
    }

    /// All of them.
    pub fn commits(&self) -> usize {
        self.before + self.signed + self.foreign.len()
    }
}
