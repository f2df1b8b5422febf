//! `gitopsd exec`: a command inside a service's container.

use std::path::Path;
use std::sync::Arc;

use super::{Failure, logs, run};
use crate::engine::native::net::BridgeNetwork;
use crate::engine::native::{NativeConfig, NativeEngine};
use crate::types::{InstanceId, ServiceName};

/// Runs a command inside the container that serves. Gives its exit code: 127 where there is no such program, 126 where
/// it cannot be run, as a shell does.
pub fn exec(config: &Path, service: &ServiceName, command: &[String]) -> Result<u8, Failure> {
    let status = logs::find(config, service)?;
    let Some(generation) = status.generation else {
        return Err(Failure::plain(format!("{service} has no container")));
    };
    let config = run::config(config)?;
    let refused = |error: crate::engine::EngineError| Failure::from(error.to_refusal());
    let network =
        BridgeNetwork::new(&config.instance, config.engine.subnet, &config.run_dir).map_err(refused)?;
    let program = std::env::current_exe()?;
    let parts = NativeConfig {
        state_dir: config.state_dir,
        run_dir: config.run_dir,
        instance: config.instance,
        program,
    };
    let engine = NativeEngine::new(parts, Arc::new(network)).map_err(refused)?;
    let code = engine.exec_interactive(&InstanceId::new(service, generation), command).map_err(refused)?;
    Ok(u8::try_from(code).unwrap_or(1))
}
