//! Extended headers of one entry, read by their lengths: a value may hold newlines, and brings no records of its own
//! (pax(1), "pax Extended Header").

use std::collections::BTreeSet;

use super::{Error, refuse};

/// What is taken from them.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// `LENGTH KEY=VALUE\n`, again and again; the length is that of all of it.
pub(super) fn parse(mut rest: &[u8]) -> Result<Pax, Error> {
    let mut pax = Pax::default();
    let mut seen = BTreeSet::new();
    while !rest.is_empty() {
        let broken = || Error::Refused("a PAX header that is broken".to_owned());
        let (key, value, after) = record(rest).ok_or_else(broken)?;
        let shown = || key.escape_ascii().to_string();
        if !seen.insert(key) {
            return refuse(format!("a PAX header with `{}` twice, which readers take differently", shown()));
        }
        let odd = || Error::Refused(format!("a PAX header with a {} of `{}`", shown(), value.escape_ascii()));
        let whole = || {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(value).ok().filter(|_| digits);
            text.and_then(|text| text.parse().ok()).ok_or_else(odd)
        };
        match key {
            b"path" => pax.path = Some(value.to_vec()),
            b"linkpath" => pax.link = Some(value.to_vec()),
            b"size" => pax.size = Some(whole()?),
            b"uid" => pax.uid = Some(whole()?),
            b"gid" => pax.gid = Some(whole()?),
            b"mtime" => pax.mtime = Some(std::str::from_utf8(value).ok().and_then(time).ok_or_else(odd)?),
            key if key.starts_with(b"GNU.sparse") => return refuse("a sparse file"),
            key => {
                // A record without a value takes back what was said before (pax(1)): no attribute, as Go has it, and with
                // it all engines.
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|_| !value.is_empty()) {
                    pax.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        rest = after;
    }
    Ok(pax)
}

/// Key, value, and what follows.
fn record(rest: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = rest.iter().position(|byte| *byte == b' ')?;
    let digits = &rest[..space];
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at(equals);
    (!key.is_empty()).then_some((key, &value[1..], &rest[length..]))
}

/// Seconds with a fraction (pax(1), "mtime"); more digits than nanoseconds have are cut off.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    // -1.25 is 0.75 seconds after -2.
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_go_by_their_lengths() {
        let path = |text: &[u8]| parse(text).unwrap().path;
        assert_eq!(path(b"12 path=b\nc\n8 x=1=2\n"), Some(b"b\nc".to_vec()));
        assert_eq!(path(b"9 path==\n"), Some(b"=".to_vec()));
        assert_eq!(path(b""), None);
        let broken: [&[u8]; 11] = [
            b"x",
            b"5 a=b\n",
            b"7 a=b\n",
            b"0 a=b\n",
            b"1 a=b\n",
            b"-6 a=b\n",
            b"6 ab\n\n",
            b"6 a=bc",
            b"\0",
            b" a=b\n",
            b"5 =b\n",
        ];
        for text in broken {
            assert!(parse(text).is_err(), "{}", text.escape_ascii());
        }
        assert!(parse(b"6 a=b\n6 a=b\n").is_err(), "twice");
        assert!(parse(b"99999999999999999999999 a=b\n").is_err());
    }

    #[test]
    fn times_have_nanoseconds() {
        assert_eq!(time("12"), Some((12, 0)));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("1.x"), None);
        assert_eq!(time(""), None);
    }
}
