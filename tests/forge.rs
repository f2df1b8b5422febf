//! Commit statuses, by the public descriptions of each forge's API.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what is wrong by panicking"
)]

#[path = "support/forge_server.rs"]
mod forge_server;

use std::fs;
use std::path::Path;
use std::time::Duration;

use forge_server::{ForgeServer, Request};
use gitopsd::config::agent::{Forge, ForgeConfig};
use gitopsd::forge::{CommitStatus, PostError, Poster, Verdict};
use gitopsd::types::Reason;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

struct Lab {
    dir: tempfile::TempDir,
    server: ForgeServer,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-forge-").tempdir().unwrap();
        fs::write(dir.path().join("token"), "s3cret\n").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { dir, server: ForgeServer::start(), runtime }
    }

    fn token(&self) -> &Path {
        self.dir.path()
    }

    fn post(&self, forge: Forge, path: &str, verdict: Verdict) -> Result<(), PostError> {
        let config = ForgeConfig {
            forge,
            url: format!("http://127.0.0.1:{}/{path}", self.server.port).parse().unwrap(),
            token_file: self.token().join("token"),
            ca_file: None,
        };
        let poster = Poster::new(&config, &"web-1".parse().unwrap()).unwrap();
        let status = CommitStatus {
            commit: COMMIT.parse().unwrap(),
            verdict,
            about: String::new(),
            description: "2 services are as wanted".to_owned(),
        };
        self.runtime.block_on(poster.post(&status))
    }

    fn last(&self) -> Request {
        self.server.requests().pop().unwrap()
    }
}

const ALL: [Verdict; 4] = [Verdict::Pending, Verdict::Success, Verdict::Failure, Verdict::Superseded];

/// docs.github.com, REST API, "Create a commit status".
#[test]
fn github() {
    let lab = Lab::new();
    for (verdict, state) in ALL.into_iter().zip(["pending", "success", "failure", "error"]) {
        lab.post(Forge::GitHub, "ops/config.git", verdict).unwrap();
        let request = lab.last();
        // Of a server of one's own; github.com has a host for it, which the tests of the address have.
        assert_eq!(request.line, format!("POST /api/v3/repos/ops/config/statuses/{COMMIT} HTTP/1.1"));
        assert_eq!(request.field("authorization"), Some("Bearer s3cret"));
        assert_eq!(request.field("accept"), Some("application/vnd.github+json"));
        assert_eq!(request.field("x-github-api-version"), Some("2022-11-28"));
        assert!(request.field("user-agent").is_some_and(|agent| agent.starts_with("gitopsd/")));
        assert_eq!(request.field("content-type"), Some("application/json"));
        assert_eq!(
            request.body,
            serde_json::json!({"state": state, "context": "gitopsd/web-1", "description": "2 services are as wanted"})
        );
    }
}

/// docs.gitlab.com, Commits API, "Set commit pipeline status".
#[test]
fn gitlab() {
    let lab = Lab::new();
    for (verdict, state) in ALL.into_iter().zip(["pending", "success", "failed", "canceled"]) {
        lab.post(Forge::GitLab, "team/ops/config", verdict).unwrap();
        let request = lab.last();
        let project = "team%2Fops%2Fconfig";
        assert_eq!(request.line, format!("POST /api/v4/projects/{project}/statuses/{COMMIT} HTTP/1.1"));
        assert_eq!(request.field("private-token"), Some("s3cret"));
        assert_eq!(request.field("authorization"), None);
        assert_eq!(
            request.body,
            serde_json::json!({"state": state, "name": "gitopsd/web-1", "description": "2 services are as wanted"})
        );
    }
    // What it shows already it does not take again: no failure.
    lab.server.answer(
        "400 Bad Request\r\n|{\"message\": \"Cannot transition status via :enqueue from :pending (Reason(s): Status cannot transition via \\\"enqueue\\\")\"}",
    );
    lab.post(Forge::GitLab, "team/ops/config", Verdict::Pending).unwrap();
    lab.server.answer("400 Bad Request\r\n|{\"message\": {\"description\": [\"is too long\"]}}");
    let error = lab.post(Forge::GitLab, "team/ops/config", Verdict::Pending).unwrap_err();
    assert!(error.refusal.message.contains("is too long"), "{error:?}");
}

/// Gitea's and Forgejo's `/api/swagger`, `repoCreateStatus`.
#[test]
fn gitea_and_forgejo() {
    let lab = Lab::new();
    for (verdict, state) in ALL.into_iter().zip(["pending", "success", "failure", "error"]) {
        lab.post(Forge::Gitea, "git/ops/config", verdict).unwrap();
        let request = lab.last();
        assert_eq!(request.line, format!("POST /git/api/v1/repos/ops/config/statuses/{COMMIT} HTTP/1.1"));
        assert_eq!(request.field("authorization"), Some("token s3cret"));
        assert_eq!(
            request.body,
            serde_json::json!({"state": state, "context": "gitopsd/web-1", "description": "2 services are as wanted"})
        );
    }
}

#[test]
fn refusals_say_what_the_forge_says_and_never_the_token() {
    let lab = Lab::new();
    for (answer, reason, part, pause) in [
        (
            "401 Unauthorized\r\n|{\"message\": \"Bad credentials\"}",
            Reason::Auth,
            "401 Bad credentials",
            None,
        ),
        ("404 Not Found\r\n|{\"message\": \"Not Found\"}", Reason::StatusRefused, "404 Not Found", None),
        ("429 Too Many\r\nRetry-After: 90\r\n|slow down", Reason::StatusRefused, "slow down", Some(90)),
        ("503 Away\r\nRetry-After: 999999\r\n|", Reason::StatusRefused, "503", Some(3600)),
        ("302 Found\r\nLocation: http://127.0.0.1:1/\r\n|", Reason::StatusRefused, "302", None),
    ] {
        lab.server.answer(answer);
        let error = lab.post(Forge::GitHub, "ops/config", Verdict::Success).unwrap_err();
        assert_eq!(error.refusal.reason, reason, "{error:?}");
        assert!(error.refusal.message.contains(part), "{error:?}");
        assert!(!error.refusal.message.contains("s3cret"), "{error:?}");
        assert_eq!(error.pause, pause.map(Duration::from_secs), "{answer}");
    }
    let before = lab.server.requests().len();
    for (text, part) in [("", "empty"), ("a\u{1}b", "no header")] {
        fs::write(lab.token().join("token"), text).unwrap();
        let error = lab.post(Forge::GitHub, "ops/config", Verdict::Success).unwrap_err();
        assert!(error.refusal.reason == Reason::Auth && error.refusal.message.contains(part), "{error:?}");
    }
    fs::remove_file(lab.token().join("token")).unwrap();
    assert_eq!(
        lab.post(Forge::GitHub, "ops/config", Verdict::Success).unwrap_err().refusal.reason,
        Reason::Auth
    );
    assert_eq!(lab.server.requests().len(), before, "nothing is sent without a token");
}
