//! The engine that needs nothing but this program: containers by libcontainer, each under a shim of its own.
//!
//! The agent's side ([`NativeEngine`]) keeps nothing in memory: what exists is read from the file system and the
//! kernel each time, so that a new agent sees what an old one left. libcontainer runs only in the shim and in the exec
//! helper, which are single-threaded processes of their own ([`shim::main`], [`exec::main`]).

mod apparmor;
mod cgroup;
mod cgroup_limits;
mod clock;
mod etc_files;
pub mod exec;
mod exec_client;
mod exec_flow;
mod exec_process;
mod exec_session;
mod exec_terminal;
mod in_root;
mod kernel;
mod keyring;
mod launch;
mod layout;
mod limits;
mod limits_v2;
mod lock;
mod log;
pub mod net;
pub mod network;
mod null;
mod observe;
mod record;
mod rights;
mod runtime;
mod seal;
mod seccomp;
pub mod shim;
mod spec;
mod start;
mod stop;
mod supervisor;
mod update;
mod usage;
mod user;
mod userns;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};
use std::time::Duration;

pub use exec_session::Session;
pub use log::{LogEntry, LogQuery, ServiceLog, Stream};
pub use network::Network;
pub use shim::NOT_FOUND;
pub use usage::{Usage, usages};

use self::cgroup::Cgroups;
use self::layout::Layout;
use self::supervisor::Supervisor;
use super::{ContainerRequest, Engine, EngineError, ExecOutput, Hosts, ObservedContainer};
use crate::types::{Generation, InstanceId, Notified, PinnedImage, Reason, ServiceName, ServiceSpec};

/// Where a native engine keeps its things and what it runs them with.
#[derive(Debug, Clone)]
pub struct NativeConfig {
    /// What survives a reboot.
    pub state_dir: PathBuf,
    /// What need not.
    pub run_dir: PathBuf,
    /// Names the parent cgroup, so that several agents can share a machine.
    pub instance: String,
    /// Our own program: [`std::env::current_exe`] in production.
    pub program: PathBuf,
}

/// Runs containers with nothing but this program and the kernel.
pub struct NativeEngine {
    layout: Layout,
    program: PathBuf,
    network: Arc<dyn Network>,
    cgroups: Cgroups,
    /// Name or path of an OCI runtime of the host; `None` = the built-in one.
    runtime: Option<String>,
    subuids: userns::Ids,
    supervisor: Supervisor,
    apparmor: apparmor::AppArmor,
    /// Whether it was said that containers have fewer open files than elsewhere.
    files_told: AtomicBool,
    /// Shared by starts, alone for taking empty parent groups away: a start may need the parent at any moment.
    parents: RwLock<()>,
}

impl NativeEngine {
    /// An engine for one instance. Makes its directories; finds whatever an earlier agent left.
    pub fn new(config: NativeConfig, network: Arc<dyn Network>) -> Result<Self, EngineError> {
        let NativeConfig { state_dir, run_dir, instance, program } = config;
        let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if instance.is_empty() || instance.len() > 63 || !instance.chars().all(name_ok) {
            return Err(EngineError::plain(
                Reason::ConfigInvalid,
                format!("instance `{instance}`: it takes 1 to 63 letters, digits, - and _"),
            ));
        }
        let layout = Layout { state_dir, run_dir, instance };
        for dir in [layout.states(), layout.runs()] {
            // Open to root only: a writable layer holds set-user-ID files of images, and records hold secrets.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| {
                let reason = storage_reason(&error, Reason::StorageIo);
                EngineError::new(reason, format!("directory {} cannot be made", dir.display()), error)
            })?;
        }
        let cgroups = Cgroups::detect(&layout.instance)
            .map_err(|error| EngineError::new(Reason::StartFailed, "cgroups cannot be found", error))?;
        let supervisor = Supervisor::detect(&layout.instance);
        Ok(Self {
            layout,
            program,
            network,
            cgroups,
            runtime: None,
            subuids: userns::Ids::default(),
            supervisor,
            apparmor: apparmor::AppArmor::default(),
            files_told: AtomicBool::new(false),
            parents: RwLock::new(()),
        })
    }

    /// Puts a child of this process that only prepares something, as a layer, behind the containers: it gets what they
    /// leave of processors and disks. Best effort, and blocking for a moment.
    pub fn put_behind(&self, pid: u32) {
        self.supervisor.put_behind(pid);
    }

    /// The same, with new containers made by an OCI runtime of the host: `crun`, `runc`, or an absolute path.
    #[must_use]
    pub fn with_runtime(mut self, runtime: Option<String>) -> Self {
        self.runtime = runtime;
        self
    }

    /// The same, with numbers of users for containers that have a user namespace: the first one, and how many.
    #[must_use]
    pub fn with_subuids(mut self, range: Option<(u32, u32)>) -> Self {
        self.subuids = userns::Ids::new(range);
        self
    }

    /// Has this process become a command inside a running container: it ends as the command does, 128 + n for signal n.
    /// Comes back only if that fails.
    pub fn become_command(&self, id: &InstanceId, command: &[String], session: &Session) -> EngineError {
        exec_client::become_command(self, id, command, session)
    }

    /// The newest generation of a service that runs, from its records alone.
    pub fn newest_running(&self, service: &ServiceName) -> Option<Generation> {
        observe::newest_running(self, service)
    }

    /// Takes away what belongs to the instance and to no container: its parent cgroup, once it is empty.
    pub fn teardown(&self) {
        self.cgroups.remove_empty_parents(Duration::from_secs(2));
    }
}

