//! Ending containers and taking away what they leave.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::launch::Launch;
use super::layout::RunFiles;
use super::observe::{running, this_boot};
use super::record::{self, PidFd, ProcessId};
use super::{NativeEngine, lock};
use crate::engine::EngineError;
use crate::types::{InstanceId, Reason};

/// How long the kernel may take to end a killed process; one that waits for a dead disk or server takes for ever.
const KILL: Duration = Duration::from_secs(10);
/// How long a shim may take from the end of its container to its own.
const RECORDING: Duration = Duration::from_secs(10);

/// See [`crate::engine::Engine::stop`].
pub(super) fn stop(engine: &NativeEngine, id: &InstanceId, grace: Duration) -> Result<(), EngineError> {
    let run = engine.layout.run(id);
    let boot = this_boot()?;
    let Some((_, process)) = running(&run, &boot) else { return Ok(()) };
    let failed =
        |what: &str, error: io::Error| EngineError::new(Reason::Internal, format!("{id}: {what}"), error);
    let signal = record::read::<Launch>(&run.launch()).map_or(nix::libc::SIGTERM, |l| l.stop_signal);
    process.signal(signal).map_err(|e| failed("the stop signal", e))?;
    if !process.wait(grace).map_err(|e| failed("pidfd", e))? {
        kill(engine, id, &process)?;
    }
    // The record of the end is part of the stop; a container without a shim has none to wait for.
    wait_for_shim(&run, RECORDING);
    Ok(())
}

/// SIGKILL to the first process, with which the kernel ends all of the pid namespace, and to the whole cgroup.
fn kill(engine: &NativeEngine, id: &InstanceId, process: &PidFd) -> Result<(), EngineError> {
    let failed = |error: io::Error| EngineError::new(Reason::Internal, format!("{id}: SIGKILL"), error);
    process.signal(nix::libc::SIGKILL).map_err(failed)?;
    engine.cgroups.kill(id);
    if process.wait(KILL).map_err(failed)? {
        return Ok(());
    }
    Err(EngineError::plain(
        Reason::Internal,
        format!(
            "{id}: its process does not end after SIGKILL; it waits in the kernel for a device or a server"
        ),
    ))
}

fn wait_for_shim(run: &RunFiles, timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    while lock::is_held(run) {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Ends a shim that has started nothing yet, or hangs, and every process it has begun.
pub(super) fn kill_half_made(engine: &NativeEngine, run: &RunFiles, id: &InstanceId) {
    let Ok(boot) = this_boot() else { return };
    if let Some(shim) = record::read::<ProcessId>(&run.shim()).and_then(|shim| shim.open(&boot)) {
        let _ = shim.signal(nix::libc::SIGKILL);
    }
    let _ = engine.cgroups.remove(id, Duration::from_secs(2));
}

/// Ends what a failed start has begun, and waits until it has gone.
pub(super) fn end_half_made(engine: &NativeEngine, run: &RunFiles, id: &InstanceId) {
    // A shim that reports a failure cleans up and ends by itself.
    if !wait_for_shim(run, Duration::from_millis(500)) {
        kill_half_made(engine, run, id);
        wait_for_shim(run, RECORDING);
    }
    let _ = engine.cgroups.remove(id, Duration::from_secs(2));
}

/// See [`crate::engine::Engine::remove`]. Goes on after a failure, and tells all of them at the end.
pub(super) fn remove(engine: &NativeEngine, id: &InstanceId) -> Result<(), EngineError> {
    let run = engine.layout.run(id);
    let boot = this_boot()?;
    let mut errors: Vec<(Reason, String)> = Vec::new();

    if let Some((_, process)) = running(&run, &boot) {
        note(&mut errors, kill(engine, id, &process));
        wait_for_shim(&run, RECORDING);
    }
    // Whoever still holds the lock is a shim in the middle of a start, or one that hangs, or the container it has
    // begun to make. Some of these are not in the cgroup yet, so look again until the last has let go.
    let taken =
        if run.dir.exists() { lock::take(&run, KILL, || kill_half_made(engine, &run, id)) } else { Ok(None) };
    match &taken {
        Ok(Some(_)) => {}
        Ok(None) if !run.dir.exists() => {}
        Ok(None) => errors.push((Reason::Internal, "something still holds its lock".into())),
        Err(error) => errors.push((Reason::StorageIo, format!("its lock: {error}"))),
    }
    if let Err(error) = engine.cgroups.remove(id, KILL) {
        errors.push((Reason::Internal, error.to_string()));
    }
    note(&mut errors, engine.network.detach(id));
    // Records last: while there is one, the next look finds the container again.
    for dir in [engine.layout.state(id), run.dir.clone()] {
        if let Err(error) = remove_dir(&dir) {
            errors.push((Reason::StorageIo, format!("{}: {error}", dir.display())));
        }
    }
    drop(taken);
    // Not while something starts: it may be about to use them. A later removal finds them again.
    if let Ok(_alone) = engine.parents.try_write() {
        engine.cgroups.remove_empty_parents(Duration::from_millis(200));
    }

    let Some((reason, _)) = errors.first() else { return Ok(()) };
    let all: Vec<_> = errors.iter().map(|(_, text)| text.as_str()).collect();
    Err(EngineError::plain(*reason, format!("{id} cannot be removed wholly: {}", all.join("; "))))
}

fn note(errors: &mut Vec<(Reason, String)>, result: Result<(), EngineError>) {
    if let Err(error) = result {
        let refusal = error.to_refusal();
        errors.push((refusal.reason, refusal.message));
    }
}

/// `remove_dir_all` never follows links; what is mounted in the shim's namespace is not seen here.
fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
