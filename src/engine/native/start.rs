//! Starting a container from the agent's side: prepare what the shim needs, start it, hear its one report.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::launch::{Launch, Report};
use super::layout::{Layout, RunFiles};
use super::observe::{foreign, is_supervised, running, this_boot};
use super::record::{self, ExitRecord, ProcessId, boot_id, wait_readable};
use super::supervisor::Order;
use super::{NativeEngine, etc_files, kernel, limits, lock, shim, stop, storage_reason};
use crate::engine::{ContainerRequest, ContainerState, EngineError};
use crate::types::{InstanceId, NetworkMode, Options, Reason};

/// How long a start that somebody else began may take, or go without word of progress, before ours gives up.
const OTHERS_START: Duration = Duration::from_secs(60);
/// How long a shim may take to report, or to say that it makes progress. A start takes some 30 ms; a disk on its knees
/// takes longer, and so does a first fill of a volume, which goes on as long as it gets on.
const REPORT: Duration = Duration::from_secs(120);
/// How long systemd may take from the end of a shim to letting go of its lock.
const LETTING_GO: Duration = Duration::from_secs(2);
/// How often to look whether a shim that does not report still lives.
const LOOK: Duration = Duration::from_millis(100);
/// How many names of units are tried; one that is taken costs a millisecond.
const NAMES: u32 = 1000;
/// Longest report, and most of the end of a shim's log, that is read.
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
    let choose = |name| super::runtime::choose(id, &request.spec.options, name);
    let runtime = engine.runtime.as_deref().map(choose).transpose()?.flatten();
    if let (None, Some(why)) = (&runtime, kernel::misfit()) {
        return Err(EngineError::plain(Reason::StartFailed, format!("{id}: {why}")));
    }
    let failed = |what: &str, error: io::Error| {
        let reason = storage_reason(&error, Reason::StartFailed);
        EngineError::new(reason, format!("{id}: {what}"), error)
    };
    // Held by a shim that is about to start it (of an agent that was killed), or about to write down its end.
    let mut lock = None;
    let patience = patience(&engine.layout, OTHERS_START);
    let (mut end, mut word) = (Instant::now() + patience, last_word(&run));
    while lock.is_none() && Instant::now() < end {
        lock = lock::try_take(&run).map_err(|e| failed("its lock", e))?;
        if running(&run, &boot).is_some() {
            return Ok(());
        }
        if lock.is_none() {
            let now = last_word(&run);
            if now != word {
                (end, word) = (Instant::now() + patience, now);
            }
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
    // A start that somebody else had begun came to its end meanwhile: a one-shot runs once.
    if id.job.is_some() && record::read::<ExitRecord>(&run.exit()).is_some_and(|it| it.boot_id == boot) {
        return Ok(());
    }
    let _shared = engine.parents.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    engine
        .cgroups
        .remove(id, Duration::from_secs(5))
        .map_err(|e| failed("what is left of an earlier run", e))?;
    forget_run(&run).map_err(|e| failed("records of an earlier run", e))?;

    if let Some(logs) = engine.layout.log(id).parent() {
        super::log::prune(logs, request.spec.options.logging.unwrap_or_default());
    }

    let state = engine.layout.state(id);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&state)
        .and_then(|()| etc_files::write(&state, id, request.address, &request.hosts, &request.spec.options))
        .map_err(|e| failed("its files cannot be written", e))?;
    if id.job.is_some() {
        // Before it can do anything: what has no such mark has never run, also after a power cut.
        mark_begun(engine, id, &boot).map_err(|e| failed("that it begins cannot be written down", e))?;
    }
    let netns = network(engine, request)?;
    let mut launch = Launch::new(request, &engine.layout, netns)?;
    launch.runtime = runtime;
    launch.apparmor = engine.apparmor.profile(&engine.layout, &request.spec.options);
    if request.spec.options.user_namespace == Some(true) {
        launch.first_id = Some(engine.subuids.of(&engine.layout, id)?);
    }
    let result = run_shim(engine, &run, shim::START, &mut launch, lock);
    match &result {
        Ok(()) => tell_files(engine, &run, &launch),
        Err(_) => stop::end_half_made(engine, &run, id),
    }
    result
}

/// Says once that containers get fewer open files than they would elsewhere.
fn tell_files(engine: &NativeEngine, run: &RunFiles, launch: &Launch) {
    let files = record::read::<ProcessId>(&run.shim()).and_then(|shim| limits::most_files(shim.pid));
    if let Some(message) = files.and_then(|files| limits::fewer_files(&launch.options, files))
        && !engine.files_told.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(instance = %launch.id, "{message}");
    }
}

