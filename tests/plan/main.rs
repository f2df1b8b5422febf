//! The pure core, played on a model host: scenarios with golden answers, and properties over random histories.
//!
//! `UPDATE_GOLDEN=1 cargo test --test plan` rewrites the answers; read the difference before you commit it.
//! `PROPTEST_CASES=5000 cargo test --test plan` looks longer.

mod anything;
mod model;
mod properties;
mod scenario;
