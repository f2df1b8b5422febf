//! The exec helper: `gitopsd internal-exec DIR MILLISECONDS COMMAND…` runs a command in a container and ends as it does.
//!
//! Synchronous and single-threaded like the shim, and for the same reason. Called by the agent, its standard input is
//! a pipe on which it tells the outcome as a line of JSON; called for a person (0 milliseconds: no limit) its standard
//! input, output and error are the command's own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, pipe2};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroups;
use super::launch::Launch;
use super::layout::RunFiles;
use super::record::PidFd;
use super::seal;
use super::shim::{NOT_FOUND, Program};

/// Name of the subcommand.
pub(super) const COMMAND: &str = "internal-exec";

/// What became of the command.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// It ended with this code; 128 + n for signal n.
    Code(i32),
    /// It was ended because its time was over.
    TimedOut,
    /// It could not be run.
    Failed(String),
}

/// Runs the helper. `args` are those after the subcommand.
pub fn main(args: &[OsString]) -> ExitCode {
    let sealed = args.first().is_some_and(|first| first == "sealed");
    if !sealed {
        let mut again = vec![COMMAND.as_ref(), "sealed".as_ref()];
        again.extend(args.iter().map(OsString::as_os_str));
        let error = seal::execute_again(&again);
        let _ = writeln!(io::stderr(), "gitopsd: it cannot be executed from a read-only mount: {error}");
        return ExitCode::from(126);
    }
    let Some((run, limit, command)) = parse(args.get(1..).unwrap_or_default()) else {
        return ExitCode::from(64);
    };
    let outcome = run_command(&run, limit, command).unwrap_or_else(Outcome::Failed);
    if limit.is_some() {
        let mut line = serde_json::to_vec(&outcome).unwrap_or_default();
        line.push(b'\n');
        let _ = nix::unistd::write(io::stdin(), &line);
    }
    match outcome {
        Outcome::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
        Outcome::TimedOut => ExitCode::from(124),
        Outcome::Failed(message) => {
            if limit.is_none() {
                let _ = writeln!(io::stderr(), "gitopsd: {message}");
            }
            // As a shell says it: no such program, or one that cannot be run.
            ExitCode::from(if message.ends_with(NOT_FOUND) { 127 } else { 126 })
        }
    }
}

fn parse(args: &[OsString]) -> Option<(RunFiles, Option<Duration>, Vec<String>)> {
    let [dir, limit, command @ ..] = args else { return None };
    let run = RunFiles { dir: dir.into() };
    RunFiles::id_of(&run.dir)?;
    let limit: u64 = limit.to_str()?.parse().ok()?;
    let command: Option<Vec<String>> = command.iter().map(|text| text.to_str().map(str::to_owned)).collect();
    let command = command.filter(|command| !command.is_empty())?;
    Some((run, (limit > 0).then(|| Duration::from_millis(limit)), command))
}

fn run_command(run: &RunFiles, limit: Option<Duration>, command: Vec<String>) -> Result<Outcome, String> {
    // The hierarchies that the runtime leaves alone: there too the command belongs to the container, not to the agent.
    if let Some(launch) = super::record::read::<Launch>(&run.launch()) {
        let _ = Cgroups::detect(&launch.layout.instance).and_then(|cgroups| cgroups.adopt_self(&launch));
    }
    let begun = Instant::now();
    // Blocked before the command exists, so that none gets lost; `Program` unblocks them for the command.
    let mut forwarded = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        forwarded.add(signal);
    }
    forwarded.thread_block().map_err(|error| format!("signals: {error}"))?;
    let signals = SignalFd::with_flags(&forwarded, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|error| format!("signals: {error}"))?;

    let pid = start(run, limit, command)?;
    let process = PidFd::of_child(pid).map_err(|error| format!("pidfd: {error}"))?;
    // The command leads a session and a process group of its own: what it started goes with it.
    let group = Pid::from_raw(pid);
    loop {
        let left = match limit {
            Some(limit) => {
                let left = limit.saturating_sub(begun.elapsed());
                PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        let mut waiting = [
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut waiting, left);
        if waiting.first().is_some_and(|fd| fd.any() == Some(true)) {
            break;
        }
        while let Ok(Some(got)) = signals.read_signal() {
            if let Ok(signal) = Signal::try_from(got.ssi_signo.cast_signed()) {
                let _ = killpg(group, signal);
            }
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = process.signal(nix::libc::SIGKILL);
            let _ = process.wait(Duration::from_secs(5));
            return Ok(Outcome::TimedOut);
        }
    }
    match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => {
            let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
            code.map(Outcome::Code).ok_or_else(|| "its status cannot be read".to_owned())
        }
        _ => Err("it cannot be waited for".to_owned()),
    }
}

fn start(run: &RunFiles, limit: Option<Duration>, command: Vec<String>) -> Result<i32, String> {
    let id = RunFiles::id_of(&run.dir).ok_or("the directory names no container")?;
    let process = describe(run, command).map_err(|error| format!("{id}: its configuration: {error}"))?;
    let launch = super::record::read::<Launch>(&run.launch()).ok_or("launch.json cannot be read")?;
    let filter = super::rights::filter(&launch.options);
    let (failure, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| format!("pipe: {error}"))?;
    let mut builder = ContainerBuilder::new(id.to_string(), SyscallType::Linux)
        .with_root_path(run.runtime())
        .map_err(|error| format!("{id}: {error}"))?
        .with_executor(Program { failure: writer.as_raw_fd(), filter, init: false });
    if limit.is_some() {
        // Ours is the pipe to the agent.
        builder = builder.with_stdin(File::open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?);
    }
    let built = builder
        .as_tenant()
        .with_process(Some(format!("/proc/self/fd/{}", process.as_raw_fd())))
        .with_detach(true)
        .build();
    drop(writer);
    let mut message = String::new();
    let _ = File::from(failure).take(4096).read_to_string(&mut message);
    match built {
        // What the program itself said is short and to the point; the library's account of it is neither.
        _ if !message.is_empty() => Err(message),
        Ok(pid) => Ok(pid.as_raw()),
        Err(error) => Err(chain(&error)),
    }
}

/// The container's own process with another command, as a file that the library reads: the same user, environment,
/// directory, rights and limits. What the library would fill in itself is not the same (1024 open files, for one).
fn describe(run: &RunFiles, command: Vec<String>) -> io::Result<File> {
    let config = std::fs::read(run.bundle().join("config.json"))?;
    let config: serde_json::Value = serde_json::from_slice(&config)?;
    let mut process = config.get("process").cloned().unwrap_or_default();
    process["args"] = command.into();
    // The agent of today may be allowed fewer open files than the one that started the container.
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    for limit in process["rlimits"].as_array_mut().into_iter().flatten() {
        for kind in ["soft", "hard"] {
            limit[kind] = limit[kind].as_u64().unwrap_or(hard).min(hard).into();
        }
    }
    let memory = rustix::fs::memfd_create("process.json", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(&serde_json::to_vec(&process)?)?;
    Ok(file)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string().replace('\0', "");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
