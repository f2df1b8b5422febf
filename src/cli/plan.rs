//! `gitopsd plan`: what would change here; changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use super::{Failure, table, write_json};
use crate::agent::{clock, secrets};
use crate::config::agent::{AgentConfig, HostIdentity};
use crate::config::repo::{self, RepoFiles};
use crate::config::{ZoneCache, load, without_agent};
use crate::engine::Traffic as _;
use crate::engine::native::usages;
use crate::engine::traffic::NftTraffic;
use crate::git;
use crate::reconcile::amend::too_small;
use crate::reconcile::changes::{listed, summary};
use crate::reconcile::limits::{Named, removal_refusal};
use crate::reconcile::postponed::Circumstances;
use crate::reconcile::preview::{Change, batch, preview};
use crate::reconcile::secrets::settle;
use crate::state::StateError;
use crate::state::desired::read_desired;
use crate::state::journal::{Journal, read_journal};
use crate::types::{CommitId, Declared, HostName, Policy, Reason, Refusal, ServiceName, plural};

/// Shows the changes. Exit 0 nothing, 2 changes, 1 where something of it would be refused.
pub fn plan(
    config: &Path,
    dir: Option<&Path>,
    rev: Option<&str>,
    host: Option<&HostName>,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let agent = match load(config) {
        Ok(agent) => Some(agent),
        // A laptop or a CI machine has no host configuration, and needs none.
        Err(_) if dir.is_some() && !config.exists() => None,
        Err(errors) => return Err(Failure::BadConfig(errors.to_string())),
    };
    let Source { files, head, waives_window } = source(agent.as_ref(), dir, rev)?;
    let (identity, policy) = whose(agent.as_ref(), host);
    let mut view = repo::read(&files, &identity, &policy);
    let errors: Vec<_> = view.diagnostics.iter().filter(|found| found.is_error()).collect();
    if let Some(refusal) = view.fatal {
        return Err(refusal.into());
    }
    // What another host runs is not known here.
    let here = host.is_none_or(|host| agent.as_ref().is_some_and(|agent| agent.host.name == *host));
    let journal = match &agent {
        Some(agent) if here => known(agent)?,
        _ => Journal::default(),
    };
    if let Some(agent) = agent.as_ref().filter(|_| here) {
        look_at_secrets(agent, &mut view.services)?;
    }
    let mut changes = preview(&view.services, &journal.records);
    if let Some(agent) = agent.as_ref().filter(|_| here) {
        see_what_is_used(agent, &view.services, &journal, &mut changes);
        refuse_taken_ports(agent, &view.services, &journal, &mut changes)?;
    }
    // What runs of these is not known, and the agent does not touch them.
    for (service, refusal) in &journal.frozen {
        changes.insert(service.clone(), Change::Refuse(refusal.clone()));
    }
    let named = Named {
        by: head.as_ref().map_or_else(|| "this folder".to_owned(), |head| format!("commit {}", head.short())),
        declared_in_repo: view.declared_in_repo,
        wanted: view.services.keys().collect(),
        removed: &view.removed,
    };
    let unread = journal.frozen.keys().filter(|name| !journal.records.contains_key(*name)).count();
    let removals = removal_refusal(&named, &journal.records, unread, &policy);
    let postponed = agent.as_ref().filter(|_| here).map(|agent| {
        let circumstances =
            Known { head: head.as_ref(), waives_window, removals: removals.as_ref(), journal: &journal };
        look_at_what_waits(agent, &circumstances, &view.services, &changes)
    });
    // Of another host it is not known.
    let postponed = postponed.transpose()?;
    let pending = changes.values().any(Change::is_change);
    if json {
        let rows = changes.iter().map(|(service, change)| {
            let mut row = as_json(service.as_str(), change);
            if let Some(postponed) = &postponed {
                row["postponed"] = postponed.get(service).map(String::as_str).into();
            }
            row
        });
        let body = serde_json::json!({
            "host": identity.name, "changes": rows.collect::<Vec<_>>(), "pending": pending, "errors": errors.len(),
        });
        write_json(out, &body)?;
    } else {
        for error in &errors {
            writeln!(out, "{error}")?;
        }
        let postponed = postponed.unwrap_or_default();
        let rows = changes.iter().map(|(name, change)| {
            let postponed = postponed.get(name).map(|why| format!("; not now: {why}")).unwrap_or_default();
            vec![name.to_string(), format!("{change}{postponed}")]
        });
        table::write(out, &rows.collect::<Vec<_>>())?;
        let count = changes.values().filter(|change| change.is_change()).count();
        let all = plural(changes.len(), "service", "services");
        let later = match postponed.len() {
            0 => String::new(),
            some => format!(", {some} of them not now"),
        };
        writeln!(out, "{}: {count} of {all} would change{later}", identity.name)?;
    }
    let refused = changes.values().any(|change| matches!(change, Change::Refuse(_)));
    Ok(if !errors.is_empty() || refused {
        1
    } else if pending {
        2
    } else {
        0
    })
}

