//! What exists under this instance's name: reads small files and asks the kernel; decides nothing.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::NativeEngine;
use super::launch::Launch;
use super::layout::RunFiles;
use super::record::{self, ExitRecord, PidFd, ProcessId, RunRecord, boot_id};
use super::{lock, start};
use crate::engine::{ContainerState, EngineError, Exit, ObservedContainer};
use crate::types::{Generation, InstanceId, NetworkMode, Reason, Refusal, ServiceName};

/// How long a shim may take from the end of its container to the record of it.
const RECORDING: Duration = Duration::from_secs(2);

/// Everything of this instance, from its directories, its cgroups and its networks.
pub(super) fn observe(engine: &NativeEngine) -> Result<Vec<ObservedContainer>, EngineError> {
    let mut ids: BTreeSet<InstanceId> = engine.cgroups.list();
    for dir in [engine.layout.states(), engine.layout.runs()] {
        ids.extend(names(&dir).map_err(|error| {
            EngineError::new(Reason::StorageIo, format!("{} cannot be read", dir.display()), error)
        })?);
    }
    ids.extend(engine.network.attached()?);
    let boot = this_boot()?;
    let seen: Vec<ObservedContainer> = ids.into_iter().map(|id| observe_one(engine, id, &boot)).collect();
    mend_networks(engine, &seen, &boot);
    Ok(seen)
}

/// A container that runs and whose interface somebody took away serves nobody, and would for as long as it runs. A
/// failure here is no more than that: the next look tries again.
fn mend_networks(engine: &NativeEngine, seen: &[ObservedContainer], boot: &str) {
    let alive = seen.iter().filter(|one| one.foreign.is_none());
    let alive = alive.filter(|one| matches!(one.state, ContainerState::Running { .. }));
    let ids: Vec<InstanceId> = alive.map(|one| one.id.clone()).collect();
    let broken = engine.network.broken(&ids).unwrap_or_else(|error| {
        tracing::warn!("{}", error.to_refusal());
        Vec::new()
    });
    for id in broken {
        let run = engine.layout.run(&id);
        let options = record::read::<Launch>(&run.launch()).map(|launch| launch.options);
        let options = options.unwrap_or_default();
        match options.network_mode {
            None | Some(NetworkMode::Bridge) => {}
            Some(NetworkMode::Host) => {
                if let Err(error) = engine.network.open_host() {
                    tracing::warn!(instance = %id, "{}", error.to_refusal());
                }
                continue;
            }
            // Without an interface of its own there is none to lose.
            Some(NetworkMode::None | NetworkMode::Service(_)) => continue,
        }
        // Its process is held while its namespace is opened: the number may not have gone to another one.
        let Some((record, _process)) = running(&run, boot) else { continue };
        let Ok(namespace) = fs::File::open(format!("/proc/{}/ns/net", record.init.pid)) else { continue };
        if running(&run, boot).is_none() {
            continue;
        }
        let pinned = engine.network.pin(&id, namespace.as_fd());
        match pinned.and_then(|()| start::attach(engine, &id, record.address, &options)) {
            Ok(_) => tracing::warn!(instance = %id, "its network was not whole and was put right"),
            Err(error) => tracing::warn!(instance = %id, "{}", error.to_refusal()),
        }
    }
}

/// This boot's name, as the engine's error.
pub(super) fn this_boot() -> Result<String, EngineError> {
    boot_id().map_err(|error| EngineError::new(Reason::Internal, "the boot id cannot be read", error))
}

fn names(dir: &Path) -> std::io::Result<Vec<InstanceId>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// See [`NativeEngine::newest_running`].
pub(super) fn newest_running(engine: &NativeEngine, service: &ServiceName) -> Option<Generation> {
    let boot = boot_id().ok()?;
    let ids = names(&engine.layout.runs()).ok()?;
    let ours = ids.into_iter().filter(|id| id.service == *service);
    ours.filter(|id| running(&engine.layout.run(id), &boot).is_some()).map(|id| id.generation).max()
}

fn observe_one(engine: &NativeEngine, id: InstanceId, boot: &str) -> ObservedContainer {
    let run = engine.layout.run(&id);
    let mut state = state(&run, boot);
    if id.job.is_some() && state == ContainerState::Remains {
        state = ended_before(engine, &id, boot);
    }
    let foreign = foreign(&run, &id, &state);
    let runs = matches!(state, ContainerState::Running { .. });
    let supervisor = record::read::<ProcessId>(&run.shim()).filter(|shim| runs && shim.open(boot).is_some());
    ObservedContainer {
        address: address(&run),
        oom_kills: if runs { engine.cgroups.oom_kills(&id) } else { 0 },
        supervisor: supervisor.map(|shim| shim.pid),
        // Its output would soon fill the pipe and block it.
        unsupervised: runs && foreign.is_none() && !is_supervised(&run, boot),
        foreign,
        id,
        state,
    }
}

