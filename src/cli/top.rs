//! `gitopsd top`: what containers use now.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Failure, hint, run, table, write_json, write_json_line};
use crate::agent::clock;
use crate::engine::native::{Usage, usages};
use crate::types::{ByteSize, Generation, InstanceId, ReplicaIndex, ServiceName, Timestamp};

/// Below this, what is measured is mostly the measuring.
const SHORTEST: Duration = Duration::from_millis(100);

/// What is wanted.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// Only these services
    pub services: Vec<ServiceName>,
    /// Only this one of the containers of a service that has several
    #[arg(long, value_name = "N")]
    pub index: Option<ReplicaIndex>,
    /// Go on, until it is interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// Over which time rates are measured
    #[arg(long, value_name = "DURATION", value_parser = crate::types::parse_duration, default_value = "1s")]
    pub interval: Duration,
}

/// One look.
#[derive(Debug, Serialize)]
struct Look {
    /// When it ended.
    at: Timestamp,
    /// How long it took.
    seconds: f64,
    containers: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    service: ServiceName,
    generation: Generation,
    #[serde(skip_serializing_if = "ReplicaIndex::is_first")]
    replica: ReplicaIndex,
    /// Of one processor.
    cpu_percent: Option<f64>,
    cpu_seconds: Option<f64>,
    memory_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    pids: Option<u64>,
    pids_limit: Option<u64>,
    read_bytes: Option<u64>,
    written_bytes: Option<u64>,
    read_bytes_per_second: Option<u64>,
    written_bytes_per_second: Option<u64>,
}

/// Shows what the running containers use. Asks the kernel: it needs no agent.
pub fn top(config: &Path, wanted: &Wanted, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    if wanted.interval < SHORTEST {
        return Err(Failure::Usage(format!("--interval: at least {} ms", SHORTEST.as_millis())));
    }
    let instance = run::config(config)?.instance;
    let terminal = std::io::stdout().is_terminal();
    let mut before = look(&instance)?;
    let chosen = |id: &&InstanceId| wanted.index.is_none_or(|index| index == id.index);
    check(wanted, before.1.keys().filter(chosen).map(|id| &id.service))?;
    loop {
        std::thread::sleep(wanted.interval);
        let now = look(&instance)?;
        let look = compare(&before, &now, wanted);
        match (json, wanted.watch) {
            (true, true) => write_json_line(out, &look)?,
            (true, false) => write_json(out, &look)?,
            (false, watch) => {
                if watch && terminal {
                    // Home, and clear what is below: without the flicker of an empty screen.
                    write!(out, "\x1b[H\x1b[J")?;
                }
                table::write(out, &rows(&look))?;
                if watch && !terminal {
                    writeln!(out)?;
                }
            }
        }
        out.flush()?;
        if !wanted.watch {
            return Ok(0);
        }
        before = now;
    }
}

type Sample = (Instant, BTreeMap<InstanceId, Usage>);

fn look(instance: &str) -> Result<Sample, Failure> {
    let found = usages(instance).map_err(|error| Failure::plain(format!("control groups: {error}")))?;
    Ok((Instant::now(), found))
}

/// Each service that was named has to run; with `--watch` it may come back later.
fn check<'a>(wanted: &Wanted, running: impl Iterator<Item = &'a ServiceName>) -> Result<(), Failure> {
    let running: BTreeSet<&ServiceName> = running.collect();
    let missing = wanted.services.iter().find(|service| !running.contains(service));
    match missing {
        Some(service) if !wanted.watch => {
            let names: Vec<&str> = running.iter().map(|service| service.as_str()).collect();
            Err(Failure::Failed {
                message: format!("no container of {service} runs on this host"),
                hint: hint::near(service, &names),
            })
        }
        _ => Ok(()),
    }
}

