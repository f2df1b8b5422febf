//! Docker's `config.json`: what `docker login` left on this host (docs.docker.com, "docker login", "Credential stores").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::credentials::Credentials;

/// Largest file, and largest answer of a helper.
const MOST: u64 = 1 << 20;

/// A helper that asks somebody, or hangs, is ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// Docker Hub's name there.
const HUB: &str = "https://index.docker.io/v1/";

/// What is said of a user when the password is an identity token (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Where Docker keeps it for whoever runs this.
pub(super) fn default_path() -> PathBuf {
    match std::env::var_os("DOCKER_CONFIG") {
        Some(folder) => PathBuf::from(folder).join("config.json"),
        None => {
            // A service has no HOME; the agent is root.
            let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
            PathBuf::from(home).join(".docker/config.json")
        }
    }
}

/// The credentials for a registry; `None` = the file, if it is there, knows of none. Errors hold no secret.
pub(super) async fn look_up(path: &Path, authority: &str) -> Result<Option<Credentials>, String> {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    // serde's own words may quote what it read.
    let file: File = serde_json::from_slice(&text).map_err(|error| {
        format!(
            "{} is not Docker's config.json: line {}, column {}",
            path.display(),
            error.line(),
            error.column()
        )
    })?;
    let names = names_of(authority);
    let helper = names.iter().find_map(|name| file.cred_helpers.get(name)).or(file.creds_store.as_ref());
    if let Some(helper) = helper {
        for name in &names {
            if let Some(found) = ask(helper, name).await? {
                return Ok(Some(found));
            }
        }
    }
    match names.iter().find_map(|name| file.auths.get(name)) {
        Some(auth) => {
            decode(auth).map_err(|why| format!("{}: `auths` for {authority}: {why}", path.display()))
        }
        None => Ok(None),
    }
}

/// A registry goes by several names there.
fn names_of(authority: &str) -> Vec<String> {
    let mut names =
        vec![authority.to_owned(), format!("https://{authority}"), format!("https://{authority}/v1/")];
    if matches!(authority, "docker.io" | "registry-1.docker.io" | "index.docker.io") {
        names.insert(0, HUB.to_owned());
    }
    names
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let length = std::fs::metadata(path)?.len();
    if length > MOST {
        return Err(std::io::Error::other(format!("{length} bytes are too many")));
    }
    std::fs::read(path)
}

fn decode(auth: &Auth) -> Result<Option<Credentials>, &'static str> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(token) = given(&auth.registry_token) {
        return Ok(Some(Credentials::Bearer(token)));
    }
    if let Some(token) = given(&auth.identity_token) {
        return Ok(Some(Credentials::Identity(token)));
    }
    if let (Some(user), Some(password)) = (given(&auth.username), given(&auth.password)) {
        return Ok(Some(Credentials::Password(user, password)));
    }
    let Some(encoded) = given(&auth.auth) else { return Ok(None) };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded.trim())
        .map_err(|_| "`auth` is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "`auth` is not text")?;
    let (user, password) = text.split_once(':').ok_or("`auth` is not user:password")?;
    Ok(Some(Credentials::Password(user.to_owned(), password.trim_end_matches('\0').to_owned())))
}

/// Asks `docker-credential-NAME get`. What it says is a secret, and shown to nobody.
async fn ask(helper: &str, registry: &str) -> Result<Option<Credentials>, String> {
    if helper.is_empty() || helper.contains('/') {
        return Err(format!("`{}` is not the name of a credential helper", helper.escape_debug()));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| format!("the credential helper {program}: {why}");
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let group = child.id();
    let talk = async {
        if let Some(mut input) = child.stdin.take() {
            // One that does not read what it is asked has its own answer.
            let _ = input.write_all(registry.as_bytes()).await;
        }
        let mut text = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(MOST).read_to_end(&mut text).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, text))
    };
    let Ok(talked) = tokio::time::timeout(PATIENCE, talk).await else {
        // With whatever it started; the child itself is reaped by its runtime.
        if let Some(group) =
            group.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        return Err(failed(format!("no answer within {} s", PATIENCE.as_secs())));
    };
    let (status, text) = talked.map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        // The protocol's only way to say "nothing" (docker-credential-helpers, credentials/error.go).
        let nothing = String::from_utf8_lossy(&text).contains("credentials not found");
        return if nothing { Ok(None) } else { Err(failed(status.to_string())) };
    }
    let answer: Answer =
        serde_json::from_slice(&text).map_err(|_| failed("its answer is not of its protocol".to_owned()))?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::Identity(answer.secret),
        _ => Credentials::Password(answer.username, answer.secret),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn find(text: &str, authority: &str) -> Result<Option<Credentials>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        look_up(&path, authority).await
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password(user.to_owned(), password.to_owned()))
    }

    #[tokio::test]
    async fn logins_are_found() {
        let text = r#"{"auths": {
            "r.example.org:5000": {"auth": "dXNlcjpwYTpzcw=="},
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
            "id.example.org": {"auth": "dXNlcjo=", "identitytoken": "secret"},
            "bearer.example.org": {"registrytoken": "secret"},
            "empty.example.org": {}}, "HttpHeaders": {"User-Agent": "x"}}"#;
        assert_eq!(find(text, "r.example.org:5000").await, Ok(password("user", "pa:ss")));
        assert_eq!(find(text, "registry-1.docker.io").await, Ok(password("hub", "x")));
        assert_eq!(find(text, "id.example.org").await, Ok(Some(Credentials::Identity("secret".to_owned()))));
        assert_eq!(
            find(text, "bearer.example.org").await,
            Ok(Some(Credentials::Bearer("secret".to_owned())))
        );
        assert_eq!(find(text, "empty.example.org").await, Ok(None));
        assert_eq!(find(text, "other.example.org").await, Ok(None));
        assert_eq!(look_up(Path::new("/nonexistent"), "r").await, Ok(None));
    }

    #[tokio::test]
    async fn errors_hold_no_secret() {
        for text in [
            r#"{"auths": {"r": {"auth": "secret"#,
            r#"{"auths": {"r": "secret"}}"#,
            r#"{"auths": {"r": {"auth": "c2VjcmV0"}}}"#,
            r#"{"auths": {"r": {"auth": "!secret!"}}}"#,
            r#"{"credsStore": "../../bin/secret"}"#,
        ] {
            let error = find(text, "r").await.unwrap_err();
            assert!(text.contains("credsStore") || !error.contains("secret"), "{error}");
        }
        let error = find(r#"{"credsStore": "gitopsd-has-none"}"#, "r").await.unwrap_err();
        assert!(error.contains("docker-credential-gitopsd-has-none"), "{error}");
    }
}
