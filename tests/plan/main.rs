//! The pure core, played on a model host: scenarios with golden answers, and properties over random histories.
//!
//! `UPDATE_GOLDEN=1 cargo test --test plan` rewrites the answers; read the difference before you commit it.
//! `PROPTEST_CASES=10000 cargo test --test plan` looks longer, at other histories each time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod anything;
mod met;
mod model;
mod outside;
mod preview;
mod promises;
mod properties;
mod rest;
mod scenario;
