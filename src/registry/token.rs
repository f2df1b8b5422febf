//! Bearer tokens from the token service that a registry names (distribution's "Token Authentication" and "OAuth2").

use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;

use super::PullError;
use super::challenge::{self, Challenge};
use super::credentials::Credentials;
use super::http::{authority, body, checked, unreachable};
use crate::types::{Reason, RegistryRef};

/// Largest answer of a token service.
const MAX_TOKEN: u64 = 1 << 20;

/// How long a token holds that does not say it (the specification's default).
const DEFAULT_LIFE: u64 = 60;

/// A token is not used in its last seconds: a request takes its time.
const MARGIN: Duration = Duration::from_secs(10);

/// What to send as Authorization, and until when.
#[derive(Clone)]
pub(super) struct Authorization {
    value: HeaderValue,
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Whom to ask, and for what.
pub(super) struct Asker<'a> {
    /// The client for a token service: one that does not follow redirects.
    pub door: &'a (dyn Fn(&Url) -> reqwest::Client + Send + Sync),
    pub image: &'a RegistryRef,
    pub base: &'a Url,
    /// Hosts of token services that the configuration allows.
    pub realms: &'a [String],
    pub credentials: Option<Credentials>,
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
}

impl Asker<'_> {
    /// Answers a challenge.
    pub async fn answer(self, challenge: Option<Challenge>) -> Result<Authorization, PullError> {
        let host = authority(self.base);
        match (challenge, &self.credentials) {
            (None, _) => {
                Err(self.refuse(format!("registry {host} asks for credentials in a way that is not known")))
            }
            (Some(Challenge::Basic), Some(Credentials::Password(user, password))) => {
                let pair = base64::Engine::encode(
                    &base64::engine::general_purpose::STANDARD,
                    format!("{user}:{password}"),
                );
                self.value(&format!("Basic {pair}"), None)
            }
            (Some(Challenge::Basic), _) => Err(self.refuse(format!(
                "registry {host} asks for a password: set username and password_file in [registry.\"{host}\"], or log in with docker login"
            ))),
            (Some(_), Some(Credentials::Bearer(token))) => self.value(&format!("Bearer {token}"), None),
            (Some(Challenge::Bearer { realm, service, scope }), credentials) => {
                let realm = self.realm(&realm)?;
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.image.repository));
                let service = service.unwrap_or_default();
                let request = match credentials {
                    Some(Credentials::Identity(token)) => {
                        let pairs = [
                            ("grant_type", "refresh_token"),
                            ("client_id", "gitopsd"),
                            ("service", &service),
                            ("scope", &scope),
                            ("refresh_token", token),
                        ];
                        let form = pairs.map(|(key, value)| format!("{key}={}", escaped(value))).join("&");
                        (self.door)(&realm)
                            .post(realm)
                            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                            .body(form)
                    }
                    other => {
                        let mut realm = realm;
                        realm.query_pairs_mut().append_pair("scope", &scope);
                        if !service.is_empty() {
                            realm.query_pairs_mut().append_pair("service", &service);
                        }
                        match other {
                            Some(Credentials::Password(user, password)) => {
                                (self.door)(&realm).get(realm).basic_auth(user, Some(password))
                            }
                            _ => (self.door)(&realm).get(realm),
                        }
                    }
                };
                self.fetch(request).await
            }
        }
    }

    fn realm(&self, realm: &str) -> Result<Url, PullError> {
        let host = authority(self.base);
        let url: Url = realm
            .parse()
            .map_err(|_| self.refuse(format!("registry {host} names a token service that is no URL")))?;
        if challenge::realm_is_allowed(&url, self.base, self.realms) {
            return Ok(url);
        }
        let shown = authority(&url);
        Err(self.refuse(format!(
            "registry {host} sends its clients to {shown} for tokens, which is not its own; realms = [\"{shown}\"] in [registry.\"{host}\"] would allow it"
        )))
    }

    async fn fetch(&self, request: RequestBuilder) -> Result<Authorization, PullError> {
        let host = authority(self.base);
        let response = request.send().await.map_err(|error| unreachable(self.image, &error))?;
        let bytes = body(self.image, checked(self.image, response).await?, MAX_TOKEN).await?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|_| self.refuse(format!("the token service of registry {host} gives no token")))?;
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| self.refuse(format!("the token service of registry {host} gives no token")))?;
        let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).min(86_400));
        self.value(&format!("Bearer {token}"), Some(life.saturating_sub(MARGIN)))
    }

    fn value(&self, text: &str, life: Option<Duration>) -> Result<Authorization, PullError> {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| self.refuse(format!("odd credentials for registry {}", authority(self.base))))?;
        value.set_sensitive(true);
        Ok(Authorization { value, until: life.map(|life| Instant::now() + life) })
    }

    fn refuse(&self, what: String) -> PullError {
        PullError::retry(Reason::Auth, what)
    }
}

fn escaped(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}
