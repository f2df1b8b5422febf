//! What the built-in engine asks of a network.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use crate::engine::EngineError;
use crate::types::{InstanceId, Reason};

/// Gives containers a network.
pub trait Network: Send + Sync {
    /// Makes (or finds) the network namespace of `id` with interface, address, routes; returns a path that setns(2) takes.
    fn attach(&self, id: &InstanceId, address: Ipv4Addr) -> Result<PathBuf, EngineError>;
    /// The same, without IPv6.
    fn attach_ipv4(&self, id: &InstanceId, address: Ipv4Addr) -> Result<PathBuf, EngineError> {
        self.attach(id, address)
    }
    /// Makes (or finds) a network namespace for `id` that has nothing but its loopback interface.
    fn isolate(&self, id: &InstanceId) -> Result<PathBuf, EngineError> {
        Err(unsupported(id))
    }
    /// Gives the network namespace of `host` to `id` too: it is there for as long as either has it.
    fn join(&self, id: &InstanceId, host: &InstanceId) -> Result<PathBuf, EngineError> {
        let _ = host;
        Err(unsupported(id))
    }
    /// Makes the host itself reachable from containers, for those of its services that have its network.
    fn open_host(&self) -> Result<(), EngineError> {
        Ok(())
    }
    /// Takes it away again; fine if it is not there.
    fn detach(&self, id: &InstanceId) -> Result<(), EngineError>;
    /// Every instance that has something of a network, with its address where known.
    fn attached(&self) -> Result<Vec<InstanceId>, EngineError>;
    /// Those of `running` whose network is no longer whole: somebody took an interface, the bridge, an address of the host's,
    /// a route or a pin away.
    fn broken(&self, running: &[InstanceId]) -> Result<Vec<InstanceId>, EngineError> {
        let _ = running;
        Ok(Vec::new())
    }
    /// Names the network namespace of a running container again, if it has lost its name.
    fn pin(&self, id: &InstanceId, namespace: BorrowedFd<'_>) -> Result<(), EngineError> {
        let (_, _) = (id, namespace);
        Ok(())
    }
}

fn unsupported(id: &InstanceId) -> EngineError {
    EngineError::plain(Reason::Unsupported, format!("{id}: this network gives every container its own"))
}
