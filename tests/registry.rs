//! Images from a real registry to trees on disk: what is pulled, what is refused, what is left when it breaks.
//! Needs root, and the packages docker-registry and openssl.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[path = "support/registry/mod.rs"]
mod support;

#[path = "registry/access.rs"]
mod access;
#[path = "registry/clients.rs"]
mod clients;
#[path = "registry/content.rs"]
mod content;
#[path = "registry/crash.rs"]
mod crash;
#[path = "registry/documents.rs"]
mod documents;
#[path = "registry/environment.rs"]
mod environment;
#[path = "registry/lock.rs"]
mod lock;
#[path = "registry/logins.rs"]
mod logins;
#[path = "registry/mirrors.rs"]
mod mirrors;
#[path = "registry/network.rs"]
mod network;
#[path = "registry/pull.rs"]
mod pull;
#[path = "registry/refusals.rs"]
mod refusals;
#[path = "registry/stages.rs"]
mod stages;
#[path = "registry/tokens.rs"]
mod tokens;
#[path = "registry/transfers.rs"]
mod transfers;
