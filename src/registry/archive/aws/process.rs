//! Credentials from a program that the host's own files name (docs.aws.amazon.com, "Process credential provider").

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::{Given, auth};
use crate::config::words;
use crate::registry::PullError;

/// How long it may take: some ask others.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs it, and reads what it writes. Nothing of its output is shown: it may hold secrets.
pub(super) async fn run(command: &str) -> Result<Given, PullError> {
    let failed = |why: &dyn std::fmt::Display| auth(format!("the credential_process of AWS's config: {why}"));
    let words = words::split(command).ok_or_else(|| failed(&"a quote is not closed"))?;
    let Some((program, arguments)) = words.split_first() else { return Err(failed(&"it is empty")) };
    let run = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, run)
        .await
        .map_err(|_| failed(&format_args!("{program} did not end within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(&format_args!("{program}: {error}")))?;
    if !output.status.success() {
        return Err(failed(&format_args!("{program}: {}", output.status)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|_| failed(&format_args!("{program} did not write credentials")))
}
