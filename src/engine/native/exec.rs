//! The exec helper: `gitopsd internal-exec DIR MILLISECONDS COMMAND…` runs a command in a container and ends as it does.
//!
//! Synchronous and single-threaded like the shim, and for the same reason. Called by the agent, its standard input is
//! a pipe on which it tells the outcome as a line of JSON, and its standard output is the command's own; called for a
//! person (0 milliseconds: no limit) it carries what goes between the caller and the command, see `exec_session`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpgid, getpgrp, pipe2};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroups;
use super::exec_process::{self, Process};
use super::exec_session::{self, Session};
use super::launch::Launch;
use super::layout::RunFiles;
use super::null;
use super::record::PidFd;
use super::seal;
use super::shim::{Enter, Look, NOT_FOUND, Program, namespace_of};

/// Name of the subcommand.
pub(super) const COMMAND: &str = "internal-exec";

/// The variable that says how, as JSON: not among the arguments, which everybody on the host may read.
pub(super) const SESSION: &str = "GITOPSD_SESSION";

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
    let outcome = run_command(&run, limit, &command).unwrap_or_else(Outcome::Failed);
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

/// What it is to say where `launch.json` is missing or broken.
pub(super) const UNREADABLE: &str = "launch.json cannot be read";

fn run_command(run: &RunFiles, limit: Option<Duration>, command: &[String]) -> Result<Outcome, String> {
    // The hierarchies that the runtime leaves alone: there too the command belongs to the container, not to the agent.
    let launch = super::record::read::<Launch>(&run.launch());
    if let Some(launch) = &launch {
        let _ = Cgroups::detect(&launch.layout.instance).and_then(|cgroups| cgroups.adopt_self(launch));
    }
    match limit {
        Some(limit) => timed(run, launch, limit, command),
        None => {
            let session =
                std::env::var_os(SESSION).map(|text| serde_json::from_slice(text.as_encoded_bytes()));
            let session: Session =
                session.transpose().map_err(|error| format!("{SESSION}: {error}"))?.unwrap_or_default();
            exec_session::run(run, launch, command, &session)
        }
    }
}

/// For the agent: with nothing to read, and an end.
fn timed(
    run: &RunFiles,
    launch: Option<Launch>,
    limit: Duration,
    command: &[String],
) -> Result<Outcome, String> {
    let begun = Instant::now();
    // Blocked before the command exists, so that none gets lost; `Program` unblocks them for the command.
    let mut forwarded = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        forwarded.add(signal);
    }
    forwarded.thread_block().map_err(|error| format!("signals: {error}"))?;
    let signals = SignalFd::with_flags(&forwarded, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|error| format!("signals: {error}"))?;

    let launch = launch.ok_or(UNREADABLE)?;
    let record = super::record::read::<super::record::RunRecord>(&run.record());
    let init = record.map_or(0, |record| record.init.pid);
    let process = exec_process::describe(run, &launch, init, command, &Session::default())?;
    // Ours is the pipe to the agent.
    let null = null::open();
    #[cfg(feature = "failpoints")]
    let null = super::shim::Weak::of(&launch).input(null);
    let null = null.map_err(|error| format!("its input: {error}"))?;
    let pid = start(run, &launch, process, Streams { stdin: Some(null), ..Streams::default() })?;
    let child = PidFd::of_child(pid).map_err(|error| format!("pidfd: {error}"))?;
    let group = group_of(pid);
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut waiting =
            [PollFd::new(child.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut waiting, left);
        if waiting.first().is_some_and(|fd| fd.any() == Some(true)) {
            return reap(&child);
        }
        while let Ok(Some(got)) = signals.read_signal() {
            if let Ok(signal) = Signal::try_from(got.ssi_signo.cast_signed()) {
                let _ = killpg(group, signal);
            }
        }
        if begun.elapsed() >= limit {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = child.signal(nix::libc::SIGKILL);
            let _ = child.wait(Duration::from_secs(5));
            return Ok(Outcome::TimedOut);
        }
    }
}

/// How a command that has ended did so.
pub(super) fn reap(child: &PidFd) -> Result<Outcome, String> {
    match waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => {
            let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
            code.map(Outcome::Code).ok_or_else(|| "its status cannot be read".to_owned())
        }
        _ => Err("it cannot be waited for".to_owned()),
    }
}

/// The command leads a session and a process group of its own: what it started goes with it. crun leaves making them to
/// its caller.
pub(super) fn group_of(pid: i32) -> Pid {
    let pid = Pid::from_raw(pid);
    getpgid(Some(pid)).ok().filter(|group| *group != getpgrp()).unwrap_or(pid)
}

/// The command's ends of its standard streams; `None` = ours.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// File descriptor 0.
    pub stdin: Option<File>,
    /// File descriptor 1.
    pub stdout: Option<File>,
    /// File descriptor 2.
    pub stderr: Option<File>,
    /// All three are a new terminal, whose controlling side is sent to this socket.
    pub console: Option<PathBuf>,
    /// The size of that terminal.
    pub window: Option<Winsize>,
}

/// Starts the command; its program has been executed when this returns its pid.
pub(super) fn start(
    run: &RunFiles,
    launch: &Launch,
    mut process: Process,
    streams: Streams,
) -> Result<i32, String> {
    let id = &launch.id;
    if let Some(program) = &launch.runtime {
        return super::runtime::exec(run, launch, program, process, streams);
    }
    let users = launch.first_id.map(|_| enter(run)).transpose();
    let users = users.map_err(|error| format!("{id}: its namespaces: {error}"))?;
    let becomes = users.as_ref().map(|users| Enter::take(&mut process.oci, users.as_raw_fd()));
    let becomes = becomes.map(|becomes| becomes.ok_or("config.json holds no user")).transpose()?;
    let process = process.in_memory()?;
    let filter = super::rights::filter(&launch.options);
    let (failure, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| format!("pipe: {error}"))?;
    let program = Program {
        failure: writer.as_raw_fd(),
        filter,
        init: false,
        window: streams.window,
        enter: becomes,
        look: Look::Later,
        #[cfg(feature = "failpoints")]
        weak: super::shim::Weak::of(launch),
    };
    let mut builder = ContainerBuilder::new(id.to_string(), SyscallType::Linux)
        .with_root_path(run.runtime())
        .map_err(|error| format!("{id}: {error}"))?
        .with_executor(program)
        .with_console_socket(streams.console);
    if let Some(stdin) = streams.stdin {
        builder = builder.with_stdin(stdin);
    }
    if let Some(stdout) = streams.stdout {
        builder = builder.with_stdout(stdout);
    }
    if let Some(stderr) = streams.stderr {
        builder = builder.with_stderr(stderr);
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

/// Enters the network of a container with a user namespace, which belongs to the host's users and cannot be entered from
/// inside; gives back that namespace, which is entered last.
fn enter(run: &RunFiles) -> io::Result<File> {
    let record = super::record::read::<super::record::RunRecord>(&run.record());
    let pid = record.ok_or_else(|| io::Error::other("run.json cannot be read"))?.init.pid;
    let network = File::open(format!("/proc/{pid}/ns/net"))?;
    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
    namespace_of(pid)
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
