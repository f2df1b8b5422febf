//! A shim without systemd: a child that forks once more, so that it belongs to nobody.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::layout::RunFiles;
use super::super::shim;

/// Starts it; gives back the pipe on which it reports.
pub(super) fn start(
    program: &Path,
    run: &RunFiles,
    mode: &str,
    lock: File,
    log: File,
) -> io::Result<OwnedFd> {
    let (report, writer) = io::pipe()?;
    let mut child = Command::new(program)
        .arg(shim::COMMAND)
        .arg(&run.dir)
        .arg(mode)
        // Nothing of the agent's own environment (credentials, LISTEN_FDS, NOTIFY_SOCKET) is for containers.
        .env_clear()
        .current_dir("/")
        .stdin(lock)
        .stdout(Stdio::from(writer))
        .stderr(log)
        .spawn()?;
    // It only forks the shim proper and ends.
    let _ = child.wait();
    Ok(report.into())
}
