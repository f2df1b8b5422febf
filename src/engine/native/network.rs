//! What the built-in engine asks of a network.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use crate::engine::EngineError;
use crate::types::InstanceId;

/// Gives containers a network.
pub trait Network: Send + Sync {
    /// Makes (or finds) the network namespace of `id` with interface, address, routes; returns a path that setns(2) takes.
    fn attach(&self, id: &InstanceId, address: Ipv4Addr) -> Result<PathBuf, EngineError>;
    /// Takes it away again; fine if it is not there.
    fn detach(&self, id: &InstanceId) -> Result<(), EngineError>;
    /// Every instance that has something of a network, with its address where known.
    fn attached(&self) -> Result<Vec<InstanceId>, EngineError>;
    /// Those of `running` whose network is no longer whole: somebody took an interface, the bridge or a pin away.
    fn broken(&self, running: &[InstanceId]) -> Result<Vec<InstanceId>, EngineError> {
        let _ = running;
        Ok(Vec::new())
    }
    /// Puts the network of a running container right; `namespace` is the network namespace it runs in.
    fn mend(&self, id: &InstanceId, address: Ipv4Addr, namespace: BorrowedFd<'_>) -> Result<(), EngineError> {
        let _ = namespace;
        self.attach(id, address).map(|_| ())
    }
}
