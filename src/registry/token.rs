//! Bearer tokens from the token service that a registry names (distribution's "Token Authentication" and "OAuth2").

use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::PullError;
use super::address::Address;
use super::answer::{Asked, body, checked};
use super::challenge::{self, Challenge};
use super::credentials::{Credentials, Found, Origin, basic, percent_encoded};
use super::http::{Doors, authority};
use super::trouble::Way;
use crate::types::{Reason, RegistryRef};

/// Largest answer of a token service.
const MAX_TOKEN: u64 = 1 << 20;

/// How long a token holds that does not say it (the specification's default).
const DEFAULT_LIFE: u64 = 60;

/// A token is not used in its last seconds: a request takes its time. Of a short life it is a part.
const MARGIN: Duration = Duration::from_secs(10);

/// What to send as Authorization, and until when.
#[derive(Clone)]
pub(super) struct Authorization {
    value: HeaderValue,
    until: Option<Instant>,
    /// Where the credentials are from that it was had for; `None` = for none.
    origin: Option<Origin>,
    /// What nobody is to be shown.
    hidden: Vec<String>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    issued_at: Option<String>,
}

/// Whom to ask, and for what.
pub(super) struct Asker<'a> {
    pub doors: &'a Doors,
    pub image: &'a RegistryRef,
    pub address: &'a Address,
    /// Hosts of token services that the configuration allows.
    pub realms: &'a [String],
    pub found: Option<Found>,
}

impl Authorization {
    /// Whether it is still good for a request that takes its time.
    pub fn holds(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// Adds it to a request.
    pub fn put(&self, request: RequestBuilder) -> RequestBuilder {
        request.header(AUTHORIZATION, self.value.clone())
    }

    /// Where the credentials are from that it was had for; `None` = for none.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// What nobody is to be shown: secrets, and how they are written on the way.
    pub fn hidden(&self) -> &[String] {
        &self.hidden
    }
}

impl Asker<'_> {
    /// Answers a challenge.
    pub async fn answer(self, challenge: Option<Challenge>) -> Result<Authorization, PullError> {
        let (whom, section) = (self.address, self.address.section());
        match (challenge, self.found.as_ref().map(|(credentials, _)| credentials)) {
            (None, _) => {
                Err(self.refuse(format!("{whom} asks for credentials in a way that is not known")))
            }
            (Some(Challenge::Basic), Some(Credentials::Password(user, password))) => {
                self.value(&format!("Basic {}", basic(user, password)), None)
            }
            (Some(Challenge::Basic), Some(_)) => Err(self.refuse(format!(
                "{whom} asks for a password, and a token is what is known; set username and password_file in [registry.\"{section}\"]"
            ))),
            (Some(Challenge::Basic), None) => Err(self.refuse(format!(
                "{whom} asks for a password: set username and password_file in [registry.\"{section}\"], or log in with docker login"
            ))),
            (Some(_), Some(Credentials::Bearer(token))) => self.value(&format!("Bearer {token}"), None),
            (Some(Challenge::Bearer { realm, service, scope }), credentials) => {
                let realm = self.realm(&realm)?;
                let scope = scope
                    .unwrap_or_else(|| format!("repository:{}:pull", self.address.repository(self.image)));
                let service = service.unwrap_or_default();
                let response = match credentials {
                    Some(Credentials::Identity(user, token)) => {
                        let posted = self.post(&realm, &service, &scope, token).await?;
                        // Services without OAuth2 know the way with a password, which a refresh token stands for there.
                        match posted.status() {
                            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                                self.get(&realm, &service, &scope, Some((user, token))).await?
                            }
                            _ => posted,
                        }
                    }
                    Some(Credentials::Password(user, password)) => {
                        self.get(&realm, &service, &scope, Some((user, password))).await?
                    }
                    _ => self.get(&realm, &service, &scope, None).await?,
                };
                self.take(&realm, response).await
            }
        }
    }

    fn realm(&self, realm: &str) -> Result<Url, PullError> {
        let whom = self.address;
        let url: Url =
            realm.parse().map_err(|_| self.refuse(format!("{whom} names a token service that is no URL")))?;
        if challenge::realm_is_allowed(&url, self.address.api(), self.realms) {
            return Ok(url);
        }
        let (shown, section) = (authority(&url), self.address.section());
        Err(self.refuse(format!(
            "{whom} sends its clients to {shown} for tokens, which is not its own; realms = [\"{shown}\"] in [registry.\"{section}\"] would allow it"
        )))
    }

    /// With a refresh token (distribution's "OAuth2").
    async fn post(
        &self,
        realm: &Url,
        service: &str,
        scope: &str,
        token: &str,
    ) -> Result<Response, PullError> {
        let pairs = [
            ("grant_type", "refresh_token"),
            ("client_id", "gitopsd"),
            ("service", service),
            ("scope", scope),
            ("refresh_token", token),
        ];
        let form = pairs.map(|(key, value)| format!("{key}={}", percent_encoded(value))).join("&");
        let request = self
            .doors
            .client(self.address, realm)?
            .post(realm.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        self.send(realm, request).await
    }

    /// With a password, or for everybody (distribution's "Token Authentication").
    async fn get(
        &self,
        realm: &Url,
        service: &str,
        scope: &str,
        password: Option<(&str, &str)>,
    ) -> Result<Response, PullError> {
        let mut url = realm.clone();
        url.query_pairs_mut().append_pair("scope", scope);
        if !service.is_empty() {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.doors.client(self.address, realm)?.get(url);
        if let Some((user, password)) = password {
            request = request.basic_auth(user, Some(password));
        }
        self.send(realm, request).await
    }

    async fn send(&self, realm: &Url, request: RequestBuilder) -> Result<Response, PullError> {
        request.send().await.map_err(|error| self.way(realm).trouble(&error))
    }

    fn way(&self, realm: &Url) -> Way<'_> {
        Way {
            whom: format!("the token service {} of {}", authority(realm), self.address),
            section: format!("[registry.\"{}\"]", self.address.section()),
            chooses: true,
            elsewhere: None,
            proxy: self.doors.proxy(realm),
            certified: self.doors.is_certified(self.address, realm),
        }
    }

    /// The token of an answer.
    async fn take(&self, realm: &Url, response: Response) -> Result<Authorization, PullError> {
        let host = authority(realm);
        let hidden = self.secrets();
        let asked = Asked {
            address: self.address,
            image: self.image,
            tokens: Some(&host),
            origin: self.found.as_ref().map(|(_, origin)| origin),
            hidden: &hidden,
        };
        let response = checked(asked, response).await?;
        let headers = response.headers().clone();
        let lost = |error: &reqwest::Error| self.way(realm).trouble(error);
        let bytes = body(asked, response, MAX_TOKEN, &lost).await?;
        let none = || self.refuse(format!("the token service {host} of {} gives no token", self.address));
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| none())?;
        let life = life(&answer, &headers);
        let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
        let token = token.filter(|token| !token.is_empty()).ok_or_else(none)?;
        self.value(&format!("Bearer {token}"), Some(life))
    }

    fn value(&self, text: &str, life: Option<Duration>) -> Result<Authorization, PullError> {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| self.refuse(format!("odd credentials for {}", self.address)))?;
        value.set_sensitive(true);
        let mut hidden = self.secrets();
        hidden.extend(text.split_once(' ').map(|(_, secret)| secret.to_owned()));
        let origin = self.found.as_ref().map(|(_, origin)| origin.clone());
        Ok(Authorization { value, until: life.map(|life| Instant::now() + life), origin, hidden })
    }

    fn secrets(&self) -> Vec<String> {
        self.found.as_ref().map(|(credentials, _)| credentials.secrets()).unwrap_or_default()
    }

    fn refuse(&self, what: String) -> PullError {
        PullError::retry(Reason::Auth, what)
    }
}

