//! Signatures of commits: who may sign is said by files of the host, never by the repo.
//!
//! Made by `git commit -S` with `gpg.format = ssh`. What `ssh-keygen -Y verify` would refuse is refused here; the tests hold
//! the two against each other.
//!
//! Sources: OpenSSH's PROTOCOL.sshsig, PROTOCOL.certkeys, PROTOCOL.u2f; ssh-keygen(1), "ALLOWED SIGNERS"; git's
//! gpg-interface.c, which gives the committer's time as the time of signing.

mod allowed;
mod certificate;
mod key;
mod sshsig;
mod wire;

use std::path::Path;

pub(super) use allowed::AllowedSigners;
use sshsig::SshSignature;

use crate::types::Timestamp;

/// The namespace that git signs in.
const NAMESPACE: &str = "git";

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// As the allowed signers have it.
    pub principal: String,
    /// `SHA256:…`, as ssh-keygen shows it.
    pub fingerprint: String,
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

/// Checks an armored signature over `message`, made at `time`. The error says why it does not count.
pub(super) fn verify(
    armored: &str,
    message: &[u8],
    signers: &AllowedSigners,
    time: Timestamp,
) -> Result<Signer, String> {
    if armored.contains("BEGIN PGP") {
        return Err("it is signed with OpenPGP, and this version checks SSH signatures".to_owned());
    }
    if armored.contains("BEGIN SIGNED MESSAGE") || armored.contains("BEGIN CERTIFICATE") {
        return Err("it is signed with X.509, and this version checks SSH signatures".to_owned());
    }
    let signature = SshSignature::parse(armored)?;
    if signature.namespace != NAMESPACE {
        return Err(format!(
            "its signature is for `{}`, and that of a commit is for `{NAMESPACE}`",
            signature.namespace
        ));
    }
    signature.check(message)?;
    signers.find(&signature.signer, NAMESPACE, time)
}

/// Reads the files that say who may sign; `revoked` says who may not any more.
///
/// # Errors
/// Which file cannot be read, or which line of it is wrong.
pub(super) fn load(allowed: &Path, revoked: Option<&Path>) -> Result<AllowedSigners, String> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    };
    let text = |path: &Path, bytes: Vec<u8>| {
        String::from_utf8(bytes).map_err(|_| format!("{} is not text", path.display()))
    };
    let mut signers = AllowedSigners::parse(&text(allowed, read(allowed)?)?)
        .map_err(|error| format!("{}:{error}", allowed.display()))?;
    if let Some(path) = revoked {
        let bytes = read(path)?;
        if bytes.starts_with(b"SSHKRL") {
            return Err(format!(
                "{} is a binary revocation list: write the keys, or their fingerprints, one a line",
                path.display()
            ));
        }
        signers.revoke(&text(path, bytes)?).map_err(|error| format!("{}:{error}", path.display()))?;
    }
    Ok(signers)
}
