//! Registries, token services and redirects that are after credentials, or never come to an end.

use std::collections::BTreeMap;
use std::path::PathBuf;

use gitopsd::config::agent::RegistryConfig;
use gitopsd::registry::PullError;
use gitopsd::types::Reason;

use super::host::{Documents, PLAIN, assert_line, image, plain, pull, pull_as, serve};
use super::shared::forge::tar;
use super::web::{Answer, Asked, Web};

/// `alice:secret`, as it goes over the wire (RFC 7617).
const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";

/// A case: its name, where it comes from, what has to be true, and whether it is refused.
pub struct Row {
    pub name: &'static str,
    pub source: &'static str,
    pub says: &'static str,
    pub reason: Option<Reason>,
    run: fn(&Lab),
}

/// A directory, and credentials in it.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("password"), "secret\n").unwrap();
        Self { dir }
    }

    /// As alice, over http.
    fn alice(&self) -> RegistryConfig {
        RegistryConfig {
            username: Some("alice".to_owned()),
            password_file: Some(self.dir.path().join("password")),
            ..plain()
        }
    }

    fn pull(&self, web: &Web) -> Result<Vec<PathBuf>, PullError> {
        let registries = BTreeMap::from([(web.address(), self.alice())]);
        pull_as(&self.dir.path().join("state"), &format!("{}/app:1", web.address()), registries)
    }
}

fn good() -> Documents {
    let tar = tar().file("a", b"x").end();
    image(&tar, PLAIN, &tar)
}

/// A registry that asks everybody for a token.
fn guarded(challenge: String) -> Web {
    let documents = good();
    Web::new(move |asked| match (&asked.authorization, documents.get(&asked.path)) {
        (Some(given), Some(body)) if given == "Bearer good" => Answer::new(200, body.clone()),
        _ => Answer::new(401, "").header("WWW-Authenticate", challenge.clone()),
    })
}

