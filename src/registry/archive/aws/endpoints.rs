//! Endpoints of the machine itself: the container's (docs.aws.amazon.com, "Container credential provider") and the
//! instance's ("Use the Instance Metadata Service", version 2). Never by way of a proxy.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, Url};

use super::settings::variable;
use super::{Given, auth};
use crate::registry::PullError;

/// They answer at once, or are not there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Largest answer.
const MOST: u64 = 64 << 10;

const INSTANCE: &str = "http://169.254.169.254";

const CONTAINER: &str = "http://169.254.170.2";

fn client() -> Result<Client, PullError> {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE)
        .build()
        .map_err(|error| auth(format!("making an http client: {error}")))
}

/// The container's, where its environment names one.
pub(super) async fn container() -> Result<Option<Given>, PullError> {
    let url = match variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        Some(path) => format!("{CONTAINER}{path}"),
        None => match variable("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
            Some(url) => url,
            None => return Ok(None),
        },
    };
    let failed = |why: &dyn std::fmt::Display| auth(format!("credentials of the container: {why}"));
    let url: Url = url.parse().map_err(|error| failed(&error))?;
    if !may_be_asked(&url) {
        return Err(failed(&"plain http is for this machine's own endpoints"));
    }
    let mut request = client()?.get(url);
    let token = match variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(file) => {
            Some(std::fs::read_to_string(&file).map_err(|error| failed(&format_args!("{file}: {error}")))?)
        }
        None => variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    };
    if let Some(token) = token {
        request = request.header("Authorization", token.trim());
    }
    let response = request.send().await.map_err(|error| failed(&error.without_url()))?;
    if !response.status().is_success() {
        return Err(failed(&format_args!("its endpoint answers {}", response.status().as_u16())));
    }
    let bytes = body(response).await.map_err(|error| failed(&error.without_url()))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|_| failed(&"its endpoint sends none"))
}

/// The token that goes there is a secret.
fn may_be_asked(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let known = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23", "localhost"];
    let loops = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    url.scheme() == "https" || known.contains(&host) || loops
}

/// The instance's. A machine that has none, or an instance without a role, is not in error.
pub(super) async fn instance() -> Result<Option<Given>, PullError> {
    if variable("AWS_EC2_METADATA_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let base = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| INSTANCE.to_owned());
    let base = base.trim_end_matches('/');
    let http = client()?;
    let token = http
        .put(format!("{base}/latest/api/token"))
        .header("X-aws-ec2-metadata-token-ttl-seconds", "300")
        .send()
        .await;
    // Nobody is there, or it is not an instance's.
    let Ok(token) = token.and_then(Response::error_for_status) else { return Ok(None) };
    let failed =
        |error: reqwest::Error| auth(format!("credentials of the instance: {}", error.without_url()));
    let token = body(token).await.map_err(failed)?;
    let ask = |path: &str| {
        http.get(format!("{base}/latest/meta-data/iam/security-credentials/{path}"))
            .header("X-aws-ec2-metadata-token", token.as_slice())
            .send()
    };
    let roles = ask("").await.map_err(failed)?;
    if roles.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let roles = body(roles.error_for_status().map_err(failed)?).await.map_err(failed)?;
    let roles = String::from_utf8_lossy(&roles).into_owned();
    let Some(role) = roles.lines().map(str::trim).find(|role| !role.is_empty()) else { return Ok(None) };
    let response = ask(role).await.and_then(Response::error_for_status).map_err(failed)?;
    let bytes = body(response).await.map_err(failed)?;
    let none = |_| auth(format!("credentials of the instance: role {role} has none"));
    serde_json::from_slice(&bytes).map(Some).map_err(none)
}

/// A small answer: what is longer is none.
pub(super) async fn body(mut response: Response) -> reqwest::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() as u64 + chunk.len() as u64 > MOST {
            return Ok(Vec::new());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_on_this_machine() {
        for (url, fine) in [
            ("http://169.254.170.2/v2/x", true),
            ("http://169.254.170.23/v1/credentials", true),
            ("http://[fd00:ec2::23]/v1/credentials", true),
            ("http://127.0.0.1:8080/x", true),
            ("http://[::1]/x", true),
            ("https://vault.example.org/x", true),
            ("http://vault.example.org/x", false),
            ("http://169.254.170.3/x", false),
        ] {
            assert_eq!(may_be_asked(&url.parse().unwrap()), fine, "{url}");
        }
    }
}
