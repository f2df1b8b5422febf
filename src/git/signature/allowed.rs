//! Who may sign: OpenSSH's file of allowed signers, read strictly.
//!
//! Source: ssh-keygen(1), "ALLOWED SIGNERS".

use std::collections::BTreeSet;
use std::path::Path;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::key::PublicKey;
use super::sshsig::Shown;
use super::wire::decode;
use super::{Signer, TrustedSigner};
use crate::git::patterns::covers;
use crate::types::Timestamp;

/// Those who may sign.
#[derive(Debug, Default)]
pub struct AllowedSigners {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    number: usize,
    principals: String,
    authority: bool,
    namespaces: Option<String>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
    key: PublicKey,
}

impl AllowedSigners {
    /// Reads the file. A line that is not understood is an error, and not a signer less: who wrote it meant something.
    ///
    /// # Errors
    /// `LINE: what is wrong`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            lines.push(parse_line(number, line).map_err(|error| format!("{number}: {error}"))?);
        }
        if lines.is_empty() {
            return Err("1: nobody may sign: it has no line with a key".to_owned());
        }
        Ok(Self { lines })
    }

    /// Who may sign, for people; `file` is where it says so.
    pub fn listed(&self, file: &Path) -> impl Iterator<Item = TrustedSigner> {
        self.lines.iter().map(|line| TrustedSigner {
            format: "ssh",
            file: file.to_owned(),
            line: Some(line.number),
            principals: line.principals.clone(),
            fingerprint: line.key.fingerprint(),
            authority: line.authority,
            namespaces: line.namespaces.clone(),
            valid_after: line.after,
            valid_before: line.before,
        })
    }

    /// Who signed, where that one may sign for `namespace` at `time`.
    pub fn find(
        &self,
        shown: &Shown,
        namespace: &str,
        time: Timestamp,
        revoked: &BTreeSet<String>,
    ) -> Result<Signer, String> {
        let fingerprint = shown.key().fingerprint();
        let revoked = |key: &PublicKey| revoked.contains(&key.fingerprint());
        let authority = match shown {
            Shown::Key(_) => None,
            Shown::Certificate(certificate) => Some(&certificate.authority),
        };
        if revoked(shown.key()) || authority.is_some_and(revoked) {
            return Err(format!("it is signed with {fingerprint}, which is revoked"));
        }
        let mut why = format!("it is signed with {fingerprint}, which is no allowed signer");
        for line in &self.lines {
            let principal = match shown {
                // With a certificate a line for its key alone counts too: whoever has the key could sign without.
                _ if !line.authority && line.key.blob == shown.key().blob => Some(line.principals.clone()),
                Shown::Certificate(certificate)
                    if line.authority && line.key.blob == certificate.authority.blob =>
                {
                    if !certificate.is_valid(time) {
                        why = format!("the certificate of {fingerprint} was not valid at {time}");
                        continue;
                    }
                    let mut own = certificate.principals.iter();
                    own.find(|principal| covers(&line.principals, principal)).cloned()
                }
                _ => None,
            };
            let Some(principal) = principal else { continue };
            let number = line.number;
            if line.namespaces.as_deref().is_some_and(|spaces| !covers(spaces, namespace)) {
                why = format!("{fingerprint} may not sign commits (line {number}: namespaces)");
            } else if line.after.is_some_and(|after| time < after) {
                why = format!("{fingerprint} may not sign yet at {time} (line {number}: valid-after)");
            } else if line.before.is_some_and(|before| time > before) {
                why = format!("{fingerprint} may not sign any more at {time} (line {number}: valid-before)");
            } else {
                return Ok(Signer { principal, fingerprint });
            }
        }
        Err(why)
    }
}

