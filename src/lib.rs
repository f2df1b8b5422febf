//! gitopsd: a GitOps agent for systemd hosts. `ARCHITECTURE.md` is the map.

pub mod types;

pub mod config;
pub mod reconcile;
pub mod state;

pub mod engine;
pub mod git;
pub mod registry;
