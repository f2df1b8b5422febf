//! `gitopsd blame`: who made a service what it is.

use std::io::Write;
use std::path::{Component, Path, PathBuf};

use super::table::{self, ago};
use super::{Failure, hint, write_json};
use crate::agent::clock;
use crate::git::{self, BlamedLine, LocalClone};
use crate::state::journal::read_journal;
use crate::types::{CommitId, HostName, ServiceName};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// Which service
    service: ServiceName,
    /// A clone of the config repo, or the folder in it that holds gitopsd.toml; default: what runs on this host
    dir: Option<PathBuf>,
    /// At this commit of a clone
    #[arg(long, requires = "dir")]
    rev: Option<String>,
    /// With what hosts/HOST.toml changes for this host
    #[arg(long)]
    host: Option<HostName>,
}

/// Shows the lines of the service's file, and those of others that change it.
pub fn blame(config: &Path, wanted: &Wanted, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let failed = |error: git::GitError| Failure::from(error.to_refusal());
    let service = &wanted.service;
    let (clone, folder, commit, host) = match &wanted.dir {
        Some(dir) => {
            let clone = LocalClone::open(dir).map_err(failed)?;
            let commit = clone.head(wanted.rev.as_deref()).map_err(failed)?;
            let folder = clone.folder(dir);
            (clone, folder, commit, wanted.host.clone())
        }
        None => {
            let agent = super::run::config(config)?;
            let commit = running(&agent.state_dir, service)?;
            let clone = LocalClone::of_agent(&agent.state_dir).map_err(failed)?;
            let inside = |part: &Component<'_>| matches!(part, Component::Normal(_));
            let folder = Path::new(&agent.repo.path).components().filter(inside).collect();
            (clone, folder, commit, Some(wanted.host.clone().unwrap_or(agent.host.name)))
        }
    };
    let lines = |file: &str| clone.blame(&folder, file, &commit).map_err(failed);
    let file = format!("services/{service}.toml");
    let own = lines(&file)?;
    if own.is_empty() {
        return Err(Failure::plain(format!("there is no {file} at {}", commit.short())));
    }
    let mut all: Vec<BlamedLine> = below(lines("gitopsd.toml")?, "defaults");
    all.extend(own);
    if let Some(host) = host {
        all.extend(below(lines(&format!("hosts/{host}.toml"))?, &format!("services.{service}")));
    }
    all.retain(|line| !line.text.trim().is_empty() && !line.text.trim_start().starts_with('#'));
    if json {
        write_json(out, &all)?;
        return Ok(0);
    }
    let now = clock::now();
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|line| {
            vec![
                line.by.commit.short().to_owned(),
                line.by.author.clone(),
                format!("{} ago", ago(line.by.committed_at, now)),
                format!("{}:{}", line.file, line.line),
                line.text.clone(),
            ]
        })
        .collect();
    table::write(out, &rows)?;
    Ok(0)
}

/// The lines of the table `name` and of those below it.
fn below(lines: Vec<BlamedLine>, name: &str) -> Vec<BlamedLine> {
    let mut inside = false;
    let mut kept = Vec::new();
    for line in lines {
        if let Some(header) = line.text.trim_start().strip_prefix('[') {
            let header: String = header.chars().filter(|c| !matches!(c, '[' | '"' | '\'' | ' ')).collect();
            let header = header.split(']').next().unwrap_or_default();
            inside = header == name || header.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
        }
        if inside {
            kept.push(line);
        }
    }
    kept
}

/// The commit that what has traffic here was made from.
fn running(state_dir: &Path, service: &ServiceName) -> Result<CommitId, Failure> {
    let records = read_journal(&state_dir.join("services"))?.records;
    let incumbent = records.get(service).and_then(|record| record.incumbent.as_ref());
    incumbent.map(|incumbent| incumbent.commit.id.clone()).ok_or_else(|| {
        let names: Vec<&str> = records.keys().map(ServiceName::as_str).collect();
        Failure::Failed {
            message: format!("{service} does not run on this host"),
            hint: hint::near(service, &names)
                .or_else(|| Some(format!("in a clone of the config repo: gitopsd blame {service} DIR"))),
        }
    })
}