impl Engine for NativeEngine {
    fn observe(&self) -> Result<Vec<ObservedContainer>, EngineError> {
        observe::observe(self)
    }

    fn adopt(&self, id: &InstanceId) -> Result<(), EngineError> {
        start::adopt(self, id)
    }

    fn start(&self, request: &ContainerRequest) -> Result<(), EngineError> {
        start::start(self, request)
    }

    fn update(&self, id: &InstanceId, spec: &ServiceSpec<PinnedImage>) -> Result<(), EngineError> {
        update::update(self, id, spec)
    }

    fn memory(&self, id: &InstanceId) -> Option<u64> {
        usage::memory(&self.cgroups, id)
    }

    fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), EngineError> {
        stop::stop(self, id, grace)
    }

    fn remove(&self, id: &InstanceId) -> Result<(), EngineError> {
        stop::remove(self, id)
    }

    fn exec(
        &self,
        id: &InstanceId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, EngineError> {
        exec_client::run(self, id, command, timeout)
    }

    fn write_hosts(&self, id: &InstanceId, hosts: &Hosts) -> Result<(), EngineError> {
        let Some(address) = observe::address(&self.layout.run(id)) else { return Ok(()) };
        let launch = record::read::<launch::Launch>(&self.layout.run(id).launch());
        let options = launch.map(|launch| launch.options).unwrap_or_default();
        let dir = self.layout.state(id);
        let failed = |file: &str, error: std::io::Error| {
            let reason = storage_reason(&error, Reason::StorageIo);
            EngineError::new(reason, format!("{id}: its /etc/{file} cannot be written"), error)
        };
        etc_files::write_hosts(&dir, id, address, hosts, &options).map_err(|error| failed("hosts", error))?;
        etc_files::complete_resolver(&dir, &options).map_err(|error| failed("resolv.conf", error))
    }

    fn resolvers(&self) -> String {
        etc_files::resolver_of_host()
    }

    fn runs(&self, id: &InstanceId) -> bool {
        observe::runs(self, id)
    }

    fn notified(&self, id: &InstanceId) -> Option<Notified> {
        record::read(&self.layout.run(id).notified())
    }

    fn log_tail(&self, id: &InstanceId, lines: usize) -> Vec<String> {
        log::tail(&self.layout.log(id), lines)
    }
}

/// The reason behind a failed file operation, or `otherwise`.
fn storage_reason(error: &std::io::Error, otherwise: Reason) -> Reason {
    match error.raw_os_error() {
        Some(nix::libc::ENOSPC | nix::libc::EDQUOT) => Reason::DiskSpace,
        Some(nix::libc::EIO) => Reason::StorageIo,
        _ => otherwise,
    }
}

/// The file that a container's log is written to; older parts have `.1` and `.2` appended. Entries are
/// `TIME STREAM TAG TEXT`: RFC 3339 time, `stdout` or `stderr`, `F` for a whole line or `P` for a part of one.
pub fn log_file(state_dir: &Path, id: &InstanceId) -> PathBuf {
    layout::log_file(state_dir, id)
}

/// The last `count` lines of a log file, oldest first.
pub fn log_tail(path: &Path, count: usize) -> Vec<String> {
    log::tail(path, count)
}
