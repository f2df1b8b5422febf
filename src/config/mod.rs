//! Text into types: the config repo's files, and the host's own configuration.

pub mod agent;
