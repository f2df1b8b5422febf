//! The parts that touch this host, as the configuration says: for the agent, and for commands beside it.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use crate::config::agent::AgentConfig;
use crate::engine::EngineError;
use crate::engine::native::net::names::Subnet6;
use crate::engine::native::net::{BridgeNetwork, ipv6};
use crate::engine::native::{NativeConfig, NativeEngine};
use crate::engine::traffic::{Hand, NftTraffic};
use crate::report::handed_over::{RULES, kept};
use crate::report::notify;
use crate::types::Reason;

/// What runs containers, what connects them, and what points traffic at them.
pub struct Native {
    /// The built-in engine.
    pub engine: NativeEngine,
    /// Its network.
    pub network: Arc<BridgeNetwork>,
    /// The published ports.
    pub traffic: NftTraffic,
}

impl Native {
    /// The parts of one instance. Makes the engine's directories, and touches nothing else.
    pub fn open(config: &AgentConfig) -> Result<Self, EngineError> {
        let program = std::env::current_exe()
            .map_err(|error| EngineError::new(Reason::Internal, "finding this program", error))?;
        let subnet6 = subnet6(config);
        let network = BridgeNetwork::new(&config.instance, config.engine.subnet, &config.run_dir)?;
        let network = Arc::new(network.with_ipv6(subnet6));
        let parts = NativeConfig {
            state_dir: config.state_dir.clone(),
            run_dir: config.run_dir.clone(),
            instance: config.instance.clone(),
            program,
        };
        Ok(Self {
            engine: NativeEngine::new(parts, network.clone())?
                .with_runtime(config.engine.runtime.clone())
                .with_subuids(config.engine.subuids),
            network,
            traffic: NftTraffic::new(&config.instance, config.engine.subnet, &config.run_dir)?
                .with_ipv6(subnet6),
        })
    }
}

/// The socket that the table of rules belongs to: systemd keeps it while there is no agent, so that nobody else's change takes rules
/// away meanwhile.
pub fn hand() -> std::io::Result<Hand> {
    if let Some(socket) = kept(RULES)? {
        return Hand::of(socket);
    }
    let hand = Hand::open()?;
    notify::keep(RULES, hand.as_fd());
    Ok(hand)
}

/// Where containers' IPv6 addresses are from; `None` = they have none.
fn subnet6(config: &AgentConfig) -> Option<Subnet6> {
    if !config.engine.ipv6 || !ipv6::is_used() {
        return None;
    }
    // Source: machine-id(5). Where there is none, the host's name tells machines apart.
    let machine = std::fs::read_to_string("/etc/machine-id").ok().filter(|text| !text.trim().is_empty());
    let machine = machine.unwrap_or_else(|| config.host.name.to_string());
    Some(match config.engine.subnet6 {
        Some(network) => Subnet6::new(network),
        None => Subnet6::of_instance(&machine, &config.instance),
    })
}
