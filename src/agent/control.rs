//! The control socket: one JSON line in, one JSON line out; what takes long is told of by lines before it. For root, and the user the agent runs as, alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wake::{Wake, Waker};
use crate::types::{Digest, ImageRef, ServiceName};

/// Longest line that is read.
const MAX_LINE: u64 = 64 << 10;

/// What an operator can ask of a running agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The status.
    Status,
    /// Look at the repo now.
    Sync {
        /// Answer once all is settled.
        wait: bool,
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
struct ProgressLine {
    progress: serde_json::Value,
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

/// Begins to listen; each connection has a thread for as long as it lasts.
pub fn listen(run_dir: &Path, waker: Waker) -> std::io::Result<()> {
    let path = socket_path(run_dir);
    // The state lock is held: a socket that is there belongs to an agent that is gone.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors: give others time to close theirs.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            let waker = waker.clone();
            let served =
                std::thread::Builder::new().name("operator".to_owned()).spawn(move || serve(&stream, &waker));
            if let Err(error) = served {
                tracing::warn!("cannot serve an operator: {error}");
            }
        }
    })?;
    Ok(())
}

fn serve(stream: &UnixStream, waker: &Waker) {
    let reply = match read_command(stream) {
        Ok(command) => ask(command, waker, stream),
        Err(error) => Some(Reply::failed(format!("not a command: {error}"))),
    };
    if let Some(reply) = reply {
        // The asker may be gone by now: its own business.
        let _ = write_line(stream, &reply);
    }
}

fn write_line(mut stream: &UnixStream, line: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn read_command(stream: &UnixStream) -> std::io::Result<Command> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// `None`: the asker is gone.
fn ask(command: Command, waker: &Waker, stream: &UnixStream) -> Option<Reply> {
    let (sender, receiver) = mpsc::channel();
    let gone = || Some(Reply::failed("the agent is ending"));
    if waker.send(Wake::Operator(command, sender)).is_err() {
        return gone();
    }
    for answer in receiver {
        match answer {
            Answer::Progress(progress) => write_line(stream, &ProgressLine { progress }).ok()?,
            Answer::Reply(reply) => return Some(reply),
        }
    }
    gone()
}

/// Asks the agent of `run_dir`. `Ok(None)`: none is running.
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
