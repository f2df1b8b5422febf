//! Who asks S3: each way of the chain, by a program in a process of its own, as its environment is what is tested.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::make::{docker_save, small};
use super::s3::{Moto, counting_relay, moto, put};
use super::server::{Answer, Request, Server, file};

/// S3, of which only who asks is looked at.
pub fn s3() -> Server {
    let archive = docker_save(&small());
    Server::new(move |request| file(request, &archive, "\"1\""))
}

/// Pulls, with nothing in the environment but this.
pub fn pull(
    endpoint: &str,
    more: &str,
    variables: &[(&str, &str)],
    urls: &[&str],
) -> (tempfile::TempDir, Output) {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "state_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n[repo]\nurl = \"{0}/none\"\n[s3]\nendpoint = \"{endpoint}\"\npath_style = true\n{more}",
        dir.path().display()
    );
    std::fs::write(dir.path().join("gitopsd.toml"), config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
        .arg("--config")
        .arg(dir.path().join("gitopsd.toml"))
        .arg("pull")
        .args(urls)
        .env_clear()
        .env("HOME", dir.path())
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    (dir, output)
}

pub const URL: &str = "s3://images/app.tar";

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The key, region and token that each request was signed with.
pub fn signers(server: &Server) -> Vec<(String, String, Option<String>)> {
    let query = |request: &Request, key: &str| {
        let rest = request.path.split(['?', '&']).find_map(|pair| pair.strip_prefix(&format!("{key}=")));
        rest.map(|value| value.replace("%2F", "/"))
    };
    let log = server.log();
    let mut found: Vec<_> = log
        .iter()
        .map(|request| {
            let scope = query(request, "X-Amz-Credential").unwrap_or_default();
            let mut parts = scope.split('/');
            let key = parts.next().unwrap_or_default().to_owned();
            (key, parts.nth(1).unwrap_or_default().to_owned(), query(request, "X-Amz-Security-Token"))
        })
        .collect();
    found.dedup();
    found
}

#[track_caller]
pub fn assert_signed(server: &Server, output: &Output, key: &str, region: &str, token: Option<&str>) {
    assert!(output.status.success(), "{}", text(output));
    assert_eq!(signers(server), [(key.to_owned(), region.to_owned(), token.map(str::to_owned))]);
}

pub fn credentials(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

#[test]
fn the_environment_comes_first() {
    let server = s3();
    let keys = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_SESSION_TOKEN", "T")];
    let more = [("AWS_PROFILE", "other"), ("AWS_REGION", "eu-west-3")];
    let (_, output) = pull(&server.url(""), "", &[&keys[..], &more].concat(), &[URL]);
    assert_signed(&server, &output, "ENV", "eu-west-3", Some("T"));
}

#[test]
fn a_profile_of_the_shared_files() {
    let dir = tempfile::tempdir().unwrap();
    let keys = credentials(
        dir.path(),
        "credentials",
        "[default]\naws_access_key_id = DEF\naws_secret_access_key = x\n[ci]\naws_access_key_id = CI\naws_secret_access_key = y\n",
    );
    let config = credentials(
        dir.path(),
        "config",
        "[default]\nregion = eu-west-1\n[profile ci]\nregion = eu-north-1\n",
    );
    let files = [("AWS_SHARED_CREDENTIALS_FILE", &*keys), ("AWS_CONFIG_FILE", &*config)];
    let server = s3();
    let (_, output) = pull(&server.url(""), "", &files, &[URL]);
    assert_signed(&server, &output, "DEF", "eu-west-1", None);
    let server = s3();
    let (_, output) = pull(&server.url(""), "", &[&files[..], &[("AWS_PROFILE", "ci")]].concat(), &[URL]);
    assert_signed(&server, &output, "CI", "eu-north-1", None);
    // The host's own word counts for more.
    let server = s3();
    let (_, output) = pull(&server.url(""), "region = \"us-west-2\"\n", &files, &[URL]);
    assert_signed(&server, &output, "DEF", "us-west-2", None);
    // One that is named and is not there is no reason to be somebody else.
    let server = s3();
    let (_, output) = pull(&server.url(""), "", &[&files[..], &[("AWS_PROFILE", "none")]].concat(), &[URL]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("AWS_PROFILE names `none`"), "{}", text(&output));
    assert_eq!(server.log().len(), 0);
}

#[test]
fn a_program_that_a_profile_names() {
    let dir = tempfile::tempdir().unwrap();
    let script = credentials(
        dir.path(),
        "tool",
        "#!/bin/sh\necho run >>\"$2\"\necho '{\"Version\":1,\"AccessKeyId\":\"PROC\",\"SecretAccessKey\":\"x\",\"SessionToken\":\"T\"}'\n",
    );
    Command::new("chmod").args(["+x", &script]).status().unwrap();
    let log = dir.path().join("log");
    let line = format!("[default]\ncredential_process = {script} --log {}\n", log.display());
    let config = credentials(dir.path(), "config", &line);
    let server = s3();
    let (_, output) = pull(&server.url(""), "", &[("AWS_CONFIG_FILE", &config)], &[URL]);
    assert_signed(&server, &output, "PROC", "us-east-1", Some("T"));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "run\n", "once, for all requests");
    for (line, part) in [
        ("credential_process = /bin/false\n", "/bin/false: exit status: 1"),
        ("credential_process = /bin/echo secret\n", "/bin/echo did not write credentials"),
        ("credential_process = '/bin/echo\n", "a quote is not closed"),
        ("mfa_serial = arn:aws:iam::1:mfa/x\n", "`mfa_serial` is a way"),
    ] {
        let config = credentials(dir.path(), "config", &format!("[default]\n{line}"));
        let (_, output) = pull(&server.url(""), "", &[("AWS_CONFIG_FILE", &config)], &[URL]);
        assert!(
            text(&output).contains(part) && text(&output).contains("(auth)"),
            "{line}: {}",
            text(&output)
        );
        assert!(!text(&output).contains("secret"), "{}", text(&output));
    }
}

