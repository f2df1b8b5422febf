//! Starting a container from the agent's side: prepare what the shim needs, start it, hear its one report.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::launch::{Launch, Report};
use super::layout::RunFiles;
use super::observe::{foreign, running, this_boot};
use super::record::{self, ProcessId, boot_id, wait_readable};
use super::{NativeEngine, etc_files, lock, shim, stop, storage_reason};
use crate::engine::{ContainerRequest, ContainerState, EngineError};
use crate::types::{InstanceId, Reason};

/// How long a start that somebody else began may take before ours gives up.
const OTHERS_START: Duration = Duration::from_secs(60);
/// How long a shim may take to report. A start takes some 30 ms; a disk on its knees takes longer.
const REPORT: Duration = Duration::from_secs(120);
/// How often to look whether a shim that does not report still lives.
const LOOK: Duration = Duration::from_millis(100);
/// Longest report and longest log of a shim that is read.
const MAX_REPORT: u64 = 64 << 10;

/// See [`crate::engine::Engine::start`].
pub(super) fn start(engine: &NativeEngine, request: &ContainerRequest) -> Result<(), EngineError> {
    let id = &request.id;
    let run = engine.layout.run(id);
    let boot = this_boot()?;
    if running(&run, &boot).is_some() {
        return Ok(());
    }
    if let Some(refusal) = foreign(&run, id, &ContainerState::Remains) {
        return Err(EngineError::plain(refusal.reason, refusal.message));
    }
    let failed = |what: &str, error: io::Error| {
        let reason = storage_reason(&error, Reason::StartFailed);
        EngineError::new(reason, format!("{id}: {what}"), error)
    };
    // Held by a shim that is about to start it (of an agent that was killed), or about to write down its end.
    let mut lock = None;
    let end = Instant::now() + OTHERS_START;
    while lock.is_none() && Instant::now() < end {
        lock = lock::try_take(&run).map_err(|e| failed("its lock", e))?;
        if running(&run, &boot).is_some() {
            return Ok(());
        }
        if lock.is_none() {
            if shim_has_died(&run) {
                // With the agent that had begun this: what it has made half waits for it, and for nobody else.
                stop::kill_half_made(engine, &run, id);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let Some(lock) = lock else {
        return Err(EngineError::plain(Reason::StartFailed, format!("{id}: another start of it hangs")));
    };
    let _shared = engine.parents.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    engine
        .cgroups
        .remove(id, Duration::from_secs(5))
        .map_err(|e| failed("what is left of an earlier run", e))?;
    forget_run(&run).map_err(|e| failed("records of an earlier run", e))?;

    if let Some(logs) = engine.layout.log(id).parent() {
        super::log::prune(logs);
    }

    let state = engine.layout.state(id);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&state)
        .and_then(|()| etc_files::write(&state, id, request.address, &request.hosts, &request.spec.options))
        .map_err(|e| failed("its files cannot be written", e))?;
    let netns = engine.network.attach(id, request.address)?;
    let launch = Launch::new(request, &engine.layout, netns)?;
    record::write(&run.launch(), &launch).map_err(|e| failed("launch.json cannot be written", e))?;
    let result = run_shim(engine, &run, lock, shim::START);
    if result.is_err() {
        stop::end_half_made(engine, &run, id);
    }
    result
}

/// Gives a running container, whose shim has died, a new one.
pub(super) fn adopt(engine: &NativeEngine, id: &InstanceId) -> Result<(), EngineError> {
    let run = engine.layout.run(id);
    match lock::try_take(&run) {
        Ok(Some(lock)) => run_shim(engine, &run, lock, shim::ADOPT),
        Ok(None) => Ok(()),
        Err(error) => Err(EngineError::new(Reason::StartFailed, format!("{id}: its lock"), error)),
    }
}

/// Takes away the records of an earlier run, except the lock.
fn forget_run(run: &RunFiles) -> io::Result<()> {
    for entry in fs::read_dir(&run.dir)? {
        let entry = entry?;
        if entry.path() == run.lock() {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Starts a shim, which inherits the lock, and waits for its report.
fn run_shim(engine: &NativeEngine, run: &RunFiles, lock: File, mode: &str) -> Result<(), EngineError> {
    let name = run.dir.file_name().unwrap_or_default().to_string_lossy();
    let failed = |what: String, error: io::Error| {
        EngineError::new(Reason::StartFailed, format!("{name}: {what}"), error)
    };
    let shim_log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(run.shim_log())
        .map_err(|e| failed("shim.log cannot be opened".into(), e))?;
    let mut child = Command::new(&engine.program)
        .arg(shim::COMMAND)
        .arg(&run.dir)
        .arg(mode)
        // Nothing of the agent's own environment (credentials, LISTEN_FDS, NOTIFY_SOCKET) is for containers.
        .env_clear()
        .current_dir("/")
        .stdin(lock)
        .stdout(Stdio::piped())
        .stderr(shim_log)
        .spawn()
        .map_err(|e| failed(format!("{} cannot be executed", engine.program.display()), e))?;
    let report = child.stdout.take();
    // The child only forks the shim proper and ends.
    let _ = child.wait();
    let Some(mut report) = report else {
        return Err(EngineError::plain(Reason::Internal, format!("{name}: the shim has no report pipe")));
    };
    let mut line = Vec::new();
    let end = Instant::now() + REPORT;
    while line.last() != Some(&b'\n') {
        let left = end.saturating_duration_since(Instant::now());
        let ready =
            wait_readable(report.as_fd(), left.min(LOOK)).map_err(|e| failed("its shim".into(), e))?;
        if !ready && Instant::now() < end {
            if shim_has_died(run) {
                break;
            }
            continue;
        }
        if !ready {
            let what = format!("{name}: its shim did not report within {} s", REPORT.as_secs());
            return Err(EngineError::plain(Reason::StartFailed, what));
        }
        let mut chunk = [0; 4096];
        let length = report.read(&mut chunk).map_err(|e| failed("its shim's report".into(), e))?;
        line.extend_from_slice(chunk.get(..length).unwrap_or_default());
        if length == 0 || line.len() as u64 > MAX_REPORT {
            break;
        }
    }
    match serde_json::from_slice(&line) {
        Ok(Report::Started) => Ok(()),
        Ok(Report::Failed(refusal)) => Err(EngineError::plain(refusal.reason, refusal.message)),
        Err(_) => {
            let said = last_words(&run.shim_log());
            Err(EngineError::plain(Reason::StartFailed, format!("{name}: its shim died{said}")))
        }
    }
}

/// Whether the shim that said who it is runs no more. What it has begun may still hold the report pipe open.
fn shim_has_died(run: &RunFiles) -> bool {
    let boot = boot_id().unwrap_or_default();
    record::read::<ProcessId>(&run.shim()).is_some_and(|shim| shim.open(&boot).is_none())
}

fn last_words(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_REPORT).read_to_string(&mut text));
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    match (read, last) {
        (Ok(_), Some(line)) => format!(": {line}"),
        _ => String::new(),
    }
}