/// A server that writes down what it is given, and gives a token.
fn thief() -> Web {
    Web::new(|_| Answer::new(200, r#"{"token":"good"}"#))
}

fn saw_credentials(web: &Web) -> bool {
    web.asked().iter().any(|asked| asked.authorization.is_some())
}

#[track_caller]
fn assert_auth(result: Result<Vec<PathBuf>, PullError>, part: &str) {
    let error = result.unwrap_err();
    assert_line("server", &error);
    assert_eq!(error.reason, Reason::Auth, "{error}");
    assert!(error.to_string().contains(part), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

pub fn rows() -> Vec<Row> {
    let row = |name, source, says, reason, run| Row { name, source, says, reason, run };
    let auth = Some(Reason::Auth);
    vec![
        row(
            "a realm on another host",
            "CVE-2026-48978, CVE-2019-10214",
            "nothing is sent there",
            auth,
            |lab| {
                let thief = thief();
                let web = guarded(format!("Bearer realm=\"http://localhost:{}/token\"", thief.port));
                assert_auth(lab.pull(&web), "which is not its own");
                assert!(thief.asked().is_empty());
            },
        ),
        row(
            "a realm on another address of this host",
            "CVE-2026-48978",
            "nothing is sent there",
            auth,
            |lab| {
                let web = guarded("Bearer realm=\"http://127.0.0.2:1/token\"".to_owned());
                assert_auth(lab.pull(&web), "which is not its own");
            },
        ),
        row(
            "a realm that is the cloud's metadata service",
            "CVE-2026-48978 class",
            "nothing is sent there",
            auth,
            |lab| {
                let web = guarded("Bearer realm=\"http://169.254.169.254/latest\"".to_owned());
                assert_auth(lab.pull(&web), "which is not its own");
            },
        ),
        row("a realm that is a file", "CVE-2026-48978 class", "it is not opened", auth, |lab| {
            let web = guarded("Bearer realm=\"file:///etc/passwd\"".to_owned());
            assert_auth(lab.pull(&web), "");
        }),
        row("a realm that names the registry as its user", "URL confusion", "the host counts", auth, |lab| {
            let thief = thief();
            let web = guarded(format!("Bearer realm=\"http://127.0.0.1@localhost:{}/token\"", thief.port));
            assert_auth(lab.pull(&web), "which is not its own");
            assert!(thief.asked().is_empty());
        }),
        row(
            "challenges that are none",
            "RFC 9110, section 11.6.1",
            "they are refused, and nothing is sent",
            auth,
            |lab| {
                for challenge in [
                    "Bearer",
                    "Bearer realm",
                    "Bearer realm=",
                    "Bearer realm=\"",
                    "Bearer ,,,=,=\"",
                    "Bearer realm=\"x",
                    "Bearer service=\"a\"",
                    "Negotiate",
                    "Bearer\u{9}=",
                    "Digest realm=\"a\", nonce=\"b\"",
                    "=",
                    "\"",
                ] {
                    let web = guarded(challenge.to_owned());
                    assert_auth(lab.pull(&web), "");
                    assert!(!saw_credentials(&web), "{challenge}");
                }
            },
        ),
        row(
            "a token service that sends its clients elsewhere",
            "GHSA-vh4v-2xq2-g5cg",
            "credentials do not go along",
            None,
            |lab| {
                let thief = thief();
                let elsewhere = format!("http://localhost:{}/steal", thief.port);
                let tokens = Web::new(move |_| Answer::new(307, "").header("Location", elsewhere.clone()));
                let web = guarded(format!("Bearer realm=\"http://127.0.0.1:{}/token\"", tokens.port));
                // With or without the token that it gave.
                let _ = lab.pull(&web);
                assert_eq!(tokens.asked()[0].authorization.as_deref(), Some(ALICE));
                assert!(!saw_credentials(&thief));
            },
        ),
        row(
            "a blob that lies elsewhere",
            "CVE-2020-15157, GHSA-vh4v-2xq2-g5cg",
            "it is fetched without credentials",
            None,
            |lab| {
                for host in ["localhost", "127.0.0.1"] {
                    let documents = good();
                    let store = serve(documents.clone());
                    let base = format!("http://{host}:{}", store.port);
                    let web = Web::new(move |asked: &Asked| {
                        match (asked.authorization.as_deref(), documents.get(&asked.path)) {
                            (Some(ALICE), Some(_)) if asked.path.contains("/blobs/") => {
                                Answer::new(307, "").header("Location", format!("{base}{}", asked.path))
                            }
                            (Some(ALICE), Some(body)) => Answer::new(200, body.clone()),
                            _ => Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""),
                        }
                    });
                    let lab = Lab { dir: tempfile::tempdir_in(lab.dir.path()).unwrap() };
                    std::fs::write(lab.dir.path().join("password"), "secret").unwrap();
                    lab.pull(&web).unwrap();
                    assert!(
                        saw_credentials(&web) && store.asked().len() >= 2 && !saw_credentials(&store),
                        "{host}"
                    );
                }
            },
        ),
        row(
            "redirects without end",
            "RFC 9110, section 15.4",
            "it gives up",
            Some(Reason::RegistryUnreachable),
            |lab| {
                let web =
                    Web::new(|asked| Answer::new(307, "").header("Location", format!("{}x", asked.path)));
                let error = lab.pull(&web).unwrap_err();
                assert_eq!(error.reason, Reason::RegistryUnreachable, "{error}");
                assert!(web.asked().len() < 60, "{} requests", web.asked().len());
            },
        ),
        row(
            "a redirect to a file",
            "GHSA-vh4v-2xq2-g5cg class",
            "it is not opened",
            Some(Reason::RegistryUnreachable),
            |lab| {
                let web = Web::new(|_| Answer::new(302, "").header("Location", "file:///etc/passwd"));
                let error = lab.pull(&web).unwrap_err();
                assert!(!error.to_string().contains("root:"), "{error}");
                assert_eq!(error.reason, Reason::RegistryUnreachable, "{error}");
            },
        ),
        row(
            "a mirror that asks for a password",
            "CVE-2026-48978 class",
            "the registry's is not given to it",
            None,
            |lab| {
                let home = serve(good());
                let mirror =
                    Web::new(|_| Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""));
                let config = RegistryConfig {
                    mirrors: vec![format!("http://{}", mirror.address()).parse().unwrap()],
                    ..lab.alice()
                };
                let registries = BTreeMap::from([(home.address(), config)]);
                pull_as(lab.dir.path(), &format!("{}/app:1", home.address()), registries).unwrap();
                assert!(!mirror.asked().is_empty() && !saw_credentials(&mirror));
            },
        ),
        row(
            "a credential helper that is not there",
            "CVE-2021-41092",
            "no other credentials are looked for, and none are sent",
            auth,
            |lab| {
                let web = Web::new(|_| Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""));
                let address = web.address();
                let file = lab.dir.path().join("config.json");
                let docker = serde_json::json!({
                    "auths": { &address: { "auth": ALICE.trim_start_matches("Basic ") } },
                    "credHelpers": { &address: "gitopsd-has-none" },
                });
                std::fs::write(&file, docker.to_string()).unwrap();
                let config = RegistryConfig { docker_config: Some(file), ..plain() };
                let registries = BTreeMap::from([(address.clone(), config)]);
                let result = pull_as(&lab.dir.path().join("state"), &format!("{address}/app:1"), registries);
                assert_auth(result, "docker-credential-gitopsd-has-none");
                assert!(!saw_credentials(&web));
            },
        ),
        row("a token with a line break", "request smuggling", "it is not sent", auth, |lab| {
            let tokens = Web::new(|_| Answer::new(200, r#"{"token":"good\r\nHost: evil"}"#));
            let web = guarded(format!("Bearer realm=\"http://127.0.0.1:{}/token\"", tokens.port));
            assert_auth(lab.pull(&web), "odd credentials");
        }),
        row(
            "a token of more than a mebibyte",
            "CVE-2023-25153 class",
            "it is not read to its end",
            None,
            |lab| {
                let tokens =
                    Web::new(|_| Answer::new(200, format!("{{\"token\":\"{}\"}}", "x".repeat(2 << 20))));
                let web = guarded(format!("Bearer realm=\"http://127.0.0.1:{}/token\"", tokens.port));
                let error = lab.pull(&web).unwrap_err();
                assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
            },
        ),
        row("a token service that gives none", "distribution", "it is refused", auth, |lab| {
            for answer in ["[]", "{}", "null", r#"{"token":7}"#, r#"{"token":null}"#, "<html>", ""] {
                let tokens = Web::new(move |_| Answer::new(200, answer));
                let web = guarded(format!("Bearer realm=\"http://127.0.0.1:{}/token\"", tokens.port));
                assert_auth(lab.pull(&web), "");
            }
        }),
        row("a registry that wants another token each time", "distribution", "it gives up", auth, |lab| {
            let tokens = Web::new(|_| Answer::new(200, r#"{"token":"bad"}"#));
            let web = guarded(format!("Bearer realm=\"http://127.0.0.1:{}/token\"", tokens.port));
            assert_auth(lab.pull(&web), "");
            assert!(web.asked().len() < 20 && tokens.asked().len() < 20);
        }),
        row("an error page that writes to terminals", "log injection", "it is not shown", None, |lab| {
            for status in [400, 403, 404, 429, 500] {
                let web = Web::new(move |_| Answer::new(status, "\u{1b}]0;x\u{7}\n<0>forged"));
                let error = lab.pull(&web).unwrap_err();
                assert_line("error page", &error);
                assert!(!error.to_string().contains("forged"), "{error}");
            }
        }),
        row(
            "a header that names another digest than a tag's bytes have",
            "CVE-2026-50195",
            "neither is believed",
            Some(Reason::DigestMismatch),
            |lab| {
                let documents = good();
                let web = Web::new(move |asked| match documents.get(&asked.path) {
                    Some(body) => Answer::new(200, body.clone())
                        .header("Docker-Content-Digest", format!("sha256:{}", "a".repeat(64))),
                    None => Answer::new(404, ""),
                });
                let error = pull(&lab.dir.path().join("state"), &web).unwrap_err();
                assert_line("digest", &error);
                assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
                let images = std::fs::read_dir(lab.dir.path().join("state/store/images")).unwrap();
                assert_eq!(images.count(), 0);
            },
        ),
    ]
}

#[test]
fn no_server_gets_what_is_not_its_own() {
    for row in rows() {
        let run = std::panic::catch_unwind(|| (row.run)(&Lab::new()));
        assert!(run.is_ok(), "{}", row.name);
    }
}
