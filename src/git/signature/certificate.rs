//! Keys that an authority vouches for.
//!
//! Source: OpenSSH's PROTOCOL.certkeys.

use super::key::PublicKey;
use super::wire::Reader;
use crate::types::Timestamp;

/// What a certificate is of.
const USER: u32 = 1;
const HOST: u32 = 2;

/// A certificate, read; its authority's signature on it is checked.
#[derive(Debug)]
pub struct Certificate {
    /// The key that it is about.
    pub key: PublicKey,
    /// Who vouches for it.
    pub authority: PublicKey,
    /// Whose it is.
    pub principals: Vec<String>,
    /// From this second on.
    after: u64,
    /// Until before this second.
    before: u64,
}

impl Certificate {
    /// The kind of key in a certificate of that name.
    pub fn names(name: &str) -> Option<&'static str> {
        Some(match name {
            "ssh-ed25519-cert-v01@openssh.com" => "ssh-ed25519",
            "ecdsa-sha2-nistp256-cert-v01@openssh.com" => "ecdsa-sha2-nistp256",
            "ecdsa-sha2-nistp384-cert-v01@openssh.com" => "ecdsa-sha2-nistp384",
            "ssh-rsa-cert-v01@openssh.com" => "ssh-rsa",
            "sk-ssh-ed25519-cert-v01@openssh.com" => "sk-ssh-ed25519@openssh.com",
            "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com" => "sk-ecdsa-sha2-nistp256@openssh.com",
            _ => return None,
        })
    }

    /// Whether a key of a host is one with a certificate.
    pub fn is_one(blob: &[u8]) -> bool {
        Reader(blob).text().is_ok_and(|name| name.ends_with("-cert-v01@openssh.com"))
    }

    /// Reads one of a user and checks that its authority signed it.
    pub fn parse(blob: &[u8]) -> Result<Self, String> {
        Self::read(blob, USER)
    }

    /// Reads one of a host and checks that its authority signed it.
    pub fn of_host(blob: &[u8]) -> Result<Self, String> {
        Self::read(blob, HOST)
    }

    fn read(blob: &[u8], role: u32) -> Result<Self, String> {
        let mut reader = Reader(blob);
        let kind = Self::names(reader.text()?).ok_or("its certificate is of no known kind")?;
        reader.string()?; // A number used once.
        let key = PublicKey::from_fields(kind, &mut reader)?;
        reader.u64()?; // Its serial number.
        if reader.u32()? != role {
            let whose = if role == USER { "a user" } else { "a host" };
            return Err(format!("its certificate is not one of {whose}"));
        }
        reader.string()?; // What its authority calls it.
        let mut names = Reader(reader.string()?);
        let mut principals = Vec::new();
        while !names.0.is_empty() {
            principals.push(names.text()?.to_owned());
        }
        let (after, before) = (reader.u64()?, reader.u64()?);
        // Each of them would have to be understood.
        if !reader.string()?.is_empty() {
            return Err("its certificate has critical options".to_owned());
        }
        reader.string()?; // Extensions, which may be ignored.
        reader.string()?; // Reserved.
        let authority = PublicKey::parse(reader.string()?)?;
        let signed = blob.get(..blob.len() - reader.0.len()).unwrap_or_default();
        let signature = reader.string()?;
        reader.end()?;
        authority
            .verify(signature, signed)
            .map_err(|_| "its certificate is not signed by the authority that it names".to_owned())?;
        Ok(Self { key, authority, principals, after, before })
    }

    /// Whether it is good at that time.
    pub fn is_valid(&self, time: Timestamp) -> bool {
        u64::try_from(time.as_second()).is_ok_and(|time| self.after <= time && time < self.before)
    }
}
