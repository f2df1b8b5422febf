//! Name and password for a remote over http: where they come from, and what is remembered of those that a server took.
//!
//! git asks without them first and again with them when it gets a 401: two requests for each look. A server that asked once,
//! and took what it was shown, is shown the same at once from then on, as long as it takes it. Nothing is shown to a server
//! that never asked, nothing to any place but the one that it is for, and nothing is ever written down.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use super::credentials::read_secret;
use super::remote::Remote;
use super::{GitError, credential_helper};
use crate::config::agent::RepoConfig;
use crate::types::{Reason, SafeUrl};

/// A name and its password. No `Debug`: it would be one word away from a log.
#[derive(Clone)]
pub(super) struct Login {
    /// The name.
    pub(super) user: String,
    /// The password, or what a forge has in its place.
    pub(super) password: String,
    /// It is what a program said, which is not asked again without need.
    told: bool,
}

impl Login {
    /// The line of an http request (RFC 7617).
    pub(super) fn header(&self) -> String {
        format!("Authorization: Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

/// What is known of a remote that asks.
enum Known {
    /// It takes what stands in a file, or in its own address. Files are read anew each time: a new password counts at once.
    Standing,
    /// It takes what the credential helper said.
    Told(Login),
    /// It sends who asks to another place: it is not to be trusted with anything that it did not ask for.
    MustAsk,
}

/// The remotes that asked, and took what they were shown; for the life of the process.
#[derive(Default)]
pub(super) struct Logins(Mutex<BTreeMap<SafeUrl, Known>>);

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logins")
    }
}

impl Logins {
    fn known(&self) -> MutexGuard<'_, BTreeMap<SafeUrl, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a remote can be shown without being asked; `None`: it has to ask. So it does once a file cannot be read any more:
    /// it may not want what stood there any more, and if it does, the file is named.
    pub(super) fn at_once(&self, config: &RepoConfig, url: &SafeUrl, remote: &Remote) -> Option<Login> {
        let Remote::Http { origin } = remote else { return None };
        match self.known().get(url) {
            None | Some(Known::MustAsk) => return None,
            Some(Known::Told(login)) => return Some(login.clone()),
            Some(Known::Standing) => {}
        }
        let found = find(config, url, origin);
        if found.is_err() {
            self.forget(url);
        }
        found.ok()
    }

    /// A remote asked for this, and took it.
    pub(super) fn remember(&self, url: &SafeUrl, login: Login) {
        let known = if login.told { Known::Told(login) } else { Known::Standing };
        let mut all = self.known();
        if !matches!(all.get(url), Some(Known::MustAsk)) {
            all.insert(url.clone(), known);
        }
    }

    /// It has to ask, from now on.
    pub(super) fn must_ask(&self, url: &SafeUrl) {
        self.known().insert(url.clone(), Known::MustAsk);
    }

    /// The next look begins as the first one did.
    pub(super) fn forget(&self, url: &SafeUrl) {
        let mut all = self.known();
        if !matches!(all.get(url), Some(Known::MustAsk)) {
            all.remove(url);
        }
    }
}

/// Who asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// The place in the configuration.
    Itself,
    /// The same host by https, where the configuration says http.
    Upgraded,
}

/// Holds who asks, by its address, against the place that credentials are for: a redirect may have led elsewhere.
///
/// # Errors
/// `auth`: it is another place.
pub(super) fn asking(origin: &str, asking: &str) -> Result<Asking, GitError> {
    // libgit2 writes IPv6 addresses without brackets, and what follows the host as it likes.
    let bare = |origin: &str| origin.replace(['[', ']'], "");
    let (scheme, rest) = asking.split_once("://").unwrap_or_default();
    let asking = format!("{scheme}://{}", rest.split('/').next().unwrap_or_default());
    let place = match asking.parse().map(|url: SafeUrl| Remote::parse(&url)) {
        Ok(Ok(Remote::Http { origin })) => bare(&origin),
        _ => String::new(),
    };
    if place == bare(origin) {
        return Ok(Asking::Itself);
    }
    // An IPv6 address goes with its port: without brackets the two cannot be told apart.
    let host = |authority: &str| match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => host.to_owned(),
        _ => authority.to_owned(),
    };
    if let (Some(from), Some(to)) = (bare(origin).strip_prefix("http://"), place.strip_prefix("https://"))
        && host(from) == host(to)
    {
        return Ok(Asking::Upgraded);
    }
    let message = format!("{origin} leads to {place}, which wants credentials: name that in repo.url");
    Err(GitError::plain(Reason::Auth, message))
}

