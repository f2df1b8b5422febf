//! The whole program on real parts: a real registry, a real git repo, real containers, real nftables.
//!
//! Needs root, and the programs that `scripts/install-deps test` installs. Every lab has its own directories,
//! instance, subnet and ports, so that the tests run beside each other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test says what is wrong by panicking"
)]

mod backwards;
mod batches;
mod canary;
mod chaos;
mod deploy;
mod drains;
mod faults;
mod fifty;
mod files;
mod firewall;
mod follow;
#[path = "../support/forge_server.rs"]
#[expect(dead_code, reason = "tests of the forge look at more of a request")]
mod forge_server;
#[path = "../support/git_server.rs"]
#[expect(dead_code, reason = "tests of git use the rest of it")]
mod git_server;
mod health;
mod image;
mod images;
mod jobs;
mod kill;
mod lab;
mod line;
mod live;
mod lives;
mod load;
mod logs;
mod loops;
mod mended;
mod networks;
mod operator;
mod ports;
#[path = "../support/proxy_server.rs"]
mod proxy_server;
mod replicas;
mod returns;
mod runtimes;
mod secrets;
mod service;
mod sidebyside;
mod state;
mod tampering;
mod trust;
mod waves;
mod woken;
