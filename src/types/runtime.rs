//! What is seen on the host: containers, how they ended, and where traffic goes.

use std::net::Ipv4Addr;

use super::{Branch, Generation, InstanceId, PortMapping, Refusal, ServiceName, Timestamp};

/// One container as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedContainer {
    /// Whose it is.
    pub id: InstanceId,
    /// Its own address, where one was given.
    pub address: Option<Ipv4Addr>,
    /// What it does.
    pub state: ContainerState,
    /// How often the kernel killed a process in it for want of memory, since it was started.
    pub oom_kills: u64,
    /// The process that keeps its output and sees its end, in the host's pid namespace.
    pub supervisor: Option<i32>,
    /// Whether it runs and that process has died, so that it needs another one: nobody reads what it writes.
    pub unsupervised: bool,
    /// Why it has to be left alone: what is written about it cannot be understood.
    pub foreign: Option<Refusal>,
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
            // The second one: what a shell says of a child that ended so.
            (None, Some(9)) | (Some(137), _) if self.oom_killed => {
                return f.write_str("was killed for want of memory");
            }
            (Some(code), _) => write!(f, "exited with code {code}")?,
            (None, Some(signal)) => write!(f, "was ended by signal {signal}")?,
            (None, None) => f.write_str("ended, and nobody saw how")?,
        }
        match self.oom_killed {
            true => f.write_str(", after the kernel had killed a process in it for want of memory"),
            false => Ok(()),
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
    /// The address of its container; of several, the first that gets any.
    pub address: Ipv4Addr,
    /// The addresses of its other containers that get new connections too, by their index: each as many as the first.
    pub also: Vec<Ipv4Addr>,
    /// Ports of the host that lead into it, sorted: two routes that do the same are equal.
    pub ports: Vec<PortMapping>,
    /// A second generation that gets a part of new connections.
    pub canary: Option<Branch>,
}

impl Route {
    /// The addresses of all containers of its generation that get new connections.
    pub fn lanes(&self) -> impl Iterator<Item = Ipv4Addr> {
        std::iter::once(self.address).chain(self.also.iter().copied())
    }

    /// The addresses of all containers that get new connections by it.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.lanes().chain(self.canary.iter().flat_map(Branch::lanes))
    }

    /// Whether both lead to the same generations in the same way, whichever of their containers they spread over.
    pub fn agrees(&self, other: &Self) -> bool {
        let plain = |route: &Self| {
            let as_other = |branch: Branch| match &other.canary {
                Some(Branch { address, share, .. }) => {
                    Branch { address: *address, share: *share, also: Vec::new(), ..branch }
                }
                None => branch,
            };
            let canary = route.canary.clone().map(as_other);
            Self { address: other.address, also: Vec::new(), canary, ..route.clone() }
        };
        plain(self) == plain(other)
    }
}
