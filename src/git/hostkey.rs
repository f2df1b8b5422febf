//! Which ssh host keys are trusted: OpenSSH's known_hosts files, read strictly. Nothing is ever learnt by itself.
//!
//! Sources: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; OpenSSH's PROTOCOL.certkeys.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::GitError;
use super::patterns::{covers, fits};
use super::signature::Certificate;
use crate::types::{Reason, Timestamp};

/// Read where the configuration names no file, as root's ssh would.
const DEFAULT_FILES: [&str; 2] = ["/root/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"];

/// The keys of some known_hosts files.
pub(super) struct KnownHosts {
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
}

/// What is known of a host's key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// This key is trusted for this host.
    Known,
    /// This key must not be trusted.
    Revoked,
    /// The host is known by other keys only.
    Other,
    /// An authority of the host is known, and what the server shows has its certificate, which is not good: why.
    BadCertificate(String),
    /// An authority of the host is known, and the server shows no certificate of it.
    NoCertificate,
    /// Nothing is known of the host.
    Unknown,
}

/// What a line says of its key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marker {
    /// It is the host's.
    Own,
    /// It signs certificates of hosts.
    Authority,
    /// It counts for nothing.
    Revoked,
}

struct Entry {
    marker: Marker,
    hosts: String,
    kind: String,
    key: Vec<u8>,
}

impl KnownHosts {
    /// Reads the configured file, which must be there, or the default ones, which need not.
    pub(super) fn load(configured: Option<&Path>) -> Result<Self, GitError> {
        let files = match configured {
            Some(file) => vec![file.to_owned()],
            None => DEFAULT_FILES.iter().map(PathBuf::from).collect(),
        };
        let mut entries = Vec::new();
        for file in &files {
            match fs::read(file) {
                Ok(bytes) => entries.extend(String::from_utf8_lossy(&bytes).lines().filter_map(parse)),
                Err(error) if configured.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let what = format!("read repo.known_hosts at {}", file.display());
                    return Err(GitError::with(Reason::HostKey, what, error));
                }
            }
        }
        Ok(Self { files, entries })
    }

    /// Judges the key that a server shows at `now`; `key` is the blob of RFC 4253 section 6.6, or a certificate.
    pub(super) fn check(&self, host: &str, port: u16, key: &[u8], now: Timestamp) -> Answer {
        let name = host_name(host, port);
        let entries: Vec<&Entry> = self.entries.iter().filter(|entry| matches(&entry.hosts, &name)).collect();
        let is = |marker, key: &[u8]| entries.iter().any(|entry| entry.marker == marker && entry.key == key);
        let knows = |marker| entries.iter().any(|entry| entry.marker == marker);
        if Certificate::is_one(key) && knows(Marker::Authority) {
            let shown = match Certificate::of_host(key) {
                Ok(shown) => shown,
                Err(why) => return Answer::BadCertificate(why),
            };
            let authority = &shown.authority;
            return if is(Marker::Revoked, &shown.key.blob) || is(Marker::Revoked, &authority.blob) {
                Answer::Revoked
            } else if !is(Marker::Authority, &authority.blob) {
                let by = authority.fingerprint();
                Answer::BadCertificate(format!("its certificate is signed by another authority, {by}"))
            } else if !shown.is_valid(now) {
                Answer::BadCertificate(format!("its certificate is not valid at {now:.0}"))
            } else if !shown.principals.iter().any(|name| fits(name.as_bytes(), host.as_bytes())) {
                let names = shown.principals.join(", ");
                Answer::BadCertificate(format!("its certificate is for other hosts: {names}"))
            } else {
                Answer::Known
            };
        }
        if is(Marker::Revoked, key) {
            Answer::Revoked
        } else if is(Marker::Own, key) {
            Answer::Known
        } else if knows(Marker::Own) {
            Answer::Other
        } else if knows(Marker::Authority) {
            Answer::NoCertificate
        } else {
            Answer::Unknown
        }
    }

    /// The keys of one host, each as a plain line. libssh2 asks the server for a key of a kind that it finds in such
    /// lines; without them a server with several keys may show one that nobody has written down. Where there are none, and
    /// only then, it asks for a certificate first: so a host's own line counts before that of its authority.
    pub(super) fn lines_for(&self, host: &str, port: u16) -> String {
        let name = host_name(host, port);
        let fit =
            self.entries.iter().filter(|entry| entry.marker == Marker::Own && matches(&entry.hosts, &name));
        fit.map(|entry| format!("{name} {} {}\n", entry.kind, STANDARD.encode(&entry.key))).collect()
    }
}

