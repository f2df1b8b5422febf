//! One request of a forge's API.
//!
//! Sources: docs.github.com, REST API, "Commit statuses"; docs.gitlab.com, "Commits API", "Set the pipeline status of a
//! commit"; Gitea's and Forgejo's API (`/api/swagger`), `repoCreateStatus`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Url};
use serde_json::{Value, json};

use super::{CommitStatus, Verdict};
use crate::config::agent::{Forge, ForgeConfig};
use crate::config::forge::place;
use crate::registry::{client_for, innermost};
use crate::types::{HostName, Reason, Refusal};

/// Longest time for one request.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much of an answer is read: it only goes into a message.
const MAX_ANSWER: usize = 4 << 10;

/// Largest token file.
const MAX_TOKEN: u64 = 64 << 10;

/// Longest pause that a forge is obeyed for.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Says to one forge what became of commits on one host.
#[derive(Debug, Clone)]
pub struct Poster {
    forge: Forge,
    /// Up to where the commit's name goes.
    address: String,
    token_file: PathBuf,
    ca_file: Option<PathBuf>,
    context: String,
}

/// Why a status was not taken.
#[derive(Debug)]
pub struct PostError {
    /// For people.
    pub refusal: Refusal,
    /// How long the forge asks to be left alone.
    pub pause: Option<Duration>,
    /// The same status would be refused again: there is no such commit or repository, or it has too many.
    pub is_final: bool,
}

impl Poster {
    /// Prepares the address; asks nobody.
    ///
    /// # Errors
    /// `config-invalid`: the address is not that of a repository at a forge.
    pub fn new(config: &ForgeConfig, host: &HostName) -> Result<Self, Refusal> {
        let Some((origin, path)) = place(&config.url) else {
            let message = format!("status.url {} is not a repository's address at a forge", config.url);
            return Err(Refusal::new(Reason::ConfigInvalid, message));
        };
        Ok(Self {
            forge: config.forge,
            address: address(config.forge, &origin, &path),
            token_file: config.token_file.clone(),
            ca_file: config.ca_file.clone(),
            context: format!("gitopsd/{host}"),
        })
    }

    /// Shows a status.
    ///
    /// # Errors
    /// `auth`: the token cannot be read, or is not taken. `tls`: the certificate is not one this host trusts.
    /// `status-refused`: all else, with what the forge says.
    pub async fn post(&self, status: &CommitStatus) -> Result<(), PostError> {
        let named = format!("{}{}", self.address, status.commit);
        let failed = |reason, why: &str| PostError {
            refusal: Refusal::new(reason, format!("show a commit status at {named}: {why}")),
            pause: None,
            is_final: false,
        };
        let url: Url = named.parse().map_err(|_| failed(Reason::ConfigInvalid, "it is no address"))?;
        let headers = self.headers().map_err(|why| failed(Reason::Auth, &why))?;
        let client: Client = client_for("the forge of [status]", self.ca_file.clone(), &url)
            .map_err(|error| PostError { refusal: error.to_refusal(), pause: None, is_final: false })?;
        let body = self.body(status).to_string();
        let answer = tokio::time::timeout(PATIENCE, async {
            let mut answer = client.post(url).headers(headers).body(body).send().await?;
            let mut text = Vec::new();
            while text.len() < MAX_ANSWER
                && let Some(chunk) = answer.chunk().await?
            {
                text.extend_from_slice(&chunk);
            }
            text.truncate(MAX_ANSWER);
            Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.headers().clone(), text))
        });
        let (code, headers, text) = match answer.await {
            Err(_) => return Err(failed(Reason::StatusRefused, "no answer within 30 s")),
            Ok(Err(error)) => {
                let why = innermost(&error).unwrap_or_else(|| error.to_string());
                let reason = if why.contains("certificate") { Reason::Tls } else { Reason::StatusRefused };
                return Err(failed(reason, &why));
            }
            Ok(Ok(answer)) => answer,
        };
        let said = said(&text);
        // GitLab does not take what it shows already: a status that was posted and not noted.
        let again = self.forge == Forge::GitLab && code == 400 && said.contains("Cannot transition status");
        if (200..300).contains(&code) || again {
            return Ok(());
        }
        let reason = if code == 401 { Reason::Auth } else { Reason::StatusRefused };
        let mut error = failed(reason, &format!("{code} {said}"));
        let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        error.is_final = matches!(code, 400 | 404 | 409 | 410 | 422);
        error.pause = seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
        Err(error)
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let token = token(&self.token_file)?;
        let secret = |text: String| {
            let mut value =
                HeaderValue::from_str(&text).map_err(|_| "the token holds what no header may".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.forge {
            Forge::GitHub => {
                headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
                headers.insert(
                    HeaderName::from_static("x-github-api-version"),
                    HeaderValue::from_static("2022-11-28"),
                );
                headers.insert(AUTHORIZATION, secret(format!("Bearer {token}"))?);
            }
            Forge::GitLab => {
                headers.insert(HeaderName::from_static("private-token"), secret(token)?);
            }
            Forge::Gitea => {
                headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
                headers.insert(AUTHORIZATION, secret(format!("token {token}"))?);
            }
        }
        Ok(headers)
    }

    fn body(&self, status: &CommitStatus) -> Value {
        let state = match (status.verdict, self.forge) {
            (Verdict::Pending, _) => "pending",
            (Verdict::Success, _) => "success",
            (Verdict::Failure, Forge::GitLab) => "failed",
            (Verdict::Failure, _) => "failure",
            (Verdict::Superseded, Forge::GitLab) => "canceled",
            // The others have no word for it that all their versions take.
            (Verdict::Superseded, _) => "error",
        };
        let name = if self.forge == Forge::GitLab { "name" } else { "context" };
        json!({ "state": state, "description": status.description, name: self.context })
    }
}

