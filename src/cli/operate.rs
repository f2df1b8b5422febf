//! `gitopsd sync`, `rollback`, `hold`, `resume`: what operators ask of a running agent.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Failure, run, write_json};
use crate::agent::control::{Accept, Command, Reply, request_with, socket_path};
use crate::config::agent::AgentConfig;
use crate::state::lock;
use crate::types::{CommitId, ServiceName};

/// How long an agent that is there may take until it listens.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the agent.
pub(super) fn ask(config: &Path, command: &Command) -> Result<Reply, Failure> {
    ask_with(&run::config(config)?, command, &mut |_| Ok(()))
}

/// Asks the agent for something that takes long, and hears how far it is.
pub(super) fn ask_with(
    config: &AgentConfig,
    command: &Command,
    progress: &mut dyn FnMut(serde_json::Value) -> std::io::Result<()>,
) -> Result<Reply, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        let reply = match request_with(&config.run_dir, command, progress) {
            Ok(reply) => reply,
            Err(error) => return Err(unheard(config, error)),
        };
        if let Some(reply) = reply {
            return Ok(reply);
        }
        // The lock says whether there is one: it may be beginning, or somebody took its socket away.
        let Some(pid) = lock::holder(&config.state_dir.join("lock")) else { return Err(Failure::NotRunning) };
        if Instant::now() >= end {
            return Err(Failure::Unreachable { pid, socket: socket_path(&config.run_dir) });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn unheard(config: &AgentConfig, error: std::io::Error) -> Failure {
    match error {
        error if error.kind() == std::io::ErrorKind::PermissionDenied => Failure::Failed {
            message: format!("the agent's socket in {} is root's", config.run_dir.display()),
            hint: Some("run it with sudo".to_owned()),
        },
        error => Failure::from(error),
    }
}

pub(super) fn answer(reply: Reply, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    if json {
        write_json(out, &serde_json::json!({ "ok": reply.code == 0, "message": reply.message }))?;
        return Ok(reply.code);
    }
    if reply.code != 0 {
        return Err(Failure::plain(reply.message));
    }
    writeln!(out, "{}", reply.message)?;
    Ok(0)
}

/// How to look at the repo.
#[derive(Debug, Clone)]
pub struct Sync {
    /// Until the commit has come to its end here.
    pub wait: bool,
    /// For so long at the most.
    pub timeout: Option<Duration>,
    /// This head is believed.
    pub accept: Option<CommitId>,
    /// Windows do not count.
    pub now: bool,
}

/// Looks at the repo now.
pub fn sync(config: &Path, sync: &Sync, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let accept = sync.accept.clone().map(|commit| Accept { commit, by: operator() });
    let seconds = sync.timeout.map(|timeout| timeout.as_secs().max(1));
    let command = Command::Sync { wait: sync.wait, seconds, accept, now: sync.now };
    let mut told = Vec::new();
    let reply = ask_with(&run::config(config)?, &command, &mut |value| {
        let lines: Vec<String> =
            serde_json::from_value(value.get("waiting").cloned().unwrap_or_default()).unwrap_or_default();
        // Beside the answer, which scripts read.
        for line in lines.iter().filter(|line| !json && !told.contains(*line)) {
            writeln!(std::io::stderr(), "waiting: {line}")?;
        }
        told = lines;
        Ok(())
    })?;
    answer(reply, json, out)
}

/// Back to the previous generation.
pub fn rollback(
    config: &Path,
    service: &ServiceName,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    answer(ask(config, &Command::Rollback { service: service.clone(), by: operator() })?, json, out)
}

/// Keeps a service as it is.
pub fn hold(
    config: &Path,
    service: &ServiceName,
    duration: Option<Duration>,
    reason: &str,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let seconds = duration.map(|duration| duration.as_secs().max(1));
    let command =
        Command::Hold { service: service.clone(), reason: reason.to_owned(), by: operator(), seconds };
    answer(ask(config, &command)?, json, out)
}

/// Lets a service follow the repo again.
pub fn resume(config: &Path, service: &ServiceName, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    answer(ask(config, &Command::Resume { service: service.clone() })?, json, out)
}

/// Who is at the keyboard: the one behind sudo, where there is one.
pub(super) fn operator() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("uid {}", nix::unistd::getuid()))
}
