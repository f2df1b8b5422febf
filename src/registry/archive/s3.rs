//! Objects of S3 and its likes: addresses, and signatures (SigV4, in the query).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::Url;
use rusty_s3::actions::{GetObject, S3Action};
use rusty_s3::{Bucket, UrlStyle};

use super::aws::{Chain, settings};
use crate::config::agent::S3Config;
use crate::registry::PullError;
use crate::registry::http::{Door, Tls};
use crate::registry::proxies::Proxies;
use crate::types::Reason;

/// How long a signature is good: a request begins within it.
const SIGNED_FOR: Duration = Duration::from_secs(900);

/// Where S3 is, and who asks.
pub(in crate::registry) struct S3 {
    config: S3Config,
    /// Made for the first object: it takes reading all authorities, and most hosts have no S3. Fails where the configured
    /// authority cannot be read.
    door: OnceLock<Result<Door, PullError>>,
    chain: Chain,
}

/// One object.
pub(super) struct Object {
    s3: Arc<S3>,
    bucket: Bucket,
    key: String,
}

impl S3 {
    /// By the host's configuration; touches no network.
    pub fn new(config: S3Config) -> Self {
        Self { config, door: OnceLock::new(), chain: Chain::default() }
    }

    fn door(&self) -> Result<&Door, PullError> {
        let make = || {
            let tls = Tls { ca_file: self.config.ca_file.clone(), client: None };
            Door::new("s3", &tls, &Arc::new(Proxies::of_environment()?))
        };
        self.door.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// The client for objects.
    pub fn http(&self) -> Result<reqwest::Client, PullError> {
        Ok(self.door()?.following()?.clone())
    }

    /// An object `s3://bucket/key`.
    pub(super) async fn object(self: &Arc<Self>, text: &str) -> Result<Object, PullError> {
        let invalid =
            |why: &dyn std::fmt::Display| PullError::fatal(Reason::ConfigInvalid, format!("{text}: {why}"));
        let (bucket, key) = text
            .strip_prefix("s3://")
            .and_then(|rest| rest.split_once('/'))
            .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
            .ok_or_else(|| invalid(&"an object is s3://bucket/key"))?;
        let region = self.region()?;
        let endpoint = match &self.config.endpoint {
            Some(endpoint) => endpoint.as_str().to_owned(),
            None => settings::variable("AWS_ENDPOINT_URL_S3")
                .or_else(|| settings::variable("AWS_ENDPOINT_URL"))
                .unwrap_or_else(|| settings::endpoint("s3", &region)),
        };
        let endpoint: Url = endpoint.parse().map_err(|error| invalid(&error))?;
        let style = if self.config.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let bucket =
            Bucket::new(endpoint, style, bucket.to_owned(), region).map_err(|error| invalid(&error))?;
        Ok(Object { s3: self.clone(), bucket, key: key.to_owned() })
    }

    fn region(&self) -> Result<String, PullError> {
        match &self.config.region {
            Some(region) => Ok(region.clone()),
            None => settings::region(),
        }
    }
}

impl Object {
    /// The address for one request; not signed where this host has no credentials.
    pub async fn sign(&self) -> Result<Url, PullError> {
        let credentials = self.s3.chain.credentials(self.s3.door()?, self.bucket.region()).await?;
        Ok(GetObject::new(&self.bucket, credentials.as_ref(), &self.key).sign(SIGNED_FOR))
    }

    /// The region that is asked.
    pub fn region(&self) -> &str {
        self.bucket.region()
    }

    /// They were refused.
    pub async fn forget_credentials(&self) {
        self.s3.chain.forget().await;
    }
}
