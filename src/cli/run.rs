//! `gitopsd run`: the agent itself.

use std::path::Path;

use super::Failure;
use crate::config::agent::AgentConfig;

/// Reads the host's configuration.
pub(super) fn config(path: &Path) -> Result<AgentConfig, Failure> {
    crate::config::load(path).map_err(|errors| Failure::BadConfig(errors.to_string()))
}

/// Runs until it is told to stop. Exit 0; with `once`: 0 in sync, 1 otherwise.
pub fn run(path: &Path, once: bool) -> Result<u8, Failure> {
    let in_sync = crate::agent::run(config(path)?, once)?;
    Ok(u8::from(once && !in_sync))
}