/// Puts the secrets that this host has into what asks for them, as the agent would.
fn look_at_secrets(
    agent: &AgentConfig,
    declared: &mut BTreeMap<ServiceName, Result<Declared, Refusal>>,
) -> Result<(), Failure> {
    let asked = declared.values().flatten().flat_map(|spec| &spec.secrets);
    let names: BTreeSet<&str> = asked.map(|secret| secret.source.as_str()).collect();
    let host = secrets::preview(&names, &agent.secrets, &agent.state_dir)?;
    for wanted in declared.values_mut() {
        if let Err(refusal) = wanted.as_mut().map_or(Ok(()), |spec| settle(spec, &host)) {
            *wanted = Err(refusal);
        }
    }
    Ok(())
}

/// What is known beside what is declared.
struct Known<'a> {
    head: Option<&'a CommitId>,
    waives_window: bool,
    removals: Option<&'a Refusal>,
    journal: &'a Journal,
}

/// Why the agent does not make changes yet.
fn look_at_what_waits(
    agent: &AgentConfig,
    &Known { head, waives_window, removals, journal }: &Known<'_>,
    declared: &BTreeMap<ServiceName, Result<Declared, Refusal>>,
    changes: &BTreeMap<ServiceName, Change>,
) -> Result<BTreeMap<ServiceName, String>, Failure> {
    // An operator may have said it, too; and it is over once all is deployed. What is damaged the agent takes for lost.
    let known = match head.map(|_| read_desired(&agent.state_dir)).transpose() {
        Err(StateError::Damaged { .. }) => None,
        known => known?.flatten(),
    };
    let known = known.filter(|known| head == Some(&known.commit.id));
    let waives_window = known.map_or(waives_window, |known| known.window_waived);
    let zones = ZoneCache::default().get(declared.values().flatten().flat_map(Declared::zones));
    let circumstances = Circumstances { head, waives_window, zones: &zones, now: clock::now(), removals };
    Ok(circumstances.postponed(changes, declared, &journal.records))
}

/// A smaller limit of memory than what is used: the agent would begin a new generation.
fn see_what_is_used(
    agent: &AgentConfig,
    declared: &BTreeMap<ServiceName, Result<Declared, Refusal>>,
    journal: &Journal,
    changes: &mut BTreeMap<ServiceName, Change>,
) {
    // Where it cannot be told, the agent tells it.
    let used = usages(&agent.instance).unwrap_or_default();
    for (name, change) in changes.iter_mut() {
        let Change::Amend { image, differences } = change else { continue };
        let incumbent = journal.records.get(name).and_then(|record| record.incumbent.as_ref());
        let (Some(incumbent), Some(Ok(spec))) = (incumbent, declared.get(name)) else { continue };
        let used = incumbent.instances(name).filter_map(|id| used.get(&id)?.memory).max();
        if let Some(why) = too_small(&incumbent.spec, spec, used) {
            let because = format!("new generation: {}, as {why}", listed(&*differences));
            let (from, to) = (image.clone(), image.clone());
            let (strategy, alone) = (spec.strategy(), spec.alone_because());
            let differences = std::mem::take(differences);
            let first = spec.deploy.canary.map(|canary| canary.share);
            let batch = batch(&spec.deploy);
            *change = Change::Replace { from, to, because, strategy, differences, alone, first, batch };
        }
    }
}

/// A port that something else on this host has: the agent would not begin.
fn refuse_taken_ports(
    agent: &AgentConfig,
    declared: &BTreeMap<ServiceName, Result<Declared, Refusal>>,
    journal: &Journal,
    changes: &mut BTreeMap<ServiceName, Change>,
) -> Result<(), Failure> {
    let traffic = NftTraffic::new(&agent.instance, agent.engine.subnet, &agent.run_dir)
        .map_err(|error| error.to_refusal())?;
    for (name, change) in changes.iter_mut().filter(|(_, change)| change.is_change()) {
        let Some(Ok(spec)) = declared.get(name) else { continue };
        let incumbent = journal.records.get(name).and_then(|record| record.incumbent.as_ref());
        let own = incumbent.map_or(&[][..], |incumbent| &incumbent.spec.ports);
        let new: Vec<_> = spec.ports.iter().filter(|port| !own.contains(port)).cloned().collect();
        // Where it cannot be told, as without root, the agent tells it.
        if let (false, Ok(Some(who))) = (new.is_empty(), traffic.port_conflict(&new)) {
            *change = Change::Refuse(Refusal::new(Reason::PortInUse, who));
        }
    }
    Ok(())
}

