//! The native engine with real containers: what a program inside sees, and what its life and death look like outside.
//! Needs root and the package busybox-static.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[path = "support/containers.rs"]
mod containers;

#[path = "engine/apparmor.rs"]
mod apparmor;
#[path = "engine/commands.rs"]
mod commands;
#[path = "engine/crashes.rs"]
mod crashes;
#[path = "engine/escapes.rs"]
mod escapes;
#[path = "engine/exec.rs"]
mod exec;
#[path = "engine/files.rs"]
mod files;
#[path = "engine/images.rs"]
mod images;
#[path = "engine/lives.rs"]
mod lives;
#[path = "engine/logs.rs"]
mod logs;
#[path = "engine/networks.rs"]
mod networks;
#[path = "engine/old.rs"]
mod old;
#[path = "engine/options.rs"]
mod options;
#[path = "engine/propagation.rs"]
mod propagation;
#[path = "engine/runtimes.rs"]
mod runtimes;
#[path = "engine/terminals.rs"]
mod terminals;
#[path = "engine/top.rs"]
mod top;
#[path = "engine/traps.rs"]
mod traps;
#[path = "engine/update.rs"]
mod update;
#[path = "engine/users.rs"]
mod users;
#[path = "engine/world.rs"]
mod world;
