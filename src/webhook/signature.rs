//! Whose deliveries count: what forges sign them with, checked in constant time, without keeping the body.
//!
//! Sources: docs.github.com, "Validating webhook deliveries"; docs.gitea.com and forgejo.org, "Webhooks"; docs.gitlab.com,
//! "Webhooks" (secret token, and signing token); the Standard Webhooks specification, which GitLab's signing token follows.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use sha2::{Digest as _, Sha256};

/// Fields that hold the HMAC-SHA256 of the body in hexadecimal digits, some of them after `sha256=`.
const OF_BODY: [&str; 4] =
    ["x-hub-signature-256", "x-gitea-signature", "x-forgejo-signature", "x-signature-256"];

/// Before the base64 of a secret, in the Standard Webhooks specification.
const PREFIX: &str = "whsec_";

/// Shortest secret, in bytes: what a person makes up and types is guessed sooner or later.
const SHORTEST: usize = 16;

/// Most secrets in the file: the old and the new one, and some to spare.
const MOST: usize = 8;

/// Largest file of secrets.
const MAX_FILE: u64 = 64 << 10;

/// One secret that a forge may sign with.
pub(super) struct Secret(String);

impl Secret {
    /// The key as it is written.
    fn plain(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The key of the Standard Webhooks specification.
    fn standard(&self) -> Vec<u8> {
        let encoded = self.0.strip_prefix(PREFIX);
        encoded.and_then(|text| STANDARD.decode(text).ok()).unwrap_or_else(|| self.plain().to_vec())
    }
}

/// The secrets of a file, one a line: two of them while a forge is told of a new one. Read anew each time, so that a
/// new one counts at once.
pub(super) fn secrets(file: &Path) -> Result<Vec<Secret>, String> {
    let bad = |why: String| format!("webhook.secret_file {}: {why}", file.display());
    let length = std::fs::metadata(file).map_err(|error| bad(error.to_string()))?.len();
    if length > MAX_FILE {
        return Err(bad("larger than 64 KiB".to_owned()));
    }
    let text = std::fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
    let secrets: Vec<Secret> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| Secret(line.to_owned()))
        .collect();
    if secrets.is_empty() || secrets.len() > MOST {
        return Err(bad(format!(
            "it holds {} secrets, and 1 to {MOST} are taken, one a line",
            secrets.len()
        )));
    }
    if secrets.iter().any(|secret| secret.0.len() < SHORTEST) {
        return Err(bad(format!("a secret has at least {SHORTEST} characters (`openssl rand -hex 32`)")));
    }
    Ok(secrets)
}

/// What a request's head shows for itself.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// HMAC-SHA256 of the body.
    of_body: Vec<[u8; 32]>,
    /// HMAC-SHA256 of what is before the body in the Standard Webhooks specification, and the body.
    standard: Option<(Vec<u8>, Vec<[u8; 32]>)>,
    /// SHA-256 of GitLab's token, which is the secret itself.
    token: Option<[u8; 32]>,
}

impl Claims {
    /// Reads them out of the fields of a head, each named in lower case. What cannot be read claims nothing.
    pub fn read<'a>(field: impl Fn(&str) -> Option<&'a [u8]>) -> Self {
        let of_body = OF_BODY.iter().filter_map(|name| hex(field(name)?)).collect();
        let standard = (|| {
            let (id, time) = (field("webhook-id")?, field("webhook-timestamp")?);
            let signatures = std::str::from_utf8(field("webhook-signature")?).ok()?;
            // A replayed one makes a look more, and a wrong clock here is no reason to miss a push: the time is not judged.
            let before = [id, b".", time, b"."].concat();
            let decoded = signatures
                .split(' ')
                .filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok()?.try_into().ok());
            Some((before, decoded.take(MOST).collect::<Vec<_>>()))
        })();
        let token = field("x-gitlab-token").map(|token| Sha256::digest(token).into());
        Self { of_body, standard: standard.filter(|(_, signatures)| !signatures.is_empty()), token }
    }

    /// Whether nothing of it could be a signature.
    pub fn is_empty(&self) -> bool {
        self.of_body.is_empty() && self.standard.is_none() && self.token.is_none()
    }
}

/// Holds claims against a body as it comes.
pub(super) struct Verifier<'a> {
    claims: &'a Claims,
    bodies: Vec<hmac::Context>,
    standards: Vec<hmac::Context>,
    /// One of the claims holds already.
    known: bool,
}

