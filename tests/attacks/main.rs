//! The attack list: what comes from registries and in images, and is meant to do harm. Each case is a row, and the
//! rows are `docs/attacks.md`. Layers go the whole way here: over the network, through the confined process, into the
//! store. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod archives;
mod confined;
mod documents;
mod engine;
mod host;
mod known;
mod names;
mod page;
mod saved;
mod servers;
mod web;

/// The rows about tar are those of the unit tests.
#[path = "../../src/registry/unpack/tests"]
mod shared {
    pub mod canary;
    pub mod forge;
    pub mod table;
}
