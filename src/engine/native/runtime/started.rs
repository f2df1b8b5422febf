//! Whether a container's first process has executed its program: `start` of a runtime comes back a moment before.
//!
//! A process that executes something has another executable and another name; the name stays with it when it ends.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

/// How long execve(2) may take: a program is read from a disk, or from a server.
const PATIENCE: Duration = Duration::from_secs(60);

/// The process as the runtime left it.
pub(super) struct Before {
    pid: i32,
    name: String,
    program: Option<(u64, u64)>,
}

impl Before {
    /// Looks at a child of ours.
    pub fn of(pid: i32) -> io::Result<Self> {
        let (name, _) = name(pid)?;
        Ok(Self { pid, name, program: program(pid) })
    }

    /// Waits until it executes its program.
    ///
    /// # Errors
    /// It has ended without.
    pub fn wait(&self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = program(self.pid);
            let (name, ended) = name(self.pid)?;
            if name != self.name || (now.is_some() && now != self.program) {
                return Ok(());
            }
            if ended {
                return Err(io::Error::other("its program cannot be executed"));
            }
            if Instant::now() >= end {
                return Err(io::Error::other("its program is not executed"));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Name of a process, and whether it has ended. Source: proc_pid_stat(5).
fn name(pid: i32) -> io::Result<(String, bool)> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    let text = String::from_utf8_lossy(&text);
    let parsed = text.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") "));
    let (name, rest) = parsed.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: {text}")))?;
    Ok((name.to_owned(), rest.starts_with(['Z', 'X'])))
}

fn program(pid: i32) -> Option<(u64, u64)> {
    let found = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_as_it_was_has_not_started() {
        let mut child = std::process::Command::new("sleep").arg("0.05").spawn().unwrap();
        let pid = child.id().cast_signed();
        // Its own execve(2) may still be about to come.
        let name_is = |wanted: &str| name(pid).is_ok_and(|(name, _)| name == wanted);
        while !name_is("sleep") {}
        assert!(Before::of(pid).unwrap().wait().is_err());
        let other = Before { pid, name: "runtime".into(), program: None };
        assert!(other.wait().is_ok(), "ended, but by another name");
        child.wait().unwrap();
    }
}
