//! Whose name a request carries: from the host's configuration, or from what `docker login` left.

use std::path::Path;

use super::PullError;
use super::docker_config;
use crate::config::agent::RegistryConfig;
use crate::types::Reason;

/// Largest file that may hold a secret.
const MAX_SECRET: u64 = 64 << 10;

/// How this host says who it is.
#[derive(Clone, PartialEq)]
pub(super) enum Credentials {
    /// User and password.
    Password(String, String),
    /// A refresh token for the registry's token service.
    Identity(String),
    /// The token itself.
    Bearer(String),
}

/// Never shows what they are.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password(..) => "Password(..)",
            Self::Identity(_) => "Identity(..)",
            Self::Bearer(_) => "Bearer(..)",
        })
    }
}

/// What is sent to `authority`; `None` = it is used without. What the host's configuration says comes first.
pub(super) async fn of(authority: &str, config: &RegistryConfig) -> Result<Option<Credentials>, PullError> {
    if let Some(file) = &config.token_file {
        return read(authority, file).map(|token| Some(Credentials::Bearer(token)));
    }
    if let (Some(user), Some(file)) = (&config.username, &config.password_file) {
        return read(authority, file).map(|password| Some(Credentials::Password(user.clone(), password)));
    }
    let path = config.docker_config.clone().unwrap_or_else(docker_config::default_path);
    docker_config::look_up(&path, authority)
        .await
        .map_err(|why| PullError::retry(Reason::Auth, format!("credentials for registry {authority}: {why}")))
}

fn read(authority: &str, file: &Path) -> Result<String, PullError> {
    let read = || -> std::io::Result<String> {
        if std::fs::metadata(file)?.len() > MAX_SECRET {
            return Err(std::io::Error::other("it is too large for a secret"));
        }
        std::fs::read_to_string(file)
    };
    match read() {
        Ok(text) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(error) => {
            let what = format!("the secret {} of registry {authority}: {error}", file.display());
            Err(PullError::retry(Reason::Auth, what))
        }
    }
}
