//! A command in a container for a person or a script: its streams are pipes or a terminal of the container's own, and this
//! process carries what goes through them. Nothing of the caller's own files is ever open in the container.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::exec::{Outcome, Streams, UNREADABLE, group_of, reap, start};
use super::exec_flow::Flow;
use super::exec_process::{self, Process};
use super::exec_terminal::{Console, Terminal};
use super::launch::Launch;
use super::layout::RunFiles;
use super::null;
use super::observe::running;
use super::record::{PidFd, boot_id};

/// Passed on to the command.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Held back: a helper that is stopped reaps nothing, and a container whose processes are not reaped cannot end.
const HELD_BACK: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// After a command was killed: how long its container may take to be seen to have ended too.
const END: Duration = Duration::from_millis(500);

/// How a command is run. The default: as the container's own program, with nothing to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// Whether it gets a terminal of its own.
    pub tty: bool,
    /// Whether it reads our standard input.
    pub stdin: bool,
    /// `user[:group]` instead of the container's.
    pub user: Option<String>,
    /// `NAME=value` each, on top of the container's.
    pub env: Vec<String>,
    /// Absolute, instead of the container's.
    pub workdir: Option<PathBuf>,
}

/// Runs the command and stays until it has ended.
pub(super) fn run(
    run: &RunFiles,
    launch: Option<Launch>,
    command: &[String],
    session: &Session,
) -> Result<Outcome, String> {
    let failed = |what: &str, error: io::Error| format!("{what}: {error}");
    let boot = boot_id().map_err(|e| failed("the boot id", e))?;
    let (record, init) = running(run, &boot).ok_or("the container does not run any more")?;
    let launch = launch.ok_or(UNREADABLE)?;
    let process = exec_process::describe(run, &launch, record.init.pid, command, session)?;
    let signals = block_signals().map_err(|e| failed("signals", e))?;

    let (pid, mut flows, mut terminal) = if session.tty {
        in_terminal(run, &launch, process, session)?
    } else {
        let (pid, flows) = with_pipes(run, &launch, process, session)?;
        (pid, flows, None)
    };
    let child = PidFd::of_child(pid).map_err(|e| failed("pidfd", e))?;
    let group = group_of(pid);
    while !wait(&child, &signals, &mut flows) {
        while let Ok(Some(got)) = signals.read_signal() {
            match (Signal::try_from(got.ssi_signo.cast_signed()), &terminal) {
                (Ok(Signal::SIGWINCH), Some(terminal)) => terminal.resize(),
                (Ok(signal), _) if FORWARDED.contains(&signal) => drop(killpg(group, signal)),
                _ => {}
            }
        }
        if session.tty && flows.iter().any(Flow::lost) {
            // Nobody sees what it says any more: as when a terminal's line is cut.
            flows.clear();
            terminal = None;
            let _ = killpg(group, Signal::SIGHUP);
        }
    }
    // At once: until then the container cannot end. What the command has written comes after.
    let outcome = reap(&child)?;
    for flow in &mut flows {
        if !flow.drain(&signals) {
            break;
        }
    }
    drop(terminal);
    if outcome == Outcome::Code(128 + nix::libc::SIGKILL) && init.wait(END).unwrap_or(false) {
        let _ = writeln!(io::stderr(), "gitopsd: the container has ended");
    }
    Ok(outcome)
}

/// Blocked before the command exists, so that none gets lost; it begins with none blocked.
fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in FORWARDED.into_iter().chain([Signal::SIGWINCH]) {
        set.add(signal);
    }
    let mut all = set;
    for signal in HELD_BACK {
        all.add(signal);
    }
    all.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Waits until something can be done, and moves what flows; `true` = the command has ended.
