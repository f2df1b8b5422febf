//! What is seen on the host: containers, how they ended, and where traffic goes.

use std::net::Ipv4Addr;

use super::{Generation, InstanceId, PortMapping, ServiceName, Timestamp};

/// One container as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedContainer {
    /// Whose it is.
    pub id: InstanceId,
    /// Its own address, where one was given.
    pub address: Option<Ipv4Addr>,
    /// What it does.
    pub state: ContainerState,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerState {
    /// Its first process runs: proven by pid, start time and boot id together.
    Running {
        /// In the host's pid namespace.
        pid: i32,
        /// When that process was started.
        started_at: Timestamp,
    },
    /// Its first process has ended; its writable layer is still there.
    Exited(Exit),
    /// Something under its name exists, and no process: a start that was cut short, or debris of a removal.
    Remains,
}

/// How a process ended. `code` and `signal` are both `None` when nobody saw it end.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// Exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Signal number, if one ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed something in it for memory.
    pub oom_killed: bool,
    /// When.
    pub at: Timestamp,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            _ if self.oom_killed => f.write_str("was killed for want of memory"),
            (Some(code), _) => write!(f, "exited with code {code}"),
            (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
            (None, None) => f.write_str("ended, and nobody saw how"),
        }
    }
}

/// Where new connections to a service go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The service.
    pub service: ServiceName,
    /// Its stable address: any port of it leads to the same port of the container.
    pub service_address: Ipv4Addr,
    /// The generation that gets new connections.
    pub generation: Generation,
    /// That generation's own address.
    pub address: Ipv4Addr,
    /// Ports of the host that lead into it, sorted: two routes that do the same are equal.
    pub ports: Vec<PortMapping>,
}
