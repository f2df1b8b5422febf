//! The host's own key, which its receipts are signed with: OpenSSH's file of a private key, without a passphrase.
//!
//! Source: OpenSSH's PROTOCOL.key; RFC 8709, RFC 5656 for the signatures.

use std::path::Path;

use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair};

use super::wire::{Reader, decode, put};
use super::{NAMESPACE, sshsig};

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// Largest file, in bytes.
const MAX: u64 = 64 << 10;

/// A key that signs.
pub struct SigningKey {
    /// As verifiers have it.
    public: Vec<u8>,
    pair: Pair,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    /// The algorithm's name, and the bytes of a number of its signatures.
    Ecdsa(&'static str, usize, EcdsaKeyPair),
}

impl SigningKey {
    /// Reads it. What is wrong with the file is said without a word of what is in it.
    pub fn load(path: &Path) -> Result<Self, String> {
        let length = path.metadata().map_err(|error| error.to_string())?.len();
        if length > MAX {
            return Err("it is too long for a private key".to_owned());
        }
        let text = std::fs::read(path).map_err(|error| error.to_string())?;
        let text = String::from_utf8(text).map_err(|_| UNKNOWN)?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let inside =
            text.trim().strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END)).ok_or(UNKNOWN)?;
        let base64: String = inside.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let blob = decode(&base64)?;
        let mut reader = Reader(blob.strip_prefix(MAGIC).ok_or(UNKNOWN)?);
        let (cipher, kdf) = (reader.text()?, reader.text()?);
        reader.string()?; // Of the key derivation.
        if (cipher, kdf) != ("none", "none") {
            return Err("it has a passphrase, and nobody is there to type it".to_owned());
        }
        if reader.u32()? != 1 {
            return Err("it holds several keys".to_owned());
        }
        let public = reader.string()?.to_owned();
        let mut private = Reader(reader.string()?);
        if private.u32()? != private.u32()? {
            return Err("it is damaged".to_owned());
        }
        let pair = pair(&mut private)?;
        Ok(Self { public, pair })
    }

    /// An armored signature of a commit's content, as `git commit -S` makes it.
    pub fn sign(&self, content: &[u8]) -> Result<String, String> {
        sshsig::make(&self.public, NAMESPACE, content, |bytes| self.pair.sign(bytes))
    }
}

const UNKNOWN: &str = "it is no private key of OpenSSH";

fn pair(reader: &mut Reader<'_>) -> Result<Pair, String> {
    let rejected = |error: ring::error::KeyRejected| format!("it is damaged: {error}");
    let (name, size, algorithm) = match reader.text()? {
        "ssh-ed25519" => {
            let public = reader.string()?;
            // The seed, and the public key once more.
            let seed = reader.string()?.get(..32).ok_or("it is cut off")?;
            return Ed25519KeyPair::from_seed_and_public_key(seed, public)
                .map(Pair::Ed25519)
                .map_err(rejected);
        }
        "ecdsa-sha2-nistp256" => ("ecdsa-sha2-nistp256", 32, &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        "ecdsa-sha2-nistp384" => ("ecdsa-sha2-nistp384", 48, &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        other => {
            let name: String = other.chars().filter(|c| !c.is_control()).take(64).collect();
            return Err(format!(
                "keys of the kind `{name}` do not sign here: make one with `ssh-keygen -t ed25519`"
            ));
        }
    };
    reader.string()?; // The curve, which is in the name.
    let point = reader.string()?;
    let number = reader.number()?;
    let missing = usize::checked_sub(size, number.len()).ok_or("it is damaged")?;
    let mut secret = vec![0; missing];
    secret.extend_from_slice(number);
    let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &secret, point, &SystemRandom::new());
    pair.map(|pair| Pair::Ecdsa(name, size, pair)).map_err(rejected)
}

impl Pair {
    /// A signature blob of the ssh protocol.
    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut blob = Vec::new();
        match self {
            Self::Ed25519(pair) => {
                put(&mut blob, b"ssh-ed25519");
                put(&mut blob, pair.sign(bytes).as_ref());
            }
            Self::Ecdsa(name, size, pair) => {
                let signed = pair.sign(&SystemRandom::new(), bytes);
                let signed = signed.map_err(|_| "the key did not sign: no random numbers")?;
                let (r, s) = signed.as_ref().split_at_checked(*size).ok_or("the key did not sign")?;
                let mut numbers = Vec::new();
                for number in [r, s] {
                    put_number(&mut numbers, number);
                }
                put(&mut blob, name.as_bytes());
                put(&mut blob, &numbers);
            }
        }
        Ok(blob)
    }
}

/// mpint (RFC 4251, section 5): no zeros before it but the one that keeps it positive.
fn put_number(to: &mut Vec<u8>, number: &[u8]) {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let mut bytes = number.get(zeros..).unwrap_or_default().to_vec();
    if bytes.first().is_some_and(|first| first & 0x80 != 0) {
        bytes.insert(0, 0);
    }
    put(to, &bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positive_and_short() {
        for (number, wanted) in [
            (&[0, 0, 1][..], &[0, 0, 0, 1, 1][..]),
            (&[0x80], &[0, 0, 0, 2, 0, 0x80]),
            (&[0, 0x80], &[0, 0, 0, 2, 0, 0x80]),
        ] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            assert_eq!(bytes, wanted);
        }
    }

    #[test]
    fn what_is_no_key_is_told_without_its_content() {
        for (text, why) in [
            ("", "no private key"),
            ("-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----", "no private key"),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\naHVudGVyMg==\n-----END OPENSSH PRIVATE KEY-----",
                "no private",
            ),
        ] {
            let error = SigningKey::parse(text).err().unwrap();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }
}