/// Writes down that a one-shot may have run from now on.
fn mark_begun(engine: &NativeEngine, id: &InstanceId, boot: &str) -> io::Result<()> {
    let file = engine.layout.begun(id);
    let mut mark = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file)?;
    io::Write::write_all(&mut mark, boot.as_bytes())?;
    mark.sync_all()?;
    // The names that lead to it too.
    for dir in [engine.layout.state(id), engine.layout.states(), engine.layout.state_dir.clone()] {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Its network namespace; `None` = the host's.
fn network(engine: &NativeEngine, request: &ContainerRequest) -> Result<Option<PathBuf>, EngineError> {
    let id = &request.id;
    match (request.spec.network_mode(), &request.joins) {
        (NetworkMode::Bridge, _) => attach(engine, id, request.address, &request.spec.options).map(Some),
        (NetworkMode::None, _) => engine.network.isolate(id).map(Some),
        (NetworkMode::Host, _) => engine.network.open_host().map(|()| None),
        (NetworkMode::Service(_), Some(host)) => engine.network.join(id, host).map(Some),
        (NetworkMode::Service(host), None) => Err(EngineError::plain(
            Reason::Network,
            format!("{id} is to share the network of {host}, which has none"),
        )),
    }
}

/// Makes, or puts right, the network of its own.
pub(super) fn attach(
    engine: &NativeEngine,
    id: &InstanceId,
    address: std::net::Ipv4Addr,
    options: &Options,
) -> Result<PathBuf, EngineError> {
    let ipv4_only = options.networks.as_ref().is_some_and(|links| links.values().all(|link| link.ipv4_only));
    match ipv4_only {
        true => engine.network.attach_ipv4(id, address),
        false => engine.network.attach(id, address),
    }
}

/// Without a unit nothing filters devices on cgroup v2, as the runtime has no filter of its own there: what relies on one
/// is refused. The standard devices need none, as no other can be made or opened.
fn check_devices(launch: &Launch) -> Result<(), EngineError> {
    // Runtimes of the host bring a filter.
    let what = if launch.runtime.is_some() { None } else { needs_filter(&launch.options) };
    what.map_or(Ok(()), |what| {
        let message = format!(
            "{}: {what} takes systemd on this host: cgroup v2 has no list of devices itself",
            launch.id
        );
        Err(EngineError::plain(Reason::StartFailed, message))
    })
}

/// What of a service holds by a filter of devices alone.
fn needs_filter(options: &Options) -> Option<String> {
    if options.privileged == Some(true) {
        return None;
    }
    if super::rights::capabilities(options).contains(&"CAP_MKNOD") {
        return Some("the capability CAP_MKNOD".to_owned());
    }
    let whole = |access: &str| ['r', 'w'].iter().all(|way| access.contains(*way));
    let in_part = options.devices.iter().flatten().find(|device| !whole(&device.access));
    in_part.map(|device| format!("device {} for `{}` alone", device.source.display(), device.access))
}

/// See [`crate::engine::Engine::adopt`].
pub(super) fn adopt(engine: &NativeEngine, id: &InstanceId) -> Result<(), EngineError> {
    let run = engine.layout.run(id);
    let boot = this_boot()?;
    let end = Instant::now() + LETTING_GO;
    let lock = loop {
        // Before the lock is taken, which makes the directory: a removal may have been first.
        if running(&run, &boot).is_none() || is_supervised(&run, &boot) {
            return Ok(());
        }
        let lock = lock::try_take(&run);
        match lock.map_err(|e| EngineError::new(Reason::StartFailed, format!("{id}: its lock"), e))? {
            Some(lock) => break lock,
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            None => {
                let what = format!("{id}: its supervisor has died, and somebody still holds its lock");
                return Err(EngineError::plain(Reason::StartFailed, what));
            }
        }
    };
    crate::failpoint::hit("adopt");
    // Of the one that died: its successor would be taken for dead before it has said who it is.
    let _ = fs::remove_file(run.shim());
    let mut launch: Launch = record::read(&run.launch()).ok_or_else(|| {
        EngineError::plain(Reason::StartFailed, format!("{id}: launch.json cannot be read"))
    })?;
    run_shim(engine, &run, shim::ADOPT, &mut launch, lock)
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
fn run_shim(
    engine: &NativeEngine,
    run: &RunFiles,
    mode: &str,
    launch: &mut Launch,
    lock: File,
) -> Result<(), EngineError> {
    let name = launch.id.clone();
    let failed = |what: String, error: io::Error| {
        EngineError::new(Reason::StartFailed, format!("{name}: {what}"), error)
    };
    let shim_log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(run.shim_log())
        .map_err(|e| failed("shim.log cannot be opened".into(), e))?;
    let report = begin(engine, run, mode, launch, &lock, &shim_log)?;
    let patience = patience(&launch.layout, REPORT);
    drop((lock, shim_log));
    let mut report = File::from(report);
    let mut line = Vec::new();
    let mut end = Instant::now() + patience;
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
            let what = format!("{name}: its shim did not report within {} s", patience.as_secs());
            return Err(EngineError::plain(Reason::StartFailed, what));
        }
        let mut chunk = [0; 4096];
        let length = report.read(&mut chunk).map_err(|e| failed("its shim's report".into(), e))?;
        let chunk = chunk.get(..length).unwrap_or_default();
        let said = if line.is_empty() { chunk.trim_ascii_start() } else { chunk };
        if said.len() < chunk.len() {
            // Word of progress: see `PROGRESS`.
            end = Instant::now() + patience;
        }
        line.extend_from_slice(said);
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

/// How long a start without progress is waited for: `usual`, unless a test is in a hurry.
#[cfg_attr(not(feature = "failpoints"), expect(unused_variables, reason = "only tests are in a hurry"))]
fn patience(layout: &Layout, usual: Duration) -> Duration {
    #[cfg(feature = "failpoints")]
    if shim::is_wanted(layout, "hurried") {
        // Longer than a busy disk takes for a part of what is copied: of that there is no word.
        return Duration::from_secs(10);
    }
    usual
}

/// Starts a shim under the first name that is to be had, and writes down for it what it is to run.
fn begin(
    engine: &NativeEngine,
    run: &RunFiles,
    mode: &str,
    launch: &mut Launch,
    lock: &File,
    log: &File,
) -> Result<OwnedFd, EngineError> {
    let id = launch.id.clone();
    let failed = |what: &str, error| EngineError::new(Reason::StartFailed, format!("{id}: {what}"), error);
    let list_devices = engine.cgroups.lack_device_lists();
    let mut way = engine.supervisor.way(&id);
    let mut attempt = 1;
    loop {
        let unit = way.unit(&id, attempt);
        if mode == shim::START {
            if unit.is_none() && list_devices {
                check_devices(launch)?;
            }
            launch.unit.clone_from(&unit);
            record::write(&run.launch(), launch).map_err(|e| failed("launch.json cannot be written", e))?;
        }
        let order = Order { program: &engine.program, run, mode, launch, list_devices };
        match way.start(&order, unit.as_ref(), lock, log) {
            Ok(report) => return Ok(report),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < NAMES => attempt += 1,
            Err(error) => return Err(failed("its shim cannot be started", error)),
        }
    }
}

/// When a shim has said last that it makes progress, or who it is, to those who have not its report.
fn last_word(run: &RunFiles) -> Option<SystemTime> {
    fs::metadata(run.shim()).and_then(|found| found.modified()).ok()
}

/// Whether the shim that said who it is runs no more. What it has begun may still hold the report pipe open.
fn shim_has_died(run: &RunFiles) -> bool {
    let boot = boot_id().unwrap_or_default();
    record::read::<ProcessId>(&run.shim()).is_some_and(|shim| shim.open(&boot).is_none())
}

/// The last line that a shim has written. It may have died in the middle of one, or of a character.
fn last_words(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_REPORT)))?;
        file.take(MAX_REPORT).read_to_end(&mut bytes)
    });
    let text = String::from_utf8_lossy(&bytes);
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    match (read, last) {
        (Ok(_), Some(line)) => format!(": {line}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DeviceMapping;

    #[test]
    fn the_last_words_of_a_shim_are_the_last_and_any_bytes() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let said = |text: &[u8]| {
            fs::write(log.path(), text).unwrap();
            last_words(log.path())
        };
        assert_eq!(said(b""), "");
        assert_eq!(said(b"first\nlast\n\n"), ": last");
        let long = [b"first\n".repeat(20_000), b"last \xff\xc3".to_vec()].concat();
        assert_eq!(said(&long), ": last \u{fffd}\u{fffd}");
        assert_eq!(last_words(Path::new("/not/there")), "");
    }

    #[test]
    fn a_device_for_one_way_alone_and_the_right_to_make_devices_need_a_filter() {
        let of = |access: &str, cap_add: &[&str], privileged: bool| {
            needs_filter(&Options {
                devices: Some(vec![DeviceMapping {
                    source: "/dev/sda".into(),
                    target: "/dev/disk".into(),
                    access: access.into(),
                }]),
                cap_add: Some(cap_add.iter().map(ToString::to_string).collect()),
                privileged: Some(privileged),
                ..Options::default()
            })
        };
        for (access, needs) in
            [("rwm", false), ("rw", false), ("r", true), ("w", true), ("rm", true), ("wm", true)]
        {
            let said = of(access, &[], false);
            let wanted = needs.then(|| format!("device /dev/sda for `{access}` alone"));
            assert_eq!(said, wanted, "{access}");
        }
        assert_eq!(of("rwm", &["CAP_MKNOD"], false).as_deref(), Some("the capability CAP_MKNOD"));
        assert_eq!(of("w", &["CAP_MKNOD"], true), None, "a privileged one has all of them in any case");
        assert_eq!(needs_filter(&Options::default()), None);
    }
}
