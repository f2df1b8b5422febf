//! What somebody who is logged in may have: IAM Identity Center's credentials for a profile's account and role
//! (docs.aws.amazon.com, "IAM Identity Center credential provider", and its portal's API, `GetRoleCredentials`). Who is
//! logged in is what `aws sso login` left; nobody is logged in from here.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{StatusCode, Url};
use rusty_s3::Credentials;
use serde::Deserialize;

use super::settings::{self, Profile, variable};
use super::{auth, endpoints};
use crate::registry::PullError;
use crate::registry::http::Door;
use crate::registry::store::now;
use crate::types::Timestamp;

const PATIENCE: Duration = Duration::from_secs(10);

/// Largest file of a login.
const MOST: u64 = 64 << 10;

/// Whose credentials are asked for, and where.
pub(super) struct Login {
    profile: String,
    account: String,
    role: String,
    start_url: String,
    region: String,
}

/// What `aws sso login` leaves.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    start_url: String,
    access_token: String,
    expires_at: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    role_credentials: RoleCredentials,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RoleCredentials {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    /// Milliseconds since 1970.
    expiration: i64,
}

impl Login {
    /// As a profile has it; `None` = it has none.
    pub fn of(profile: &Profile) -> Result<Option<Self>, PullError> {
        let Some((account, role)) = profile.get("sso_account_id").zip(profile.get("sso_role_name")) else {
            // Half of it would let another identity take its place.
            let begun = ["sso_session", "sso_account_id", "sso_role_name"];
            return match begun.iter().find(|key| profile.get(key).is_some()) {
                Some(key) => {
                    Err(auth(format!("{profile}: `{key}` takes sso_account_id and sso_role_name beside it")))
                }
                None => Ok(None),
            };
        };
        let session = match profile.get("sso_session") {
            Some(name) => settings::sso_session(name)?,
            None => Default::default(),
        };
        let get = |key: &str| {
            let value = session.get(key).map(String::as_str).or_else(|| profile.get(key));
            value.map(str::to_owned).ok_or_else(|| auth(format!("{profile}: it has no {key}")))
        };
        let (start_url, region) = (get("sso_start_url")?, get("sso_region")?);
        let (account, role) = (account.to_owned(), role.to_owned());
        Ok(Some(Self { profile: profile.to_string(), account, role, start_url, region }))
    }

    /// Asks for them.
    pub async fn credentials(&self, door: &Door) -> Result<(Credentials, Option<Timestamp>), PullError> {
        let Self { profile, account, role, start_url, region } = self;
        let failed =
            |why: &dyn std::fmt::Display| auth(format!("{profile}: role {role} of {account}: {why}"));
        let token = token(start_url, now()).ok_or_else(|| {
            failed(&format_args!("nobody is logged in to {start_url}: `aws sso login` as who runs this"))
        })?;
        let endpoint = variable("AWS_ENDPOINT_URL_SSO")
            .or_else(|| variable("AWS_ENDPOINT_URL"))
            .unwrap_or_else(|| settings::endpoint("portal.sso", region));
        let mut url: Url = format!("{}/federation/credentials", endpoint.trim_end_matches('/'))
            .parse()
            .map_err(|error| failed(&format_args!("its endpoint: {error}")))?;
        url.query_pairs_mut().extend_pairs([("account_id", account), ("role_name", role)]);
        let request = door.direct(&url)?.get(url).header("x-amz-sso_bearer_token", token).timeout(PATIENCE);
        let response = request.send().await.map_err(|error| failed(&error.without_url()))?;
        match response.status() {
            StatusCode::UNAUTHORIZED => {
                return Err(failed(&"the login is over: `aws sso login` as who runs this"));
            }
            status if !status.is_success() => {
                return Err(failed(&format_args!("IAM Identity Center answers {}", status.as_u16())));
            }
            _ => {}
        }
        let bytes = endpoints::body(response).await.map_err(|error| failed(&error.without_url()))?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|_| failed(&"IAM Identity Center answers without credentials"))?;
        let given = answer.role_credentials;
        let end = Timestamp::from_millisecond(given.expiration).ok();
        let credentials =
            Credentials::new_with_token(given.access_key_id, given.secret_access_key, given.session_token);
        Ok((credentials, end))
    }
}

/// The token of a login that is not over, whatever its file is called.
fn token(start_url: &str, now: Timestamp) -> Option<String> {
    let same = |url: &str| url.trim_end_matches('/') == start_url.trim_end_matches('/');
    let entries = std::fs::read_dir(cache()).ok()?.flatten();
    let small =
        entries.filter(|entry| entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= MOST));
    let tokens = small.filter_map(|entry| {
        let token: Token = serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok()?;
        // Older versions of the AWS CLI write `UTC`.
        let end: Timestamp = token.expires_at.replace("UTC", "Z").parse().ok()?;
        (same(&token.start_url) && end > now).then_some((end, token.access_token))
    });
    tokens.max_by_key(|(end, _)| *end).map(|(_, token)| token)
}

fn cache() -> PathBuf {
    settings::home().join(".aws/sso/cache")
}
