//! The store on real parts: damage of every kind is found and repaired, sizes add up, what is needed stays.
//! Needs root, and the package docker-registry.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[allow(dead_code, reason = "the registry tests use the rest of it")]
#[path = "../support/registry/mod.rs"]
mod support;

mod command;
mod crash;
mod damage;
mod dirs;
mod kept;
mod sizes;
