//! What a service is to be: the typed form of a service file, for one host.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    ByteSize, Canary, ConfigFile, ImageRef, NetworkMode, Options, RestartPolicy, ServiceName, VolumeMount,
};

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
    /// Files of the config repo.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configs: Vec<ConfigFile>,
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
            configs: Vec::new(),
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
            configs: self.configs,
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
    /// generations at once on one database's files would destroy them) or has a network that is not its own (two at
    /// once cannot hold one port), else `blue-green`.
    pub fn strategy(&self) -> Strategy {
        let alone = self.writes() || self.network_mode().is_shared();
        self.deploy.strategy.unwrap_or(if alone { Strategy::Recreate } else { Strategy::BlueGreen })
    }

    /// Whether it writes to a volume.
    pub fn writes(&self) -> bool {
        self.volumes.iter().any(|volume| !volume.read_only)
    }

    /// Whose network it has.
    pub fn network_mode(&self) -> &NetworkMode {
        self.options.network_mode.as_ref().unwrap_or(&NetworkMode::Bridge)
    }

    /// The service whose network it shares.
    pub fn joins(&self) -> Option<&ServiceName> {
        match self.network_mode() {
            NetworkMode::Service(name) => Some(name),
            _ => None,
        }
    }

    /// The services that have to run before it starts.
    pub fn needs(&self) -> impl Iterator<Item = &ServiceName> {
        self.joins().into_iter().chain(&self.depends_on)
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
    /// The host's address to publish on; `0.0.0.0` = all of them, IPv6 ones too; `::` = all IPv6 ones.
    pub host_ip: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl PortMapping {
    /// Whether what is sent to `address` of the host is meant too.
    pub fn takes(&self, address: IpAddr) -> bool {
        match self.host_ip {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => true,
            own if own.is_unspecified() => address.is_ipv6(),
            own => own == address,
        }
    }

    /// Whether both cannot be published on one host: the same port and protocol, on addresses that overlap.
    pub fn clashes(&self, other: &Self) -> bool {
        let overlap = self.takes(other.host_ip) || other.takes(self.host_ip);
        overlap && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl fmt::Display for PortMapping {
    /// As `docker ps` shows it: `0.0.0.0:80->8080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            IpAddr::V4(address) => write!(f, "{address}")?,
            IpAddr::V6(address) => write!(f, "[{address}]")?,
        }
        write!(f, ":{}->{}/{}", self.host_port, self.container_port, self.protocol)
    }
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
    /// The part of new connections that it gets before it gets all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

impl Default for Deploy {
    fn default() -> Self {
        Self {
            strategy: None,
            drain: Duration::from_secs(30),
            bake: Duration::from_secs(60),
            timeout: Duration::from_secs(300),
            pre: Vec::new(),
            canary: None,
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
