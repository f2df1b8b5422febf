//! Docker's `config.json`: what `docker login` left on this host (docs.docker.com, "docker login", "Credential stores"),
//! and podman's `auth.json`, which is like it (containers-auth.json(5)).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::credential_helper;
use super::credentials::{Credentials, Found, Origin};

/// Largest file.
const MOST: u64 = 1 << 20;

/// Docker Hub's name there.
const HUB: &str = "https://index.docker.io/v1/";

/// Docker Hub's other names.
const HUBS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: Option<BTreeMap<String, Auth>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
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

/// Where Docker keeps it for whoever runs this.
pub(super) fn default_path() -> PathBuf {
    match std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("config.json"),
        None => credential_helper::home().join(".docker/config.json"),
    }
}

/// The credentials for a repository; `None` = the file, if it is there, knows of none. Errors hold no secret.
pub(super) async fn look_up(path: &Path, authority: &str, repository: &str) -> Result<Option<Found>, String> {
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
    let helpers = file.cred_helpers.unwrap_or_default();
    // An entry without a name says that there is no helper for it.
    let helper = best(&helpers, authority, repository).or(file.creds_store.as_ref());
    if let Some(helper) = helper.filter(|helper| !helper.is_empty()) {
        for name in names_of(authority) {
            if let Some(found) = credential_helper::ask(helper, &name).await? {
                return Ok(Some((found, Origin::Helper(credential_helper::program(helper)))));
            }
        }
    }
    let auths = file.auths.unwrap_or_default();
    let Some(auth) = best(&auths, authority, repository) else { return Ok(None) };
    let found = decode(auth).map_err(|why| format!("{}: `auths` for {authority}: {why}", path.display()))?;
    Ok(found.map(|credentials| (credentials, Origin::File(path.to_owned()))))
}

/// What a helper may know a registry as: Docker asks for the first one, and what others stored is under the others.
fn names_of(authority: &str) -> Vec<String> {
    if HUBS.contains(&authority) {
        return vec![HUB.to_owned(), "docker.io".to_owned()];
    }
    vec![authority.to_owned(), format!("https://{authority}")]
}

/// The entry whose key says most of a repository. Docker writes a registry's `host[:port]`, or a URL of which only that
/// counts; podman also `host/path`, for repositories below it.
fn best<'a, T>(entries: &'a BTreeMap<String, T>, authority: &str, repository: &str) -> Option<&'a T> {
    let wanted = if HUBS.contains(&authority) { "docker.io" } else { authority };
    let ranked = entries.iter().filter_map(|(key, entry)| {
        let (host, path, exact) = parts(key);
        let host = if HUBS.contains(&host) { "docker.io" } else { host };
        let below = repository.strip_prefix(path)?;
        let fits = host.eq_ignore_ascii_case(wanted)
            && (path.is_empty() || below.is_empty() || below.starts_with('/'));
        // Where both are there, Docker's own name of the Hub, or the name as it is, counts more than a URL.
        fits.then_some(((path.len(), key == HUB || exact), entry))
    });
    // The first one of the best.
    ranked.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, entry)| entry)
}

/// Host and path of a key, and whether it is written as it is.
fn parts(key: &str) -> (&str, &str, bool) {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let (host, path) = bare.unwrap_or(key).split_once('/').unwrap_or((bare.unwrap_or(key), ""));
    let path = path.trim_end_matches('/');
    // The path of a URL is that of an API: `/v1/`, `/v2/`.
    let api = bare.is_some() || matches!(path, "v1" | "v2");
    (host, if api { "" } else { path }, bare.is_none() && path.is_empty())
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
    let pair = match (given(&auth.username), given(&auth.password)) {
        (Some(user), Some(password)) => Some((user, password)),
        _ => given(&auth.auth).map(|encoded| unpaired(&encoded)).transpose()?,
    };
    if let Some(token) = given(&auth.identity_token) {
        let user = pair.map(|(user, _)| user).or_else(|| given(&auth.username)).unwrap_or_default();
        return Ok(Some(Credentials::Identity(user, token)));
    }
    Ok(pair.map(|(user, password)| Credentials::Password(user, password)))
}

