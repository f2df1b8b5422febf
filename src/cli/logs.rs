//! `gitopsd logs`: what a service wrote.

use std::collections::BTreeMap;
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use super::{Failure, history, run, status, write_json_line};
use crate::engine::native::{LogLine, log_file, log_lines, log_tail};
use crate::report::status::ServiceStatus;
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
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let (state_dir, generation) = match find(config, service) {
        Ok(found) => (run::config(config)?.state_dir, found.generation),
        // The files are there without an agent too: then the newest one is shown.
        Err(Failure::NotRunning | Failure::Unreachable { .. }) => {
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
    let path = log_file(&state_dir, &InstanceId::new(service, generation));
    for line in log_lines(&path, lines) {
        match json {
            true => write_json_line(out, &as_json(service, generation, &line))?,
            false => writeln!(out, "{}", line.text)?,
        }
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
            let show = |entry: &[u8], out: &mut dyn Write| match json {
                true => writeln!(out, "{}", json_of(service, generation, entry)),
                false => out.write_all(text(entry)),
            };
            *position += history::copy(&mut BufReader::new(file), out, show)?;
        }
    }
}

fn length(state_dir: &Path, service: &ServiceName, generation: Generation) -> u64 {
    let path = log_file(state_dir, &InstanceId::new(service, generation));
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The status of the service, from the agent.
pub(super) fn find(config: &Path, service: &ServiceName) -> Result<ServiceStatus, Failure> {
    let status = status::fetch(config)?;
    status::find(&status, service).cloned()
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

fn as_json(service: &ServiceName, generation: Generation, line: &LogLine) -> serde_json::Value {
    serde_json::json!({
        "at": line.at, "service": service, "generation": generation, "stream": line.stream, "text": line.text,
    })
}

/// An entry of a file that is followed, as a line of JSON: a part of a long line is a line.
fn json_of(service: &ServiceName, generation: Generation, entry: &[u8]) -> serde_json::Value {
    let field = |number| entry.splitn(4, |byte| *byte == b' ').nth(number).unwrap_or_default();
    let word = |number| String::from_utf8_lossy(field(number)).trim_end_matches('\n').to_owned();
    as_json(service, generation, &LogLine { at: word(0), stream: word(1), text: word(3) })
}
