//! The shim: one small process a container, `gitopsd internal-shim DIR`. It makes the container, keeps what it writes,
//! sees how it ends, and outlives the agent.
//!
//! It is synchronous and single-threaded, because libcontainer forks and runs code in between (`chdir`, allocation):
//! call [`main`] before any thread exists. Its standard input is the container's lock, its standard output the pipe on
//! which it reports once (and says before that it makes progress), its standard error `shim.log`.

mod configs;
mod create;
mod devices;
mod ending;
mod enter;
mod fill;
mod idmap;
mod init;
mod last_look;
mod mapped;
mod notify;
mod program;
mod progress;
mod rootfs;
mod subpath;
mod supervise;
mod volumes;
#[cfg(feature = "failpoints")]
mod weak;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, setsid};

use super::cgroup::Cgroups;
use super::layout::RunFiles;
use super::record::{self, PidFd, ProcessId, RunRecord, boot_id};
use super::{launch, seal};
use crate::engine::EngineError;
use crate::types::Reason;

pub(super) use devices::prepare as prepare_devices;
pub(super) use enter::{Enter, namespace_of};
pub(super) use last_look::Look;
pub(super) use notify::VARIABLE as NOTIFY_VARIABLE;
pub use program::NOT_FOUND;
pub(super) use program::{Program, reset_signals};
#[cfg(feature = "failpoints")]
pub(super) use weak::{Weak, is_wanted};

/// Name of the subcommand.
pub(super) const COMMAND: &str = "internal-shim";

/// Makes the container that `launch.json` describes, then supervises it.
pub(super) const START: &str = "start";
/// Takes over the supervision of a container whose shim has died.
pub(super) const ADOPT: &str = "adopt";
/// Added to the mode where systemd has started the shim, as the first process of a unit.
pub(super) const AS_UNIT: &str = "unit";
/// Added by the shim itself.
const SEALED: &str = "sealed";

/// Runs the shim. `args` are those after the subcommand: directory, `START` or `ADOPT`, `AS_UNIT` if it is one,
/// and once more `SEALED` when it has executed itself again from a read-only mount.
pub fn main(args: &[OsString]) -> ExitCode {
    let [dir, mode, rest @ ..] = args else { return ExitCode::from(64) };
    let run = RunFiles { dir: dir.into() };
    let (Some(_), Some(mode @ (START | ADOPT))) = (RunFiles::id_of(&run.dir), mode.to_str()) else {
        return ExitCode::from(64);
    };
    let has = |word: &str| rest.iter().any(|other| other == word);
    match (has(SEALED), has(AS_UNIT)) {
        (false, false) => return detach(dir, mode),
        (false, true) => return seal_self(&[dir, mode.as_ref(), AS_UNIT.as_ref()]),
        (true, _) => {}
    }
    match take_over_descriptors() {
        Ok((lock, report)) => work(&run, mode, has(AS_UNIT), lock, report),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Leaves the agent's session and process tree, so that its end is not ours.
fn detach(dir: &OsString, mode: &str) -> ExitCode {
    // SAFETY: no thread exists in this process, so the child may do all that the parent may.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => return ExitCode::SUCCESS,
        Ok(ForkResult::Child) => {}
        Err(error) => return fail_early("the shim cannot fork", error.into()),
    }
    if let Err(error) = setsid() {
        return fail_early("the shim cannot begin a session", error.into());
    }
    // The agent's unit may have set another one; files made in a container's root are to have their usual modes.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    seal_self(&[dir, mode.as_ref()])
}

/// Goes on as the same program on a read-only mount, with `args` and [`SEALED`].
fn seal_self(args: &[&OsStr]) -> ExitCode {
    let args: Vec<&OsStr> = [&[COMMAND.as_ref()], args, &[SEALED.as_ref()]].concat();
    let error = seal::execute_again(&args);
    fail_early("the shim cannot execute itself from a read-only mount", error)
}

/// Reports before the descriptors have been put in order.
fn fail_early(what: &str, error: std::io::Error) -> ExitCode {
    let error = EngineError::new(Reason::StartFailed, what, error);
    if let Ok(mut line) = serde_json::to_vec(&launch::Report::Failed(error.to_refusal())) {
        line.push(b'\n');
        let _ = std::io::stdout().write_all(&line);
    }
    ExitCode::FAILURE
}

/// Moves lock and report pipe off the standard descriptors, where the container would inherit them.
fn take_over_descriptors() -> std::io::Result<(OwnedFd, File)> {
    use rustix::io::fcntl_dupfd_cloexec;
    let lock = fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    let report = fcntl_dupfd_cloexec(std::io::stdout(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok((lock, report.into()))
}

fn work(run: &RunFiles, mode: &str, as_unit: bool, lock: OwnedFd, mut report: File) -> ExitCode {
    let _ = nix::sys::prctl::set_name(c"gitopsd-shim");
    if as_unit {
        // A unit is told to stop by its first process alone, and has all the time it needs.
        let _ = ending::hold();
    }
    for ignored in
        [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM].into_iter().take(if as_unit { 2 } else { 3 })
    {
        // A host that shuts down asks every process to end; the shim ends when its container has.
        // SAFETY: SIG_IGN runs no code of ours.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let started = begin(run, mode, as_unit, &report);
    let message = match &started {
        Ok(_) => launch::Report::Started,
        Err(error) => launch::Report::Failed(error.to_refusal()),
    };
    if let Ok(mut line) = serde_json::to_vec(&message) {
        line.push(b'\n');
        // The agent may be gone; the container is there all the same.
        let _ = report.write_all(&line);
    }
    drop(report);
    let code = match started {
        Ok(container) => {
            if as_unit {
                let _ = container.end_with_unit();
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            }
            supervise::supervise(run, container)
        }
        Err(_) => ExitCode::FAILURE,
    };
    // Given back by the end of this process and not before: who finds the lock free finds no shim either.
    std::mem::forget(lock);
    code
}

fn begin(
    run: &RunFiles,
    mode: &str,
    as_unit: bool,
    report: &File,
) -> Result<supervise::Supervised, EngineError> {
    let failed = |what: &str| format!("{}: {what}", run.dir.display());
    let me = ProcessId::of(std::process::id().cast_signed())
        .and_then(|me| record::write(&run.shim(), &me))
        .map_err(|error| EngineError::new(Reason::StartFailed, failed("shim.json cannot be written"), error));
    me?;
    let launch: launch::Launch = record::read(&run.launch())
        .ok_or_else(|| EngineError::plain(Reason::StartFailed, failed("launch.json cannot be read")))?;
    if mode == START {
        return create::create(run, launch, &mut progress::Progress::new(run, report));
    }
    let init = adoptable(run).ok_or_else(|| {
        EngineError::plain(Reason::StartFailed, failed("nothing runs that could be adopted"))
    })?;
    if !as_unit {
        // Out of the agent's group, as the one before; where that is forbidden, supervised from there is better than not.
        let _ = Cgroups::detect(&launch.layout.instance).and_then(|cgroups| cgroups.adopt_self(&launch));
    }
    supervise::Supervised::adopt(run, launch, init.0, init.1)
        .map_err(|error| EngineError::new(Reason::StartFailed, failed("it cannot be adopted"), error))
}

fn adoptable(run: &RunFiles) -> Option<(ProcessId, PidFd)> {
    let init = record::read::<RunRecord>(&run.record())?.init;
    let process = init.open(&boot_id().ok()?)?;
    Some((init, process))
}

/// Opens the reading end of the pipe behind one of the container's outputs.
fn open_reader(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)
}
