//! The `gitopsd` program: see `cli`.

use std::ffi::OsString;
use std::process::ExitCode;

use gitopsd::engine::native::{exec, shim};

fn main() -> ExitCode {
    // Before any thread or runtime exists: both fork.
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == "internal-shim" => shim::main(rest),
        Some((command, rest)) if command == "internal-exec" => exec::main(rest),
        _ => ExitCode::SUCCESS,
    }
}
