//! What the agent shows to a git server, and what it asks of it: credentials, certificates, deadlines.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, ErrorClass, ErrorCode, FetchOptions,
    ProxyOptions, RemoteCallbacks, RemoteRedirect,
};

use super::hostkey::{Answer, KnownHosts, fingerprint_of_shown};
use super::login::{self, Asking, Login};
use super::remote::Remote;
use super::{GitError, clock, library};
use crate::config::agent::RepoConfig;
use crate::types::{Reason, SafeUrl};

/// Longest time for one operation, however steadily the bytes drip.
const DEADLINE: Duration = Duration::from_secs(600);

/// Most bytes of one fetch: config repos are text.
const MAX_FETCH_BYTES: usize = 512 << 20;

/// Largest password or token file.
const MAX_SECRET_BYTES: usize = 64 << 10;

/// One conversation with one remote: its callbacks, and the reason if one of them ended it.
pub(super) struct Session<'a> {
    config: &'a RepoConfig,
    remote: &'a Remote,
    url: &'a SafeUrl,
    /// What is shown over http without being asked.
    at_once: Option<Login>,
    /// What was shown over http when it was asked for.
    shown: RefCell<Option<Login>>,
    /// How often a certificate was looked at before the list of refs was there.
    greeted: Cell<u8>,
    connected: Cell<bool>,
    known_hosts: Option<KnownHosts>,
    username_shown: Cell<bool>,
    secret_shown: Cell<bool>,
    deadline: Instant,
    failure: RefCell<Option<GitError>>,
}

impl<'a> Session<'a> {
    /// Prepares to talk to `remote`, which is at `url`; reads known_hosts where it is reached by ssh. `at_once` is shown over
    /// http without being asked.
    pub(super) fn new(
        config: &'a RepoConfig,
        url: &'a SafeUrl,
        remote: &'a Remote,
        at_once: Option<Login>,
    ) -> Result<Self, GitError> {
        library::init().map_err(|e| GitError::with(Reason::Internal, "set libgit2 up", e))?;
        let known_hosts = match remote {
            Remote::Ssh { .. } => Some(KnownHosts::load(config.known_hosts.as_deref())?),
            _ => None,
        };
        Ok(Self {
            config,
            url,
            remote,
            at_once,
            shown: RefCell::new(None),
            greeted: Cell::new(0),
            connected: Cell::new(false),
            known_hosts,
            username_shown: Cell::new(false),
            secret_shown: Cell::new(false),
            deadline: Instant::now() + DEADLINE,
            failure: RefCell::new(None),
        })
    }

    /// The known host keys, where the remote is reached by ssh.
    pub(super) fn known_hosts(&self) -> Option<&KnownHosts> {
        self.known_hosts.as_ref()
    }

    /// The list of refs is there: whatever connects from now on goes to where that came from.
    pub(super) fn is_connected(&self) {
        self.connected.set(true);
    }

    /// libgit2 followed a redirect to another port of the same host, which it does whatever it is told, and was stopped there.
    pub(super) fn was_sent_elsewhere(&self) -> bool {
        // Over plain http none is looked at on the way to the place itself.
        let on_the_way = match self.remote {
            Remote::Http { origin } if origin.starts_with("http://") => 0,
            _ => 1,
        };
        self.at_once.is_some() && self.greeted.get() > on_the_way
    }

    /// The list of refs is one answer, on one connection: a second one before it is there goes where nothing may be shown
    /// without being asked.
    fn is_elsewhere(&self) -> bool {
        if !self.connected.get() {
            self.greeted.set(self.greeted.get().saturating_add(1));
        }
        !self.connected.get() && self.was_sent_elsewhere()
    }

    /// What was shown over http when it was asked for.
    pub(super) fn take_shown(&self) -> Option<Login> {
        self.shown.borrow_mut().take()
    }

