//! `gitopsd at`: what had traffic at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::table::{self, ago};
use super::{Failure, history, moment, write_json};
use crate::agent::clock;
use crate::git::{self, LocalClone};
use crate::report::past::{self, Then};
use crate::state::receipts::Receipt;
use crate::types::{HostName, ServiceName, Timestamp};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// `2026-01-01T12:00:00Z`, `2026-01-01 12:00` (UTC), `10m` (ago)
    #[arg(value_name = moment::NAME, value_parser = moment::parse)]
    time: Timestamp,
    /// A clone of the config repo with its notes: all hosts; default: this host's own receipts
    dir: Option<PathBuf>,
    /// Only this host of a clone
    #[arg(long, requires = "dir")]
    host: Option<HostName>,
}

/// Shows what ran then.
pub fn at(config: &Path, wanted: &Wanted, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    if wanted.time > clock::now() {
        return Err(Failure::Usage(format!("{:.0} is still to come", wanted.time)));
    }
    let hosts = match &wanted.dir {
        None => {
            let receipts = history::receipts(config, None)?;
            let host = super::run::config(config)?.host.name;
            vec![(host, receipts)]
        }
        Some(dir) => written(dir, wanted.host.as_ref())?,
    };
    let then: BTreeMap<HostName, BTreeMap<ServiceName, Then>> =
        hosts.into_iter().map(|(host, receipts)| (host, past::at(&receipts, wanted.time))).collect();
    if json {
        write_json(out, &serde_json::json!({ "at": wanted.time, "hosts": then }))?;
        return Ok(0);
    }
    let mut rows =
        vec![["HOST", "SERVICE", "GEN", "IMAGE", "DIGEST", "COMMIT", "SINCE"].map(str::to_owned).to_vec()];
    for (host, services) in &then {
        for (service, then) in services {
            let since = |since| format!("{since} ({} ago)", ago(since, clock::now()));
            rows.push(vec![
                host.to_string(),
                service.to_string(),
                then.serving.generation.to_string(),
                then.serving.image.to_string(),
                then.serving.digest.short().to_owned(),
                then.commit.as_ref().map_or("-", |commit| commit.short()).to_owned(),
                then.since.map_or_else(|| "-".to_owned(), since),
            ]);
        }
    }
    if rows.len() == 1 {
        writeln!(out, "no receipt says of anything that it had traffic at {}", wanted.time)?;
        return Ok(0);
    }
    table::write(out, &rows)?;
    Ok(0)
}

fn written(dir: &Path, only: Option<&HostName>) -> Result<Vec<(HostName, Vec<Receipt>)>, Failure> {
    let failed = |error: git::GitError| Failure::from(error.to_refusal());
    let written = LocalClone::open(dir).and_then(|clone| clone.written()).map_err(failed)?;
    let wanted = |host: &HostName| only.is_none_or(|only| only == host);
    let hosts: Vec<_> = written
        .into_iter()
        .filter(|(host, _)| wanted(host))
        .map(|(host, written)| (host, written.receipts))
        .collect();
    if hosts.is_empty() {
        let who = only.map_or_else(|| "any host".to_owned(), ToString::to_string);
        return Err(Failure::Failed {
            message: format!("{} has no receipts of {who}", dir.display()),
            hint: Some(super::fleet::FETCH.to_owned()),
        });
    }
    Ok(hosts)
}
