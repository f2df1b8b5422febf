//! Running containers and pointing traffic at them.
//!
//! Two narrow traits: [`Engine`] runs containers, [`Traffic`] decides which generation of a service new connections
//! reach. Both are blocking (call them off the async threads), idempotent (asked twice, the second time does nothing)
//! and name every kernel object by [`InstanceId`], so that a crash at any moment leaves only things that can be found
//! and named again. They decide nothing: `reconcile` does.

pub mod counters;
pub mod native;
pub mod probe;
pub mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::types::{
    CommitId, Digest, HealthCheck, InstanceId, Membership, Notified, PinnedImage, PortMapping, Reason,
    Refusal, ServiceName, ServiceSpec,
};
pub use crate::types::{ContainerState, Exit, Hosts, ObservedContainer, Route};

/// An image whose layers are unpacked, verified and durable on this host.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalImage {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Directories of its layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// What its configuration says about running it.
    pub config: ImageConfig,
}

/// The part of an image's configuration that running it needs.
///
/// Source: OCI image-spec, config.md.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ImageConfig {
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `user[:group]`, names or numbers; empty = root.
    pub user: String,
    /// Absolute path; empty = `/`.
    pub working_dir: String,
    /// Name or number; empty = SIGTERM.
    pub stop_signal: String,
    /// Its own health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthCheck>,
}

/// All that is needed to start one generation of one service.
#[derive(Debug, Clone)]
pub struct ContainerRequest {
    /// Names everything that is made.
    pub id: InstanceId,
    /// What the repo declares.
    pub spec: ServiceSpec<PinnedImage>,
    /// What to run, on this host's disk.
    pub image: LocalImage,
    /// Its address inside the instance's subnet: its own, the host's, or that of `joins`.
    pub address: Ipv4Addr,
    /// The container whose network it shares, under `network_mode = "service:x"`.
    pub joins: Option<InstanceId>,
    /// The services it can reach by name.
    pub hosts: Hosts,
    /// The commit it comes from, for its log lines.
    pub commit: CommitId,
    /// Runs this instead of the service's command, as a one-shot; `None` = the service itself.
    pub one_shot: Option<Vec<String>>,
}

/// What a command inside a container did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code; 128 + n for signal n; `None` when the time ran out.
    pub code: Option<i32>,
    /// The last 4 KiB of what it wrote to stdout and stderr.
    pub output: String,
}

/// Why an effect on containers or traffic failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct EngineError {
    /// The stable code.
    pub reason: Reason,
    /// What was being done, to which noun.
    pub what: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl EngineError {
    /// An error with a cause.
    pub fn new(
        reason: Reason,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { reason, what: what.into(), source: Some(source.into()) }
    }

    /// An error that is its own cause.
    pub fn plain(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, what: what.into(), source: None }
    }

    /// The whole chain on one line, for receipts and status.
    pub fn to_refusal(&self) -> Refusal {
        let mut message = self.what.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Refusal::new(self.reason, message)
    }
}

/// Runs containers.
pub trait Engine: Send + Sync {
    /// Everything that exists under this instance's name, running or not, in no order.
    fn observe(&self) -> Result<Vec<ObservedContainer>, EngineError>;

    /// Whether a container's first process lives. Quicker than a look at everything; where it cannot be told, it does.
    fn runs(&self, id: &InstanceId) -> bool;

    /// Gives a running container whose supervisor has died another one. One that is supervised, or has ended, is left
    /// alone. Takes as long as a start may.
    fn adopt(&self, id: &InstanceId) -> Result<(), EngineError>;

    /// Starts a container; returns once its first process runs. One that runs already is left alone.
    fn start(&self, request: &ContainerRequest) -> Result<(), EngineError>;

    /// Gives a running container the limits of its control group, and the time to end, that `spec` has. Nothing of it is
    /// killed for that: a limit that it exceeds already is refused. One that does not run is left alone.
    fn update(&self, id: &InstanceId, spec: &ServiceSpec<PinnedImage>) -> Result<(), EngineError>;

    /// Bytes of memory that a running container uses, without what the kernel can take back at once; `None` = it does not
    /// run, or nobody counts.
    fn memory(&self, id: &InstanceId) -> Option<u64>;

