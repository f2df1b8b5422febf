//! What the engine asks of container networking: a network namespace by name. It knows nothing of bridges or rules.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::engine::EngineError;
use crate::types::InstanceId;

/// Makes network namespaces for containers. Every call is blocking and idempotent.
pub trait Network: Send + Sync {
    /// Makes (or finds) the network namespace of `id` with interface, address, routes; returns a path that setns(2) takes.
    fn attach(&self, id: &InstanceId, address: Ipv4Addr) -> Result<PathBuf, EngineError>;

    /// Takes it away again; fine if it is not there.
    fn detach(&self, id: &InstanceId) -> Result<(), EngineError>;

    /// Every instance that has something of a network.
    fn attached(&self) -> Result<Vec<InstanceId>, EngineError>;
}