fn compare(before: &Sample, now: &Sample, wanted: &Wanted) -> Look {
    let seconds = (now.0 - before.0).as_secs_f64();
    let mut containers = Vec::new();
    for (id, usage) in &now.1 {
        let named = wanted.services.is_empty() || wanted.services.contains(&id.service);
        if !named || wanted.index.is_some_and(|index| index != id.index) {
            continue;
        }
        let old = before.1.get(id).copied().unwrap_or_default();
        // A container that was started anew in between counts from nothing again.
        let rate =
            |old: Option<u64>, new: Option<u64>| Some((new?.checked_sub(old?)? as f64 / seconds) as u64);
        let spent = |old: Option<Duration>| usage.cpu?.checked_sub(old?);
        containers.push(Row {
            service: id.service.clone(),
            generation: id.generation,
            replica: id.index,
            cpu_percent: spent(old.cpu).map(|spent| rounded(spent.as_secs_f64() * 100.0 / seconds)),
            cpu_seconds: usage.cpu.map(|cpu| rounded(cpu.as_secs_f64())),
            memory_bytes: usage.memory,
            memory_limit_bytes: usage.memory_limit,
            pids: usage.pids,
            pids_limit: usage.pids_limit,
            read_bytes: usage.read,
            written_bytes: usage.written,
            read_bytes_per_second: rate(old.read, usage.read),
            written_bytes_per_second: rate(old.written, usage.written),
        });
    }
    Look { at: clock::now(), seconds: rounded(seconds), containers }
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

fn rows(look: &Look) -> Vec<Vec<String>> {
    let dash = || "-".to_owned();
    let size = |bytes: Option<u64>| bytes.map_or_else(dash, |bytes| ByteSize(bytes).human());
    let head = ["SERVICE", "GEN", "CPU", "MEMORY", "LIMIT", "PIDS", "LIMIT", "READ/S", "WRITE/S"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(look.containers.iter().map(|row| {
        vec![
            row.service.to_string(),
            match row.replica {
                ReplicaIndex::FIRST => row.generation.to_string(),
                index => format!("{}-{index}", row.generation),
            },
            row.cpu_percent.map_or_else(dash, |percent| format!("{percent:.1}%")),
            size(row.memory_bytes),
            size(row.memory_limit_bytes),
            row.pids.map_or_else(dash, |pids| pids.to_string()),
            row.pids_limit.map_or_else(dash, |pids| pids.to_string()),
            size(row.read_bytes_per_second),
            size(row.written_bytes_per_second),
        ]
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_of_two_looks() {
        let id: InstanceId = "web.2".parse().unwrap();
        let begun = Instant::now();
        let usage = |cpu, read| Usage {
            cpu: Some(Duration::from_millis(cpu)),
            read: Some(read),
            memory: Some(3 << 20),
            ..Usage::default()
        };
        let before = (begun, BTreeMap::from([(id.clone(), usage(1000, 0))]));
        let now = (begun + Duration::from_secs(2), BTreeMap::from([(id.clone(), usage(4000, 4096))]));
        let wanted = |services: &[&str], index: Option<u32>| Wanted {
            services: services.iter().map(|name| name.parse().unwrap()).collect(),
            index: index.and_then(ReplicaIndex::new),
            watch: false,
            interval: SHORTEST,
        };
        let look = compare(&before, &now, &wanted(&[], None));
        let row = &look.containers[0];
        assert_eq!((row.cpu_percent, row.read_bytes_per_second), (Some(150.0), Some(2048)));
        assert_eq!(row.written_bytes_per_second, None);
        let shown = &rows(&look)[1];
        assert_eq!(shown.join(" "), "web 2 150.0% 3.0 MiB - - - 2.0 KiB -");
        // Started anew: less than before.
        let look = compare(&now, &before, &wanted(&["web"], None));
        assert_eq!(look.containers[0].cpu_percent, None);
        assert!(compare(&before, &now, &wanted(&["db"], None)).containers.is_empty());
        assert!(compare(&before, &now, &wanted(&["web"], Some(2))).containers.is_empty());
    }
}
