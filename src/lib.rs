//! gitopsd: a GitOps agent for systemd hosts. `ARCHITECTURE.md` is the map.

mod failpoint;
pub mod types;

pub mod config;
pub mod reconcile;
pub mod state;

pub mod engine;
pub mod git;
pub mod registry;
pub mod report;

pub mod forge;
pub mod webhook;

pub mod agent;
pub mod cli;
