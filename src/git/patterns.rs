//! Lists of patterns, as ssh has them: for names of hosts, of signers, and of what they may sign.
//!
//! Source: ssh_config(5), "PATTERNS".

/// Whether a list of patterns covers a name; a negated pattern that fits wins over all others.
pub(super) fn covers(list: &str, name: &str) -> bool {
    let mut found = false;
    for pattern in list.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if fits(pattern.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => found |= fits(pattern.as_bytes(), name.as_bytes()),
        }
    }
    found
}

/// Whether one pattern fits: `*` and `?`.
pub(super) fn fits(pattern: &[u8], name: &[u8]) -> bool {
    // Where to go on when the text after the last star does not fit: one byte further.
    let (mut p, mut n, mut retry) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, n));
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((star, at)) => {
                    p = star;
                    n = at + 1;
                    retry = Some((star, n));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}
