//! Making the container: root, mounts, configuration, process. What was made by a start that fails is unmade here, as
//! far as it is processes and cgroups; the files wait for the agent's removal.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::fchown;
use std::time::Duration;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, mkfifo, pipe2};

use super::super::cgroup::Cgroups;
use super::super::launch::Launch;
use super::super::layout::RunFiles;
use super::super::record::{self, ProcessId, RunRecord};
use super::super::user;
use super::super::{in_root, limits, limits_v2, rights, runtime, spec};
use super::last_look::Look;
use super::mapped::{self, Mapped};
use super::notify::Notify;
use super::program::Program;
use super::progress::Progress;
use super::supervise::Supervised;
use super::{configs, devices, open_reader, rootfs, volumes};
use crate::engine::EngineError;
use crate::engine::native::log::Stream;
use crate::types::Reason;

/// Longest message taken from a program that could not be executed.
const MAX_MESSAGE: u64 = 4096;

/// Makes and starts the container; its program has been executed when this returns.
pub(super) fn create(
    run: &RunFiles,
    launch: Launch,
    progress: &mut Progress<'_>,
) -> Result<Supervised, EngineError> {
    let id = launch.id.clone();
    let failed = |what: &str, error: io::Error| start_failed(&format!("{id}: {what}"), error);
    if let Some(message) = limits::out_of_reach(&launch.options) {
        return Err(EngineError::plain(Reason::StartFailed, format!("{id}: {message}")));
    }
    let cgroups = Cgroups::detect(&launch.layout.instance).map_err(|e| failed("cgroups", e))?;
    // The unit's KillMode=process keeps the shim alive too, so a host where this is forbidden is no reason to fail.
    let _ = cgroups.adopt_self(&launch);

    let state = launch.layout.state(&id);
    let root = rootfs::mount(&state, &run.scratch(), &launch.layers)
        .map_err(|e| failed("the image's layers cannot be mounted", e))?;
    #[cfg(feature = "failpoints")]
    {
        super::weak::Weak::of(&launch).spoil_root(&root);
        progress.slow = super::weak::is_wanted(&launch.layout, "slow");
    }
    let root_dir = File::open(&root).map_err(|e| failed("its root cannot be opened", e))?;
    let identity =
        user::look_up(&root_dir, &launch.user, launch.options.group_add.as_deref().unwrap_or_default())
            .map_err(|message| EngineError::plain(Reason::StartFailed, format!("{id}: {message}")))?;
    // As Docker does: the working directory of an image need not exist in it.
    if launch.first_id.is_none() {
        in_root::create_dir_all(&root_dir, &launch.cwd)
            .map_err(|e| failed(&format!("working directory {}", launch.cwd.display()), e))?;
    }
    let mut binds = volumes::prepare(&launch, root_dir.as_fd(), progress)?;
    binds.extend(configs::prepare(&launch, run, &identity)?);
    drop(root_dir);
    let notify = if launch.notify { Some(Notify::open(run)) } else { None };
    let notify = notify.transpose().map_err(|e| failed("its NOTIFY_SOCKET", e))?;
    binds.extend(notify.as_ref().map(|_| Notify::mount(run)));

    let devices = devices::prepare(&launch)?;
    let file_limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let around = spec::Surroundings {
        rootfs: &root,
        identity: &identity,
        binds: &binds,
        devices: &devices,
        file_limit: file_limit.unwrap_or(u64::MAX),
        v1_cgroups: &cgroups.v1_names(),
    };
    let mut config = spec::config(&launch, &around).map_err(|e| failed("its limits of disks", e))?;
    #[cfg(feature = "failpoints")]
    super::weak::Weak::of(&launch).spoil(&mut config, &launch);
    if launch.runtime.is_some() {
        runtime::complete(&launch, &mut config)
            .map_err(|message| EngineError::plain(Reason::StartFailed, format!("{id}: {message}")))?;
    }
    let prepare = |first| Mapped::prepare(&launch, first, &root, &run.scratch(), &mut config);
    let mapped = launch.first_id.map(prepare).transpose().map_err(|e| failed("its user namespace", e))?;
    fs::create_dir_all(run.bundle())
        .and_then(|()| fs::create_dir_all(run.runtime()))
        .and_then(|()| record::write(&run.bundle().join("config.json"), &config))
        .map_err(|e| failed("its configuration cannot be written", e))?;

    let outside = |id| mapped.as_ref().map_or(id, |mapped| mapped.outside(id));
    let owner = (outside(identity.uid), outside(identity.gid));
    let outputs = Outputs::open(run, owner).map_err(|e| failed("its outputs", e))?;
    let undo = || {
        let _ = cgroups.remove(&id, Duration::from_secs(5));
        rootfs::unmount(&state, &run.scratch());
    };
    if let Some(program) = launch.runtime.clone() {
        // Of a start that was killed in the middle: runc starts nothing beside its own record of it. We have the lock.
        let _ = fs::remove_dir_all(run.runtime());
        fs::create_dir_all(run.runtime()).map_err(|e| failed("its runtime's directory", e))?;
        let Outputs { readers, writers } = outputs;
        let pid = runtime::run(run, &launch, &program, writers).inspect_err(|_| undo())?;
        let record = write_record(run, &launch, pid).map_err(|error| failed("its record", error));
        let record = record.inspect_err(|_| {
            runtime::forget(run, &launch);
            undo();
        })?;
        return Supervised::child(launch, &record, readers, notify).map_err(|e| failed("pidfd", e));
    }
    let made = match &mapped {
        None => build(run, &launch, outputs),
        Some(mapped) => mapped
            .build(&launch, || build(run, &launch, outputs))
            .unwrap_or_else(|error| Err(failed("its network", error))),
    };
    let (container, mut failure, readers) = made.inspect_err(|_| undo())?;
    let pid = container.pid().map(|pid| pid.as_raw()).unwrap_or_default();
    let settled = match &mapped {
        None => Ok(()),
        Some(_) => {
            mapped::forget_place(&root, &mut config);
            record::write(&run.bundle().join("config.json"), &config)
                .map_err(|error| start_failed("its configuration cannot be written", error))
        }
    };
    let closed = || devices::close_directories(pid, &devices).map_err(|e| start_failed("its devices", e));
    let limited = || limits_v2::complete(&launch, &cgroups).map_err(|e| start_failed("its limits", e));
    match settled
        .and_then(|()| limited())
        .and_then(|()| closed())
        .and_then(|()| run_program(run, &launch, container, pid, &mut failure))
    {
        Ok(record) => Supervised::child(launch, &record, readers, notify).map_err(|e| failed("pidfd", e)),
        Err(error) => {
            cgroups.kill(&id);
            let _ = waitpid(Pid::from_raw(pid), None);
            undo();
            Err(EngineError { what: format!("{id}: {}", error.what), ..error })
        }
    }
}

