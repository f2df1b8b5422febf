//! STS gives credentials for a while (docs.aws.amazon.com, STS API reference): here those of a role for a token that somebody
//! else gave, `AssumeRoleWithWebIdentity`. That request is not signed; the token speaks for itself.

use std::time::Duration;

use reqwest::Url;
use rusty_s3::Credentials;

use super::settings::{self, Profile, variable};
use super::{auth, sigv4};
use crate::registry::PullError;
use crate::registry::http::Door;
use crate::registry::store::now;
use crate::types::Timestamp;

const PATIENCE: Duration = Duration::from_secs(10);

/// Of the API.
pub(super) const VERSION: &str = "2011-06-15";

/// What a session is called that nobody has a name for.
pub(super) const SESSION: &str = "gitopsd";

const FORM: &str = "application/x-www-form-urlencoded";

/// Largest answer.
const MOST: usize = 256 << 10;

/// Longest token.
const MOST_TOKEN: u64 = 64 << 10;

/// Who this host is, and what it wants to be.
#[derive(Debug)]
pub(super) struct Identity {
    token_file: String,
    role: String,
    session: String,
}

impl Identity {
    /// As Kubernetes and others set it up.
    pub fn from_env() -> Option<Self> {
        let token_file = variable("AWS_WEB_IDENTITY_TOKEN_FILE")?;
        Some(Self::new(token_file, variable("AWS_ROLE_ARN")?, variable("AWS_ROLE_SESSION_NAME")))
    }

    /// As a profile has it.
    pub fn of(profile: &Profile) -> Option<Self> {
        let session = profile.get("role_session_name").map(str::to_owned);
        let token_file = profile.get("web_identity_token_file")?.to_owned();
        Some(Self::new(token_file, profile.get("role_arn")?.to_owned(), session))
    }

    fn new(token_file: String, role: String, session: Option<String>) -> Self {
        Self { token_file, role, session: session.unwrap_or_else(|| SESSION.to_owned()) }
    }

    /// Asks for the role.
    pub async fn assume(
        &self,
        door: &Door,
        region: &str,
    ) -> Result<(Credentials, Option<Timestamp>), PullError> {
        let failed = |why: &dyn std::fmt::Display| {
            auth(format!("taking the role {} by {}: {why}", self.role, self.token_file))
        };
        let size = std::fs::metadata(&self.token_file).map_err(|error| failed(&error))?.len();
        if size > MOST_TOKEN {
            return Err(failed(&format_args!("a token of {size} bytes")));
        }
        let token = std::fs::read_to_string(&self.token_file).map_err(|error| failed(&error))?;
        let pairs = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", VERSION),
            ("RoleArn", &self.role),
            ("RoleSessionName", &self.session),
            ("WebIdentityToken", token.trim()),
        ];
        ask(door, region, &pairs, None, &failed).await
    }
}

/// Asks STS for credentials, signed by those that are there already, where there are any.
pub(super) async fn ask(
    door: &Door,
    region: &str,
    pairs: &[(&str, &str)],
    signer: Option<&Credentials>,
    failed: &(dyn Fn(&dyn std::fmt::Display) -> PullError + Sync),
) -> Result<(Credentials, Option<Timestamp>), PullError> {
    let endpoint = variable("AWS_ENDPOINT_URL_STS")
        .or_else(|| variable("AWS_ENDPOINT_URL"))
        .unwrap_or_else(|| settings::endpoint("sts", region));
    let mut url: Url = endpoint.parse().map_err(|error| failed(&format_args!("its endpoint: {error}")))?;
    url.set_query(None);
    let body = form(pairs);
    let mut request = door.direct(&url)?.post(url.clone()).header("content-type", FORM).timeout(PATIENCE);
    if let Some(signer) = signer {
        let post = sigv4::Post { service: "sts", region, url: &url, content_type: FORM, body: &body };
        for (name, value) in post.sign(signer, now()) {
            request = request.header(name, value);
        }
    }
    let sent = request.body(body).send().await;
    let mut response = sent.map_err(|error| failed(&error.without_url()))?;
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error.without_url()))? {
        if bytes.len() + chunk.len() > MOST {
            return Err(failed(&"its answer is too long"));
        }
        bytes.extend_from_slice(&chunk);
    }
    let text = String::from_utf8_lossy(&bytes);
    if !status.is_success() {
        let said = element(&text, "Code").unwrap_or_default();
        return Err(failed(&format_args!("STS answers {} {said}", status.as_u16())));
    }
    given(&text).ok_or_else(|| failed(&"STS answers without credentials"))
}

fn given(text: &str) -> Option<(Credentials, Option<Timestamp>)> {
    let part = element(text, "Credentials")?;
    let (id, secret) = element(&part, "AccessKeyId").zip(element(&part, "SecretAccessKey"))?;
    let end = element(&part, "Expiration").and_then(|end| end.parse().ok());
    Some((Credentials::new_with_token(id, secret, element(&part, "SessionToken")?), end))
}

/// What an element of an XML document holds. Enough for an answer whose values are base64, names and times.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once(&format!("</{name}>"))?;
    Some(value.trim().to_owned())
}

fn form(pairs: &[(&str, &str)]) -> String {
    let mut text = reqwest::Url::parse("x:").ok();
    if let Some(url) = &mut text {
        url.query_pairs_mut().extend_pairs(pairs);
    }
    text.as_ref().and_then(Url::query).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let text = "<AssumeRoleWithWebIdentityResponse xmlns=\"x\"><AssumeRoleWithWebIdentityResult><Credentials>\n\
            <SessionToken>T/+=</SessionToken><SecretAccessKey>S</SecretAccessKey>\
            <Expiration>2026-11-21T12:00:00Z</Expiration><AccessKeyId> A </AccessKeyId></Credentials></x>";
        let (found, end) = given(text).unwrap();
        assert_eq!((found.key(), found.secret(), found.token()), ("A", "S", Some("T/+=")));
        assert_eq!(end.map(|end| end.to_string()).as_deref(), Some("2026-11-21T12:00:00Z"));
        assert!(given("<Credentials><AccessKeyId>A</AccessKeyId></Credentials>").is_none());
        assert!(given("").is_none());
    }

    #[test]
    fn forms() {
        assert_eq!(form(&[("a", "b c"), ("d", "e/+&=")]), "a=b+c&d=e%2F%2B%26%3D");
    }
}