fn whose(agent: Option<&AgentConfig>, host: Option<&HostName>) -> (HostIdentity, Policy) {
    let (mut identity, policy) = match agent {
        Some(agent) => (agent.host.clone(), agent.policy.clone()),
        None => without_agent(),
    };
    if let Some(host) = host.filter(|host| **host != identity.name) {
        // Its labels are in hosts/<host>.toml of the repo; those of this host's own configuration are not its.
        identity = HostIdentity { name: host.clone(), labels: Vec::new() };
    }
    (identity, policy)
}

/// Files, and where they come from.
struct Source {
    files: RepoFiles,
    /// `None`: files of a folder, whose commit may not be there yet.
    head: Option<CommitId>,
    waives_window: bool,
}

impl Source {
    fn of_a_folder(files: RepoFiles) -> Self {
        Self { files, head: None, waives_window: false }
    }
}

fn source(agent: Option<&AgentConfig>, dir: Option<&Path>, rev: Option<&str>) -> Result<Source, Failure> {
    let failed = |error: git::GitError| Failure::from(error.to_refusal());
    match (dir, rev, agent) {
        (Some(dir), None, _) => {
            let failed = |error| Failure::plain(format!("reading {}: {error}", dir.display()));
            repo::read_dir(dir).map(Source::of_a_folder).map_err(failed)
        }
        (Some(dir), Some(rev), _) => git::files_at(dir, rev).map(Source::of_a_folder).map_err(failed),
        (None, None, Some(agent)) => {
            // A copy of its own: the agent's cache is the agent's.
            let cache = tempfile_dir()?;
            let result = git::Repository::open(&agent.repo, &cache.join("git")).and_then(|repository| {
                let head = repository.admit(&repository.fetch()?, None)?;
                let waives_window = repository.waives_window(&head)?;
                Ok(Source { files: repository.files(&head)?, head: Some(head.id().clone()), waives_window })
            });
            // Best effort: it lies in the system's folder for temporary files.
            let _ = std::fs::remove_dir_all(&cache);
            result.map_err(failed)
        }
        (None, Some(_), _) => {
            Err(Failure::Usage("--rev needs the folder of a git repository that has the revision".to_owned()))
        }
        (None, None, None) => {
            Err(Failure::Usage("plan needs a folder, or the host's configuration".to_owned()))
        }
    }
}

/// A fresh folder that nobody else can have made: mkdir fails where one is there already.
fn tempfile_dir() -> Result<std::path::PathBuf, Failure> {
    let path = std::env::temp_dir().join(format!("gitopsd-plan-{}", std::process::id()));
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&path).map_err(|error| Failure::plain(format!("making {}: {error}", path.display())))?;
    Ok(path)
}

fn known(agent: &AgentConfig) -> Result<Journal, Failure> {
    Ok(read_journal(&agent.state_dir.join("services"))?)
}

pub(super) fn as_json(service: &str, change: &Change) -> serde_json::Value {
    let (action, from, to, why) = match change {
        Change::Keep { image } => ("keep", Some(image), Some(image), None),
        Change::Create { image } => ("create", None, Some(image), None),
        Change::Replace { from, to, because, .. } => ("replace", Some(from), Some(to), Some(because.clone())),
        Change::Amend { image, differences } => {
            ("amend", Some(image), Some(image), Some(summary(differences)))
        }
        Change::Remove { image } => ("remove", image.as_ref(), None, None),
        Change::Refuse(refusal) => ("refuse", None, None, Some(refusal.to_string())),
    };
    let differences = match change {
        Change::Replace { differences, .. } | Change::Amend { differences, .. } => &differences[..],
        _ => &[],
    };
    let keys = differences.iter().map(|difference| {
        let (from, to) = difference.values.clone().unzip();
        let how = difference.how;
        serde_json::json!({
            "key": difference.key, "how": how.word(), "why": how.why(), "from": from, "to": to,
        })
    });
    let keys: Vec<_> = keys.collect();
    serde_json::json!({ "service": service, "action": action, "from": from, "to": to, "why": why, "keys": keys })
}
