//! What a service is to be: the typed form of a service file, for one host.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ByteSize, ImageRef, Options, RestartPolicy, ServiceName};

/// One service as the repo declares it for this host. `I` is [`ImageRef`] as declared and
/// [`super::PinnedImage`] once its tag has been resolved.
///
/// A new field has to be thought about in `reconcile::replace`, which takes it apart without `..`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec<I> {
    /// What to run.
    pub image: I,
    /// Archives to try in order when the registry cannot serve.
    pub fallback: Vec<String>,
    /// Replaces the image's entrypoint; `None` keeps it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command; `None` keeps it.
    pub command: Option<Vec<String>>,
    /// Added to the image's environment.
    pub environment: BTreeMap<String, String>,
    /// `user[:group]`, names or numbers, instead of the image's.
    pub user: Option<String>,
    /// Instead of the image's.
    pub working_dir: Option<String>,
    /// Ports of the host that lead into the container.
    pub ports: Vec<PortMapping>,
    /// Named volumes and directories of the host.
    pub volumes: Vec<VolumeMount>,
    /// Services that have to run before this one starts.
    pub depends_on: Vec<ServiceName>,
    /// Whether it is started again when it ended.
    #[serde(default, skip_serializing_if = "RestartPolicy::is_default")]
    pub restart: RestartPolicy,
    /// From SIGTERM to SIGKILL.
    pub stop_grace_period: Duration,
    /// Bytes of memory; `None` = no limit.
    pub mem_limit: Option<ByteSize>,
    /// Thousandths of a processor; `None` = no limit.
    pub milli_cpus: Option<u32>,
    /// Processes and threads; `None` = no limit.
    pub pids_limit: Option<u32>,
    /// What else sets its container apart from the default one.
    #[serde(default, skip_serializing_if = "Options::is_default")]
    pub options: Options,
    /// How to tell that it works. `None`: it runs and accepts a connection on each published TCP port for a second.
    pub healthcheck: Option<HealthCheck>,
    /// How to change it.
    pub deploy: Deploy,
}

impl<I> ServiceSpec<I> {
    /// A spec with nothing but an image, and the defaults that `docs/config.md` states.
    pub fn new(image: I) -> Self {
        Self {
            image,
            fallback: Vec::new(),
            entrypoint: None,
            command: None,
            environment: BTreeMap::new(),
            user: None,
            working_dir: None,
            ports: Vec::new(),
            volumes: Vec::new(),
            depends_on: Vec::new(),
            restart: RestartPolicy::default(),
            stop_grace_period: Duration::from_secs(10),
            mem_limit: None,
            milli_cpus: None,
            pids_limit: None,
            options: Options::default(),
            healthcheck: None,
            deploy: Deploy::default(),
        }
    }

    /// The same service with its image put in another form.
    pub fn with_image<J>(self, image: J) -> ServiceSpec<J> {
        ServiceSpec {
            image,
            fallback: self.fallback,
            entrypoint: self.entrypoint,
            command: self.command,
            environment: self.environment,
            user: self.user,
            working_dir: self.working_dir,
            ports: self.ports,
            volumes: self.volumes,
            depends_on: self.depends_on,
            restart: self.restart,
            stop_grace_period: self.stop_grace_period,
            mem_limit: self.mem_limit,
            milli_cpus: self.milli_cpus,
            pids_limit: self.pids_limit,
            options: self.options,
            healthcheck: self.healthcheck,
            deploy: self.deploy,
        }
    }

    /// The strategy in force: the one that was asked for, else `recreate` when the service writes to a volume (two
    /// generations at once on one database's files would destroy them), else `blue-green`.
    pub fn strategy(&self) -> Strategy {
        let writes = self.volumes.iter().any(|volume| !volume.read_only);
        self.deploy.strategy.unwrap_or(if writes { Strategy::Recreate } else { Strategy::BlueGreen })
    }
}

/// The image as declared, before its tag is resolved.
pub type Declared = ServiceSpec<ImageRef>;

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `[address:]host:container[/protocol]`, one port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// The host's address to publish on; `0.0.0.0` = all of them.
    pub host_ip: Ipv4Addr,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl PortMapping {
    /// Whether both cannot be published on one host: the same port and protocol, on addresses that overlap.
    pub fn clashes(&self, other: &Self) -> bool {
        let overlap =
            self.host_ip == other.host_ip || self.host_ip.is_unspecified() || other.host_ip.is_unspecified();
        overlap && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl fmt::Display for PortMapping {
    /// As `docker ps` shows it: `0.0.0.0:80->8080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}->{}/{}", self.host_ip, self.host_port, self.container_port, self.protocol)
    }
}

/// `source:target[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// What is mounted.
    pub source: VolumeSource,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// Where the content of a volume lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// A directory that the agent keeps for this service under its state directory.
    Named(String),
    /// A directory or file of the host.
    Bind(PathBuf),
}

/// How to tell that a container works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// The question asked.
    pub probe: Probe,
    /// From one attempt to the next.
    pub interval: Duration,
    /// How long an attempt may take.
    pub timeout: Duration,
    /// How long after the start failures do not count.
    pub start_period: Duration,
    /// This many failures in a row mean unhealthy; at least 1.
    pub retries: u32,
}

impl HealthCheck {
    /// A check with the default times that `docs/config.md` states.
    pub fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            start_period: Duration::from_secs(10),
            retries: 3,
        }
    }
}

/// One way of asking a container whether it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// GET `path` on `port` of the container gives a status from 200 to 399.
    Http {
        /// Path and query, beginning with `/`.
        path: String,
        /// Port in the container.
        port: u16,
    },
    /// A TCP connection to `port` of the container is accepted.
    Tcp {
        /// Port in the container.
        port: u16,
    },
    /// The command, run inside the container, ends with 0.
    Test {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// How a service is changed from one generation to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// `None`: see [`ServiceSpec::strategy`].
    pub strategy: Option<Strategy>,
    /// How long old connections may finish after the switch.
    pub drain: Duration,
    /// How long the old generation is kept after the switch, ready to take traffic back.
    pub bake: Duration,
    /// From the start of the new generation to healthy.
    pub timeout: Duration,
    /// One-shot in the new image before it starts; empty = none.
    pub pre: Vec<String>,
}

impl Default for Deploy {
    fn default() -> Self {
        Self {
            strategy: None,
            drain: Duration::from_secs(30),
            bake: Duration::from_secs(60),
            timeout: Duration::from_secs(300),
            pre: Vec::new(),
        }
    }
}

/// Whether the new generation runs beside the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Start the new one, prove it, switch, then stop the old one.
    BlueGreen,
    /// Stop the old one, then start the new one.
    Recreate,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BlueGreen => "blue-green",
            Self::Recreate => "recreate",
        })
    }
}
