//! What the environment and the shared files say: `~/.aws/credentials` and `~/.aws/config` (docs.aws.amazon.com, "Shared
//! config and credentials files").

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusty_s3::Credentials;

use super::auth;
use crate::registry::PullError;

/// A variable that holds something.
pub(in crate::registry::archive) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.trim().is_empty())
}

/// Where the requests of a region go, as AWS names it.
pub(in crate::registry::archive) fn endpoint(service: &str, region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://{service}.{region}.{domain}")
}

/// The region that nobody configured here.
pub(in crate::registry::archive) fn region() -> Result<String, PullError> {
    if let Some(region) = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
        return Ok(region);
    }
    Ok(profile()?.get("region").unwrap_or("us-east-1").to_owned())
}

/// The settings of one profile.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Profile {
    name: String,
    settings: BTreeMap<String, String>,
}

/// Its settings may be secrets.
impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "profile `{}` of AWS's shared files", self.name)
    }
}

impl Profile {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Its own keys.
    pub fn keys(&self) -> Option<Credentials> {
        let (id, secret) = self.get("aws_access_key_id").zip(self.get("aws_secret_access_key"))?;
        Some(match self.get("aws_session_token") {
            Some(token) => Credentials::new_with_token(id, secret, token),
            None => Credentials::new(id, secret),
        })
    }
}

/// The profile that `AWS_PROFILE` names. One that is named has to be there.
pub(super) fn profile() -> Result<Profile, PullError> {
    let wanted = variable("AWS_PROFILE");
    let name = wanted.clone().unwrap_or_else(|| "default".to_owned());
    match named(&name)? {
        Some(profile) => Ok(profile),
        None if wanted.is_some() => {
            Err(auth(format!("AWS_PROFILE names `{name}`, which is in neither of AWS's shared files")))
        }
        None => Ok(Profile { name, ..Profile::default() }),
    }
}

/// A profile by its name.
pub(super) fn named(name: &str) -> Result<Option<Profile>, PullError> {
    let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "credentials")?;
    Ok(of_profile(name, &read("AWS_CONFIG_FILE", "config")?, &credentials))
}

/// A session that profiles share.
pub(super) fn sso_session(name: &str) -> Result<BTreeMap<String, String>, PullError> {
    let wanted = |title: &str| {
        title
            .split_once(char::is_whitespace)
            .is_some_and(|(kind, rest)| kind == "sso-session" && rest.trim() == name)
    };
    section(&read("AWS_CONFIG_FILE", "config")?, wanted)
        .ok_or_else(|| auth(format!("sso_session names `{name}`, which is not in AWS's config file")))
}

/// A service has no HOME; the agent is root.
pub(super) fn home() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()))
}

fn read(variable_of_it: &str, name: &str) -> Result<String, PullError> {
    let path = variable(variable_of_it).map_or_else(|| home().join(".aws").join(name), PathBuf::from);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(auth(format!("{}: {error}", path.display()))),
    }
}

/// A profile from both files: what the credentials file says counts.
pub(super) fn of_profile(name: &str, config: &str, credentials: &str) -> Option<Profile> {
    // In `config` all but the default one are called `[profile NAME]`.
    let in_config = |title: &str| match title.split_once(char::is_whitespace) {
        Some(("profile", rest)) => rest.trim() == name,
        _ => title == "default" && name == "default",
    };
    let parts = [section(config, in_config), section(credentials, |title| title == name)];
    let found = parts.iter().any(Option::is_some);
    let settings = parts.into_iter().flatten().flatten().collect();
    found.then(|| Profile { name: name.to_owned(), settings })
}

/// The settings of the sections whose title is wanted. Lines that are indented belong to the setting above them, which
/// none of ours has.
fn section(text: &str, wanted: impl Fn(&str) -> bool) -> Option<BTreeMap<String, String>> {
    let (mut found, mut inside) = (None::<BTreeMap<_, _>>, false);
    for line in text.lines() {
        let line_end = line.find([';', '#']).filter(|at| line[..*at].ends_with([' ', '\t']) || *at == 0);
        let line = line_end.map_or(line, |at| &line[..at]);
        if let Some(title) = line.trim().strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = wanted(title.trim());
            if inside {
                found.get_or_insert_default();
            }
        } else if let Some((key, value)) =
            line.split_once('=').filter(|_| inside && !line.starts_with([' ', '\t']))
        {
            let settings = found.get_or_insert_default();
            settings.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[default]\nregion = eu-central-1 # ours\n\n[profile other]\nregion=us-west-2\ns3 =\n  region = nested\n\
        credential_process = /opt/bin/tool --x y\n[other]\nregion = not-a-profile\n[profile  half]\n";
    const CREDENTIALS: &str = "; keys\n[default]\naws_access_key_id = A\naws_secret_access_key=B=;\n\n[other]\n\
        aws_access_key_id=C\naws_secret_access_key = D\naws_session_token = E\n[third]\nAWS_ACCESS_KEY_ID = F\n";

    fn found(name: &str) -> Option<Profile> {
        of_profile(name, CONFIG, CREDENTIALS)
    }

    #[test]
    fn profiles() {
        let keys = |name| {
            let keys = found(name)?.keys()?;
            Some((keys.key().to_owned(), keys.secret().to_owned(), keys.token().map(str::to_owned)))
        };
        assert_eq!(keys("default"), Some(("A".to_owned(), "B=;".to_owned(), None)));
        assert_eq!(keys("other"), Some(("C".to_owned(), "D".to_owned(), Some("E".to_owned()))));
        assert_eq!(keys("third"), None, "half of it is nothing");
        let setting = |name, key: &str| found(name)?.get(key).map(str::to_owned);
        assert_eq!(setting("default", "region").as_deref(), Some("eu-central-1"));
        assert_eq!(setting("other", "region").as_deref(), Some("us-west-2"), "not what is nested");
        assert_eq!(setting("other", "credential_process").as_deref(), Some("/opt/bin/tool --x y"));
        assert_eq!(found("half").map(|half| half.settings.len()), Some(0));
        assert_eq!(found("none"), None);
    }

    #[test]
    fn endpoints_of_regions() {
        assert_eq!(endpoint("s3", "eu-central-1"), "https://s3.eu-central-1.amazonaws.com");
        assert_eq!(endpoint("sts", "cn-north-1"), "https://sts.cn-north-1.amazonaws.com.cn");
    }
}
