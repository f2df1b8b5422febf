//! Objects of S3 and its likes: addresses, credentials by the usual AWS chain, signatures (SigV4, in the query).
//!
//! The chain: the environment, the shared credentials file, the container's endpoint (ECS), the instance's (IMDSv2). A
//! host that has none of them asks unsigned, as for a public bucket.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use rusty_s3::actions::{GetObject, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};
use serde::Deserialize;

use crate::config::agent::S3Config;
use crate::registry::PullError;
use crate::types::Reason;

/// How long a signature is good: a request begins within it.
const SIGNED_FOR: Duration = Duration::from_secs(900);

/// Endpoints of the machine itself answer at once, or are not there.
const PATIENCE: Duration = Duration::from_secs(2);

/// docs.aws.amazon.com, "Use the Instance Metadata Service".
const INSTANCE: &str = "http://169.254.169.254";

/// docs.aws.amazon.com, "Container credential provider".
const CONTAINER: &str = "http://169.254.170.2";

/// One object, and who asks for it.
pub(in crate::registry) struct S3 {
    config: S3Config,
    http: Option<reqwest::Client>,
    object: Option<(Bucket, String)>,
    credentials: Option<Credentials>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Given {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
}

impl From<Given> for Credentials {
    fn from(given: Given) -> Self {
        match given.token {
            Some(token) => Self::new_with_token(given.access_key_id, given.secret_access_key, token),
            None => Self::new(given.access_key_id, given.secret_access_key),
        }
    }
}

impl S3 {
    /// Where S3 is, by the host's configuration.
    pub fn new(config: S3Config, http: reqwest::Client) -> Self {
        Self { config, http: Some(http), object: None, credentials: None }
    }

    /// An object `s3://bucket/key`.
    pub async fn of(&self, text: &str) -> Result<Self, PullError> {
        let invalid =
            |why: &dyn std::fmt::Display| PullError::fatal(Reason::ConfigInvalid, format!("{text}: {why}"));
        let (bucket, key) = text
            .strip_prefix("s3://")
            .and_then(|rest| rest.split_once('/'))
            .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
            .ok_or_else(|| invalid(&"an object is s3://bucket/key"))?;
        let variable = |name| std::env::var(name).ok().filter(|text: &String| !text.is_empty());
        let region = self
            .config
            .region
            .clone()
            .or_else(|| variable("AWS_REGION"))
            .or_else(|| variable("AWS_DEFAULT_REGION"))
            .unwrap_or_else(|| "us-east-1".to_owned());
        let endpoint = match &self.config.endpoint {
            Some(endpoint) => endpoint.as_str().to_owned(),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        let endpoint: Url = endpoint.parse().map_err(|error| invalid(&error))?;
        let style = if self.config.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let place =
            Bucket::new(endpoint, style, bucket.to_owned(), region).map_err(|error| invalid(&error))?;
        Ok(Self {
            config: self.config.clone(),
            http: None,
            object: Some((place, key.to_owned())),
            credentials: self.credentials().await?,
        })
    }

    /// The address for one request.
    pub fn sign(&self) -> Url {
        match &self.object {
            Some((bucket, key)) => GetObject::new(bucket, self.credentials.as_ref(), key).sign(SIGNED_FOR),
            // Only what `of` gave is asked for.
            None => Url::from_file_path("/").unwrap_or_else(|()| std::process::abort()),
        }
    }

    async fn credentials(&self) -> Result<Option<Credentials>, PullError> {
        if let Some(found) = Credentials::from_env() {
            return Ok(Some(found));
        }
        if let Some(found) = shared_file()? {
            return Ok(Some(found));
        }
        let Some(http) = &self.http else { return Ok(None) };
        let fetched = match container_endpoint() {
            Some((url, token)) => {
                let mut request = http.get(url);
                if let Some(token) = token {
                    request = request.header("Authorization", token);
                }
                given(request).await
            }
            None => instance(http).await,
        };
        Ok(fetched.map(Credentials::from))
    }
}

/// `~/.aws/credentials`, of the profile that `AWS_PROFILE` names.
fn shared_file() -> Result<Option<Credentials>, PullError> {
    let path = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".aws/credentials"),
        PathBuf::from,
    );
    let profile = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(of_profile(&text, &profile)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PullError::retry(Reason::Auth, format!("{}: {error}", path.display()))),
    }
}

fn of_profile(text: &str, profile: &str) -> Option<Credentials> {
    let mut inside = false;
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let value = Some(value.trim().to_owned());
            match key.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    let (access_key_id, secret_access_key) = id.zip(secret)?;
    Some(Given { access_key_id, secret_access_key, token }.into())
}

fn container_endpoint() -> Option<(String, Option<String>)> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let url = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI").or_else(|| {
        variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("{CONTAINER}{path}"))
    })?;
    let token = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN").or_else(|| {
        let file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")?;
        std::fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
    });
    Some((url, token))
}

async fn instance(http: &reqwest::Client) -> Option<Given> {
    let base = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|_| INSTANCE.to_owned());
    if std::env::var("AWS_EC2_METADATA_DISABLED").is_ok_and(|text| text.eq_ignore_ascii_case("true")) {
        return None;
    }
    let request = http
        .put(format!("{base}/latest/api/token"))
        .header("X-aws-ec2-metadata-token-ttl-seconds", "300")
        .timeout(PATIENCE);
    let token = request.send().await.ok()?.error_for_status().ok()?.text().await.ok()?;
    let ask = |path: &str| {
        http.get(format!("{base}/latest/meta-data/iam/security-credentials/{path}"))
            .header("X-aws-ec2-metadata-token", &token)
    };
    let role = ask("").timeout(PATIENCE).send().await.ok()?.error_for_status().ok()?.text().await.ok()?;
    given(ask(role.lines().next()?.trim())).await
}

async fn given(request: reqwest::RequestBuilder) -> Option<Given> {
    let response = request.timeout(PATIENCE).send().await.ok()?.error_for_status().ok()?;
    serde_json::from_slice(&response.bytes().await.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles() {
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n[other]\naws_access_key_id=C\naws_secret_access_key = D\naws_session_token = E\n[half]\naws_access_key_id = F\n";
        let found = |profile| {
            of_profile(text, profile).map(|found| {
                (found.key().to_owned(), found.secret().to_owned(), found.token().map(str::to_owned))
            })
        };
        assert_eq!(found("default"), Some(("A".to_owned(), "B".to_owned(), None)));
        assert_eq!(found("other"), Some(("C".to_owned(), "D".to_owned(), Some("E".to_owned()))));
        assert_eq!(found("half"), None);
        assert_eq!(found("none"), None);
    }
}
