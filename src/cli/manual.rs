//! `gitopsd man` and `gitopsd completions`: made from the one definition of the command line.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;

use super::Failure;
use super::args::Args;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell, out: &mut dyn Write) -> Result<u8, Failure> {
    // The generator panics on a writer that fails, so it writes into memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "gitopsd", &mut script);
    out.write_all(&script)?;
    Ok(0)
}

/// Prints gitopsd(1), or writes it and a page for each verb into a folder.
pub fn man(dir: Option<&Path>, out: &mut dyn Write) -> Result<u8, Failure> {
    match dir {
        None => clap_mangen::Man::new(Args::command()).render(out)?,
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            clap_mangen::generate_to(Args::command(), dir)?;
        }
    }
    Ok(0)
}
