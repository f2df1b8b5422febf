//! Signatures of commits: who may sign is said by files of the host, never by the repo.
//!
//! Made by `git commit -S`, with `gpg.format` of `ssh` or `openpgp`. What `ssh-keygen -Y verify` or `git verify-commit`
//! would refuse is refused here; the tests hold the two against each other.
//!
//! Sources: OpenSSH's PROTOCOL.sshsig, PROTOCOL.certkeys, PROTOCOL.u2f; ssh-keygen(1), "ALLOWED SIGNERS"; git's
//! gpg-interface.c, which gives the committer's time as the time of signing.

mod allowed;
mod certificate;
mod key;
mod openpgp;
mod private;
mod revoked;
mod sshsig;
mod wire;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use allowed::AllowedSigners;
pub(super) use certificate::Certificate;
use openpgp::Keyring;
pub(super) use private::SigningKey;
use sshsig::SshSignature;

use crate::config::agent::SignatureConfig;
use crate::types::Timestamp;

/// The namespace that git signs in.
const NAMESPACE: &str = "git";

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Signer {
    /// As the allowed signers have it, or the user of an OpenPGP key.
    pub principal: String,
    /// `SHA256:…`, as ssh-keygen shows it, or that of an OpenPGP key in hex.
    pub fingerprint: String,
}

/// Somebody who may sign, and where that is said.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TrustedSigner {
    /// `ssh` or `openpgp`.
    pub format: &'static str,
    /// The file that says so.
    pub file: PathBuf,
    /// Its line, where it has lines.
    pub line: Option<usize>,
    /// Who it is; patterns, of an authority.
    pub principals: String,
    /// As [`Signer::fingerprint`].
    pub fingerprint: String,
    /// Whether it vouches for other keys instead.
    pub authority: bool,
    /// What it may sign; `None`: anything.
    pub namespaces: Option<String>,
    /// From then on.
    pub valid_after: Option<Timestamp>,
    /// Until then.
    pub valid_before: Option<Timestamp>,
}

/// Everybody whose signature counts.
#[derive(Debug)]
pub(super) struct Signers {
    ssh: Option<(PathBuf, AllowedSigners)>,
    openpgp: Option<Keyring>,
    revoked: BTreeSet<String>,
}

/// Takes a commit apart into its signature and what that is of. As git does, and not as libgit2: out of the header alone,
/// so that nothing of the message can be passed off as not having been there; and one signature, of one hash.
///
/// Source: git's commit.c, parse_signed_commit().
pub(super) fn split(raw: &[u8]) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
    let end = raw.windows(2).position(|two| two == b"\n\n").map_or(raw.len(), |at| at + 1);
    let (head, body) = raw.split_at(end);
    let (mut signature, mut signed, mut inside) = (Vec::new(), Vec::new(), false);
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        if let Some(text) = line.strip_prefix(b"gpgsig ") {
            if !signature.is_empty() {
                return Err("it has two signatures");
            }
            inside = true;
            signature.extend_from_slice(text);
        } else if let (true, Some(text)) = (inside, line.strip_prefix(b" ")) {
            signature.extend_from_slice(text);
        } else if line.starts_with(b"gpgsig") {
            return Err("it has a signature of another kind");
        } else {
            inside = false;
            signed.extend_from_slice(line);
        }
    }
    if signature.is_empty() {
        return Err("it is not signed");
    }
    signed.extend_from_slice(body);
    Ok((signature, signed))
}

impl Signers {
    /// Reads the files that say who may sign, and who may not any more.
    ///
    /// # Errors
    /// Which file cannot be read, or which line of it is wrong.
    pub fn load(config: &SignatureConfig) -> Result<Self, String> {
        let ssh = match &config.allowed_signers {
            None => None,
            Some(path) => {
                let signers = AllowedSigners::parse(&text(path)?)
                    .map_err(|error| format!("{}:{error}", path.display()))?;
                Some((path.clone(), signers))
            }
        };
        let openpgp = match &config.trusted_keys {
            None => None,
            Some(path) => Some(
                Keyring::parse(path, read(path)?).map_err(|error| format!("{}: {error}", path.display()))?,
            ),
        };
        let revoked = match &config.revoked_signers {
            None => BTreeSet::new(),
            Some(path) if read(path)?.starts_with(b"SSHKRL") => {
                return Err(format!(
                    "{} is a binary revocation list: write the keys, or their fingerprints, one a line",
                    path.display()
                ));
            }
            Some(path) => {
                revoked::parse(&text(path)?).map_err(|error| format!("{}:{error}", path.display()))?
            }
        };
        Ok(Self { ssh, openpgp, revoked })
    }

    /// Checks an armored signature over `message`, made at `time`. The error says why it does not count.
    pub fn verify(&self, armored: &str, message: &[u8], time: Timestamp) -> Result<Signer, String> {
        let begins = |kind: &str| armored.trim_start().starts_with(&format!("-----BEGIN {kind}"));
        if begins("PGP SIGNATURE-----") {
            let keyring = self.openpgp.as_ref().ok_or(
                "it is signed with OpenPGP, and by `repo.verify` of this host that counts for nothing",
            )?;
            return keyring.verify(armored, message, &self.revoked, time);
        }
        if begins("SIGNED MESSAGE") || begins("CERTIFICATE") {
            return Err(
                "it is signed with X.509, and this version checks signatures of SSH and OpenPGP".to_owned()
            );
        }
        let signature = SshSignature::parse(armored)?;
        let (_, signers) = self.ssh.as_ref().ok_or(
            "it is signed with an SSH key, and by `repo.verify` of this host that counts for nothing",
        )?;
        if signature.namespace != NAMESPACE {
            return Err(format!(
                "its signature is for `{}`, and that of a commit is for `{NAMESPACE}`",
                signature.namespace
            ));
        }
        signature.check(message)?;
        signers.find(&signature.signer, NAMESPACE, time, &self.revoked)
    }

    /// Who may sign, for people.
    pub fn listed(&self) -> Vec<TrustedSigner> {
        let ssh = self.ssh.iter().flat_map(|(path, signers)| signers.listed(path));
        ssh.chain(self.openpgp.iter().flat_map(Keyring::listed)).collect()
    }

    /// Fingerprints of those who may not any more.
    pub fn revoked(&self) -> &BTreeSet<String> {
        &self.revoked
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn text(path: &Path) -> Result<String, String> {
    String::from_utf8(read(path)?).map_err(|_| format!("{} is not text", path.display()))
}