    /// Ends a container: its stop signal, then SIGKILL after `grace`. Keeps what it wrote.
    fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), EngineError>;

    /// Takes away all that exists under this name (processes, cgroup, namespaces, interfaces, mounts, files) except
    /// named volumes and logs. A running container is killed.
    fn remove(&self, id: &InstanceId) -> Result<(), EngineError>;

    /// Runs a command inside a running container and waits for it.
    fn exec(&self, id: &InstanceId, command: &[String], timeout: Duration)
    -> Result<ExecOutput, EngineError>;

    /// Renews the names that a container, running or not, finds in its `/etc/hosts`, and gives it the host's resolvers
    /// where it has none. Nothing is written if nothing changed.
    fn write_hosts(&self, id: &InstanceId, hosts: &Hosts) -> Result<(), EngineError>;

    /// What containers are told of the host's resolvers: early in a boot there are none.
    fn resolvers(&self) -> String;

    /// What the container's program has said to its `NOTIFY_SOCKET`; `None`: it was given none.
    fn notified(&self, id: &InstanceId) -> Option<Notified>;

    /// The last `lines` lines that the container wrote.
    fn log_tail(&self, id: &InstanceId, lines: usize) -> Vec<String>;
}

/// Decides which generation new connections reach. The kernel holds the truth: a dead agent changes nothing.
pub trait Traffic: Send + Sync {
    /// The routes that the kernel has now, by service.
    fn observe(&self) -> Result<BTreeMap<ServiceName, Route>, EngineError>;

    /// Lets containers reach each other that share a network, and no others. With `keep` members are only added.
    /// Nothing is written if nothing changed.
    fn connect(&self, members: &Membership, keep: bool) -> Result<(), EngineError>;

    /// Sends new connections to `route.generation`, in one transaction; established ones stay where they are.
    fn point(&self, route: &Route) -> Result<(), EngineError> {
        self.take_over(route, &BTreeSet::new())
    }

    /// The same, and `givers` lose the ports that `route` has: in the same transaction, so that there is no moment in which a
    /// port leads nowhere.
    fn take_over(&self, route: &Route, givers: &BTreeSet<ServiceName>) -> Result<(), EngineError>;

    /// Takes a service's route away.
    fn withdraw(&self, service: &ServiceName) -> Result<(), EngineError>;

    /// Puts back at once what somebody else has taken out of the rules, as it was when it was last changed or read. Gives
    /// whether anything was amiss, so that a look at all of it is due.
    fn restore(&self) -> Result<bool, EngineError>;

    /// How many connections of clients the container has: to ports it listens on, neither listening nor in TIME-WAIT.
    fn connections(&self, id: &InstanceId) -> Result<usize, EngineError>;

    /// Ends the container's established connections, so that clients come back and reach the current route.
    fn reset_connections(&self, id: &InstanceId) -> Result<(), EngineError>;

    /// Of a container that is well: should nobody listen any more on a port that has a listener now, it answers nobody for a
    /// second, and refuses then. Clients ask again after that second, and are led to what serves by then. Where it refuses on
    /// and on, so it is once a minute.
    fn delay_refusals(&self, id: &InstanceId) -> Result<(), EngineError>;

    /// Of a container that has ended: whoever asked it, and got no answer, is led by the rules when he asks again. Only a courtesy.
    fn forget_unanswered(&self, id: &InstanceId);

    /// Of a container that nothing leads to any more, and that is about to be told to end: what would begin a connection is not
    /// answered from now on, so that its client asks again, and is led to what serves.
    fn turn_away(&self, id: &InstanceId) -> Result<(), EngineError>;

    /// Of a container that has ended: gives what it wrote last up to `patience` to arrive, then resets the connections
    /// that are not over. Returns how many these were.
    fn end_connections(&self, id: &InstanceId, patience: Duration) -> Result<usize, EngineError>;

    /// Who has a port of the host which `ports` would publish, if anybody does beside this instance: a process, another
    /// instance, somebody's rule. As one line for people.
    fn port_conflict(&self, ports: &[PortMapping]) -> Result<Option<String>, EngineError>;
}
