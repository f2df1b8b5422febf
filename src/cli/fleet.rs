//! `gitopsd fleet`: every host, from git alone.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use super::table::{self, ago};
use super::{Failure, write_json};
use crate::agent::clock;
use crate::config::repo::{self, RepoFiles};
use crate::git::{self, CommitLine, Evidence, LocalClone};
use crate::reconcile::waves::gate;
use crate::report::fleet::{self, DividedTag, HostInFleet, ServiceOnHost, Standing};
use crate::report::waves::{self, At, Concerns, WaveInFleet};
use crate::types::{CommitId, Digest, HostName, Timestamp, Wave, place, plural};

/// How receipts get into a clone, which asks for branches only.
pub(super) const FETCH: &str = "git fetch origin 'refs/notes/gitopsd/*:refs/notes/gitopsd/*'";

/// What is asked for.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// A clone of the config repo, or the folder in it that holds gitopsd.toml
    #[arg(default_value = ".")]
    dir: std::path::PathBuf,
    /// Hold the hosts against this commit; default: what the branch of the clone follows, or else that branch
    #[arg(long)]
    rev: Option<String>,
}

/// Shows every host that has written, and those that the repo names and that have not. Exit 0, whatever they say.
pub fn fleet(wanted: &Wanted, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let failed = |error: git::GitError| Failure::from(error.to_refusal());
    let clone = LocalClone::open(&wanted.dir).map_err(failed)?;
    let head = clone.head(wanted.rev.as_deref()).map_err(failed)?;
    let files = git::files_at(&wanted.dir, head.as_str()).map_err(failed)?;
    if !files.contains_key("gitopsd.toml") {
        return Err(Failure::Failed {
            message: format!("{} has no gitopsd.toml at {}", wanted.dir.display(), head.short()),
            hint: Some("name the folder of the clone that holds it".to_owned()),
        });
    }
    let written = clone.written().map_err(failed)?;
    let mut hosts = Vec::new();
    for (host, written) in &written {
        hosts.push((fleet::host(host, &files, &written.receipts), written.unreadable));
    }
    let silent = |host: &HostName| !written.iter().any(|(known, _)| known == host);
    let mut known: BTreeSet<HostName> = repo::hosts(&files);
    // One that a wave names in full is waited for too.
    known.extend(repo::waves(&files).iter().flat_map(Wave::named));
    for host in known.into_iter().filter(silent) {
        hosts.push((fleet::host(&host, &files, &[]), 0));
    }
    hosts.sort_by(|a, b| a.0.host.cmp(&b.0.host));
    let waves = look_at_waves(&wanted.dir, &clone, &head, &files, &mut hosts)?;
    let behind = |host: &HostInFleet| {
        host.last.as_ref().and_then(|receipt| clone.distance(&receipt.transition.commit, &head))
    };
    let words = |host: &HostName| {
        let own = written.iter().find(|(known, _)| known == host);
        own.map_or(&[][..], |(_, written)| written.tagged.as_slice())
    };
    let divided = fleet::divided(hosts.iter().map(|(host, _)| (host, words(&host.host))));
    let line = clone.describe(&head);
    if json {
        let rows = hosts.iter().map(|(host, unreadable)| as_json(host, behind(host), *unreadable));
        let rows = rows.collect::<Result<Vec<_>, _>>().map_err(std::io::Error::from)?;
        let mut body = serde_json::json!({ "head": line, "hosts": rows });
        if !waves.is_empty() {
            body["waves"] = serde_json::to_value(&waves).map_err(std::io::Error::from)?;
        }
        if !divided.is_empty() {
            body["divided"] = serde_json::to_value(&divided).map_err(std::io::Error::from)?;
        }
        write_json(out, &body)?;
        return Ok(0);
    }
    if hosts.is_empty() {
        return Err(Failure::Failed {
            message: format!("{} has no receipts, and names no host", wanted.dir.display()),
            hint: Some(FETCH.to_owned()),
        });
    }
    render(&hosts, line.as_ref(), &waves, behind, clock::now(), out)?;
    for tag in &divided {
        writeln!(out, "\n{}", several_images(tag))?;
    }
    if written.is_empty() {
        writeln!(out, "\nno host has written a receipt into this clone: {FETCH}")?;
    }
    Ok(0)
}

fn as_json(
    host: &HostInFleet,
    behind: Option<usize>,
    unreadable: usize,
) -> Result<serde_json::Value, serde_json::Error> {
    let mut value = serde_json::to_value(host)?;
    value["behind"] = behind.into();
    value["unreadable"] = unreadable.into();
    Ok(value)
}