fn unpaired(encoded: &str) -> Result<(String, String), &'static str> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded.trim())
        .map_err(|_| "`auth` is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "`auth` is not text")?;
    let (user, password) = text.split_once(':').ok_or("`auth` is not user:password")?;
    Ok((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn find(text: &str, authority: &str, repository: &str) -> Result<Option<Credentials>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let found = look_up(&path, authority, repository).await?;
        if let Some((_, origin)) = &found {
            assert_eq!(*origin, Origin::File(path));
        }
        Ok(found.map(|(credentials, _)| credentials))
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
            "nobody.example.org": {"identitytoken": "secret"},
            "bearer.example.org": {"registrytoken": "secret"},
            "empty.example.org": {}}, "HttpHeaders": {"User-Agent": "x"}, "credHelpers": null}"#;
        let find = async |authority: &str| find(text, authority, "app").await;
        assert_eq!(find("r.example.org:5000").await, Ok(password("user", "pa:ss")));
        assert_eq!(find("registry-1.docker.io").await, Ok(password("hub", "x")));
        let identity = |user: &str| Ok(Some(Credentials::Identity(user.to_owned(), "secret".to_owned())));
        assert_eq!(find("id.example.org").await, identity("user"));
        assert_eq!(find("nobody.example.org").await, identity(""));
        assert_eq!(find("bearer.example.org").await, Ok(Some(Credentials::Bearer("secret".to_owned()))));
        assert_eq!(find("empty.example.org").await, Ok(None));
        assert_eq!(find("other.example.org").await, Ok(None));
        assert_eq!(look_up(Path::new("/nonexistent"), "r", "app").await, Ok(None));
    }

    /// Keys as docker and podman write and read them: the last column says whose entry it is.
    #[tokio::test]
    async fn keys_in_all_their_forms() {
        let rows: &[(&[&str], &str, &str, Option<&str>)] = &[
            (&["r.io"], "r.io", "a/b", Some("r.io")),
            (&["R.io"], "r.io", "a/b", Some("R.io")),
            (&["https://r.io"], "r.io", "a", Some("https://r.io")),
            (&["https://r.io/"], "r.io", "a", Some("https://r.io/")),
            (&["http://r.io/v1/"], "r.io", "a", Some("http://r.io/v1/")),
            (&["https://r.io/v2/"], "r.io", "a", Some("https://r.io/v2/")),
            (&["https://r.io/any/path"], "r.io", "a", Some("https://r.io/any/path")),
            (&["r.io/v1/"], "r.io", "a", Some("r.io/v1/")),
            (&["r.io/"], "r.io", "a", Some("r.io/")),
            (&["r.io:5000"], "r.io", "a", None),
            (&["r.io"], "r.io:5000", "a", None),
            (&["ar.io", "r.io.example"], "r.io", "a", None),
            // Both: as it is written counts more.
            (&["https://r.io/v1/", "r.io"], "r.io", "a", Some("r.io")),
            (&["https://r.io", "https://r.io/v1/"], "r.io", "a", Some("https://r.io")),
            // podman: a part of a registry; the longest one counts.
            (&["r.io", "r.io/a", "r.io/a/b"], "r.io", "a/b", Some("r.io/a/b")),
            (&["r.io", "r.io/a", "r.io/a/b"], "r.io", "a/b/c", Some("r.io/a/b")),
            (&["r.io", "r.io/a", "r.io/a/b"], "r.io", "a/c", Some("r.io/a")),
            (&["r.io", "r.io/a", "r.io/a/b"], "r.io", "ab", Some("r.io")),
            (&["r.io/a"], "r.io", "b", None),
            // The Hub.
            (
                &["https://index.docker.io/v1/"],
                "registry-1.docker.io",
                "library/a",
                Some("https://index.docker.io/v1/"),
            ),
            (&["index.docker.io"], "registry-1.docker.io", "library/a", Some("index.docker.io")),
            (&["docker.io"], "registry-1.docker.io", "library/a", Some("docker.io")),
            (&["docker.io/me", "docker.io"], "registry-1.docker.io", "me/a", Some("docker.io/me")),
            (
                &["https://index.docker.io/v1/", "https://docker.io"],
                "registry-1.docker.io",
                "library/a",
                Some("https://index.docker.io/v1/"),
            ),
            (&["https://index.docker.io/v1/"], "r.io", "a", None),
        ];
        for (keys, authority, repository, expected) in rows {
            let auths: BTreeMap<_, _> = keys
                .iter()
                .map(|key| (*key, serde_json::json!({ "username": key, "password": "x" })))
                .collect();
            let text = serde_json::json!({ "auths": auths }).to_string();
            let found = find(&text, authority, repository).await.unwrap();
            let expected = expected.and_then(|user| password(user, "x"));
            match (&found, &expected) {
                (Some(found), Some(expected)) => {
                    assert!(found == expected, "{keys:?}: {authority}/{repository}")
                }
                _ => assert_eq!(found.is_some(), expected.is_some(), "{keys:?}: {authority}/{repository}"),
            }
        }
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
            let error = find(text, "r", "app").await.unwrap_err();
            assert!(text.contains("credsStore") || !error.contains("secret"), "{error}");
        }
        for text in [
            r#"{"credsStore": "gitopsd-has-none"}"#,
            r#"{"credHelpers": {"https://r/": "gitopsd-has-none"}}"#,
        ] {
            let error = find(text, "r", "app").await.unwrap_err();
            assert!(error.contains("docker-credential-gitopsd-has-none"), "{error}");
        }
        // No helper is named.
        let text = r#"{"credsStore": "gitopsd-has-none", "credHelpers": {"r": ""}, "auths": {"r": {"auth": "YTpi"}}}"#;
        assert_eq!(find(text, "r", "app").await, Ok(password("a", "b")));
    }
}
