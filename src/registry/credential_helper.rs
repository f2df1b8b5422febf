//! Credential helpers: programs that keep passwords (github.com/docker/docker-credential-helpers).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::credentials::Credentials;

/// Largest answer.
const MOST: u64 = 1 << 20;

/// One that asks somebody, or hangs, is ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is said of a user when the password is an identity token (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The home of whoever runs this. A service has no HOME; the agent is root.
pub(super) fn home() -> PathBuf {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).unwrap_or_else(|| "/root".into()).into()
}

/// The program of a helper.
pub(super) fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// A process group that goes with this value, whatever it started meanwhile.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Its leader was not waited for: the number is still its own.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Asks `docker-credential-NAME get`; `None` = it knows of nothing. What it says is a secret, and shown to nobody.
pub(super) async fn ask(helper: &str, registry: &str) -> Result<Option<Credentials>, String> {
    if helper.contains('/') {
        return Err(format!("`{}` is not the name of a credential helper", helper.escape_debug()));
    }
    let program = program(helper);
    let failed = |why: String| format!("the credential helper {program}: {why}");
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .env("HOME", home())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("{error}; is it installed, and in PATH?")))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group(pid);
    let talk = async {
        if let Some(mut input) = child.stdin.take() {
            // One that does not read what it is asked has its own answer.
            let _ = input.write_all(registry.as_bytes()).await;
        }
        let mut text = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(MOST + 1).read_to_end(&mut text).await.map_err(|error| error.to_string())?;
        }
        if text.len() as u64 > MOST {
            return Err(format!("its answer is longer than {MOST} bytes"));
        }
        let status = child.wait().await.map_err(|error| error.to_string())?;
        Ok((status, text))
    };
    let talked = tokio::time::timeout(PATIENCE, talk).await;
    let talked = talked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
    // What is not at its end goes now, with its children; what ended may have left something to stay.
    if talked.is_ok() {
        group.0 = None;
    }
    drop(group);
    let (status, text) = talked.map_err(failed)?;
    if !status.success() {
        // The protocol's only way to say "nothing" (docker-credential-helpers, credentials/error.go).
        let nothing = String::from_utf8_lossy(&text).contains("credentials not found");
        return if nothing { Ok(None) } else { Err(failed(status.to_string())) };
    }
    let answer: Answer =
        serde_json::from_slice(&text).map_err(|_| failed("its answer is not of its protocol".to_owned()))?;
    Ok(match answer.username.as_str() {
        _ if answer.secret.is_empty() => None,
        TOKEN_USER => Some(Credentials::Identity(String::new(), answer.secret)),
        _ => Some(Credentials::Password(answer.username, answer.secret)),
    })
}