impl<'a> Verifier<'a> {
    pub fn new(claims: &'a Claims, secrets: &[Secret]) -> Self {
        let context = |key: &[u8]| hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
        let mut known = false;
        if let Some(token) = &claims.token {
            // By their hashes: neither the length nor the place of the first difference shows in the time it takes.
            for secret in secrets {
                known |= same(&Sha256::digest(secret.plain()), token);
            }
        }
        let bodies = match claims.of_body.is_empty() {
            true => Vec::new(),
            false => secrets.iter().map(|secret| context(secret.plain())).collect(),
        };
        let standards = match &claims.standard {
            None => Vec::new(),
            Some((before, _)) => {
                let with = |secret: &Secret| {
                    let mut context = context(&secret.standard());
                    context.update(before);
                    context
                };
                secrets.iter().map(with).collect()
            }
        };
        Self { claims, bodies, standards, known }
    }

    /// The body's next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bodies.iter_mut().chain(&mut self.standards).for_each(|context| context.update(bytes));
    }

    /// Whether whoever sent it knows a secret.
    pub fn holds(self) -> bool {
        let mut known = self.known;
        for context in self.bodies {
            let tag = context.sign();
            for claim in &self.claims.of_body {
                known |= same(tag.as_ref(), claim);
            }
        }
        for context in self.standards {
            let tag = context.sign();
            for claim in self.claims.standard.iter().flat_map(|(_, signatures)| signatures) {
                known |= same(tag.as_ref(), claim);
            }
        }
        known
    }
}

/// In a time that says nothing about where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    a.len() == b.len() && differ == 0
}

fn hex(text: &[u8]) -> Option<[u8; 32]> {
    let text = text.strip_prefix(b"sha256=").unwrap_or(text);
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(fields: &[(&str, &str)], body: &[u8], secrets: &[&str]) -> Option<bool> {
        let find =
            |name: &str| fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_bytes());
        let claims = Claims::read(find);
        let secrets: Vec<Secret> = secrets.iter().map(|text| Secret((*text).to_owned())).collect();
        let mut verifier = Verifier::new(&claims, &secrets);
        body.chunks(3).for_each(|bytes| verifier.update(bytes));
        let holds = verifier.holds();
        (!claims.is_empty()).then_some(holds)
    }

    /// docs.github.com, "Validating webhook deliveries", "Testing the webhook payload validation".
    #[test]
    fn the_example_of_github() {
        let secret = "It's a Secret to Everybody";
        let mac = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        for (name, value) in [
            ("x-hub-signature-256", format!("sha256={mac}")),
            ("x-gitea-signature", mac.to_owned()),
            ("x-forgejo-signature", mac.to_owned()),
            ("x-signature-256", mac.to_uppercase()),
        ] {
            let fields = [(name, value.as_str())];
            assert_eq!(holds(&fields, b"Hello, World!", &[secret]), Some(true), "{name}");
            assert_eq!(
                holds(&fields, b"Hello, World!", &["another one, first", secret]),
                Some(true),
                "{name}"
            );
            assert_eq!(holds(&fields, b"Hello, World?", &[secret]), Some(false), "{name}");
            assert_eq!(holds(&fields, b"Hello, World!", &["another"]), Some(false), "{name}");
        }
        for bad in ["", "sha256=", &mac[..63], &format!("{mac}0"), &mac.replace('7', "g"), "sha1=757107ea"] {
            assert_eq!(holds(&[("x-hub-signature-256", bad)], b"Hello, World!", &[secret]), None, "{bad}");
        }
    }

    /// The example of the Standard Webhooks specification, "Signature scheme".
    #[test]
    fn the_standard_scheme() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let body = br#"{"test": 2432232314}"#;
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let fields = |signature: &'static str| {
            [
                ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
                ("webhook-timestamp", "1614265330"),
                ("webhook-signature", signature),
            ]
        };
        assert_eq!(holds(&fields(signature), body, &[secret]), Some(true));
        assert_eq!(
            holds(&fields("v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="), body, &[secret]),
            Some(true)
        );
        assert_eq!(holds(&fields(signature), b"{}", &[secret]), Some(false));
        assert_eq!(holds(&fields("v1a,g0hM"), body, &[secret]), None);
        assert_eq!(holds(&fields(signature)[..2], body, &[secret]), None);
        let mut other = fields(signature);
        other[1].1 = "1614265331";
        assert_eq!(holds(&other, body, &[secret]), Some(false));
    }

    #[test]
    fn the_token_of_gitlab() {
        let fields = [("x-gitlab-token", "a secret of some length")];
        assert_eq!(holds(&fields, b"", &["a secret of some length"]), Some(true));
        assert_eq!(holds(&fields, b"", &["a secret of some lengti"]), Some(false));
        assert_eq!(holds(&fields, b"", &["a secret of some"]), Some(false));
        assert_eq!(holds(&[("x-gitlab-token", "")], b"", &["a secret of some length"]), Some(false));
    }
}
