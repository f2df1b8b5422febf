//! The command line that crun, runc and youki share, and what they say when something fails.
//!
//! Source: opencontainers/runtime-tools, docs/command-line-interface.md; runc(8), crun(1).

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::setsid;

use super::super::layout::RunFiles;
use super::super::shim::{NOT_FOUND, reset_signals};
use crate::types::InstanceId;

/// Where cgroup v2 is beside v1 ("hybrid"): crun starts nothing there as long as it sees it, and limits are v1's.
const BESIDE_V1: &str = "/sys/fs/cgroup/unified";

/// A runtime's log is as long as its troubles; the last one counts.
const MAX_LOG: usize = 64 << 10;

/// One container of one runtime.
pub(super) struct Cli<'a> {
    program: &'a Path,
    run: &'a RunFiles,
    id: &'a InstanceId,
}

impl<'a> Cli<'a> {
    pub fn new(program: &'a Path, run: &'a RunFiles, id: &'a InstanceId) -> Self {
        Self { program, run, id }
    }

    fn log(&self) -> std::path::PathBuf {
        // Commands run beside each other.
        self.run.dir.join(format!("runtime-{}.log", std::process::id()))
    }

    /// The runtime with the options that come before its verb; sees nothing of our environment and streams.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(self.run.runtime()).arg("--log").arg(self.log());
        command.args(["--log-format", "json"]).arg(verb);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: between fork and exec; the calls take no lock and allocate nothing.
        unsafe { command.pre_exec(|| prepare().map_err(io::Error::from)) };
        command
    }

    /// Runs it to its end; the error is what the runtime logged.
    pub fn run(&self, mut command: Command) -> io::Result<()> {
        let _ = fs::remove_file(self.log());
        let status = command.status()?;
        let said = fs::read(self.log()).unwrap_or_default();
        let _ = fs::remove_file(self.log());
        if status.success() {
            return Ok(());
        }
        let last = said.get(said.len().saturating_sub(MAX_LOG)..).unwrap_or_default();
        let said = last_error(&String::from_utf8_lossy(last));
        Err(io::Error::other(said.unwrap_or_else(|| format!("it ended with {status} and said nothing"))))
    }

    /// Takes the container away; one that is not there is fine.
    pub fn delete(&self) {
        let mut delete = self.command("delete");
        delete.arg("--force").arg(self.id.to_string());
        let _ = self.run(delete);
    }
}

/// The shim ignores signals, and ignored ones stay so over execve(2); what is hidden is so in this process alone.
fn prepare() -> nix::Result<()> {
    reset_signals();
    // A session and a process group of their own for what it makes: crun leaves that to its caller.
    setsid()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Not there on most hosts.
    let _ = umount2(BESIDE_V1, MntFlags::MNT_DETACH);
    Ok(())
}

/// The last error of a log in JSON, without the words about who said it.
fn last_error(log: &str) -> Option<String> {
    let errors = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let errors =
        errors.filter(|line| line["level"].as_str().is_none_or(|level| level == "error" || level == "fatal"));
    let text = errors.filter_map(|line| line["msg"].as_str().map(str::to_owned)).next_back()?;
    let parts = ["runc create failed: ", "runc run failed: ", "unable to start container process: "];
    let short = parts.iter().fold(text.as_str(), |text, part| text.strip_prefix(part).unwrap_or(text));
    Some(short.trim().to_owned())
}

/// What a runtime says of a program that it cannot execute, in the words of the built-in one.
pub(in super::super) fn explain(program: &str, message: &str) -> String {
    let about = message.contains(program) && !program.is_empty();
    let missing = [
        "executable file not found",
        "not found in $PATH",
        "No such file or directory",
        "no such file or directory",
    ];
    if about && missing.iter().any(|words| message.contains(words)) {
        return format!("`{program}` {NOT_FOUND}");
    }
    let refused = message.to_ascii_lowercase().contains("permission denied");
    if refused && (about || message.starts_with("open executable")) {
        return format!("`{program}` may not be executed by this user");
    }
    message.to_owned()
}

/// What the runtime wrote for `--pid-file`.
pub(super) fn read_pid(path: &Path) -> io::Result<i32> {
    let text = fs::read_to_string(path)?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| io::Error::other(format!("{}: `{text}` is no process", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_in_our_words() {
        let runc = r#"{"level":"warning","msg":"x"}
{"level":"error","msg":"runc create failed: unable to start container process: exec: \"nope\": executable file not found in $PATH","time":"t"}"#;
        let said = last_error(runc).unwrap();
        assert_eq!(said, "exec: \"nope\": executable file not found in $PATH");
        assert_eq!(explain("nope", &said), format!("`nope` {NOT_FOUND}"));
        let crun = r#"{"msg":"executable file `nope` not found in $PATH: No such file or directory","level":"error","time":"t"}"#;
        assert_eq!(explain("nope", &last_error(crun).unwrap()), format!("`nope` {NOT_FOUND}"));
        assert_eq!(
            explain("nope", "cgroups: no such file or directory"),
            "cgroups: no such file or directory"
        );
        let denied = "`/etc/passwd` may not be executed by this user";
        assert_eq!(explain("/etc/passwd", "open executable: Permission denied"), denied);
        assert_eq!(last_error("not json"), None);
    }
}
