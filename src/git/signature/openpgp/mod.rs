//! Commits signed with OpenPGP: by keys of a file of the host, judged by `gpgv`.
//!
//! What is hostile (the signature) and what decides (the keys) is taken apart here first: one signature packet and
//! nothing else is asked about, and who signed has to be in the file by our own reading of it too.

mod gpgv;
mod packet;
mod status;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Signer, TrustedSigner};
use crate::types::Timestamp;
use packet::Key;

/// Largest file of keys.
const MAX_KEYS: usize = 4 << 20;

/// Longest armored signature.
const MAX_SIGNATURE: usize = 64 << 10;

/// Fewest bits of an RSA key.
const RSA_BITS: u32 = 2048;

/// Keys that may sign.
#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    keys: Vec<Key>,
    binary: Vec<u8>,
    gpgv: PathBuf,
}

impl Keyring {
    /// Takes what a file holds: armored blocks, or what `gpg --export` writes.
    ///
    /// # Errors
    /// What is wrong with it, or that `gpgv` is not on this host.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self, String> {
        if bytes.len() > MAX_KEYS {
            return Err(format!("it is larger than {MAX_KEYS} bytes"));
        }
        if bytes.get(8..12) == Some(b"KBXf") {
            return Err("it is a keybox: `gpg --export` writes what is wanted here".to_owned());
        }
        let binary = match bytes.first() {
            Some(first) if first & 0x80 != 0 => bytes,
            _ => {
                let text = String::from_utf8(bytes).map_err(|_| "it is not made of OpenPGP packets")?;
                packet::dearmor(&text, "PUBLIC KEY BLOCK")?.concat()
            }
        };
        let keys = packet::keys(&binary)?;
        if keys.is_empty() {
            return Err("nobody may sign: it has no key".to_owned());
        }
        Ok(Self { path: path.to_owned(), keys, binary, gpgv: gpgv::find()? })
    }

    /// Checks an armored signature over `message`, made at `time`. The error says why it does not count.
    pub fn verify(
        &self,
        armored: &str,
        message: &[u8],
        revoked: &BTreeSet<String>,
        time: Timestamp,
    ) -> Result<Signer, String> {
        let signature = one(armored)?;
        let (content, said) = gpgv::run(&self.gpgv, &self.binary, &signature, message)?;
        let good = status::read(&said)?;
        let find = |print: &str| self.keys.iter().find(|key| key.fingerprint == print);
        let key = find(&good.key).filter(|key| key.primary == good.primary);
        let (Some(key), Some(primary)) = (key, find(&good.primary)) else {
            return Err(format!("it is signed with {}, which is no trusted key", good.primary));
        };
        if [key, primary].iter().any(|key| key.revoked || revoked.contains(&key.fingerprint)) {
            return Err(format!("it is signed with {}, which is revoked", primary.fingerprint));
        }
        strong(key)?;
        // A key cannot have signed before it says that it did.
        let time = time.max(good.made);
        match good.expired {
            // Only that it is so by now is known then.
            Some(dates) if dates.iter().min().is_none_or(|first| time > *first) => {
                return Err(format!(
                    "{} may not sign any more at {time}: it has expired",
                    primary.fingerprint
                ));
            }
            None if !content => return Err("gpgv is not content with its signature".to_owned()),
            _ => {}
        }
        Ok(Signer { principal: good.user, fingerprint: primary.fingerprint.clone() })
    }

    /// Who may sign, for people.
    pub fn listed(&self) -> impl Iterator<Item = TrustedSigner> {
        self.keys.iter().filter(|key| key.is_primary()).map(|key| TrustedSigner {
            format: "openpgp",
            file: self.path.clone(),
            line: None,
            principals: key.users.join(", "),
            fingerprint: key.fingerprint.clone(),
            authority: false,
            namespaces: None,
            valid_after: None,
            valid_before: None,
        })
    }
}

/// The one signature of an armored block, and nothing else: what follows it could be one that is looked at instead.
fn one(armored: &str) -> Result<Vec<u8>, String> {
    if armored.len() > MAX_SIGNATURE {
        return Err("its signature is too long".to_owned());
    }
    let broken = |why: String| format!("its signature: {why}");
    let mut blocks = packet::dearmor(armored, "SIGNATURE").map_err(broken)?;
    let (Some(block), true) = (blocks.pop(), blocks.is_empty()) else {
        return Err("it has two signatures".to_owned());
    };
    match packet::packets(&block).map_err(broken)?.as_slice() {
        [one] if one.tag == packet::SIGNATURE && !one.body.is_empty() => {}
        [_, _, ..] => return Err("it has two signatures".to_owned()),
        _ => return Err("its signature is of no known kind".to_owned()),
    }
    Ok(block)
}

/// Old kinds of keys count for nothing: DSA and short RSA.
fn strong(key: &Key) -> Result<(), String> {
    match (key.algorithm, key.bits) {
        (1 | 3, Some(bits)) if bits >= RSA_BITS => Ok(()),
        (1 | 3, _) => Err(format!("an RSA key of less than {RSA_BITS} bits counts for nothing")),
        // ECDSA, EdDSA, Ed25519, Ed448.
        (19 | 22 | 27 | 28, _) => Ok(()),
        (17, _) => Err("a DSA key counts for nothing".to_owned()),
        (other, _) => Err(format!("OpenPGP keys of algorithm {other} are not supported")),
    }
}
