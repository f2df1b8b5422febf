//! Whose word S3 takes: credentials by the usual AWS chain, kept until shortly before they expire.
//!
//! The chain: the environment; a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`); the profile in the shared files, with a role
//! that it takes by other credentials, its own keys, web identity, `credential_process` or login (SSO); the container's endpoint
//! (ECS, EKS); the instance's (IMDSv2). The first that is set up counts: where it fails, that is told, and no other identity is tried. A host that has none of
//! them asks unsigned, as for a public bucket.
//!
//! Source: docs.aws.amazon.com, SDKs and Tools reference, "Standardized credential providers".

mod endpoints;
mod process;
mod role;
pub(super) mod settings;
mod sigv4;
mod sso;
mod sts;

use std::time::{Duration, Instant};

use rusty_s3::Credentials;
use serde::Deserialize;

use crate::registry::PullError;
use crate::registry::http::Door;
use crate::registry::store::now;
use crate::types::{Reason, Timestamp};
use settings::Profile;

/// Credentials are replaced so long before they end.
const EARLY: Duration = Duration::from_secs(300);

/// What says nothing of its end is looked for again after this.
const KEPT: Duration = Duration::from_secs(300);

/// A failure is not tried again before: an archive is read by many requests.
const SOON: Duration = Duration::from_secs(5);

/// Who this host is to AWS.
#[derive(Default)]
pub(super) struct Chain {
    known: tokio::sync::Mutex<Option<Known>>,
}

struct Known {
    found: Result<Option<Credentials>, PullError>,
    until: Instant,
}

/// Credentials as AWS's services and programs write them in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Given {
    access_key_id: String,
    secret_access_key: String,
    /// What endpoints call it.
    token: Option<String>,
    /// What programs call it.
    session_token: Option<String>,
    expiration: Option<Timestamp>,
}

impl Given {
    fn into_parts(self) -> (Credentials, Option<Timestamp>) {
        let token = self.token.or(self.session_token).filter(|token| !token.is_empty());
        let credentials = match token {
            Some(token) => Credentials::new_with_token(self.access_key_id, self.secret_access_key, token),
            None => Credentials::new(self.access_key_id, self.secret_access_key),
        };
        (credentials, self.expiration)
    }
}

/// Credentials, and when they end.
type Found = Option<(Credentials, Option<Timestamp>)>;

impl Chain {
    /// What is to be signed with now. `door` is to STS.
    pub async fn credentials(&self, door: &Door, region: &str) -> Result<Option<Credentials>, PullError> {
        // Held while they are fetched: one look-up is for all who wait.
        let mut known = self.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| Instant::now() < known.until) {
            return known.found.clone();
        }
        let looked = look(door, region).await;
        let span = match &looked {
            Ok(Some((_, Some(end)))) => span(*end, now()),
            Ok(_) => KEPT,
            Err(_) => SOON,
        };
        let found = looked.map(|found| found.map(|(credentials, _)| credentials));
        *known = Some(Known { found: found.clone(), until: Instant::now() + span });
        found
    }

    /// They may have been replaced.
    pub async fn forget(&self) {
        *self.known.lock().await = None;
    }
}

/// How long credentials are kept that end then: those that end soon for half of what is left.
fn span(end: Timestamp, now: Timestamp) -> Duration {
    let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
    left.saturating_sub(EARLY).max(left / 2)
}

async fn look(door: &Door, region: &str) -> Result<Found, PullError> {
    if let Some(found) = Credentials::from_env() {
        // They may be there for a role alone, if the profile that is named says so.
        if let Some(roles) = environments_roles()? {
            return roles.credentials(door, region).await.map(Some);
        }
        return Ok(Some((found, None)));
    }
    if let Some(identity) = sts::Identity::from_env() {
        return identity.assume(door, region).await.map(Some);
    }
    let profile = settings::profile()?;
    // A role that is taken by other credentials counts before them.
    if let Some(roles) = role::Roles::of(&profile)? {
        return roles.credentials(door, region).await.map(Some);
    }
    if let Some(found) = of_profile(&profile, door, region).await? {
        return Ok(Some(found));
    }
    if let Some(given) = endpoints::container().await? {
        return Ok(Some(given.into_parts()));
    }
    Ok(endpoints::instance().await?.map(Given::into_parts))
}

/// The roles of the profile that `AWS_PROFILE` names, if they are taken by what the environment holds. Where those cannot be
/// taken, what the environment holds is for nothing else.
fn environments_roles() -> Result<Option<role::Roles>, PullError> {
    if settings::variable("AWS_PROFILE").is_none() {
        return Ok(None);
    }
    let Ok(profile) = settings::profile() else { return Ok(None) };
    match role::Roles::of(&profile) {
        Ok(roles) => Ok(roles.filter(role::Roles::begin_with_environment)),
        Err(error) if profile.get("credential_source") == Some("Environment") => Err(error),
        Err(_) => Ok(None),
    }
}

/// What a profile holds, without a role that it takes by others.
async fn of_profile(profile: &Profile, door: &Door, region: &str) -> Result<Found, PullError> {
    if let Some(found) = profile.keys() {
        return Ok(Some((found, None)));
    }
    if let Some(identity) = sts::Identity::of(profile) {
        return identity.assume(door, region).await.map(Some);
    }
    if let Some(command) = profile.get("credential_process") {
        return process::run(command).await.map(|given| Some(given.into_parts()));
    }
    if profile.get("mfa_serial").is_some() {
        return Err(unknown(profile, "mfa_serial"));
    }
    match sso::Login::of(profile)? {
        Some(login) => login.credentials(door).await.map(Some),
        None => Ok(None),
    }
}

fn unknown(profile: &Profile, key: &str) -> PullError {
    auth(format!(
        "{profile}: `{key}` is a way to credentials that this version does not know; \
         `credential_process = aws configure export-credentials --profile NAME` takes every way that the AWS CLI knows"
    ))
}

fn auth(what: impl Into<String>) -> PullError {
    PullError::retry(Reason::Auth, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_replaced_before_they_end() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let kept = |end: &str| span(end.parse().unwrap(), now).as_secs();
        assert_eq!(kept("2026-11-21T11:00:00Z"), 3300);
        assert_eq!(kept("2026-11-21T10:02:00Z"), 60);
        assert_eq!(kept("2026-11-21T09:59:00Z"), 0);
    }

    #[test]
    fn both_ways_to_write_them() {
        let endpoint = r#"{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"B","Token":"C","Expiration":"2026-11-21T16:00:00Z"}"#;
        let program = r#"{"Version":1,"AccessKeyId":"A","SecretAccessKey":"B","SessionToken":"C"}"#;
        for (text, ends) in [(endpoint, true), (program, false)] {
            let (found, end) = serde_json::from_str::<Given>(text).unwrap().into_parts();
            assert_eq!((found.key(), found.secret(), found.token()), ("A", "B", Some("C")));
            assert_eq!(end.is_some(), ends);
        }
    }
}
