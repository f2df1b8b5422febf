//! The `gitopsd` program: see `cli`.

fn main() {}
