//! The hidden subcommands that the engine starts. They need a process of one thread, and so come before everything.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::engine::native;

/// Runs a hidden subcommand, if that is what was asked for.
pub fn dispatch() -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == "internal-shim" => Some(native::shim::main(rest)),
        Some((command, rest)) if command == "internal-exec" => Some(native::exec::main(rest)),
        Some((command, rest)) if command == crate::registry::UNPACK => {
            Some(crate::registry::unpack_main(rest))
        }
        _ => None,
    }
}
