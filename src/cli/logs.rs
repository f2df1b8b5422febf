//! `gitopsd logs` and `gitopsd exec`: what a service wrote, and a command inside it.

use std::collections::BTreeMap;
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use super::{Failure, history, operate, run};
use crate::agent::control::Command;
use crate::engine::native::net::BridgeNetwork;
use crate::engine::native::{NativeConfig, NativeEngine, log_file, log_tail};
use crate::report::status::{ServiceStatus, Status};
use crate::types::{Generation, InstanceId, ServiceName};

/// The last lines of one generation.
pub(super) fn tail(
    state_dir: &Path,
    service: &ServiceName,
    generation: Generation,
    lines: usize,
) -> Vec<String> {
    log_tail(&log_file(state_dir, &InstanceId::new(service, generation)), lines)
}

/// Shows what the generation that serves wrote.
pub fn logs(
    config: &Path,
    service: &ServiceName,
    follow: bool,
    lines: usize,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let (state_dir, generation) = match find(config, service) {
        Ok(status) => (run::config(config)?.state_dir, status.generation),
        // The files are there without an agent too: then the newest one is shown.
        Err(Failure::NotRunning) => {
            let state_dir = run::config(config)?.state_dir;
            let newest = newest(&state_dir, service);
            (state_dir, newest)
        }
        Err(failure) => return Err(failure),
    };
    let Some(generation) = generation else {
        return Err(Failure::plain(format!("{service} has not run on this host")));
    };
    // Their ends are taken before its last lines are read: a line in between is shown twice rather than never.
    let mut positions: BTreeMap<Generation, u64> = generations(&state_dir, service)
        .map(|generation| (generation, length(&state_dir, service, generation)))
        .collect();
    for line in tail(&state_dir, service, generation, lines) {
        writeln!(out, "{line}")?;
    }
    if !follow {
        return Ok(0);
    }
    loop {
        out.flush()?;
        std::thread::sleep(history::FOLLOW);
        // A deploy brings another generation: what is followed is the service.
        for generation in generations(&state_dir, service) {
            let position = positions.entry(generation).or_insert(0);
            let length = length(&state_dir, service, generation);
            if length < *position {
                *position = 0;
            }
            let path = log_file(&state_dir, &InstanceId::new(service, generation));
            let Some(mut file) = (length > *position).then(|| std::fs::File::open(path).ok()).flatten()
            else {
                continue;
            };
            file.seek(SeekFrom::Start(*position))?;
            *position += history::copy(&mut BufReader::new(file), out, text)?;
        }
    }
}

fn length(state_dir: &Path, service: &ServiceName, generation: Generation) -> u64 {
    let path = log_file(state_dir, &InstanceId::new(service, generation));
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Runs a command inside the container that serves.
pub fn exec(config: &Path, service: &ServiceName, command: &[String]) -> Result<u8, Failure> {
    let status = find(config, service)?;
    let Some(generation) = status.generation else {
        return Err(Failure::plain(format!("{service} has no container")));
    };
    let config = run::config(config)?;
    let refused = |error: crate::engine::EngineError| Failure::from(error.to_refusal());
    let network =
        BridgeNetwork::new(&config.instance, config.engine.subnet, &config.run_dir).map_err(refused)?;
    let program = std::env::current_exe()?;
    let parts = NativeConfig {
        state_dir: config.state_dir,
        run_dir: config.run_dir,
        instance: config.instance,
        program,
    };
    let engine = NativeEngine::new(parts, Arc::new(network)).map_err(refused)?;
    let code = engine.exec_interactive(&InstanceId::new(service, generation), command).map_err(refused)?;
    Ok(u8::try_from(code).unwrap_or(1))
}

fn find(config: &Path, service: &ServiceName) -> Result<ServiceStatus, Failure> {
    let reply = operate::ask(config, &Command::Status)?;
    let status: Option<Status> = reply.body.and_then(|body| serde_json::from_value(body).ok());
    let found = status.into_iter().flat_map(|status| status.services).find(|known| known.name == *service);
    found.ok_or_else(|| Failure::plain(format!("there is no service {service} on this host")))
}

fn newest(state_dir: &Path, service: &ServiceName) -> Option<Generation> {
    generations(state_dir, service).max()
}

/// Those that wrote something that is still there.
fn generations(state_dir: &Path, service: &ServiceName) -> impl Iterator<Item = Generation> {
    let entries = std::fs::read_dir(state_dir.join("logs").join(service.as_str())).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".log")?.parse().ok().map(Generation))
}

/// The text of an entry: what stands behind its time, stream and tag.
fn text(entry: &[u8]) -> &[u8] {
    entry.splitn(4, |byte| *byte == b' ').nth(3).unwrap_or(entry)
}