/// How long a token may be used from now on. One that comes out of a cache is older than its answer; how much, the
/// service's own clock says, so that no clock of this host has a say.
fn life(answer: &Answer, headers: &HeaderMap) -> Duration {
    let whole = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).min(86_400));
    let age = || {
        let issued: jiff::Timestamp = answer.issued_at.as_deref()?.parse().ok()?;
        let date = jiff::fmt::rfc2822::parse(headers.get(DATE)?.to_str().ok()?).ok()?.timestamp();
        let age = date.as_second().saturating_sub(issued.as_second());
        u64::try_from(age).ok().map(Duration::from_secs)
    };
    let left = whole.saturating_sub(age().unwrap_or_default());
    left.saturating_sub(MARGIN.min(left / 5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_life_that_they_say() {
        let date = "Wed, 21 Oct 2026 07:28:30 GMT";
        let rows: &[(&str, Option<&str>, u64)] = &[
            ("{}", None, 50),
            (r#"{"expires_in": 300}"#, Some(date), 290),
            (r#"{"expires_in": 5}"#, None, 4),
            (r#"{"expires_in": 0}"#, None, 0),
            (r#"{"expires_in": 99999999999}"#, None, 86_390),
            // Issued half a minute ago.
            (r#"{"expires_in": 300, "issued_at": "2026-10-21T07:28:00Z"}"#, Some(date), 260),
            (r#"{"expires_in": 300, "issued_at": "2026-10-21T09:28:00.5+02:00"}"#, Some(date), 260),
            (r#"{"issued_at": "2026-10-21T07:28:00Z"}"#, Some(date), 24),
            (r#"{"expires_in": 20, "issued_at": "2026-10-21T07:28:00Z"}"#, Some(date), 0),
            // It cannot be told how long ago that was.
            (r#"{"expires_in": 300, "issued_at": "2026-10-21T07:28:00Z"}"#, None, 290),
            (r#"{"expires_in": 300, "issued_at": "2026-10-21T07:28:00Z"}"#, Some("today"), 290),
            (r#"{"expires_in": 300, "issued_at": "2026-10-21T07:29:00Z"}"#, Some(date), 290),
            (r#"{"expires_in": 300, "issued_at": "just now"}"#, Some(date), 290),
        ];
        for (text, date, seconds) in rows {
            let mut headers = HeaderMap::new();
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            let answer = serde_json::from_str(text).unwrap();
            assert_eq!(life(&answer, &headers).as_secs(), *seconds, "{text} at {date:?}");
        }
    }
}
