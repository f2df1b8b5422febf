//! What answers mean here, and what a person can do about them. Nothing that is said holds a secret.

use std::time::Duration;

use reqwest::{Response, StatusCode};

use super::address::Address;
use super::credentials::Origin;
use super::{PullError, retry};
use crate::types::{Reason, RegistryRef};

/// Largest error document that is read.
const MAX_ERROR: usize = 64 << 10;

/// Longest time for it.
const ERROR_TIMEOUT: Duration = Duration::from_secs(5);

/// Characters of it that are shown.
const MAX_SAID: usize = 200;

/// What was asked for, of whom, and as whom.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub address: &'a Address,
    pub image: &'a RegistryRef,
    /// The token service, where it is not the address itself.
    pub tokens: Option<&'a str>,
    /// Where the credentials are from; `None` = there are none, or it was not asked for any.
    pub origin: Option<&'a Origin>,
    /// Secrets that were sent: whatever comes back, they are not shown.
    pub hidden: &'a [String],
}

impl<'a> Asked<'a> {
    pub fn of(address: &'a Address, image: &'a RegistryRef) -> Self {
        Self { address, image, tokens: None, origin: None, hidden: &[] }
    }

    fn whom(&self) -> String {
        match self.tokens {
            Some(host) => format!("the token service {host} of {}", self.address),
            None => self.address.to_string(),
        }
    }

    /// What can be done where credentials are missing or refused.
    fn credentials(&self) -> String {
        let section = self.address.section();
        match self.origin {
            Some(origin) => format!("; the credentials are those of {origin}"),
            None => format!(
                "; no credentials for it are known: set username and password_file in [registry.\"{section}\"], or log in with docker login"
            ),
        }
    }
}

/// Sorts a status into what it means here, with the registry's own words where it has some.
pub(super) async fn checked(asked: Asked<'_>, response: Response) -> Result<Response, PullError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let (whom, image) = (asked.whom(), asked.image);
    let wait = retry::asked_to_wait(response.headers());
    let secure = response.url().scheme() == "https";
    let elsewhere = (asked.tokens.is_none() && !asked.address.has(response.url()))
        .then(|| format!("; it led to {}, which said so", super::http::authority(response.url())));
    let page = page(response).await;
    let speaks_https = !secure && status == StatusCode::BAD_REQUEST && page.mentions_https();
    let said = page.said(asked.hidden);
    let elsewhere = elsewhere.unwrap_or_default();
    let number = status.as_u16();
    Err(match status {
        _ if speaks_https => {
            let section = asked.address.section();
            let what = format!("{whom} speaks https: take plain_http out of [registry.\"{section}\"]");
            PullError::retry(Reason::Tls, what)
        }
        StatusCode::NOT_FOUND if asked.tokens.is_none() => {
            let hint = match asked.origin {
                None if elsewhere.is_empty() => {
                    "; one that is private may be hidden from who gives no credentials"
                }
                _ => "",
            };
            let what = format!("{whom} has no {image}{said}{elsewhere}{hint}");
            PullError::fatal(Reason::ImageNotFound, what)
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !elsewhere.is_empty() => PullError::retry(
            Reason::Auth,
            format!("{whom} does not let this host have {image}{said}{elsewhere}"),
        ),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let hint = asked.credentials();
            PullError::retry(Reason::Auth, format!("{whom} does not let this host have {image}{said}{hint}"))
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            let what = format!(
                "the proxy before {whom} answers 407{said}; it takes user and password in its address, http://user:password@proxy"
            );
            PullError::retry(Reason::Auth, what)
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let hint = match asked.origin {
                None => "; it limits how often it is asked: log in, or set mirrors",
                Some(_) => "; it limits how often it is asked: set mirrors",
            };
            PullError::network(format!("{whom} answers 429 for {image}{said}{elsewhere}{hint}"), wait)
        }
        status if status.is_redirection() => {
            let what = format!("{whom} answers {number} for {image}, which leads nowhere{said}");
            PullError::retry(Reason::RegistryUnreachable, what)
        }
        status => {
            let hint = if status.is_server_error() { "; its own log says why" } else { "" };
            let what = format!("{whom} answers {number} for {image}{said}{elsewhere}{hint}");
            if retry::may_pass(status) {
                PullError::network(what, wait)
            } else {
                PullError::retry(Reason::RegistryUnreachable, what)
            }
        }
    })
}

/// The page of a refusal, as much of it as is read.
struct Page {
    bytes: Vec<u8>,
    whole: bool,
}

/// Reads it: not for ever, and not without end.
async fn page(mut response: Response) -> Page {
    let mut page = Page { bytes: Vec::new(), whole: false };
    let read = async {
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if page.bytes.len() + chunk.len() <= MAX_ERROR => {
                    page.bytes.extend_from_slice(&chunk);
                }
                Ok(None) => {
                    page.whole = true;
                    break;
                }
                _ => break,
            }
        }
    };
    // What came until then is enough.
    let _ = tokio::time::timeout(ERROR_TIMEOUT, read).await;
    page
}

