//! `gitopsd exec`: a command inside a service's container.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use super::{Failure, logs, run};
use crate::agent::native::Native;
use crate::engine::EngineError;
use crate::engine::native::Session;
use crate::types::{Generation, InstanceId, ReplicaIndex, ServiceName};

/// What is wanted.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// Which service
    pub service: ServiceName,
    /// Let it read standard input; always so where it has a terminal and standard input is one
    #[arg(short, long, visible_alias = "stdin")]
    pub interactive: bool,
    /// Give it a terminal; always so where standard input and output are one
    #[arg(short, long)]
    pub tty: bool,
    /// Give it no terminal
    #[arg(short = 'T', long, conflicts_with = "tty")]
    pub no_tty: bool,
    /// As this user of the container
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// With this variable, on top of the container's; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// In this directory of the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// In the container of this generation; default: the one that serves
    #[arg(long, value_name = "N")]
    pub generation: Option<u64>,
    /// In this one of its containers, where it has several [default: 1]
    #[arg(long, value_name = "N")]
    pub index: Option<ReplicaIndex>,
    /// Program and arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Runs a command inside a container, in place of this process: its exit code is the command's, 127 where there is no such
/// program, 126 where it cannot be run, as a shell does.
pub fn exec(config: &Path, wanted: &Wanted) -> Result<u8, Failure> {
    let session = session(wanted, std::io::stdin().is_terminal(), std::io::stdout().is_terminal())?;
    let refused = |error: EngineError| Failure::from(error.to_refusal());
    let native = Native::open(&run::config(config)?).map_err(refused)?;
    let service = &wanted.service;
    let generation = match wanted.generation {
        Some(number) => Some(Generation(number)),
        None => match logs::find(config, service) {
            Ok(status) => status.generation,
            // Containers run without an agent too.
            Err(failure @ (Failure::NotRunning | Failure::Unreachable { .. })) => {
                Some(native.engine.newest_running(service).ok_or(failure)?)
            }
            Err(failure) => return Err(failure),
        },
    };
    let Some(generation) = generation else {
        return Err(Failure::plain(format!("{service} has no container")));
    };
    let id = InstanceId::replica(service, generation, wanted.index.unwrap_or_default());
    Err(refused(native.engine.become_command(&id, &wanted.command, &session)))
}

fn session(wanted: &Wanted, stdin: bool, stdout: bool) -> Result<Session, Failure> {
    let tty = wanted.tty || (!wanted.no_tty && stdin && stdout);
    if let Some(dir) = wanted.workdir.as_ref().filter(|dir| !dir.is_absolute()) {
        return Err(Failure::Usage(format!("--workdir {}: it takes an absolute path", dir.display())));
    }
    let mut env = Vec::new();
    // What a terminal understands is known here.
    if let Some(term) = std::env::var("TERM").ok().filter(|_| tty) {
        env.push(format!("TERM={term}"));
    }
    for entry in &wanted.env {
        let name = entry.split('=').next().unwrap_or_default();
        if name.is_empty() || entry.contains('\0') {
            return Err(Failure::Usage(format!("--env {entry}: it takes NAME or NAME=VALUE")));
        }
        if entry.contains('=') {
            env.push(entry.clone());
        } else if let Ok(value) = std::env::var(name) {
            env.push(format!("{name}={value}"));
        }
    }
    Ok(Session {
        tty,
        stdin: wanted.interactive || (tty && stdin),
        user: wanted.user.clone(),
        env,
        workdir: wanted.workdir.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        wanted: Wanted,
    }

    fn of(args: &[&str], stdin: bool, stdout: bool) -> Session {
        let args = [&["exec", "web"], args, &["--", "sh"]].concat();
        let line = <Line as clap::Parser>::try_parse_from(args).unwrap();
        session(&line.wanted, stdin, stdout).unwrap_or_else(|_| panic!("refused"))
    }

    #[test]
    fn a_terminal_where_there_is_one_and_input_where_it_is_asked_for() {
        let streams = |args: &[&str], stdin, stdout| {
            let session = of(args, stdin, stdout);
            (session.tty, session.stdin)
        };
        assert_eq!(streams(&[], true, true), (true, true));
        assert_eq!(streams(&[], true, false), (false, false));
        assert_eq!(streams(&[], false, true), (false, false));
        assert_eq!(streams(&["-T"], true, true), (false, false));
        assert_eq!(streams(&["-i"], false, false), (false, true));
        assert_eq!(streams(&["-t"], false, false), (true, false));
        assert_eq!(streams(&["-it"], false, true), (true, true));
        assert_eq!(streams(&["-iT"], true, true), (false, true));
    }

    #[test]
    fn variables_by_value_and_by_name() {
        let session = of(&["-e", "A=b=c", "--env", "PATH", "-e", "GITOPSD_NOT_SET"], false, false);
        assert_eq!(session.env, ["A=b=c".to_owned(), format!("PATH={}", std::env::var("PATH").unwrap())]);
    }
}