    /// How anything is fetched: what is asked for and nothing else, and from nowhere else: no redirect is followed, and what is
    /// shown without being asked goes to the server of the address alone, also by way of a proxy. That holds for https: from
    /// plain http to plain http on another port of the same host libgit2 takes it along, and there is nothing to stop it at.
    pub(super) fn fetch_options(&self) -> FetchOptions<'_> {
        let mut options = FetchOptions::new();
        options.remote_callbacks(self.callbacks());
        options.proxy_options(proxy(self.url));
        options.follow_redirects(RemoteRedirect::None);
        options.download_tags(AutotagOption::None);
        options.update_fetchhead(false);
        if let Some(login) = &self.at_once {
            options.custom_headers(&[&login.header()]);
        }
        options
    }

    /// Callbacks for one call of libgit2.
    pub(super) fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(|asking, _user, allowed| {
            self.credentials(asking, allowed).map_err(|error| self.fail(error))
        });
        callbacks.certificate_check(|certificate, _host| match certificate.as_hostkey() {
            Some(key) => self.check_host_key(key.hostkey()).map_err(|error| self.fail(error)),
            // x509: OpenSSL's verdict, by chain and name.
            None if self.is_elsewhere() => Err(self.fail(GitError::plain(
                Reason::GitUnreachable,
                format!("{} leads elsewhere, to where no credentials are shown", self.url),
            ))),
            None => Ok(CertificateCheckStatus::CertificatePassthrough),
        });
        callbacks.sideband_progress(|_| self.in_time());
        callbacks.transfer_progress(|progress| {
            let small = progress.received_bytes() <= MAX_FETCH_BYTES;
            if !small {
                self.fail(GitError::plain(
                    Reason::ConfigInvalid,
                    format!("the config repo {} sends more than 512 MiB at once", self.config.url),
                ));
            }
            small && self.in_time()
        });
        callbacks
    }

    /// Turns libgit2's error into ours: the callback's own, where one of them was the cause.
    pub(super) fn error(&self, what: impl Into<String>, cause: git2::Error) -> GitError {
        self.failure.borrow_mut().take().unwrap_or_else(|| GitError::remote(what, cause))
    }

    /// Remembers why a callback ends the conversation.
    pub(super) fn fail(&self, error: GitError) -> git2::Error {
        let (code, class) = match error.reason {
            Reason::Auth => (ErrorCode::Auth, ErrorClass::Callback),
            Reason::HostKey => (ErrorCode::Certificate, ErrorClass::Ssh),
            _ => (ErrorCode::User, ErrorClass::Callback),
        };
        let raw = git2::Error::new(code, class, error.to_string());
        *self.failure.borrow_mut() = Some(error);
        raw
    }

    fn in_time(&self) -> bool {
        let left = Instant::now() < self.deadline;
        if !left {
            self.fail(GitError::plain(
                Reason::GitUnreachable,
                format!("{}: no end after {} s", self.config.url, DEADLINE.as_secs()),
            ));
        }
        left
    }

    /// Each secret is shown once: a server that asks again has refused it. libgit2 asks until it gets an error.
    fn credentials(&self, asking: &str, allowed: CredentialType) -> Result<Cred, GitError> {
        let cannot = |e: git2::Error| GitError::with(Reason::Auth, "prepare the git credentials", e);
        match self.remote {
            Remote::Ssh { user, .. } => {
                let user = user.as_deref().or(self.config.username.as_deref()).unwrap_or("git");
                if allowed.contains(CredentialType::USERNAME) && !self.username_shown.replace(true) {
                    return Cred::username(user).map_err(cannot);
                }
                if !allowed.contains(CredentialType::SSH_KEY) {
                    return Err(GitError::plain(Reason::Auth, "the git server takes no ssh keys"));
                }
                let Some(key) = &self.config.ssh_key else {
                    if std::env::var_os("SSH_AUTH_SOCK").is_none() {
                        let message =
                            "the git server wants a key: set repo.ssh_key, or SSH_AUTH_SOCK for the service";
                        return Err(GitError::plain(Reason::Auth, message));
                    }
                    if self.secret_shown.replace(true) {
                        let message =
                            format!("the git server refused all keys of the ssh agent for user {user}");
                        return Err(GitError::plain(Reason::Auth, message));
                    }
                    return Cred::ssh_key_from_agent(user).map_err(cannot);
                };
                let certificate = certificate_of(key)?;
                if self.secret_shown.replace(true) {
                    let with = if certificate.is_some() { ", with its certificate," } else { "" };
                    let message =
                        format!("the git server refused the key {}{with} of user {user}", key.display());
                    return Err(GitError::plain(Reason::Auth, message));
                }
                // Read here, so that a missing file is named.
                let text = read_secret("repo.ssh_key", key)?;
                Cred::ssh_key_from_memory(user, certificate.as_deref(), &text, None).map_err(cannot)
            }
            Remote::Http { origin } => {
                let refused = |why: &str| Err(GitError::plain(Reason::Auth, format!("{origin} {why}")));
                if !allowed.contains(CredentialType::USER_PASS_PLAINTEXT) {
                    return refused("takes no user and password");
                }
                if self.at_once.is_some() || self.secret_shown.replace(true) {
                    return refused("refused the git credentials");
                }
                let place = login::asking(origin, asking)?;
                let login = login::find(self.config, self.url, origin)?;
                let shown = Cred::userpass_plaintext(&login.user, &login.password).map_err(cannot)?;
                *self.shown.borrow_mut() = Some(login).filter(|_| place == Asking::Itself);
                Ok(shown)
            }
            Remote::Local(_) => Err(GitError::plain(Reason::Auth, "a local repo asks for no credentials")),
        }
    }

    fn check_host_key(&self, key: Option<&[u8]>) -> Result<CertificateCheckStatus, GitError> {
        let refused = |why: String| Err(GitError::plain(Reason::HostKey, why));
        let (Remote::Ssh { host, port, .. }, Some(known), Some(key)) = (self.remote, &self.known_hosts, key)
        else {
            return refused("the git server shows no host key".to_owned());
        };
        match known.check(host, *port, key, clock::now()) {
            Answer::Known => Ok(CertificateCheckStatus::CertificateOk),
            Answer::Revoked => {
                refused(format!("the host key of {host}:{port} is marked as revoked in {known}"))
            }
            Answer::Other => refused(format!(
                "the host key of {host}:{port} ({}) is not the one in {known}",
                fingerprint_of_shown(key)
            )),
            Answer::BadCertificate(why) => {
                refused(format!("the host key of {host}:{port} does not count ({known}): {why}"))
            }
            Answer::NoCertificate => refused(format!(
                "{host}:{port} shows a key without a certificate ({}), and for it {known} has an authority alone",
                fingerprint_of_shown(key)
            )),
            Answer::Unknown => refused(format!(
                "no host key of {host}:{port} in {known}; it shows {}",
                fingerprint_of_shown(key)
            )),
        }
    }
}

