//! What `gpgv` says of a signature on its status lines, read exactly: anything but one good signature is a refusal.
//!
//! Source: GnuPG's doc/DETAILS, "Format of the --status-fd output".

use crate::types::Timestamp;

const PREFIX: &str = "[GNUPG:] ";

/// Hashes of RFC 9580, section 9.5, that a signature may be over: SHA-256, SHA-384, SHA-512.
const HASHES: [&str; 3] = ["8", "9", "10"];

/// A signature over bytes, as they are.
const BINARY: &str = "00";

/// One signature that is what its key made of the content.
#[derive(Debug, PartialEq, Eq)]
pub struct Good {
    /// Fingerprint of the key that made it.
    pub key: String,
    /// Of the key that this one belongs to.
    pub primary: String,
    /// Whose it is, by the key.
    pub user: String,
    /// When, by its own word.
    pub made: Timestamp,
    /// The key has expired, at one of these times: of itself or of the one above it.
    pub expired: Option<Vec<Timestamp>>,
}

/// Reads all of it. The error says why it does not count.
pub fn read(text: &str) -> Result<Good, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(PREFIX));
    let lines: Vec<Vec<&str>> = lines.map(|line| line.split(' ').collect()).collect();
    let of = |keyword: &'static str| lines.iter().filter(move |line| line.first() == Some(&keyword));
    let word = |line: &[&str], at: usize| line.get(at).copied().unwrap_or_default().to_owned();
    let count = |keywords: &[&'static str]| keywords.iter().map(|keyword| of(keyword).count()).sum::<usize>();
    if let Some(line) = of("BADSIG").next() {
        return Err(format!("its signature by {} is not that of its content", word(line, 1)));
    }
    if let Some(line) = of("REVKEYSIG").next() {
        return Err(format!("it is signed with {}, which is revoked", signer(&lines, &word(line, 1))));
    }
    if let Some(line) = of("EXPSIG").next() {
        return Err(format!("its signature by {} has expired", signer(&lines, &word(line, 1))));
    }
    if let Some(line) = of("ERRSIG").next() {
        // The sixth word is the code: 9 = the key is missing, 4 = an algorithm is not known.
        let long = word(line, 7);
        let key = if long.len() > 1 { long } else { word(line, 1) };
        return Err(match word(line, 6).as_str() {
            "9" => format!("it is signed with {key}, which is no trusted key"),
            _ => format!("its signature by {key} cannot be checked: gpgv does not know how it is made"),
        });
    }
    let all = ["GOODSIG", "EXPKEYSIG"];
    if count(&all) != 1 || count(&["VALIDSIG"]) != 1 || count(&["NEWSIG"]) > 1 {
        return Err(match count(&all) {
            0 => "its signature cannot be read by gpgv".to_owned(),
            _ => "it has two signatures".to_owned(),
        });
    }
    let Some(valid) = of("VALIDSIG").next() else { return Err("its signature is not valid".to_owned()) };
    // VALIDSIG <key> <date> <time> <expiry> <version> <reserved> <algorithm> <hash> <class> <primary>
    let (key, primary) = (word(valid, 1), word(valid, 10));
    let made = word(valid, 3).parse().ok().and_then(|second| Timestamp::from_second(second).ok());
    let made = made.ok_or("its signature says not when it was made")?;
    if !HASHES.contains(&word(valid, 8).as_str()) {
        return Err(format!(
            "its signature by {primary} is over a hash that counts for nothing (SHA-1, say)"
        ));
    }
    if word(valid, 9) != BINARY {
        return Err(format!("its signature by {primary} is of another kind than that of a commit"));
    }
    let user = |line: &Vec<&str>| line.get(2..).unwrap_or_default().join(" ");
    let expired = of("EXPKEYSIG").next().is_some().then(|| {
        // 0: it is not told when.
        of("KEYEXPIRED")
            .map(|line| word(line, 1).parse().ok().and_then(|second| Timestamp::from_second(second).ok()))
            .map(Option::unwrap_or_default)
            .collect()
    });
    let user = of("GOODSIG").chain(of("EXPKEYSIG")).next().map(user).unwrap_or_default();
    let user = user.chars().filter(|c| !c.is_control()).take(200).collect();
    Ok(Good { key, primary, user, made, expired })
}

/// The fingerprint where it was told, else the key's short name.
fn signer(lines: &[Vec<&str>], id: &str) -> String {
    let valid = lines.iter().find(|line| line.first() == Some(&"VALIDSIG"));
    valid.and_then(|line| line.get(10)).copied().unwrap_or(id).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "[GNUPG:] NEWSIG bob@x\n";
    const GOOD: &str = "[GNUPG:] GOODSIG B26EA38FF1A05823 bob <bob@x>\n";
    const VALID: &str = "[GNUPG:] VALIDSIG D2463624B65471B5E07D4D34B26EA38FF1A05823 2025-06-01 1748736000 0 4 0 22 8 00 \
                         D2463624B65471B5E07D4D34B26EA38FF1A05823\n";

    #[test]
    fn one_good_signature_and_nothing_else() {
        let good = read(&format!("{NEW}{GOOD}{VALID}")).unwrap();
        assert_eq!((good.user.as_str(), good.made.as_second()), ("bob <bob@x>", 1_748_736_000));
        assert_eq!((&good.key, &good.expired), (&good.primary, &None));
        for (text, why) in [
            (String::new(), "cannot be read"),
            (NEW.to_owned(), "cannot be read"),
            (GOOD.to_owned(), "two signatures"),
            (VALID.to_owned(), "cannot be read"),
            (format!("{NEW}{GOOD}{VALID}{NEW}{GOOD}{VALID}"), "two signatures"),
            (format!("{NEW}{GOOD}{VALID}{NEW}"), "two signatures"),
            (format!("{GOOD}{VALID}[GNUPG:] BADSIG 00 x\n"), "not that of its content"),
            (format!("{GOOD}{VALID}[GNUPG:] ERRSIG 00AA 1 8 00 1 9 -\n"), "signed with 00AA, which is no"),
            (format!("{GOOD}{VALID}[GNUPG:] ERRSIG 00AA 1 8 00 1 4 -\n"), "does not know how"),
            (VALID.replace("VALIDSIG", "REVKEYSIG"), "revoked"),
            (format!("{GOOD}{}", VALID.replace(" 8 00 ", " 2 00 ")), "hash that counts for nothing"),
            (format!("{GOOD}{}", VALID.replace(" 8 00 ", " 8 01 ")), "of another kind"),
            // What a user calls itself is no status.
            (NEW.replace("bob@x", "GOODSIG x VALIDSIG y"), "cannot be read"),
            (format!("{GOOD}{VALID}").replace("[GNUPG:] ", "[GNUPG:]  "), "cannot be read"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn when_a_key_expired() {
        let text = format!(
            "{NEW}[GNUPG:] KEYEXPIRED 1767225600\n[GNUPG:] KEYEXPIRED 0\n{}{VALID}",
            GOOD.replace("GOODSIG", "EXPKEYSIG")
        );
        let expired = read(&text).unwrap().expired.unwrap();
        assert_eq!(expired.iter().map(|at| at.as_second()).collect::<Vec<_>>(), [1_767_225_600, 0]);
    }
}