/// The container's stdout and stderr: named pipes, which another shim can open again after a crash of this one. The
/// container has them open for reading too, so that it is not killed by SIGPIPE in between.
struct Outputs {
    readers: [File; 2],
    writers: [File; 2],
}

impl Outputs {
    /// `owner`: user and group on the host.
    fn open(run: &RunFiles, owner: (u32, u32)) -> io::Result<Self> {
        let one = |stream: Stream| -> io::Result<(File, File)> {
            let path = run.fifo(&stream.to_string());
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let reader = open_reader(&path)?;
            let writer = File::options().read(true).write(true).open(&path)?;
            // A program that is not root opens /dev/stdout anew, by name.
            fchown(&writer, Some(owner.0), Some(owner.1))?;
            Ok((reader, writer))
        };
        let (out, err) = (one(Stream::Stdout)?, one(Stream::Stderr)?);
        Ok(Self { readers: [out.0, err.0], writers: [out.1, err.1] })
    }
}

/// Has libcontainer make the container up to, but without, the execution of its program. Gives back the pipe on which
/// the failure of that execution would be told.
fn build(
    run: &RunFiles,
    launch: &Launch,
    outputs: Outputs,
) -> Result<(Container, File, [File; 2]), EngineError> {
    let failed = |what: &str, error: io::Error| start_failed(&format!("{}: {what}", launch.id), error);
    let (failure, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|e| failed("pipe", e.into()))?;
    let null = File::open("/dev/null").map_err(|e| failed("/dev/null", e))?;
    let [stdout, stderr] = outputs.writers;
    let container = ContainerBuilder::new(launch.id.to_string(), SyscallType::Linux)
        .with_root_path(run.runtime())
        .map(|builder| {
            builder
                .with_executor(Program {
                    failure: writer.as_raw_fd(),
                    filter: rights::filter(&launch.options),
                    init: launch.options.init == Some(true),
                    look: Look::First { masked: launch.options.privileged != Some(true) },
                    #[cfg(feature = "failpoints")]
                    weak: super::weak::Weak::of(launch),
                    window: None,
                    enter: None,
                })
                .with_stdin(null)
                .with_stdout(stdout)
                .with_stderr(stderr)
                .as_init(run.bundle())
                .with_systemd(false)
                .with_detach(true)
        })
        .and_then(|builder| builder.build())
        .map_err(|error| start_failed(&format!("{}: the container cannot be made", launch.id), error))?;
    // Only the container has it open now, until it executes its program.
    drop(writer);
    Ok((container, failure.into(), outputs.readers))
}

/// Lets the program run, then writes the record: what has a record was executed. A shim that dies in between leaves
/// remains, which a removal ends by their cgroup.
fn run_program(
    run: &RunFiles,
    launch: &Launch,
    mut container: Container,
    pid: i32,
    failure: &mut File,
) -> Result<RunRecord, EngineError> {
    container.start().map_err(|error| start_failed("it cannot be started", error))?;
    let mut message = String::new();
    // Ends when the program is executed, or with the process.
    let told = failure.take(MAX_MESSAGE).read_to_string(&mut message);
    told.map_err(|error| start_failed("its program", error))?;
    if !message.is_empty() {
        return Err(EngineError::plain(Reason::StartFailed, message));
    }
    write_record(run, launch, pid).map_err(|error| start_failed("its record cannot be written", error))
}

fn write_record(run: &RunFiles, launch: &Launch, pid: i32) -> io::Result<RunRecord> {
    ProcessId::of(pid)
        .map(|init| RunRecord { init, started_at: super::super::clock::now(), address: launch.address })
        .and_then(|record| record::write(&run.record(), &record).map(|()| record))
}

fn start_failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    // The library wraps the kernel's answer several times over.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut full = false;
    while let Some(error) = cause {
        full |= error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.raw_os_error(), Some(nix::libc::ENOSPC | nix::libc::EDQUOT)));
        cause = error.source();
    }
    EngineError::new(if full { Reason::DiskSpace } else { Reason::StartFailed }, what, error)
}
