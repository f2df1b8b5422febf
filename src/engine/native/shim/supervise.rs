//! The shim's long part: carry the container's output to its log, see it end, write down how, and go.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::super::cgroup::Cgroups;
use super::super::launch::Launch;
use super::super::layout::RunFiles;
use super::super::log::{Labels, Sink, Stream};
use super::super::record::{self, ExitRecord, PidFd, ProcessId, RunRecord, boot_id};
use super::notify::Notify;
use super::{open_reader, rootfs};
use crate::engine::Exit;

/// Bytes read at once; the most that waits in memory.
const CHUNK: usize = 64 << 10;
/// How long it may take until the kernel says how an adopted container's first process has ended, if it does.
const REAPING: Duration = Duration::from_millis(500);
/// Most chunks read from each output after the end: what was in the pipe, and no more.
const LAST_CHUNKS: usize = 16;

/// A running container and what its shim needs for it.
pub(super) struct Supervised {
    launch: Launch,
    process: ProcessId,
    init: PidFd,
    /// Whether its first process is our child; if not, somebody else may reap it, and the kernel may not tell us how it
    /// ended.
    child: bool,
    outputs: [Output; 2],
    buffer: Vec<u8>,
    sink: Sink,
    /// Where its program tells that it is ready, if it is to.
    notify: Option<Notify>,
}

struct Output {
    stream: Stream,
    pipe: File,
    open: bool,
}

impl Supervised {
    /// A container that this process has just made.
    pub fn child(
        launch: Launch,
        record: &RunRecord,
        readers: [File; 2],
        notify: Option<Notify>,
    ) -> io::Result<Self> {
        let init = PidFd::of_child(record.init.pid)?;
        Ok(Self { notify, ..Self::new(launch, record.init.clone(), init, true, readers) })
    }

    /// A container whose shim has died.
    pub fn adopt(run: &RunFiles, launch: Launch, process: ProcessId, init: PidFd) -> io::Result<Self> {
        let reader = |stream: Stream| open_reader(&run.fifo(&stream.to_string()));
        let readers = [reader(Stream::Stdout)?, reader(Stream::Stderr)?];
        // Without it the container goes on all the same.
        let notify = if launch.notify { Notify::open(run).ok() } else { None };
        Ok(Self { notify, ..Self::new(launch, process, init, false, readers) })
    }

    fn new(launch: Launch, process: ProcessId, init: PidFd, child: bool, readers: [File; 2]) -> Self {
        let [out, err] = readers;
        let output = |stream, pipe| Output { stream, pipe, open: true };
        let labels = Labels {
            service: launch.id.service.as_str(),
            generation: launch.id.generation.0,
            index: launch.id.index,
            image: &launch.image,
            digest: &launch.digest,
            commit: &launch.commit,
        };
        let limits = launch.options.logging.unwrap_or_default();
        let sink = Sink::new(&launch.layout.log(&launch.id), limits, &labels);
        Self {
            process,
            init,
            child,
            outputs: [output(Stream::Stdout, out), output(Stream::Stderr, err)],
            buffer: vec![0; CHUNK],
            sink,
            notify: None,
            launch,
        }
    }

    /// Has the container end when systemd stops the unit.
    pub fn end_with_unit(&self) -> io::Result<()> {
        super::ending::watch(&self.launch, self.init.try_clone()?)
    }

    /// Waits for output or for the end; `true` = it has ended.
    fn wait(&mut self) -> bool {
        let rest = self.sink.rest();
        let mut waiting = vec![PollFd::new(self.init.as_fd(), PollFlags::POLLIN)];
        for output in self.outputs.iter().filter(|output| output.open && rest.is_none()) {
            waiting.push(PollFd::new(output.pipe.as_fd(), PollFlags::POLLIN));
        }
        let notify = self.notify.as_ref().map(Notify::waits);
        if let Some(Ok(socket)) = notify {
            waiting.push(PollFd::new(socket, PollFlags::POLLIN));
        }
        let pauses = rest.into_iter().chain(notify.and_then(Result::err));
        let timeout = pauses.min().map_or(PollTimeout::NONE, |rest| {
            PollTimeout::try_from(rest.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        // An interrupted call reports nothing, and the loop comes back.
        let _ = poll(&mut waiting, timeout);
        waiting.first().is_some_and(|init| init.any() == Some(true))
    }

    /// Moves one chunk of each output to the log; `false` when there was nothing.
    fn pump(&mut self) -> bool {
        let mut any = false;
        for output in self.outputs.iter_mut().filter(|output| output.open) {
            match output.pipe.read(&mut self.buffer) {
                // Nobody has the writing end any more.
                Ok(0) => output.open = false,
                Ok(length) => {
                    any = true;
                    self.sink.take(output.stream, self.buffer.get(..length).unwrap_or_default());
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => output.open = false,
            }
        }
        any
    }

    fn finish_log(&mut self) {
        for _ in 0..LAST_CHUNKS {
            if !self.pump() {
                break;
            }
        }
        self.sink.finish();
    }

    fn status(&self) -> (Option<i32>, Option<i32>) {
        if !self.child {
            return self.init.end(&self.process, REAPING).unwrap_or_default();
        }
        match waitid(WaitId::PidFd(self.init.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => (status.exit_status(), status.terminating_signal()),
            _ => (None, None),
        }
    }
}

/// Stays until the container has ended and all about it is written down.
pub(super) fn supervise(run: &RunFiles, mut container: Supervised) -> ExitCode {
    // Without the right to (CAP_SYS_RESOURCE) the shim goes with the rest when memory runs out, and can be replaced.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    while !container.wait() {
        container.pump();
        if let Some(notify) = &mut container.notify {
            notify.hear();
        }
    }
    let (code, signal) = container.status();
    container.finish_log();
    let id = &container.launch.id;
    let cgroups = Cgroups::detect(&container.launch.layout.instance);
    let oom_killed = cgroups.as_ref().is_ok_and(|cgroups| cgroups.oom_kills(id) > 0);
    let exit = Exit { code, signal, oom_killed, at: super::super::clock::now() };
    // Before the record: who reads that may take the directory away.
    super::super::runtime::forget(run, &container.launch);
    if id.job.is_some()
        && let Err(error) = keep_end(&container.launch, &exit)
    {
        tracing::warn!(instance = %id, "how it ended cannot be kept over a reboot: {error}");
    }
    let written = boot_id().and_then(|boot_id| record::write(&run.exit(), &ExitRecord { boot_id, exit }));
    if let Ok(cgroups) = cgroups {
        let _ = cgroups.remove(id, Duration::from_secs(5));
    }
    rootfs::unmount(&container.launch.layout.state(id), &run.scratch());
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How a one-shot ended has to outlive a power cut: whether it is run again hangs on it.
fn keep_end(launch: &Launch, exit: &Exit) -> io::Result<()> {
    let path = launch.layout.ended(&launch.id);
    record::write(&path, &ExitRecord { boot_id: boot_id()?, exit: exit.clone() })?;
    File::open(&path)?.sync_all()?;
    File::open(launch.layout.state(&launch.id))?.sync_all()
}
