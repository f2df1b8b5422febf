//! Transitions as JSON lines, for `gitopsd events`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::message::Message;
use crate::types::{CommitId, Exit, Generation, ImageRef, Reason, ServiceName, Timestamp};

/// The file is turned over at this size; one former file is kept.
const TURN_OVER: u64 = 4 << 20;

/// One line of `gitopsd events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What: a name of `docs/messages.md`.
    pub event: String,
    /// One line for people.
    pub message: String,
    /// See [`Message`].
    pub service: Option<ServiceName>,
    /// See [`Message`].
    pub commit: Option<CommitId>,
    /// See [`Message`].
    pub generation: Option<Generation>,
    /// See [`Message`].
    pub image: Option<ImageRef>,
    /// See [`Message`].
    pub phase: Option<String>,
    /// See [`Message`].
    pub reason: Option<Reason>,
    /// See [`Message`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

impl Event {
    /// The line for a message.
    pub fn of(message: &Message, at: Timestamp) -> Self {
        Self {
            at,
            event: message.kind.name().to_owned(),
            message: message.text.clone(),
            service: message.service.clone(),
            commit: message.commit.clone(),
            generation: message.generation,
            image: message.image.clone(),
            phase: message.phase.map(str::to_owned),
            reason: message.reason,
            exit: message.exit.clone(),
        }
    }
}

/// The file of events. It is a view, not state: written without fsync, and trouble with it stops nothing.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: Option<File>,
}

impl EventLog {
    /// The log below a state directory.
    pub fn open(state_dir: &Path) -> Self {
        Self { path: path(state_dir), file: None }
    }

    /// Adds a line.
    pub fn append(&mut self, event: &Event) {
        if let Err(error) = self.try_append(event) {
            tracing::warn!("cannot write {}: {error}", self.path.display());
            self.file = None;
        }
    }

    fn try_append(&mut self, event: &Event) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
                self.file.insert(file)
            }
        };
        file.write_all(&line)?;
        if file.metadata()?.len() > TURN_OVER {
            std::fs::rename(&self.path, self.path.with_extension("1.jsonl"))?;
            self.file = None;
        }
        Ok(())
    }
}

/// Where the events of a state directory are.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("events.jsonl")
}