/// What a remote that asks is shown: that of a file, else what the helper says, else what stands in its address. A remote
/// that has no keys of its own, and a password in its address, is shown that alone: it says more of it than those of `[repo]`.
///
/// # Errors
/// `auth`: there is nothing, or it is for another place, or the file or the helper fails.
pub(super) fn find(config: &RepoConfig, url: &SafeUrl, origin: &str) -> Result<Login, GitError> {
    let (name, word) = in_address(url);
    let login = |user: Option<String>, password, told| Login {
        // Forges that take a token in the password's place do not look at the name.
        user: user.unwrap_or_else(|| "x-access-token".to_owned()),
        password,
        told,
    };
    let word = match word {
        Some(word) if *url != config.url => return Ok(login(name, word, false)),
        word => word,
    };
    let user = config.username.clone().or(name);
    let (field, file) = match (&config.token_file, &config.password_file) {
        (Some(file), _) => ("repo.token_file", Some(file)),
        (None, Some(file)) => ("repo.password_file", Some(file)),
        (None, None) if !config.credential_helper.is_empty() => ("repo.credential_helper", None),
        (None, None) => {
            let hint = "set repo.token_file, or repo.username and repo.password_file";
            let none = || GitError::plain(Reason::Auth, format!("{origin} wants credentials: {hint}"));
            return word.map(|word| login(user, word, false)).ok_or_else(none);
        }
    };
    let home = matches!(Remote::parse(&config.url)?, Remote::Http { origin: home } if home == origin);
    if !home {
        let message = format!("{origin} wants credentials, and {field} is for the host of repo.url alone");
        return Err(GitError::plain(Reason::Auth, message));
    }
    if let Some(file) = file {
        return Ok(login(user, read_secret(field, file)?, false));
    }
    let refused = |why: String| GitError::plain(Reason::Auth, format!("{origin} wants credentials: {why}"));
    let (named, password) = credential_helper::ask(&config.credential_helper, origin, user.as_deref())
        .map_err(refused)?
        .ok_or_else(|| refused("repo.credential_helper knows of none".to_owned()))?;
    Ok(login(Some(named).filter(|name| !name.is_empty()).or(user), password, true))
}

/// An http address without name and password: those are shown as all others are, and not by libgit2 by itself.
pub(super) fn without_user(url: &SafeUrl) -> String {
    match taken_apart(url) {
        Some((scheme, _, rest)) => format!("{scheme}://{rest}"),
        None => url.as_str().to_owned(),
    }
}

/// The name and the password of an http address.
fn in_address(url: &SafeUrl) -> (Option<String>, Option<String>) {
    let Some((_, user, _)) = taken_apart(url) else { return (None, None) };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (name, word) = match user.split_once(':') {
        Some((name, word)) => (name, Some(decoded(word))),
        None => (user, None),
    };
    (Some(decoded(name)).filter(|name| !name.is_empty()), word.filter(|word| !word.is_empty()))
}

