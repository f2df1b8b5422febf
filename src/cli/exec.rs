//! `gitopsd exec`: a command inside a service's container.

use std::path::Path;

use super::{Failure, logs, run};
use crate::agent::native::Native;
use crate::engine::EngineError;
use crate::types::{InstanceId, ServiceName};

/// Runs a command inside the container that serves. Gives its exit code: 127 where there is no such program, 126 where
/// it cannot be run, as a shell does.
pub fn exec(config: &Path, service: &ServiceName, command: &[String]) -> Result<u8, Failure> {
    let status = logs::find(config, service)?;
    let Some(generation) = status.generation else {
        return Err(Failure::plain(format!("{service} has no container")));
    };
    let refused = |error: EngineError| Failure::from(error.to_refusal());
    let native = Native::open(&run::config(config)?).map_err(refused)?;
    let id = InstanceId::new(service, generation);
    let code = native.engine.exec_interactive(&id, command).map_err(refused)?;
    Ok(u8::try_from(code).unwrap_or(1))
}