/// The proxy of the unit's environment (`https_proxy`, `no_proxy`), if there is one. For plain http libgit2 has none: it would
/// speak to the server itself as to a proxy (1.9, httpclient.c).
pub(super) fn proxy<'a>(url: &SafeUrl) -> ProxyOptions<'a> {
    let mut options = ProxyOptions::new();
    if url.scheme() == Some("https") {
        options.auto();
    }
    options
}

/// A secret without its line end. Read anew each time, so that a rotated one is used at once.
pub(super) fn read_secret(field: &str, path: &Path) -> Result<String, GitError> {
    let what = || format!("read {field} at {}", path.display());
    let bytes = fs::read(path).map_err(|e| GitError::with(Reason::Auth, what(), e))?;
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(GitError::plain(Reason::Auth, format!("{}: larger than 64 KiB", what())));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| GitError::plain(Reason::Auth, format!("{}: not text", what())))?;
    if text.trim().is_empty() {
        return Err(GitError::plain(Reason::Auth, format!("{}: empty", what())));
    }
    // A private key needs its last line end; a password must not have one.
    Ok(if text.contains("PRIVATE KEY") { text } else { text.trim_end_matches(['\r', '\n']).to_owned() })
}

/// The certificate of a key, which stands beside it as `ssh` has it (ssh(1), `-i`); `None`: there is none.
fn certificate_of(key: &Path) -> Result<Option<String>, GitError> {
    let mut name = key.as_os_str().to_owned();
    name.push("-cert.pub");
    let path = PathBuf::from(name);
    match path.exists() {
        true => read_secret("the certificate of repo.ssh_key", &path).map(Some),
        false => Ok(None),
    }
}

/// Makes libgit2 trust the authorities of `repo.ca_file` too. It has one list a process, which only grows.
pub(super) fn trust_authorities(file: Option<&PathBuf>) -> Result<(), GitError> {
    let Some(file) = file else { return Ok(()) };
    library::init().map_err(|e| GitError::with(Reason::Internal, "set libgit2 up", e))?;
    let what = || format!("read repo.ca_file at {}", file.display());
    fs::metadata(file).map_err(|e| GitError::with(Reason::Tls, what(), e))?;
    // SAFETY: adds to OpenSSL's certificate store, which locks itself.
    unsafe { git2::opts::set_ssl_cert_file(file) }.map_err(|e| GitError::with(Reason::Tls, what(), e))
}

/// The URL of a remote as it is named in messages.
pub(super) fn named(url: &SafeUrl) -> String {
    format!("the config repo {url}")
}