fn parse_line(number: usize, line: &str) -> Result<Line, String> {
    let (principals, rest) = match line.strip_prefix('"') {
        Some(rest) => rest.split_once('"').ok_or("a quote is not closed")?,
        None => line.split_once([' ', '\t']).ok_or("a key is missing")?,
    };
    let (options, key) = key(rest)?;
    let mut parsed = Line {
        number,
        principals: principals.to_owned(),
        authority: false,
        namespaces: None,
        after: None,
        before: None,
        key,
    };
    for option in split_options(options)? {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.trim_matches('"'))),
            None => (option, None),
        };
        match (name.to_ascii_lowercase().as_str(), value) {
            ("cert-authority", None) => parsed.authority = true,
            ("namespaces", Some(value)) => parsed.namespaces = Some(value.to_owned()),
            ("valid-after", Some(value)) => parsed.after = Some(time(value)?),
            ("valid-before", Some(value)) => parsed.before = Some(time(value)?),
            _ => return Err(format!("`{option}` is not an option of an allowed signer")),
        }
    }
    Ok(parsed)
}

/// The options before a key, and the key: `[options] kind base64 [comment]`.
pub(super) fn key(text: &str) -> Result<(&str, PublicKey), String> {
    let text = text.trim();
    let is_kind = |word: &str| {
        ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| word.starts_with(prefix)) && !word.contains(['=', '"'])
    };
    let first = text.split([' ', '\t']).next().unwrap_or_default();
    let (options, key) = if is_kind(first) {
        ("", text)
    } else {
        let end = end_of_options(text).ok_or("a key is missing")?;
        text.split_at(end)
    };
    let mut words = key.split_whitespace();
    let (kind, blob) = (words.next().ok_or("a key is missing")?, words.next().ok_or("a key is missing")?);
    let key = PublicKey::parse(&decode(blob)?).map_err(|error| format!("its key: {error}"))?;
    if super::wire::Reader(&key.blob).text() != Ok(kind) {
        return Err(format!("its key is not of the kind `{kind}`"));
    }
    Ok((options, key))
}

/// Options end at the first blank outside of quotes.
fn end_of_options(text: &str) -> Option<usize> {
    let mut quoted = false;
    text.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        (!quoted && c.is_ascii_whitespace()).then_some(at)
    })
}

/// Commas outside of quotes separate them.
fn split_options(text: &str) -> Result<Vec<&str>, String> {
    let mut quoted = false;
    let parts = text.split(|c| {
        quoted ^= c == '"';
        !quoted && c == ','
    });
    let parts: Vec<&str> = parts.map(str::trim).filter(|part| !part.is_empty()).collect();
    if quoted { Err("a quote is not closed".to_owned()) } else { Ok(parts) }
}

/// `YYYYMMDD[Z]` or `YYYYMMDDHHMM[SS][Z]`; without a `Z` in the host's own time zone.
fn time(text: &str) -> Result<Timestamp, String> {
    let bad =
        || format!("`{text}` is no time: write YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, and a Z for UTC");
    let (digits, zone) = match text.strip_suffix(['Z', 'z']) {
        Some(digits) => (digits, TimeZone::UTC),
        None => (text, TimeZone::system()),
    };
    let format = match digits.len() {
        8 => "%Y%m%d",
        12 => "%Y%m%d%H%M",
        14 => "%Y%m%d%H%M%S",
        _ => return Err(bad()),
    };
    let broken = jiff::fmt::strtime::parse(format, digits).map_err(|_| bad())?;
    let date = broken.to_date().map_err(|_| bad())?;
    let moment = DateTime::from_parts(date, broken.to_time().unwrap_or_default());
    Ok(moment.to_zoned(zone).map_err(|_| bad())?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_as_in_ssh_config() {
        for (list, text, wanted) in [
            ("*", "git", true),
            ("git", "git", true),
            ("git,file", "file", true),
            ("gi?", "git", true),
            ("g*t", "git", true),
            ("g*x", "git", false),
            ("*,!git", "git", false),
            ("!git", "file", false),
            ("", "git", false),
        ] {
            assert_eq!(covers(list, text), wanted, "{list} {text}");
        }
    }

    #[test]
    fn times_of_keys() {
        for (text, wanted) in [
            ("20260102Z", "2026-01-02T00:00:00Z"),
            ("202601021530Z", "2026-01-02T15:30:00Z"),
            ("20260102153045Z", "2026-01-02T15:30:45Z"),
        ] {
            assert_eq!(time(text), Ok(wanted.parse().unwrap()), "{text}");
        }
        for bad in ["", "2026", "20261301Z", "2026-01-02", "20260102T", "202601021560Z"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
