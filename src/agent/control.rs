//! What is said on the control socket: one JSON line in, one JSON line out; what takes long is told of by lines before
//! it. Also the asker's end of it; the agent's is in `socket`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use serde::{Deserialize, Serialize};

use crate::types::{CommitId, Digest, ImageRef, ServiceName};

/// What an operator can ask of a running agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The status.
    Status,
    /// Look at the repo now.
    Sync {
        /// Answer once this commit has come to its end.
        wait: bool,
        /// Wait no longer than this.
        seconds: Option<u64>,
        /// Believe the head of the branch though its history was rewritten.
        accept: Option<Accept>,
        /// The windows of services do not count for the head that is found.
        #[serde(default)]
        now: bool,
    },
    /// Forget the commit that was believed last.
    TrustReset {
        /// And believe this one, and what descends from it; `None`: as on first contact.
        commit: Option<CommitId>,
        /// Who asks.
        by: String,
        /// Why, in their words.
        reason: String,
    },
    /// Back to the previous generation.
    Rollback {
        /// Which service.
        service: ServiceName,
        /// Who asks.
        by: String,
    },
    /// Stay as it is.
    Hold {
        /// Which service.
        service: ServiceName,
        /// Why, in the operator's words.
        reason: String,
        /// Who asks.
        by: String,
        /// For how long; `None` = until `resume`.
        seconds: Option<u64>,
    },
    /// Follow the repo again; forgets a failure too.
    Resume {
        /// Which service.
        service: ServiceName,
    },
    /// Make images local, ahead of a deploy.
    Pull {
        /// These.
        images: Vec<ImageRef>,
        /// And all that the repo wants of this host.
        all: bool,
    },
    /// Remove images that nothing needs.
    Gc {
        /// Only say which.
        dry_run: bool,
    },
    /// Have damaged layers and image records again.
    Repair {
        /// By their diff-IDs.
        layers: Vec<Digest>,
        /// By their manifests.
        images: Vec<Digest>,
    },
}

/// An operator's word that a rewritten history is meant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accept {
    /// The head of the branch, or a commit that it descends from, in full.
    pub commit: CommitId,
    /// Who says so.
    pub by: String,
}

/// What an asker hears: any number of words on progress, then the reply.
#[derive(Debug)]
pub enum Answer {
    /// How far it is.
    Progress(serde_json::Value),
    /// That was it.
    Reply(Reply),
}

/// Where answers go. An error means that the asker is gone: its own business.
pub type Answers = mpsc::Sender<Answer>;

/// A line before the last one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProgressLine {
    /// How far it is.
    pub progress: serde_json::Value,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The exit code for the asking command.
    pub code: u8,
    /// One line for people.
    pub message: String,
    /// What was asked for.
    pub body: Option<serde_json::Value>,
}

impl Reply {
    /// It was done.
    pub fn done(message: impl Into<String>) -> Self {
        Self { code: 0, message: message.into(), body: None }
    }

    /// It was not done.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), body: None }
    }
}

/// Where the socket of a run directory is.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}

/// Asks the agent of `run_dir`. `Ok(None)`: nobody listens there.
pub fn request(run_dir: &Path, command: &Command) -> std::io::Result<Option<Reply>> {
    request_with(run_dir, command, &mut |_| Ok(()))
}

/// Asks for something that takes long, and hears how far it is.
pub fn request_with(
    run_dir: &Path,
    command: &Command,
    progress: &mut dyn FnMut(serde_json::Value) -> std::io::Result<()>,
) -> std::io::Result<Option<Reply>> {
    let stream = match UnixStream::connect(socket_path(run_dir)) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    write_line(&stream, command)?;
    let mut answers = BufReader::new(stream);
    let mut line = String::new();
    while answers.read_line(&mut line)? > 0 {
        match serde_json::from_str::<ProgressLine>(&line) {
            Ok(told) => progress(told.progress)?,
            Err(_) => return Ok(Some(serde_json::from_str(&line)?)),
        }
        line.clear();
    }
    Ok(Some(Reply::failed("the agent ended before it answered")))
}

pub(super) fn write_line(mut stream: &UnixStream, line: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    stream.write_all(&line)
}
