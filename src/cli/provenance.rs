//! `gitopsd trust receipts`: whether what is said of hosts in git is said by them.

use std::io::Write;
use std::path::PathBuf;

use super::{Failure, fleet, table, write_json};
use crate::git::{GitError, LocalClone, Provenance};
use crate::types::plural;

/// What is asked for.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// A clone of the repo that receipts are in
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// The hosts' public keys, as ssh-keygen(1) has its allowed signers: `gitopsd@HOST namespaces="git" ssh-ed25519 …`
    #[arg(long, value_name = "FILE")]
    signers: PathBuf,
}

/// Shows each host. Exit 0 where nothing speaks against any of them, 1 otherwise.
pub fn receipts(wanted: &Wanted, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let failed = |error: GitError| Failure::plain(error.to_string());
    let hosts =
        LocalClone::open(&wanted.dir).and_then(|clone| clone.provenance(&wanted.signers)).map_err(failed)?;
    let sound = hosts.iter().all(Provenance::is_sound);
    if json {
        let rows: Vec<_> = hosts.iter().map(as_json).collect();
        write_json(out, &serde_json::json!({ "ok": sound, "hosts": rows }))?;
        return Ok(u8::from(!sound));
    }
    if hosts.is_empty() {
        return Err(Failure::Failed {
            message: format!("{} has no receipts", wanted.dir.display()),
            hint: Some(fleet::FETCH.to_owned()),
        });
    }
    let mut rows = vec![["HOST", "COMMITS", "ITS OWN", "WHAT"].map(str::to_owned).to_vec()];
    for host in &hosts {
        rows.push(vec![
            host.host.to_string(),
            host.commits().to_string(),
            host.signed.to_string(),
            what(host),
        ]);
    }
    table::write(out, &rows)?;
    for host in &hosts {
        for (commit, why) in &host.foreign {
            let (id, at) = (commit.id.short(), commit.committed_at);
            writeln!(out, "{}: commit {id} by {}, {at}: {why}", host.host, commit.author)?;
        }
    }
    Ok(u8::from(!sound))
}

fn what(host: &Provenance) -> String {
    let commits = |count: usize| plural(count, "commit is", "commits are");
    match (host.signed, host.known, host.foreign.len(), host.before) {
        (0, false, ..) => "no key of it is in the list".to_owned(),
        (0, true, ..) => "none is signed by its key".to_owned(),
        (_, _, 0, 0) => "all are signed by it".to_owned(),
        (_, _, 0, before) => format!("all since its first are; {} from before", commits(before)),
        (_, _, foreign, _) => format!("{} not signed by it", commits(foreign)),
    }
}

fn as_json(host: &Provenance) -> serde_json::Value {
    let foreign = host.foreign.iter().map(|(commit, why)| {
        serde_json::json!({
            "commit": commit.id, "author": commit.author, "subject": commit.subject,
            "committed_at": commit.committed_at, "why": why,
        })
    });
    serde_json::json!({
        "host": host.host, "ok": host.is_sound(), "known": host.known, "signed": host.signed, "before": host.before,
        "foreign": foreign.collect::<Vec<_>>(),
    })
}
