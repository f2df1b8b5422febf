//! Fields of a tar header: text and numbers (pax(1), "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format").

/// A field up to its NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: octal, or base-256 where its first bit is set (GNU tar). All blank is 0, as GNU tar and Go take it.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    signed(field).and_then(|value| u64::try_from(value).ok())
}

/// The same, where it may be negative.
pub(super) fn signed(field: &[u8]) -> Option<i64> {
    match field.split_first() {
        Some((first, rest)) if first & 0x80 != 0 => {
            // Two's complement, of which the top bit is the mark.
            let mut value = i64::from(first & 0x3f) - i64::from(first & 0x40);
            for byte in rest {
                value = value.checked_mul(256)?.checked_add(i64::from(*byte))?;
            }
            Some(value)
        }
        _ => octal(field).and_then(|value| i64::try_from(value).ok()),
    }
}

/// Octal digits, blanks before them, blanks and NULs behind them.
pub(super) fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\x01\0\0"), Some(65536));
        assert_eq!(signed(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        for odd in [&b"9"[..], b"12x", b"1 2", b"-1", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert_eq!(number(odd), None, "{}", odd.escape_ascii());
        }
        assert_eq!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None, "too large");
        assert_eq!(number(b"\xa0\0\0\0\0\0\0\0\0\0\0\0\0"), None, "too large");
    }
}