/// Scheme, user info, and what follows; `None`: it is not of http, or names no user.
fn taken_apart(url: &SafeUrl) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.as_str().split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    let rest = rest.get(user.len() + 1..)?;
    matches!(scheme, "http" | "https").then_some((scheme, user, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_used_without_their_secrets() {
        for (text, bare, user) in [
            ("https://git.example.org/x@y.git", "https://git.example.org/x@y.git", (None, None)),
            ("https://ann@h:8443/x?a@b", "https://h:8443/x?a@b", (Some("ann"), None)),
            ("http://ann:p%40q@h/x", "http://h/x", (Some("ann"), Some("p@q"))),
            ("https://ann:p@q@h", "https://h", (Some("ann"), Some("p@q"))),
            ("https://:token@h/x", "https://h/x", (None, Some("token"))),
            ("https://ann:@h/x", "https://h/x", (Some("ann"), None)),
            ("ssh://git@h/x", "ssh://git@h/x", (None, None)),
            ("git@h:x", "git@h:x", (None, None)),
        ] {
            let url = text.parse().unwrap();
            assert_eq!(without_user(&url), bare, "{text}");
            let (name, word) = in_address(&url);
            assert_eq!((name.as_deref(), word.as_deref()), user, "{text}");
        }
    }

    #[test]
    fn only_the_place_itself_is_shown_anything() {
        let answer = |origin, by| asking(origin, by).map_err(|error| error.reason);
        for (origin, by, wanted) in [
            ("https://h", "https://h/x.git", Ok(Asking::Itself)),
            ("https://h", "https://h:443/", Ok(Asking::Itself)),
            ("https://h", "https://h:8443/x", Err(Reason::Auth)),
            ("https://h", "https://h.evil/x", Err(Reason::Auth)),
            ("https://h", "http://h/x", Err(Reason::Auth)),
            ("http://h:3000", "https://h/x", Ok(Asking::Upgraded)),
            ("http://h", "http://h:3000/x", Err(Reason::Auth)),
            ("http://h", "https://g/x", Err(Reason::Auth)),
            ("http://[::1]", "https://::1/x", Ok(Asking::Upgraded)),
            ("http://[::1]:3000", "https://::1:8443/x", Err(Reason::Auth)),
            ("https://[::1]:8443", "https://::1:8443/x y", Ok(Asking::Itself)),
            ("http://[::1]", "https://::2/x", Err(Reason::Auth)),
            ("https://h", "", Err(Reason::Auth)),
        ] {
            assert_eq!(answer(origin, by), wanted, "{origin} {by}");
        }
    }

    #[test]
    fn what_is_shown_comes_from_the_nearest_place() {
        let bare = RepoConfig::new("https://ann:word@h/x.git".parse().unwrap());
        let file = std::env::temp_dir().join(format!("gitopsd-login-{}", std::process::id()));
        std::fs::write(&file, "token\n").unwrap();
        let with_token = RepoConfig { token_file: Some(file.clone()), ..bare.clone() };
        let user = Some("deploy".to_owned());
        let named = RepoConfig { username: user, password_file: Some("/none".into()), ..bare.clone() };
        let helper = RepoConfig { credential_helper: vec!["/none".to_owned()], ..bare.clone() };
        for (config, url, wanted) in [
            // The repo itself: a file or the helper comes before what stands in the address.
            (&bare, "https://ann:word@h/x.git", Ok("ann:word")),
            (&with_token, "https://ann:word@h/x.git", Ok("ann:token")),
            (&named, "https://ann:word@h/x.git", Err("read repo.password_file")),
            (&helper, "https://ann:word@h/x.git", Err("/none")),
            // Receipts elsewhere, without keys of their own.
            (&bare, "https://bot:tok@other/audit.git", Ok("bot:tok")),
            (&with_token, "https://bot:tok@other/audit.git", Ok("bot:tok")),
            (&with_token, "https://bot:tok@h/audit.git", Ok("bot:tok")),
            (&named, "https://:tok@other/audit.git", Ok("x-access-token:tok")),
            (&helper, "https://bot:tok@other/audit.git", Ok("bot:tok")),
            (&with_token, "https://bot@h/audit.git", Ok("bot:token")),
            (&with_token, "https://bot@other/audit.git", Err("is for the host of repo.url alone")),
            (&bare, "https://bot@other/audit.git", Err("wants credentials")),
        ] {
            let url: SafeUrl = url.parse().unwrap();
            let Ok(Remote::Http { origin }) = Remote::parse(&url) else { panic!("{url}") };
            match (find(config, &url, &origin), wanted) {
                (Ok(login), wanted) => {
                    assert_eq!(Ok(format!("{}:{}", login.user, login.password).as_str()), wanted, "{url}");
                }
                (Err(error), wanted) => {
                    assert!(error.to_string().contains(wanted.unwrap_err()), "{url}: {error}");
                }
            }
        }
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn the_header_is_that_of_rfc_7617() {
        let login = Login { user: "Aladdin".to_owned(), password: "open sesame".to_owned(), told: false };
        assert_eq!(login.header(), "Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
