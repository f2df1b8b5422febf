//! The `gitopsd` program: see `cli`.

fn main() -> std::process::ExitCode {
    gitopsd::cli::main()
}
