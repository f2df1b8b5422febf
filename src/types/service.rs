//! What a service is to be: the typed form of a service file, for one host.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    ByteSize, Canary, ConfigFile, Dependency, HealthCheck, ImageRef, NetworkMode, Options, Probe,
    RestartPolicy, Schedule, SecretFile, ServiceName, VolumeMount, Window,
};

/// One service as the repo declares it for this host. `I` is [`ImageRef`] as declared and
/// [`super::PinnedImage`] once its tag has been resolved.
///
/// A new field has to be thought about in `reconcile::changes`, which takes it apart without `..`.
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
    /// Secrets of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretFile>,
    /// Services that have to be so far before this one starts.
    pub depends_on: Vec<Dependency>,
    /// Whether it is started again when it ended.
    #[serde(default, skip_serializing_if = "RestartPolicy::is_default")]
    pub restart: RestartPolicy,
    /// When it runs; `None` = all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
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
    /// How to tell that it works. `None`: the image's own check; without one it runs and accepts a connection on each
    /// published TCP port for a second.
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
            secrets: Vec::new(),
            depends_on: Vec::new(),
            restart: RestartPolicy::default(),
            schedule: None,
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
            secrets: self.secrets,
            depends_on: self.depends_on,
            restart: self.restart,
            schedule: self.schedule,
            stop_grace_period: self.stop_grace_period,
            mem_limit: self.mem_limit,
            milli_cpus: self.milli_cpus,
            pids_limit: self.pids_limit,
            options: self.options,
            healthcheck: self.healthcheck,
            deploy: self.deploy,
        }
    }

    /// The same service without what its host knows of it: the contents of its secrets.
    pub fn without_contents(mut self) -> Self {
        self.secrets.iter_mut().for_each(|secret| secret.content = None);
        self
    }

    /// The strategy in force: the one that was asked for, else `recreate` when the service writes to a volume (two
    /// generations at once on one database's files would destroy them) or has a network that is not its own (two at
    /// once cannot hold one port), else `blue-green`.
    pub fn strategy(&self) -> Strategy {
        let alone = self.writes() || self.network_mode().is_shared();
        self.deploy.strategy.unwrap_or(if alone { Strategy::Recreate } else { Strategy::BlueGreen })
    }

    /// Why it cannot run beside its successor, where nobody asked for that: as a part of a sentence.
    pub fn alone_because(&self) -> Option<String> {
        if self.deploy.strategy.is_some() || self.schedule.is_some() {
            return None;
        }
        match (self.network_mode(), self.volumes.iter().find(|volume| !volume.read_only)) {
            (_, Some(volume)) => Some(format!("it writes to {}", volume.target.display())),
            (NetworkMode::Host, None) => {
                Some("it has the host's network, whose ports no two can have".to_owned())
            }
            (NetworkMode::Service(other), None) => {
                Some(format!("it shares the network of {other}, whose ports no two can have"))
            }
            (NetworkMode::Bridge | NetworkMode::None, None) => None,
        }
    }

    /// Whether it writes to a volume.
    pub fn writes(&self) -> bool {
        self.volumes.iter().any(|volume| !volume.read_only)
    }

    /// Whose network it has.
    pub fn network_mode(&self) -> &NetworkMode {
        self.options.network_mode.as_ref().unwrap_or(&NetworkMode::Bridge)
    }

    /// The time zones that its schedule and its windows name; `""` = the host's own.
    pub fn zones(&self) -> impl Iterator<Item = &str> {
        let schedule = self.schedule.iter().map(|schedule| schedule.calendar.zone());
        schedule.chain(self.deploy.window.iter().map(Window::zone)).map(Option::unwrap_or_default)
    }

    /// The service whose network it shares.
    pub fn joins(&self) -> Option<&ServiceName> {
        match self.network_mode() {
            NetworkMode::Service(name) => Some(name),
            _ => None,
        }
    }

    /// Whether its program is to say when it is ready: it sees a `NOTIFY_SOCKET`.
    pub fn notifies(&self) -> bool {
        self.healthcheck.as_ref().is_some_and(|check| check.probe == Probe::Notify)
    }

    /// The services that have to be so far before it starts.
    pub fn needs(&self) -> impl Iterator<Item = &ServiceName> {
        self.joins().into_iter().chain(self.depends_on.iter().map(|dependency| &dependency.service))
    }

    /// What it needs of each of them. One whose network it shares has to run.
    pub fn dependencies(&self) -> impl Iterator<Item = Dependency> {
        let host = self.joins().cloned().map(Dependency::started);
        host.into_iter().chain(self.depends_on.iter().cloned())
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
    /// How long the new generation has to be healthy in a row before the switch.
    #[serde(default, skip_serializing_if = "Duration::is_zero")]
    pub min_healthy_time: Duration,
    /// Once it has traffic: how many more per cent of its connections may fail than of the old generation's. `None`: see
    /// `reconcile::errors`; 100: they are not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_error_rate: Option<u8>,
    /// One-shot in the new image once it is the incumbent; empty = none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<String>,
    /// Whether the old generation may come back by itself once the new one has changed what both use.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub reversible: bool,
    /// When it may be changed; empty = at any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub window: Vec<Window>,
    /// When the old generation is told to end.
    #[serde(default, skip_serializing_if = "DrainSignal::is_late")]
    pub drain_signal: DrainSignal,
    /// The part of new connections that it gets before it gets all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// How many containers of it run at once, from 1 to [`MAX_REPLICAS`].
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub replicas: u32,
    /// How many of them are replaced at a time, from 1. `None`, or as many as there are: all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
}

/// More than a host has use for. Below [`super::WHOLE`], by which the rules of a canary are told from those of replicas.
pub const MAX_REPLICAS: u32 = 64;

fn one() -> u32 {
    1
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

fn yes() -> bool {
    true
}

fn is_yes(flag: &bool) -> bool {
    *flag
}

/// When the generation that has lost its traffic gets its stop signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainSignal {
    /// Once it has no connection left, or `drain` is over.
    #[default]
    Late,
    /// As soon as no new connection can be on its way to it: it finishes its connections by itself, and has the rest of
    /// `drain` and its `stop_grace_period` for that.
    Early,
}

impl DrainSignal {
    fn is_late(&self) -> bool {
        *self == Self::Late
    }
}

impl Default for Deploy {
    fn default() -> Self {
        Self {
            strategy: None,
            drain: Duration::from_secs(30),
            bake: Duration::from_secs(60),
            timeout: Duration::from_secs(300),
            pre: Vec::new(),
            min_healthy_time: Duration::ZERO,
            max_error_rate: None,
            post: Vec::new(),
            reversible: true,
            window: Vec::new(),
            drain_signal: DrainSignal::default(),
            canary: None,
            replicas: 1,
            parallelism: None,
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