/// What `aws sso login` left, by a session of its own or by the profile alone.
#[test]
fn a_login() {
    let portal = Server::new(|request| match request.header("x-amz-sso_bearer_token") {
        Some("good") => {
            assert_eq!(request.path, "/federation/credentials?account_id=123456789012&role_name=reader");
            let body = r#"{"roleCredentials":{"accessKeyId":"SSO","secretAccessKey":"x","sessionToken":"T","expiration":4070908800000}}"#;
            Answer::new(200, body.as_bytes())
        }
        _ => Answer::new(401, b"{}"),
    });
    let server = s3();
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join(".aws/sso/cache");
    std::fs::create_dir_all(&cache).unwrap();
    let who = "sso_account_id = 123456789012\nsso_role_name = reader\n";
    let place = "sso_start_url = https://acme.awsapps.com/start\nsso_region = eu-central-1\n";
    let session = format!("[default]\nsso_session = acme\n{who}[sso-session acme]\n{place}");
    let alone = format!("[default]\n{who}{place}");
    let (home, url) = (dir.path().display().to_string(), portal.url("/"));
    let pull = |config: &str| {
        let config = credentials(dir.path(), "config", config);
        let variables = [("AWS_CONFIG_FILE", &*config), ("AWS_ENDPOINT_URL_SSO", &*url), ("HOME", &*home)];
        let (_, output) = pull(&server.url(""), "", &variables, &[URL]);
        assert!(!text(&output).contains("good"), "a token is a secret: {}", text(&output));
        output
    };
    let login = |token: &str, start: &str, end: &str| {
        let text = format!(r#"{{"startUrl":"{start}","accessToken":"{token}","expiresAt":"{end}"}}"#);
        std::fs::write(cache.join("login.json"), text).unwrap();
    };
    std::fs::write(cache.join("client.json"), r#"{"clientId":"x","expiresAt":"2099-01-01T00:00:00Z"}"#)
        .unwrap();
    let start = "https://acme.awsapps.com/start";
    for (token, start, end, said) in [
        ("good", start, "2020-01-01T00:00:00Z", "nobody is logged in to https://acme.awsapps.com/start"),
        ("good", "https://other.awsapps.com/start", "2099-01-01T00:00:00Z", "nobody is logged in to"),
        ("bad", start, "2099-01-01T00:00:00Z", "the login is over"),
    ] {
        login(token, start, end);
        let output = pull(&session);
        assert!(text(&output).contains(said) && text(&output).contains("(auth)"), "{}", text(&output));
    }
    assert_eq!(server.log().len(), 0, "and nobody is asked unsigned");
    let output = pull("[default]\nsso_session = none\nsso_account_id = 1\nsso_role_name = x\n");
    assert!(text(&output).contains("sso_session names `none`"), "{}", text(&output));
    let output = pull(&format!("[default]\n{who}sso_region = x\n"));
    assert!(text(&output).contains("it has no sso_start_url"), "{}", text(&output));
    login("good", &format!("{start}/"), "2099-01-01T00:00:00UTC");
    assert_signed(&server, &pull(&session), "SSO", "us-east-1", Some("T"));
    let output = pull(&alone);
    assert!(output.status.success(), "{}", text(&output));
}

/// ECS's endpoint: asked once for many requests, and again when what it gave is over.
#[test]
fn the_containers_endpoint() {
    for (ends, asked_once) in [("2099-01-01T00:00:00Z", true), ("2020-01-01T00:00:00Z", false)] {
        let body =
            format!(r#"{{"AccessKeyId":"ECS","SecretAccessKey":"x","Token":"T","Expiration":"{ends}"}}"#);
        let endpoint = Server::new(move |request| match request.header("authorization") {
            Some("key") => Answer::new(200, body.as_bytes()),
            _ => Answer::new(403, b""),
        });
        let server = s3();
        let url = endpoint.url("/v2/credentials");
        let variables =
            [("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*url), ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "key")];
        let urls = [URL, "s3://images/b.tar", "s3://images/c.tar"];
        let (_, output) = pull(&server.url(""), "", &variables, &urls);
        assert_signed(&server, &output, "ECS", "us-east-1", Some("T"));
        assert_eq!(endpoint.log().len() == 1, asked_once, "{}", endpoint.log().len());
    }
    // A refusal is told, and nothing is asked for unsigned.
    let (endpoint, server) = (Server::new(|_| Answer::new(403, b"")), s3());
    let url = endpoint.url("/");
    let (_, output) = pull(&server.url(""), "", &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)], &[URL]);
    assert!(
        text(&output).contains("credentials of the container: its endpoint answers 403"),
        "{}",
        text(&output)
    );
    assert_eq!(server.log().len(), 0);
    let elsewhere = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/x")];
    let (_, output) = pull(&server.url(""), "", &elsewhere, &[URL]);
    assert!(text(&output).contains("plain http is for this machine's own endpoints"), "{}", text(&output));
}

#[test]
fn the_instances_endpoint() {
    let endpoint = Server::new(|request| {
        let token = request.header("x-aws-ec2-metadata-token");
        match (request.method.as_str(), request.path.as_str()) {
            ("PUT", "/latest/api/token") if request.header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => {
                Answer::new(200, b"session")
            }
            ("GET", "/latest/meta-data/iam/security-credentials/") if token == Some("session") => {
                Answer::new(200, b"the-role\n")
            }
            ("GET", "/latest/meta-data/iam/security-credentials/the-role") if token == Some("session") => {
                Answer::new(200, br#"{"Code":"Success","AccessKeyId":"EC2","SecretAccessKey":"x","Token":"T","Expiration":"2099-01-01T00:00:00Z"}"#)
            }
            _ => Answer::new(401, b""),
        }
    });
    let server = s3();
    let base = endpoint.url("");
    let (_, output) = pull(&server.url(""), "", &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &base)], &[URL]);
    assert_signed(&server, &output, "EC2", "us-east-1", Some("T"));
    assert_eq!(endpoint.log().len(), 3);
    // Where nobody is there, or it is told not to look, requests are not signed: as for a public bucket.
    for variables in [
        [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1"), ("X", "")],
        [("AWS_EC2_METADATA_SERVICE_ENDPOINT", &base), ("AWS_EC2_METADATA_DISABLED", "true")],
    ] {
        let server = s3();
        let (_, output) = pull(&server.url(""), "", &variables, &[URL]);
        assert_signed(&server, &output, "", "", None);
    }
    assert_eq!(endpoint.log().len(), 3);
}

/// A web identity, as Kubernetes sets it up, by a real STS and a real S3.
#[test]
fn a_web_identity() {
    let moto = moto();
    let dir = tempfile::tempdir().unwrap();
    put(&moto, dir.path(), "images", b"");
    put(&moto, dir.path(), "images/app.tar", &docker_save(&small()));
    let (port, _) = counting_relay(moto.port);
    let token = credentials(dir.path(), "token", "some.web.token\n");
    let sts = format!("http://127.0.0.1:{}", moto.port);
    let role = "arn:aws:iam::123456789012:role/host";
    let variables =
        [("AWS_WEB_IDENTITY_TOKEN_FILE", &*token), ("AWS_ROLE_ARN", role), ("AWS_ENDPOINT_URL_STS", &sts)];
    let s3 = format!("http://127.0.0.1:{port}");
    let (_, output) = pull(&s3, "", &variables, &[URL]);
    assert!(output.status.success(), "{}", text(&output));
    // The same by a profile.
    let profile = format!(
        "[profile web]\nrole_arn = {role}\nweb_identity_token_file = {token}\nrole_session_name = me\n"
    );
    let config = credentials(dir.path(), "config", &profile);
    let by_profile = [("AWS_CONFIG_FILE", &*config), ("AWS_PROFILE", "web"), ("AWS_ENDPOINT_URL_STS", &sts)];
    let (_, output) = pull(&s3, "", &by_profile, &[URL]);
    assert!(output.status.success(), "{}", text(&output));
    // What STS refuses, and what is not there.
    let refusing = Server::new(|request| {
        assert!(
            request.body.contains("Action=AssumeRoleWithWebIdentity")
                && request.body.contains("WebIdentityToken=some.web.token")
        );
        Answer::new(400, b"<ErrorResponse><Error><Code>ExpiredTokenException</Code></Error></ErrorResponse>")
    });
    let url = refusing.url("/");
    let refused = [variables[0], variables[1], ("AWS_ENDPOINT_URL_STS", &*url)];
    let (_, output) = pull(&s3, "", &refused, &[URL]);
    assert!(text(&output).contains("STS answers 400 ExpiredTokenException"), "{}", text(&output));
    assert!(!text(&output).contains("some.web.token"), "{}", text(&output));
    let missing = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token"), variables[1], variables[2]];
    let (_, output) = pull(&s3, "", &missing, &[URL]);
    assert!(text(&output).contains("/nonexistent/token"), "{}", text(&output));
    let Moto { .. } = moto;
}

/// A bucket elsewhere says so, in whatever way it refuses.
#[test]
fn another_region_is_told() {
    for status in [301, 400, 403] {
        let server =
            Server::new(move |_| Answer::new(status, b"").header("x-amz-bucket-region", "eu-central-1"));
        let (_, output) = pull(&server.url(""), "", &[("AWS_EC2_METADATA_DISABLED", "true")], &[URL]);
        let told = "its bucket is in the region eu-central-1, and us-east-1 is asked";
        assert!(text(&output).contains(told), "{}", text(&output));
    }
}

/// Credentials that are refused are looked for again: they may have been replaced meanwhile.
#[test]
fn what_is_refused_is_looked_for_again() {
    let count = AtomicUsize::new(0);
    let endpoint = Server::new(move |_| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let body = format!(
            r#"{{"AccessKeyId":"K{number}","SecretAccessKey":"x","Token":"T","Expiration":"2099-01-01T00:00:00Z"}}"#
        );
        Answer::new(200, body.as_bytes())
    });
    let archive = docker_save(&small());
    let server = Server::new(move |request| match request.path.contains("Credential=K0") {
        true => Answer::new(400, b"<Error><Code>ExpiredToken</Code></Error>"),
        false => file(request, &archive, "\"1\""),
    });
    let url = endpoint.url("/");
    let variables = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*url)];
    let (_, output) = pull(&server.url(""), "", &variables, &[URL, "s3://images/second.tar"]);
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("app.tar: failed") && text.contains("(auth)"), "{text}");
    assert!(text.contains("second.tar: ") && !text.contains("second.tar: failed"), "{text}");
}