impl fmt::Display for KnownHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, file) in self.files.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { " or " }, file.display())?;
        }
        Ok(())
    }
}

/// `SHA256:…`, as ssh-keygen shows it.
pub(super) fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(key)))
}

/// The same of what a server shows: of a certificate it is that of its key.
pub(super) fn fingerprint_of_shown(key: &[u8]) -> String {
    let certificate = Certificate::is_one(key).then(|| Certificate::of_host(key).ok()).flatten();
    certificate.map_or_else(|| fingerprint(key), |certificate| certificate.key.fingerprint())
}

fn host_name(host: &str, port: u16) -> String {
    if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") }
}

/// One line; `None` for empty ones, comments and what cannot be read.
fn parse(line: &str) -> Option<Entry> {
    let mut fields = line.split_whitespace().peekable();
    let marker = match *fields.peek()? {
        first if first.starts_with('#') => return None,
        "@revoked" => Marker::Revoked,
        "@cert-authority" => Marker::Authority,
        first if first.starts_with('@') => return None,
        _ => Marker::Own,
    };
    if marker != Marker::Own {
        fields.next();
    }
    let (hosts, kind, key) = (fields.next()?, fields.next()?, fields.next()?);
    let key = STANDARD.decode(key).ok()?;
    Some(Entry { marker, hosts: hosts.to_owned(), kind: kind.to_owned(), key })
}

/// Whether a list of patterns covers a name; a negated pattern that fits wins over all others.
fn matches(patterns: &str, name: &str) -> bool {
    if let Some(hashed) = patterns.strip_prefix("|1|") {
        let Some((salt, hash)) = hashed.split_once('|') else { return false };
        let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
        return hmac_sha1(&salt, name.as_bytes()).as_slice() == hash;
    }
    // Names of hosts are the same in letters of either case.
    covers(&patterns.to_ascii_lowercase(), &name.to_ascii_lowercase())
}

/// RFC 2104 with SHA-1: how OpenSSH hides host names. It guards privacy, not trust.
fn hmac_sha1(key: &[u8], text: &[u8]) -> [u8; 20] {
    let mut block = [0; 64];
    if key.len() > block.len() {
        block[..20].copy_from_slice(&Sha1::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha1::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(text).finalize();
    Sha1::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> KnownHosts {
        KnownHosts { files: Vec::new(), entries: text.lines().filter_map(parse).collect() }
    }

    #[test]
    fn hmac_is_that_of_rfc_2202() {
        // Test case 2.
        let hex: String =
            hmac_sha1(b"Jefe", b"what do ya want for nothing?").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
    }

    #[test]
    fn keys_are_judged_by_host_and_port() {
        let hosts = known(
            "# comment\n\
             git.example.org,10.0.0.1 ssh-ed25519 AAAA\n\
             [git.example.org]:2222 ssh-ed25519 BBBB\n\
             *.lan,!evil.lan ssh-rsa CCCC comment\n\
             @revoked * ssh-ed25519 DDDD\n\
             @cert-authority *.org ssh-rsa EEEE\n\
             broken\n",
        );
        let key = |text: &str| STANDARD.decode(text).unwrap();
        for (host, port, text, answer) in [
            ("git.example.org", 22, "AAAA", Answer::Known),
            ("GIT.example.org", 22, "AAAA", Answer::Known),
            ("10.0.0.1", 22, "AAAA", Answer::Known),
            ("git.example.org", 22, "BBBB", Answer::Other),
            ("git.example.org", 2222, "BBBB", Answer::Known),
            ("git.example.org", 2222, "AAAA", Answer::Other),
            ("git.example.org", 2223, "AAAA", Answer::Unknown),
            ("a.lan", 22, "CCCC", Answer::Known),
            ("evil.lan", 22, "CCCC", Answer::Unknown),
            ("a.lan", 22, "DDDD", Answer::Revoked),
            ("x.org", 22, "EEEE", Answer::NoCertificate),
        ] {
            assert_eq!(
                hosts.check(host, port, &key(text), Timestamp::UNIX_EPOCH),
                answer,
                "{host}:{port} {text}"
            );
        }
        assert_eq!(hosts.lines_for("a.lan", 22), "a.lan ssh-rsa CCCC\n");
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b", "xaab", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
