//! Programs that people run, in images of Debian's packages which begin as their official images do
//! (`scripts/real-images`): deployed by a commit, used by their own clients, changed while they are used, stopped, and
//! back after a power cut with all that was acknowledged.
//!
//! Needs root, and the programs that `scripts/install-deps test` installs. Redis and nginx come in small images, made in
//! seconds; the others take minutes and packages from the network, so that they run where `GITOPSD_TEST_ALL` is set
//! (`make test-all`). `REAL_IMAGES` names a directory that keeps the images.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test says what is wrong by panicking"
)]

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/image.rs"]
mod image;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/lab.rs"]
mod lab;

mod nginx;
mod postgres;
mod rabbitmq;
mod redis;
mod stage;
mod tomcat;

/// Whether to run what takes long; says so where not.
fn everything() -> bool {
    let all = std::env::var_os("GITOPSD_TEST_ALL").is_some();
    if !all {
        println!("skipped: GITOPSD_TEST_ALL is not set");
    }
    all
}
