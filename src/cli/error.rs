//! Whose fault an error is, which exit code it has, and how it is told: one place decides.

use std::io::Write;

use crate::agent::AgentError;
use crate::state::StateError;
use crate::types::{Reason, Refusal};

/// Why a verb did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// It could not be done.
    Failed {
        /// One line.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// No agent is running.
    NotRunning,
    /// One is running, and cannot be asked: its socket is not there.
    Unreachable {
        /// Its process.
        pid: u32,
        /// Where the socket should be.
        socket: std::path::PathBuf,
    },
    /// The host's configuration is wrong; the text names each error.
    BadConfig(String),
    /// The words were wrong.
    Usage(String),
    /// The reader of our output is gone.
    Pipe,
}

impl Failure {
    /// A failure without a hint.
    pub fn plain(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    /// The exit code: sysexits.h where it has one.
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed { .. } => 1,
            Self::NotRunning | Self::Unreachable { .. } => 69,
            Self::BadConfig(_) => 78,
            Self::Usage(_) => 64,
            Self::Pipe => 0,
        }
    }

    /// Tells it: `error: …`, then `hint: …`.
    pub fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let (message, hint) = match self {
            Self::Unreachable { pid, socket } => {
                writeln!(
                    to,
                    "error: the agent is running (pid {pid}), but its socket {} is not there",
                    socket.display()
                )?;
                return writeln!(
                    to,
                    "hint: it makes it anew within half a minute; if not: systemctl restart gitopsd"
                );
            }
            Self::Failed { message, hint } => (message.as_str(), hint.as_deref()),
            Self::NotRunning => {
                ("the agent is not running", Some("systemctl status gitopsd; journalctl -u gitopsd"))
            }
            // Each finding in it says itself that it is an error, and where.
            Self::BadConfig(text) => return writeln!(to, "{text}"),
            Self::Usage(text) => (text.as_str(), None),
            Self::Pipe => return Ok(()),
        };
        writeln!(to, "error: {message}")?;
        if let Some(hint) = hint {
            writeln!(to, "hint: {hint}")?;
        }
        Ok(())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Pipe,
            _ => Self::plain(error.to_string()),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Failed { hint: Some(refusal.reason.todo().to_owned()), message: refusal.to_string() }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        match &error {
            StateError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Self::Failed {
                    message: error.to_refusal().message,
                    hint: Some("the state of an agent is root's: run it with sudo".to_owned()),
                }
            }
            StateError::Locked { .. } => Self::Failed {
                message: error.to_string(),
                hint: Some("stop that agent first: `systemctl stop gitopsd`, or end its process".to_owned()),
            },
            _ => error.to_refusal().into(),
        }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::State(error) => error.into(),
            AgentError::Host(refusal) if refusal.reason == Reason::ConfigInvalid => {
                Self::BadConfig(refusal.message)
            }
            AgentError::Host(refusal) => refusal.into(),
            AgentError::Io { what, source } => Self::plain(format!("{what}: {source}")),
        }
    }
}
