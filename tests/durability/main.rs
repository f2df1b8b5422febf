//! A pull never leaves a bad layer: `kill -9` at any moment, power cuts, full disks, disks that fail.
//!
//! Needs root, loop devices, and the programs that `scripts/install-deps test` installs. Every test has file systems of
//! its own in loop devices, and a registry of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[allow(dead_code, unused_imports, reason = "the registry tests use the rest")]
#[path = "../support/registry/mod.rs"]
mod support;

#[allow(dead_code, reason = "the tests of the whole program use the rest")]
#[path = "../e2e/image.rs"]
mod image;
#[allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "the tests of the whole program use the rest; both have their ports from one place"
)]
#[path = "../e2e/lab.rs"]
mod lab;
#[allow(dead_code, reason = "the tests of the whole program use the rest")]
#[path = "../e2e/load.rs"]
mod load;

mod agent;
mod disk;
mod full;
mod kills;
mod power;
mod puller;
mod relay;
mod truth;
mod writeback;