/// Where statuses are posted to, up to the commit's name. `path` is `owner/repo`, below the forge's own place.
fn address(forge: Forge, origin: &str, path: &str) -> String {
    match forge {
        Forge::GitHub if origin == "https://github.com" => {
            format!("https://api.github.com/repos/{path}/statuses/")
        }
        Forge::GitLab => {
            let project = utf8_percent_encode(path, NON_ALPHANUMERIC).to_string();
            // These are what paths hold beside letters and digits, and need no escape (RFC 3986, section 2.3).
            let project =
                project.replace("%2D", "-").replace("%2E", ".").replace("%5F", "_").replace("%7E", "~");
            format!("{origin}/api/v4/projects/{project}/statuses/")
        }
        // The last two parts are the repository; what is before them is where the forge is installed.
        Forge::GitHub | Forge::Gitea => {
            let api = if forge == Forge::GitHub { "api/v3" } else { "api/v1" };
            let mut parts = path.rsplitn(3, '/');
            let (name, owner) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let below = parts.next().map(|below| format!("/{below}")).unwrap_or_default();
            format!("{origin}{below}/{api}/repos/{owner}/{name}/statuses/")
        }
    }
}

fn token(file: &Path) -> Result<String, String> {
    let what = |why: &str| format!("status.token_file {}: {why}", file.display());
    let length = std::fs::metadata(file).map_err(|error| what(&error.to_string()))?.len();
    if length > MAX_TOKEN {
        return Err(what("larger than 64 KiB"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| what(&error.to_string()))?;
    match text.trim() {
        "" => Err(what("empty")),
        token => Ok(token.to_owned()),
    }
}

/// What an answer says, for people: forges put it into `message` or `error`.
fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let value: Option<Value> = serde_json::from_str(&text).ok();
    let field = value.as_ref().and_then(|value| value.get("message").or_else(|| value.get("error")));
    let text = match field {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => text.into_owned(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (forge, origin, path, expected) in [
            (
                Forge::GitHub,
                "https://github.com",
                "ops/config",
                "https://api.github.com/repos/ops/config/statuses/",
            ),
            (
                Forge::GitHub,
                "https://ghe.lan",
                "ops/config",
                "https://ghe.lan/api/v3/repos/ops/config/statuses/",
            ),
            (
                Forge::GitLab,
                "https://gitlab.com",
                "a/b/c-d.e",
                "https://gitlab.com/api/v4/projects/a%2Fb%2Fc-d.e/statuses/",
            ),
            (
                Forge::Gitea,
                "https://codeberg.org",
                "ops/config",
                "https://codeberg.org/api/v1/repos/ops/config/statuses/",
            ),
            (
                Forge::Gitea,
                "http://h:3000",
                "git/ops/config",
                "http://h:3000/git/api/v1/repos/ops/config/statuses/",
            ),
        ] {
            assert_eq!(address(forge, origin, path), expected);
        }
    }

    #[test]
    fn what_is_said() {
        assert_eq!(said(br#"{"message": "Bad\ncredentials"}"#), "Bad credentials");
        assert_eq!(said(br#"{"message": {"state": ["is bad"]}}"#), r#"{"state":["is bad"]}"#);
        assert_eq!(said(b"<html>no\r\n"), "<html>no");
    }
}