/// Whether somebody has its lock who has not died. That of a shim is let go a moment later where it was a unit: systemd
/// keeps open what it gave it until it has heard of the end.
pub(super) fn is_supervised(run: &RunFiles, boot: &str) -> bool {
    let died = || record::read::<ProcessId>(&run.shim()).is_some_and(|shim| shim.open(boot).is_none());
    lock::is_held(run) && !died()
}

/// Why a container has to be left alone: another version started it, and this one does not understand what that wrote.
pub(super) fn foreign(run: &RunFiles, id: &InstanceId, state: &ContainerState) -> Option<Refusal> {
    let files = [run.launch(), run.record(), run.exit()];
    if let Some(format) = files.iter().filter_map(|file| record::newer_format(file)).max() {
        let known = record::FORMAT;
        let message = format!(
            "{id} was started by a newer version of gitopsd, and is left alone: its records are of format {format}, \
             and this version knows {known}"
        );
        return Some(Refusal::new(Reason::StateInvalid, message));
    }
    // What does not run can be taken away, whatever it was.
    let runs = matches!(state, ContainerState::Running { .. });
    (runs && record::read::<Launch>(&run.launch()).is_none()).then(|| {
        let file = run.launch().display().to_string();
        let message =
            format!("{id} runs, and is left alone: {file} is damaged or of a newer version of gitopsd");
        Refusal::new(Reason::StateInvalid, message)
    })
}

/// The address that it has or, where it never ran, was to have.
pub(super) fn address(run: &RunFiles) -> Option<Ipv4Addr> {
    let ran = record::read::<RunRecord>(&run.record()).map(|record| record.address);
    ran.or_else(|| record::read::<Launch>(&run.launch()).map(|launch| launch.address))
}

/// The container's first process, if it is proven to run.
pub(super) fn running(run: &RunFiles, boot: &str) -> Option<(RunRecord, PidFd)> {
    let record: RunRecord = record::read(&run.record())?;
    let process = record.init.open(boot)?;
    Some((record, process))
}

/// See [`crate::engine::Engine::runs`].
pub(super) fn runs(engine: &NativeEngine, id: &InstanceId) -> bool {
    boot_id().map_or(true, |boot| running(&engine.layout.run(id), &boot).is_some())
}

/// What a container does, from its records.
pub(super) fn state(run: &RunFiles, boot: &str) -> ContainerState {
    let end = Instant::now() + RECORDING;
    loop {
        // Before the records: a shim that lets go has written all it will write.
        let supervised = lock::is_held(run);
        if let Some((record, _)) = running(run, boot) {
            return ContainerState::Running { pid: record.init.pid, started_at: record.started_at };
        }
        if let Some(record) = record::read::<ExitRecord>(&run.exit()).filter(|r| r.boot_id == boot) {
            return ContainerState::Exited(record.exit);
        }
        let ran = record::read::<RunRecord>(&run.record()).is_some_and(|r| r.init.boot_id == boot);
        if !ran {
            return ContainerState::Remains;
        }
        if !supervised {
            return unseen_end(run, boot);
        }
        if Instant::now() >= end {
            return ContainerState::Exited(unseen());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A one-shot of which this boot shows no process. What was started in another boot has run, to its end or until the host
/// went down, and is not to run again; anything else has not come to its program.
fn ended_before(engine: &NativeEngine, id: &InstanceId, boot: &str) -> ContainerState {
    match fs::read_to_string(engine.layout.begun(id)) {
        Ok(begun) if begun.trim() != boot => {
            let ended = record::read::<ExitRecord>(&engine.layout.ended(id));
            ContainerState::Exited(ended.map_or_else(unseen, |record| record.exit))
        }
        _ => ContainerState::Remains,
    }
}

fn unseen() -> Exit {
    Exit { code: None, signal: None, oom_killed: false, at: super::clock::now() }
}

/// It ran in this boot, runs no more, and its shim did not live to tell. Written down, so that every later look gives
/// the same answer.
fn unseen_end(run: &RunFiles, boot: &str) -> ContainerState {
    let exit = unseen();
    let _ = record::write(&run.exit(), &ExitRecord { boot_id: boot.to_owned(), exit: exit.clone() });
    ContainerState::Exited(exit)
}
