//! OpenPGP's outer form: armor and packets, as far as it takes to know what a file holds before `gpgv` sees it.
//!
//! Source: RFC 9580, sections 4.2 (packets), 5.5.2 and 5.5.4.1 (keys and their fingerprints), 6.2 (armor).

use sha1::{Digest as _, Sha1};

use super::super::wire::{Reader, decode};

/// A signature.
pub const SIGNATURE: u8 = 2;

const SECRET_KEY: u8 = 5;
const PUBLIC_KEY: u8 = 6;
const SECRET_SUBKEY: u8 = 7;
const USER: u8 = 13;
const PUBLIC_SUBKEY: u8 = 14;

/// Types of signatures (RFC 9580, section 5.2.1).
const KEY_REVOCATION: u8 = 0x20;
const SUBKEY_REVOCATION: u8 = 0x28;

/// One packet.
#[derive(Debug)]
pub struct Packet<'a> {
    /// What it is.
    pub tag: u8,
    /// What it says.
    pub body: &'a [u8],
}

/// A key of a file: a certificate's own one, or one below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// In upper-case hex, as gpg shows it.
    pub fingerprint: String,
    /// That of the key that it belongs to; its own for that one.
    pub primary: String,
    /// Who it says that it belongs to; none for a subkey.
    pub users: Vec<String>,
    /// RFC 9580, section 9.1.
    pub algorithm: u8,
    /// Of an RSA key.
    pub bits: Option<u32>,
    /// The file has a revocation of it. Read here too: of a key that has also expired gpgv says only that.
    pub revoked: bool,
}

impl Key {
    /// Whether it is a certificate's own one.
    pub fn is_primary(&self) -> bool {
        self.fingerprint == self.primary
    }
}

/// Takes armored blocks of a kind (`PUBLIC KEY BLOCK`, `SIGNATURE`) out of a text that has nothing else but comments.
pub fn dearmor(text: &str, kind: &str) -> Result<Vec<Vec<u8>>, String> {
    let (begin, end) = (format!("-----BEGIN PGP {kind}-----"), format!("-----END PGP {kind}-----"));
    let mut lines = text.lines().map(str::trim_end);
    let mut blocks = Vec::new();
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line != begin {
            return Err(format!("it has something else than armored blocks of the kind {kind}"));
        }
        // Headers say nothing that counts; an empty line ends them.
        loop {
            match lines.next() {
                Some("") => break,
                Some(header) if header.contains(':') => {}
                _ => return Err("its armor is broken".to_owned()),
            }
        }
        let mut base64 = String::new();
        loop {
            match lines.next() {
                Some(line) if line == end => break,
                // A checksum, which no reader may rely on.
                Some(line) if line.starts_with('=') && line.len() == 5 => {}
                Some(line) => base64.push_str(line.trim()),
                None => return Err("its armor is cut off".to_owned()),
            }
        }
        blocks.push(decode(&base64)?);
    }
    Ok(blocks)
}

/// All packets of some bytes, to the last one.
pub fn packets(mut bytes: &[u8]) -> Result<Vec<Packet<'_>>, String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (packet, rest) = packet(bytes)?;
        found.push(packet);
        bytes = rest;
    }
    Ok(found)
}

fn packet(bytes: &[u8]) -> Result<(Packet<'_>, &[u8]), String> {
    let mut reader = Reader(bytes);
    let head = reader.byte()?;
    if head & 0x80 == 0 {
        return Err("it is not made of OpenPGP packets".to_owned());
    }
    let (tag, length) = if head & 0x40 != 0 {
        let first = reader.byte()?;
        let length = match first {
            0..=191 => u32::from(first),
            192..=223 => ((u32::from(first) - 192) << 8) + u32::from(reader.byte()?) + 192,
            255 => reader.u32()?,
            _ => return Err("it has a packet in parts".to_owned()),
        };
        (head & 0x3f, length)
    } else {
        let length = match head & 3 {
            0 => u32::from(reader.byte()?),
            1 => (u32::from(reader.byte()?) << 8) | u32::from(reader.byte()?),
            2 => reader.u32()?,
            _ => return Err("it has a packet without a length".to_owned()),
        };
        ((head >> 2) & 0x0f, length)
    };
    let body = reader.bytes(usize::try_from(length).map_err(|_| "it is cut off")?)?;
    Ok((Packet { tag, body }, reader.0))
}

