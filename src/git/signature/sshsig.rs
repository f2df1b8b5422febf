//! The signature itself.
//!
//! Source: OpenSSH's PROTOCOL.sshsig.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256, Sha512};

use super::certificate::Certificate;
use super::key::PublicKey;
use super::wire::{Reader, decode, put};

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
const MAGIC: &[u8] = b"SSHSIG";

/// Longest that is looked at, in bytes of base64: an RSA key of 16 kbit with a certificate takes a tenth.
const MAX: usize = 64 << 10;

/// Whose key it is.
#[derive(Debug)]
pub enum Shown {
    /// A key.
    Key(PublicKey),
    /// A key that an authority vouches for.
    Certificate(Box<Certificate>),
}

impl Shown {
    /// The key that signed.
    pub fn key(&self) -> &PublicKey {
        match self {
            Self::Key(key) => key,
            Self::Certificate(certificate) => &certificate.key,
        }
    }
}

/// A signature, read.
#[derive(Debug)]
pub struct SshSignature {
    /// What it was made for.
    pub namespace: String,
    /// Who made it.
    pub signer: Shown,
    hash: String,
    reserved: Vec<u8>,
    signature: Vec<u8>,
}

impl SshSignature {
    /// Reads it out of its armor.
    pub fn parse(armored: &str) -> Result<Self, String> {
        let inside = armored.trim().strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END));
        let inside = inside.ok_or("its signature is of no known kind")?;
        if inside.len() > MAX {
            return Err("its signature is too long".to_owned());
        }
        let text: String = inside.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let blob = decode(&text)?;
        let mut reader = Reader(blob.strip_prefix(MAGIC).ok_or("its signature is of no known kind")?);
        let version = reader.u32()?;
        if version != 1 {
            return Err(format!("its signature is of version {version}"));
        }
        let key = reader.string()?;
        let namespace = reader.text()?.to_owned();
        let reserved = reader.string()?.to_owned();
        let hash = reader.text()?.to_owned();
        let signature = reader.string()?.to_owned();
        reader.end()?;
        let name = Reader(key).text()?;
        let signer = match Certificate::names(name) {
            Some(_) => Shown::Certificate(Box::new(Certificate::parse(key)?)),
            None => Shown::Key(PublicKey::parse(key)?),
        };
        Ok(Self { namespace, signer, hash, reserved, signature })
    }

    /// Whether it is one of `message`.
    pub fn check(&self, message: &[u8]) -> Result<(), String> {
        let digest = match self.hash.as_str() {
            "sha256" => Sha256::digest(message).to_vec(),
            "sha512" => Sha512::digest(message).to_vec(),
            _ => return Err("its signature is over a hash that is not supported".to_owned()),
        };
        let signed = to_sign(&self.namespace, &self.reserved, &self.hash, &digest);
        self.signer.key().verify(&self.signature, &signed)
    }
}

/// What a key signs instead of the message itself.
fn to_sign(namespace: &str, reserved: &[u8], hash: &str, digest: &[u8]) -> Vec<u8> {
    let mut signed = MAGIC.to_owned();
    for part in [namespace.as_bytes(), reserved, hash.as_bytes(), digest] {
        put(&mut signed, part);
    }
    signed
}

/// Makes an armored signature over `message`: `key` is the public key's blob, `sign` makes a signature blob of the ssh
/// protocol.
pub fn make(
    key: &[u8],
    namespace: &str,
    message: &[u8],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, String>,
) -> Result<String, String> {
    const HASH: &str = "sha512";
    let signature = sign(&to_sign(namespace, &[], HASH, &Sha512::digest(message)))?;
    let mut blob = MAGIC.to_owned();
    blob.extend_from_slice(&1_u32.to_be_bytes());
    for part in [key, namespace.as_bytes(), &[], HASH.as_bytes(), &signature] {
        put(&mut blob, part);
    }
    let mut text = format!("{BEGIN}\n");
    for (at, c) in STANDARD.encode(blob).chars().enumerate() {
        // As ssh-keygen breaks its lines.
        if at > 0 && at % 70 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text.push('\n');
    text.push_str(END);
    Ok(text)
}
