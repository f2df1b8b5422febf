//! The agent's end of the control socket. For root, and the user the agent runs as, alone.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::Agent;
use super::control::{Answer, Command, ProgressLine, Reply, socket_path, write_line};
use super::wake::{Wake, Waker};

/// Longest line that is read.
const MAX_LINE: u64 = 64 << 10;

/// A socket that is listened to, for as long as this lasts.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Which file it is: another one of its name is not ours.
    file: (u64, u64),
    listener: UnixListener,
}

impl Socket {
    /// Begins to listen; each connection has a thread for as long as it lasts.
    pub fn listen(run_dir: &Path, waker: Waker) -> std::io::Result<Self> {
        let path = socket_path(run_dir);
        // The state lock is held: a socket that is there belongs to an agent that is gone.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let file = identity(&path)?;
        let heard = listener.try_clone()?;
        std::thread::Builder::new().name("control".to_owned()).spawn(move || accept(&heard, &waker))?;
        Ok(Self { path, file, listener })
    }

    /// Whether it can still be reached by its name.
    fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|file| file == self.file)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Ends the thread that accepts: shutdown(2) of a listening socket makes accept(2) fail with EINVAL.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Agent {
    /// Makes the socket anew where somebody took it away: without it nobody can ask anything. Costs one stat(2).
    pub(super) fn look_at_socket(&mut self) {
        if self.socket.as_ref().is_some_and(Socket::is_there) {
            return;
        }
        // The former one first: two would answer.
        self.socket = None;
        let made = std::fs::create_dir_all(&self.config.run_dir)
            .and_then(|()| Socket::listen(&self.config.run_dir, self.waker.clone()));
        match made {
            Ok(socket) => {
                tracing::warn!("the control socket was gone, and is made anew: {}", socket.path.display());
                self.socket = Some(socket);
            }
            Err(error) => {
                tracing::warn!("cannot listen in {}: {error}", self.config.run_dir.display());
            }
        }
    }
}

fn accept(listener: &UnixListener, waker: &Waker) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return,
            Err(_) => {
                // Out of descriptors: give others time to close theirs.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let waker = waker.clone();
        let served =
            std::thread::Builder::new().name("operator".to_owned()).spawn(move || serve(&stream, &waker));
        if let Err(error) = served {
            tracing::warn!("cannot serve an operator: {error}");
        }
    }
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