fn render(
    hosts: &[(HostInFleet, usize)],
    head: Option<&CommitLine>,
    waves: &[WaveInFleet],
    behind: impl Fn(&HostInFleet) -> Option<usize>,
    now: Timestamp,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if let Some(head) = head {
        let when = ago(head.committed_at, now);
        writeln!(out, "commit {} {} ({}, {when} ago)", head.commit.short(), head.subject, head.author)?;
    }
    let good = hosts.iter().filter(|(host, _)| host.state == Standing::InStep).count();
    writeln!(out, "{good} of {} in step", plural(hosts.len(), "host", "hosts"))?;
    for wave in waves {
        writeln!(out, "wave {}: {}", wave.wave, in_wave(wave))?;
    }
    writeln!(out)?;
    let mut rows = vec![["HOST", "STATE", "LAST", "FROM COMMIT", "WHAT"].map(str::to_owned).to_vec()];
    for (host, _) in hosts {
        let (last, commit) = match &host.last {
            Some(receipt) => {
                let commit = receipt.transition.commit.short();
                let distance = match behind(host) {
                    Some(0) => format!("{commit} (head)"),
                    Some(count) => format!("{commit} ({} ago)", plural(count, "commit", "commits")),
                    None => format!("{commit} (not on this branch)"),
                };
                (format!("{} ago", ago(receipt.transition.finished_at, now)), distance)
            }
            None => ("never".to_owned(), "-".to_owned()),
        };
        rows.push(vec![host.host.to_string(), host.state.word().to_owned(), last, commit, what(host)]);
    }
    table::write(out, &rows)?;
    for (host, unreadable) in hosts.iter().filter(|(_, unreadable)| *unreadable > 0) {
        let lines = plural(*unreadable, "receipt", "receipts");
        writeln!(out, "{}: {lines} cannot be read by this version of gitopsd", host.host)?;
    }
    Ok(())
}

/// What is to be known of a tag that is not the same everywhere.
fn several_images(tag: &DividedTag) -> String {
    let one = |(digest, hosts): (&Digest, &Vec<HostName>)| {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        format!("{} on {}", digest.short(), hosts.join(", "))
    };
    let found: Vec<String> = tag.found.iter().map(one).collect();
    format!(
        "{} moved while hosts looked it up: {}. The next commit that changes the service makes it one; so does `gitopsd lock`",
        tag.image,
        found.join("; ")
    )
}

/// How a wave stands to the commit, in a line.
fn in_wave(wave: &WaveInFleet) -> String {
    let of = |state: &'static str| wave.hosts.iter().filter(move |host| host.state == state);
    let concerned = wave.hosts.len() - of("unconcerned").count();
    let mut line = format!("{} of {} healthy", of("healthy").count(), plural(concerned, "host", "hosts"));
    for host in of("failed") {
        line.push_str(&format!("; {} failed: {}", host.host, host.message.as_deref().unwrap_or_default()));
    }
    for host in of("waiting") {
        line.push_str(&format!("; {} {}", host.host, host.message.as_deref().unwrap_or_default()));
    }
    line
}

/// Which hosts wait for which others, by what these said in git; gives how the waves stand to the head.
fn look_at_waves(
    dir: &Path,
    clone: &LocalClone,
    head: &CommitId,
    files: &RepoFiles,
    hosts: &mut [(HostInFleet, usize)],
) -> Result<Vec<WaveInFleet>, Failure> {
    let waves = repo::waves(files);
    if waves.is_empty() {
        return Ok(Vec::new());
    }
    let said = clone.evidence(head).map_err(|error| Failure::from(error.to_refusal()))?;
    let waived = clone.waives_waves(head);
    let next = At { commit: head, files };
    for (host, _) in hosts.iter_mut() {
        let word = said.iter().find(|word| word.host == host.host);
        let own = word.map_or(&[][..], Evidence::labels);
        let mut labels = own.to_vec();
        labels.extend(repo::labels(files, &host.host));
        let number = place(&waves, &host.host, &labels);
        host.wave = (number < waves.len()).then_some(number + 1);
        let has_said = word.is_some_and(|word| word.on.is_some());
        if number == 0 || has_said || waived || host.state == Standing::Failed {
            continue;
        }
        // What it acts on now, as far as it said.
        let word = word.and_then(|word| word.before.as_ref()).map(|before| before.commit.clone());
        let now = word.or_else(|| host.last.as_ref().map(|last| last.transition.commit.clone()));
        let former = now.as_ref().and_then(|commit| git::files_at(dir, commit.as_str()).ok());
        let former = now.as_ref().zip(former.as_ref()).map(|(commit, files)| At { commit, files });
        let mut concerns = Concerns::default();
        if host.state == Standing::InStep && !concerns.concerns(&host.host, own, former, next) {
            continue;
        }
        let members = concerns.members(former, next, &waves, &said);
        if let Some(refusal) = gate(&waves, number, &members, clock::now()).refusal() {
            host.state = Standing::Waiting;
            host.waits = Some(refusal.clone());
        }
    }
    Ok(waves::shown(&waves, &Concerns::default().members(None, next, &waves, &said)))
}

/// What is not as the commit wants it; else what was done last.
fn what(host: &HostInFleet) -> String {
    if let Some(waits) = &host.waits {
        return waits.to_string();
    }
    let off: Vec<String> = host
        .services
        .iter()
        .filter(|service| host.state != Standing::Silent && service.state != Standing::InStep)
        .map(one)
        .collect();
    match (off.is_empty(), &host.last) {
        (false, _) => off.join("; "),
        (true, Some(receipt)) => {
            let transition = &receipt.transition;
            format!("{} {}", transition.service, transition.result.word())
        }
        (true, None) => plural(host.services.len(), "service is", "services are") + " to run there",
    }
}

fn one(service: &ServiceOnHost) -> String {
    let serving = service.serving.as_ref().map(|side| side.image.to_string());
    let runs = serving.as_deref().unwrap_or("nothing");
    match (&service.wanted, service.reason, &service.message) {
        (_, Some(reason), Some(message)) => {
            format!("{}: {runs} serves: {message} ({reason})", service.name)
        }
        (Some(wanted), ..) => format!("{}: {runs} serves, {wanted} is wanted", service.name),
        (None, ..) => format!("{}: {runs} serves, and is to go", service.name),
    }
}