/// The keys of a file, each after the one that it belongs to.
pub fn keys(bytes: &[u8]) -> Result<Vec<Key>, String> {
    let mut keys: Vec<Key> = Vec::new();
    let mut primary: Option<usize> = None;
    for Packet { tag, body } in packets(bytes)? {
        match tag {
            SECRET_KEY | SECRET_SUBKEY => {
                return Err("it holds a secret key: `gpg --export` writes public ones".to_owned());
            }
            PUBLIC_KEY => {
                primary = Some(keys.len());
                keys.push(key(body, None)?);
            }
            PUBLIC_SUBKEY => {
                let above = primary.and_then(|at| keys.get(at)).ok_or("it begins with a subkey")?;
                let above = above.fingerprint.clone();
                keys.push(key(body, Some(above))?);
            }
            USER => {
                let Some(key) = primary.and_then(|at| keys.get_mut(at)) else { continue };
                let name = String::from_utf8_lossy(body);
                key.users.push(name.chars().filter(|c| !c.is_control()).take(200).collect());
            }
            SIGNATURE => {
                let revoked = match signature_type(body) {
                    Some(KEY_REVOCATION) => primary.and_then(|at| keys.get_mut(at)),
                    Some(SUBKEY_REVOCATION) => keys.last_mut(),
                    _ => None,
                };
                if let Some(key) = revoked {
                    key.revoked = true;
                }
            }
            // Pictures and the like: gpgv judges them.
            _ => {}
        }
    }
    Ok(keys)
}

/// What a signature is for (RFC 9580, sections 5.2.2 and 5.2.3); whether it is one by the key, gpgv knows.
fn signature_type(body: &[u8]) -> Option<u8> {
    match body {
        [3, _, kind, ..] | [4..=6, kind, ..] => Some(*kind),
        _ => None,
    }
}

fn key(body: &[u8], primary: Option<String>) -> Result<Key, String> {
    let mut reader = Reader(body);
    let version = reader.byte()?;
    if version != 4 {
        return Err(format!("keys of version {version} are not supported"));
    }
    reader.u32()?; // When it was made.
    let algorithm = reader.byte()?;
    // RSA, and its uses of one kind only.
    let bits = match algorithm {
        1..=3 => Some((u32::from(reader.byte()?) << 8) | u32::from(reader.byte()?)),
        _ => None,
    };
    let length = u16::try_from(body.len()).map_err(|_| "it has a key that is too long")?;
    let digest = Sha1::new().chain_update([0x99]).chain_update(length.to_be_bytes()).chain_update(body);
    let fingerprint: String = digest.finalize().iter().map(|byte| format!("{byte:02X}")).collect();
    let primary = primary.unwrap_or_else(|| fingerprint.clone());
    Ok(Key { fingerprint, primary, users: Vec::new(), algorithm, bits, revoked: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_both_forms() {
        let mut long = vec![0xc2, 192, 8];
        long.extend([7; 200]);
        for (bytes, tag, length) in [
            (vec![0x88, 2, 1, 1], 2, 2),
            (vec![0x89, 0, 1, 1], 2, 1),
            (vec![0x8a, 0, 0, 0, 1, 1], 2, 1),
            (vec![0xc2, 3, 1, 1, 1], 2, 3),
            (vec![0xc2, 255, 0, 0, 0, 1, 1], 2, 1),
            (long, 2, 200),
        ] {
            let found = packets(&bytes).unwrap();
            assert_eq!((found.len(), found[0].tag, found[0].body.len()), (1, tag, length), "{bytes:?}");
        }
        for bad in [&[0x8b, 1][..], &[0xc2, 224, 1], &[0x88], &[0x88, 2, 1], &[0x02, 1], &[0xc2, 255, 255]] {
            assert!(packets(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn anything_is_taken_apart_or_refused(bytes: Vec<u8>, text: String) {
            let _ = keys(&bytes);
            let mut head = vec![0x99, 0, u8::try_from(bytes.len()).unwrap_or(255), 4];
            head.extend(&bytes);
            let _ = keys(&head);
            let _ = dearmor(&format!("-----BEGIN PGP SIGNATURE-----\n{text}"), "SIGNATURE");
        }
    }

    #[test]
    fn armor_is_read_strictly() {
        let block = "-----BEGIN PGP SIGNATURE-----\nComment: x\n\niAI=\n=AAAA\n-----END PGP SIGNATURE-----\n";
        assert_eq!(dearmor(block, "SIGNATURE").unwrap(), [vec![0x88, 2]]);
        assert_eq!(dearmor(&format!("# two\n{block}\n{block}"), "SIGNATURE").unwrap().len(), 2);
        assert!(dearmor(block, "PUBLIC KEY BLOCK").is_err());
        assert!(dearmor(&format!("{block}rubbish"), "SIGNATURE").is_err());
        assert!(dearmor(&block.replace("\n\n", "\n"), "SIGNATURE").is_err());
        assert!(dearmor(&block.replace("-----END", ""), "SIGNATURE").is_err());
    }
}
