//! Text into types: the config repo's files, and the host's own configuration.
//!
//! Every error of all files at once, each with file, line, column and the line itself. Layers are merged key by key:
//! built-in defaults, `[defaults]` of the repo, the service's file, the host's overrides.

pub mod agent;
pub mod authorities;
mod blkio;
mod canary;
mod compose;
mod configs;
mod cycles;
mod depends;
mod diagnostic;
mod engine;
mod env_file;
pub(crate) mod forge;
mod grants;
mod health;
mod health_read;
mod images;
pub mod images_named;
mod layer;
mod load;
mod memory;
mod named;
mod network;
mod options;
mod port;
mod registry;
mod replicas;
pub mod repo;
mod repo_files;
mod report;
mod secrets;
mod section;
mod service;
mod times;
mod trust;
mod volume;
mod waves;
mod webhook;
pub(crate) mod words;
mod zones;

pub use compose::DEPLOY as COMPOSE_DEPLOY;
pub(crate) use diagnostic::did_you_mean;
pub use diagnostic::{Diagnostic, Severity};
pub use load::{ConfigErrors, load, without_agent};
pub use service::keys as service_keys;
pub use zones::ZoneCache;
