//! Public keys, and what they signed.
//!
//! Sources: RFC 4253 section 6.6, RFC 5656, RFC 8332, RFC 8709; PROTOCOL.u2f for keys in hardware.

use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

use super::wire::Reader;
use crate::git::hostkey::fingerprint;

/// Fewest bits of an RSA key.
const RSA_BITS: usize = 2048;

/// A public key as it stands in files, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The blob, which is what two keys are compared by.
    pub blob: Vec<u8>,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
    P384(Vec<u8>),
    Rsa { exponent: Vec<u8>, modulus: Vec<u8> },
    HardwareEd25519 { key: Vec<u8>, application: Vec<u8> },
    HardwareP256 { key: Vec<u8>, application: Vec<u8> },
}

impl PublicKey {
    /// Reads a blob that holds a key and nothing else.
    pub fn parse(blob: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(blob);
        let name = reader.text()?;
        let kind = fields(name, &mut reader)?;
        reader.end()?;
        Ok(Self { blob: blob.to_owned(), kind })
    }

    /// Reads the fields of a key of that name, as certificates have them.
    pub fn from_fields(name: &str, reader: &mut Reader<'_>) -> Result<Self, String> {
        let before = reader.0;
        let kind = fields(name, reader)?;
        let used = before.get(..before.len() - reader.0.len()).unwrap_or_default();
        let mut blob = Vec::new();
        super::wire::put(&mut blob, name.as_bytes());
        blob.extend_from_slice(used);
        Ok(Self { blob, kind })
    }

    /// `SHA256:…`, as ssh-keygen shows it.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.blob)
    }

    /// Checks a signature blob of the ssh protocol over `message`.
    pub fn verify(&self, signature: &[u8], message: &[u8]) -> Result<(), String> {
        let mut reader = Reader(signature);
        let algorithm = reader.text()?;
        let bytes = reader.string()?;
        let fine = match (&self.kind, algorithm) {
            (Kind::Ed25519(key), "ssh-ed25519") => {
                reader.end()?;
                holds(&signature::ED25519, key, message, bytes)
            }
            (Kind::P256(key), "ecdsa-sha2-nistp256") => {
                reader.end()?;
                holds(&signature::ECDSA_P256_SHA256_FIXED, key, message, &fixed(bytes, 32)?)
            }
            (Kind::P384(key), "ecdsa-sha2-nistp384") => {
                reader.end()?;
                holds(&signature::ECDSA_P384_SHA384_FIXED, key, message, &fixed(bytes, 48)?)
            }
            (Kind::Rsa { exponent, modulus }, "rsa-sha2-256" | "rsa-sha2-512") => {
                reader.end()?;
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                let parameters = match algorithm {
                    "rsa-sha2-256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    _ => &signature::RSA_PKCS1_2048_8192_SHA512,
                };
                key.verify(parameters, message, bytes).is_ok()
            }
            (Kind::HardwareEd25519 { key, application }, "sk-ssh-ed25519@openssh.com") => {
                let message = touched(application, &mut reader, message)?;
                holds(&signature::ED25519, key, &message, bytes)
            }
            (Kind::HardwareP256 { key, application }, "sk-ecdsa-sha2-nistp256@openssh.com") => {
                let message = touched(application, &mut reader, message)?;
                holds(&signature::ECDSA_P256_SHA256_FIXED, key, &message, &fixed(bytes, 32)?)
            }
            _ => return Err(format!("`{algorithm}` is not how its key signs")),
        };
        if fine { Ok(()) } else { Err("its signature is not that of its content".to_owned()) }
    }
}

fn fields(name: &str, reader: &mut Reader<'_>) -> Result<Kind, String> {
    Ok(match name {
        "ssh-ed25519" => Kind::Ed25519(reader.string()?.to_owned()),
        "ecdsa-sha2-nistp256" => Kind::P256(point(reader, "nistp256")?),
        "ecdsa-sha2-nistp384" => Kind::P384(point(reader, "nistp384")?),
        "ssh-rsa" => {
            let exponent = reader.number()?.to_owned();
            let modulus = reader.number()?.to_owned();
            let zeros = modulus.first().map_or(0, |first| first.leading_zeros() as usize);
            if modulus.len() * 8 < RSA_BITS + zeros {
                return Err(format!("an RSA key of less than {RSA_BITS} bits counts for nothing"));
            }
            Kind::Rsa { exponent, modulus }
        }
        "sk-ssh-ed25519@openssh.com" => Kind::HardwareEd25519 {
            key: reader.string()?.to_owned(),
            application: reader.string()?.to_owned(),
        },
        "sk-ecdsa-sha2-nistp256@openssh.com" => {
            Kind::HardwareP256 { key: point(reader, "nistp256")?, application: reader.string()?.to_owned() }
        }
        other => {
            let name: String = other.chars().filter(|c| !c.is_control()).take(64).collect();
            return Err(format!("keys of the kind `{name}` are not supported"));
        }
    })
}

fn point(reader: &mut Reader<'_>, curve: &str) -> Result<Vec<u8>, String> {
    if reader.text()? != curve {
        return Err("its key names another curve than its kind".to_owned());
    }
    Ok(reader.string()?.to_owned())
}

fn holds(
    algorithm: &'static dyn signature::VerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    bytes: &[u8],
) -> bool {
    UnparsedPublicKey::new(algorithm, key).verify(message, bytes).is_ok()
}

/// The two numbers of an ECDSA signature, each in `size` bytes.
fn fixed(bytes: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut reader = Reader(bytes);
    let mut both = Vec::with_capacity(2 * size);
    for _ in 0..2 {
        let number = reader.number()?;
        let missing = size.checked_sub(number.len()).ok_or("a number of its signature is too large")?;
        both.extend(std::iter::repeat_n(0, missing));
        both.extend_from_slice(number);
    }
    reader.end()?;
    Ok(both)
}

/// What a key in hardware signs.
fn touched(application: &[u8], reader: &mut Reader<'_>, message: &[u8]) -> Result<Vec<u8>, String> {
    let (flags, counter) = (reader.byte()?, reader.u32()?);
    reader.end()?;
    let mut signed = Sha256::digest(application).to_vec();
    signed.push(flags);
    signed.extend_from_slice(&counter.to_be_bytes());
    signed.extend_from_slice(&Sha256::digest(message));
    Ok(signed)
}