impl Page {
    /// What it says, ` (in brackets)`; empty where it says nothing that can be shown.
    fn said(&self, hidden: &[String]) -> String {
        let text = if !self.whole {
            "with a page that is too long, or does not end".to_owned()
        } else if let Some(text) = self.errors() {
            text
        } else {
            match std::str::from_utf8(&self.bytes) {
                // What is JSON and no list of errors has nothing for people.
                Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => String::new(),
                Ok(text) if text.trim_start().starts_with('<') => {
                    "with a page of HTML or XML: is it a registry?".to_owned()
                }
                Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => {
                    text.trim().lines().next().unwrap_or_default().to_owned()
                }
                _ => format!("with {} bytes that are no text", self.bytes.len()),
            }
        };
        let secret = hidden.iter().any(|secret| !secret.is_empty() && text.contains(secret.as_str()));
        if text.is_empty() || secret {
            return String::new();
        }
        // It is the registry's, and goes to logs and terminals.
        let mut shown: String = text.chars().take(MAX_SAID).flat_map(char::escape_debug).collect();
        if text.chars().nth(MAX_SAID).is_some() {
            shown.push('…');
        }
        format!(" ({shown})")
    }

    /// `CODE: message` (OCI distribution-spec, "Error Codes").
    fn errors(&self) -> Option<String> {
        let document: serde_json::Value = serde_json::from_slice(&self.bytes).ok()?;
        // Token services have one error of this form (RFC 6749 section 5.2), or a plain text (distribution, `details`).
        let error = document.get("errors").and_then(|errors| errors.get(0)).unwrap_or(&document);
        let part = |keys: [&str; 2]| keys.iter().find_map(|key| error.get(key)?.as_str());
        let parts = [part(["code", "error"]), part(["message", "error_description"])];
        let text: Vec<&str> = parts.into_iter().flatten().filter(|text| !text.is_empty()).collect();
        (!text.is_empty()).then(|| text.join(": "))
    }

    /// Go's and nginx' words for plain http on their port for https.
    fn mentions_https(&self) -> bool {
        let text = String::from_utf8_lossy(&self.bytes).to_ascii_lowercase();
        text.contains("http request") && text.contains("https")
    }
}

/// All of an answer, up to a limit.
pub(super) async fn body(
    asked: Asked<'_>,
    mut response: Response,
    limit: u64,
    lost: &(dyn Fn(&reqwest::Error) -> PullError + Send + Sync),
) -> Result<Vec<u8>, PullError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
        if bytes.len() as u64 + chunk.len() as u64 > limit {
            let (whom, image) = (asked.whom(), asked.image);
            let what = format!("{image}: a document of more than {limit} bytes, from {whom}");
            return Err(PullError::fatal(Reason::ImageInvalid, what));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8], hidden: &[&str]) -> String {
        let hidden: Vec<String> = hidden.iter().map(|text| (*text).to_owned()).collect();
        Page { bytes: bytes.to_vec(), whole: true }.said(&hidden)
    }

    #[test]
    fn pages_are_told_shortly() {
        let long = "x".repeat(5000);
        let rows: &[(&[u8], &str)] = &[
            (br#"{"errors":[{"code":"DENIED","message":"no such thing"}]}"#, " (DENIED: no such thing)"),
            (br#"{"errors":[{"code":"DENIED"}]}"#, " (DENIED)"),
            (br#"{"error":"invalid_grant","error_description":"it is old"}"#, " (invalid_grant: it is old)"),
            (br#"{"message":"slow down"}"#, " (slow down)"),
            (b"{}", ""),
            (br#"{"errors":[]}"#, ""),
            (br#"{"errors":"x"}"#, ""),
            (b"[1]", ""),
            (b"", ""),
            (b"no\n", " (no)"),
            (b"one\ntwo\n", " (one)"),
            (b"\xff\xfe\x00", " (with 3 bytes that are no text)"),
            (b"\x1b]0;x\x07\nforged", " (with 13 bytes that are no text)"),
            (b" <!DOCTYPE html><h1>Login</h1>", " (with a page of HTML or XML: is it a registry?)"),
            (br#"{"message":"a\u001b[2Jb"}"#, " (a\\u{1b}[2Jb)"),
        ];
        for (bytes, expected) in rows {
            assert_eq!(said(bytes, &[]), *expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(said(long.as_bytes(), &[]), format!(" ({}…)", "x".repeat(MAX_SAID)));
        let cut = Page { bytes: long.into_bytes(), whole: false }.said(&[]);
        assert!(cut.len() < 100 && cut.contains("too long"), "{cut}");
    }

    #[test]
    fn what_was_secret_stays_so() {
        let echo = br#"{"errors":[{"code":"DENIED","message":"Basic c2VjcmV0 is wrong"}]}"#;
        assert_eq!(said(echo, &["c2VjcmV0"]), "");
        assert_ne!(said(echo, &["other", ""]), "");
    }
}