fn wait(child: &PidFd, signals: &SignalFd, flows: &mut [Flow]) -> bool {
    let mut waiting =
        vec![PollFd::new(child.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    let mut which = Vec::with_capacity(flows.len());
    for (number, flow) in flows.iter().enumerate() {
        if let Some((fd, events)) = flow.wants() {
            waiting.push(PollFd::new(fd, events));
            which.push(number);
        }
    }
    // An interrupted call reports nothing, and the loop comes back.
    let _ = poll(&mut waiting, PollTimeout::NONE);
    let ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| fd.any() == Some(true));
    let ended = ready(waiting.first());
    let moving: Vec<usize> = which
        .into_iter()
        .zip(waiting.iter().skip(2))
        .filter(|(_, fd)| ready(Some(fd)))
        .map(|(number, _)| number)
        .collect();
    drop(waiting);
    for number in moving {
        if let Some(flow) = flows.get_mut(number) {
            flow.step();
        }
    }
    ended
}

fn in_terminal(
    run: &RunFiles,
    launch: &Launch,
    process: Process,
    session: &Session,
) -> Result<(i32, Vec<Flow>, Option<Terminal>), String> {
    let failed = |error: io::Error| format!("its terminal: {error}");
    let console = Console::bind(run).map_err(failed)?;
    let streams = Streams {
        console: Some(console.path().to_owned()),
        window: Some(super::exec_terminal::window()),
        ..Streams::default()
    };
    let uid = process.uid;
    let pid = start(run, launch, process, streams)?;
    let master = console.receive().map_err(failed)?;
    let terminal = Terminal::new(master, uid, session.stdin).map_err(failed)?;
    let mut flows = vec![Flow::new(terminal.end().map_err(failed)?, our(1).map_err(failed)?)];
    if session.stdin {
        let input = our(0).map_err(failed)?;
        flows.push(Flow::to_terminal(input, terminal.end().map_err(failed)?));
    }
    Ok((pid, flows, Some(terminal)))
}

fn with_pipes(
    run: &RunFiles,
    launch: &Launch,
    process: Process,
    session: &Session,
) -> Result<(i32, Vec<Flow>), String> {
    let pipes = || -> io::Result<(Streams, Vec<Flow>)> {
        let mut streams = Streams::default();
        let mut flows = Vec::new();
        if session.stdin {
            let (theirs, ours) = pipe(&process)?;
            nonblocking(&ours)?;
            streams.stdin = Some(theirs);
            flows.push(Flow::new(our(0)?, ours));
        } else {
            streams.stdin = Some(null::open()?);
        }
        let (ours, theirs) = pipe(&process)?;
        nonblocking(&ours)?;
        if same(1, 2)? {
            // One pipe for both: what it writes stays in its order.
            streams.stderr = Some(theirs.try_clone()?);
        } else {
            let (ours, theirs) = pipe(&process)?;
            nonblocking(&ours)?;
            streams.stderr = Some(theirs);
            flows.push(Flow::new(ours, our(2)?));
        }
        streams.stdout = Some(theirs);
        flows.push(Flow::new(ours, our(1)?));
        Ok((streams, flows))
    };
    let (streams, flows) = pipes().map_err(|error| format!("pipe: {error}"))?;
    Ok((start(run, launch, process, streams)?, flows))
}

/// A pipe that the command's user may also open by name, as `/dev/stdout`: the reading end and the writing one.
fn pipe(process: &Process) -> io::Result<(File, File)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fchown(&read, Some(process.uid), Some(process.gid))?;
    Ok((read.into(), write.into()))
}

fn nonblocking(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// One of our own standard streams.
fn our(number: u8) -> io::Result<File> {
    let fd: OwnedFd = match number {
        0 => io::stdin().as_fd().try_clone_to_owned()?,
        1 => io::stdout().as_fd().try_clone_to_owned()?,
        _ => io::stderr().as_fd().try_clone_to_owned()?,
    };
    Ok(fd.into())
}

fn same(one: u8, other: u8) -> io::Result<bool> {
    let (one, other) = (our(one)?.metadata()?, our(other)?.metadata()?);
    Ok((one.dev(), one.ino(), one.rdev()) == (other.dev(), other.ino(), other.rdev()))
}
