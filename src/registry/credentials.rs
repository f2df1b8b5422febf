//! Whose name a request carries: from the host's configuration, or from what `docker login` left.

use std::path::{Path, PathBuf};

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
    /// A refresh token for the registry's token service, and the user that it is for, where that is said.
    Identity(String, String),
    /// The token itself.
    Bearer(String),
}

/// Never shows what they are.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password(..) => "Password(..)",
            Self::Identity(..) => "Identity(..)",
            Self::Bearer(_) => "Bearer(..)",
        })
    }
}

impl Credentials {
    /// What nobody is to be shown: the secret, and how it is written on the way.
    pub fn secrets(&self) -> Vec<String> {
        let pair =
            |user: &str, secret: &str| vec![secret.to_owned(), basic(user, secret), percent_encoded(secret)];
        match self {
            Self::Password(user, secret) | Self::Identity(user, secret) => pair(user, secret),
            Self::Bearer(secret) => vec![secret.clone()],
        }
    }
}

/// `user:password` as RFC 7617 writes it.
pub(super) fn basic(user: &str, password: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{user}:{password}"))
}

/// As in a form.
pub(super) fn percent_encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Where credentials are from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Origin {
    /// A section of the configuration, and the key that names the file.
    Section(String, &'static str),
    /// Docker's `config.json`.
    File(PathBuf),
    /// A credential helper, by its program's name.
    Helper(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Section(section, key) => write!(f, "{key} in [registry.\"{section}\"]"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Helper(program) => write!(f, "the credential helper {program}"),
        }
    }
}

/// Credentials, and where they are from.
pub(super) type Found = (Credentials, Origin);

/// What is sent to `authority`, for `repository`; `None` = it is used without. What the host's configuration says comes
/// first; `section` is that of the address.
pub(super) async fn of(
    authority: &str,
    repository: &str,
    section: &str,
    config: &RegistryConfig,
) -> Result<Option<Found>, PullError> {
    let origin = |key| Origin::Section(section.to_owned(), key);
    if let Some(file) = &config.token_file {
        let token = read(authority, file)?;
        return Ok(Some((Credentials::Bearer(token), origin("token_file"))));
    }
    if let (Some(user), Some(file)) = (&config.username, &config.password_file) {
        let password = read(authority, file)?;
        return Ok(Some((Credentials::Password(user.clone(), password), origin("password_file"))));
    }
    let path = config.docker_config.clone().unwrap_or_else(docker_config::default_path);
    docker_config::look_up(&path, authority, repository)
        .await
        .map_err(|why| PullError::retry(Reason::Auth, format!("credentials for registry {authority}: {why}")))
}

fn read(authority: &str, file: &Path) -> Result<String, PullError> {
    let read = || -> std::io::Result<String> {
        if std::fs::metadata(file)?.len() > MAX_SECRET {
            return Err(std::io::Error::other("it is too large for a secret"));
        }
        let text = std::fs::read_to_string(file)?;
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            return Err(std::io::Error::other("it is empty"));
        }
        Ok(text.to_owned())
    };
    read().map_err(|error| {
        let what = format!("the secret {} of registry {authority}: {error}", file.display());
        PullError::retry(Reason::Auth, what)
    })
}
