//! The config repo's files, read for one host or checked for all.

use std::collections::{BTreeMap, BTreeSet};

use super::agent::HostIdentity;
use super::configs::{self, Content, Sources};
use super::cycles;
use super::diagnostic::{Diagnostic, first_error};
use super::grants::{self, violation};
use super::layer::Layer;
use super::network;
use super::replicas;
use super::repo_files::TOP;
pub use super::repo_files::{MAX_FILE_BYTES, RepoFiles, read_dir};
use super::section::{Findings, Section, parse};
use super::{service, waves};
use crate::types::{Declared, Digest, HostName, Policy, Reason, Refusal, ServiceName, Wave, place};

/// The version of the repo's layout that is read here.
const FORMAT: i64 = 1;

/// What a repo says to one host.
#[derive(Debug)]
pub struct RepoView {
    /// What the repo calls itself.
    pub repo_id: Option<String>,
    /// Services for any host.
    pub declared_in_repo: usize,
    /// Services that are meant to be gone.
    pub removed: BTreeSet<ServiceName>,
    /// Which hosts act before which others.
    pub waves: Vec<Wave>,
    /// The wave of this host.
    pub place: usize,
    /// What this host should run; a file that is wrong is a refusal of its own service.
    pub services: BTreeMap<ServiceName, Result<Declared, Refusal>>,
    /// The contents of config files that these services name by digest.
    pub contents: BTreeMap<Digest, Vec<u8>>,
    /// Why nothing of it can be acted on.
    pub fatal: Option<Refusal>,
    /// Everything that was found.
    pub diagnostics: Vec<Diagnostic>,
}

/// What a check of a whole repo found.
#[derive(Debug)]
pub struct CheckReport {
    /// Services in the repo.
    pub services: usize,
    /// Everything that was found, by file and place.
    pub diagnostics: Vec<Diagnostic>,
}

/// Texts of the files; what cannot be read is a finding.
pub(super) struct Texts<'a> {
    files: BTreeMap<&'a str, &'a str>,
    /// Why files are not read: of these there is no text.
    broken: BTreeMap<&'a str, &'a str>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Texts<'a> {
    pub(super) fn of(files: &'a RepoFiles) -> Self {
        let mut texts = Self { files: BTreeMap::new(), broken: BTreeMap::new(), diagnostics: Vec::new() };
        let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|_| "is not UTF-8");
        let read = files.iter().map(|(name, bytes)| (name.as_str(), utf8(bytes)));
        let unread = files.refused().map(|(name, why)| (name, Err(why)));
        // The others are taken as they are.
        for (name, text) in read.chain(unread).filter(|(name, _)| is_toml(name)) {
            texts.files.insert(name, text.unwrap_or_default());
            let Err(why) = text else { continue };
            let findings = Findings::new(name, "");
            findings.error(0..0, format!("the file {why}"), None);
            texts.diagnostics.extend(findings.into_sorted());
            texts.broken.insert(name, why);
        }
        texts
    }

    pub(super) fn below(&self, folder: &str) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
        let prefix = format!("{folder}/");
        self.files.iter().filter_map(move |(file, text)| {
            let stem = file.strip_prefix(&prefix)?.strip_suffix(".toml")?;
            Some((*file, stem, *text))
        })
    }
}

/// Whether a path is one of those that are read for what they say.
fn is_toml(path: &str) -> bool {
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|name| !name.contains('/'));
    path == TOP || (path.ends_with(".toml") && (below("services/") || below("hosts/")))
}

/// The repo's own file.
#[derive(Default)]
pub(super) struct Top {
    repo_id: Option<String>,
    pub(super) defaults: Layer,
    pub(super) configs: BTreeMap<String, Content>,
    networks: network::Definitions,
    removed: BTreeSet<ServiceName>,
    waves: Vec<Wave>,
    diagnostics: Vec<Diagnostic>,
}

pub(super) fn read_top(texts: &Texts<'_>) -> Top {
    let Some(text) = texts.files.get(TOP) else {
        let findings = Findings::new(TOP, "");
        findings.error(
            0..0,
            "the file is missing",
            Some("a config repo has a gitopsd.toml with `format = 1`".to_owned()),
        );
        return Top { diagnostics: findings.into_sorted(), ..Top::default() };
    };
    let findings = Findings::new(TOP, text);
    let table = parse(&findings);
    let section = Section::new(&findings, "", table.get_ref(), 0..0);
    match section.integer("format", 0..=i64::MAX) {
        Some(FORMAT) => {}
        Some(newer) if newer > FORMAT => {
            let message =
                format!("format {newer} is of a newer gitopsd than this one, which reads format {FORMAT}");
            findings.error(section.key_span("format"), message, None);
        }
        Some(_) => findings.error(section.key_span("format"), "`format` is 1", None),
        None if section.has("format") || findings.is_guessed() => {}
        None => findings.error(0..0, "`format` is missing", Some("format = 1".to_owned())),
    }
    let repo_id = section.string("repo_id");
    let defaults = section.table("defaults").map(|table| service::read(&table)).unwrap_or_default();
    let networks = network::definitions(&section);
    let waves = waves::read(&section);
    let removed = removed(&section, texts);
    let configs = configs::definitions(&section);
    section
        .unsupported("volumes", "a named volume belongs to its service, and is made when it is first used");
    section.unsupported("secrets", "[secrets] of the host's own configuration says which file each is");
    section.finish(|_| None);
    drop(section);
    Top { repo_id, defaults, configs, networks, removed, waves, diagnostics: findings.into_sorted() }
}

/// `removed`: the names of services that no host is to have any more.
fn removed(section: &Section<'_, '_>, texts: &Texts<'_>) -> BTreeSet<ServiceName> {
    let mut names = BTreeSet::new();
    for (text, span) in section.strings("removed").into_iter().flatten() {
        match text.parse::<ServiceName>() {
            Err(error) => section.findings.error(span, format!("`removed`: {error}"), None),
            Ok(name) if texts.below("services").any(|(_, stem, _)| stem == name.as_str()) => {
                section.findings.error(span, format!("`removed`: services/{name}.toml is still there"), None);
            }
            Ok(name) => {
                names.insert(name);
            }
        }
    }
    names
}

/// A host's file.
#[derive(Default)]
pub(super) struct HostFile {
    labels: Vec<String>,
    /// Whether it may have others, which could not be read.
    lacks_labels: bool,
    pub(super) overrides: BTreeMap<String, Layer>,
    diagnostics: Vec<Diagnostic>,
}

pub(super) fn read_host(file: &str, stem: &str, text: &str, known: &BTreeSet<&str>) -> HostFile {
    let findings = Findings::new(file, text);
    if let Err(error) = stem.parse::<HostName>() {
        findings.error(0..0, error.to_string(), None);
    }
    let table = parse(&findings);
    let section = Section::new(&findings, "", table.get_ref(), 0..0);
    let mut labels = Vec::new();
    for (label, span) in section.strings("labels").unwrap_or_default() {
        if label.contains('=') {
            labels.push(label);
        } else {
            findings.error(span, format!("`labels`: `{label}` is not key=value"), None);
        }
    }
    let lacks_labels = findings.has_errors();
    let mut overrides = BTreeMap::new();
    if let Some(services) = section.table("services") {
        for (name, span, value) in services.entries() {
            if !known.contains(name) {
                let names: Vec<&str> = known.iter().copied().collect();
                let hint = super::diagnostic::did_you_mean(name, &names);
                findings.error(span.clone(), format!("there is no services/{name}.toml to override"), hint);
            }
            match value.get_ref().as_table() {
                Some(table) => {
                    let section = Section::new(&findings, &format!("[services.{name}]"), table, span);
                    overrides.insert(name.to_owned(), service::read(&section));
                }
                None => findings.error(value.span(), format!("`{name}` takes a table"), None),
            }
        }
    }
    section.finish(|_| None);
    drop(section);
    HostFile { labels, lacks_labels, overrides, diagnostics: findings.into_sorted() }
}

/// Whether a service is for a host: no `hosts` = every one; an entry with `=` is a label, another a glob of names.
fn selects(layer: &Layer, host: &HostIdentity) -> bool {
    let Some(entries) = &layer.hosts else { return true };
    entries.iter().any(|(entry, _)| {
        if entry.contains('=') {
            host.labels.contains(entry)
        } else {
            glob::Pattern::new(entry).is_ok_and(|pattern| pattern.matches(host.name.as_str()))
        }
    })
}

fn check_hosts(findings: &Findings<'_>, layer: &Layer) {
    for (entry, span) in layer.hosts.iter().flatten() {
        if let (false, Err(error)) = (entry.contains('='), glob::Pattern::new(entry)) {
            findings.error(span.clone(), format!("`hosts`: `{entry}` is not a pattern: {error}"), None);
        }
    }
}

/// The hosts that have a file of their own in the repo.
pub fn hosts(files: &RepoFiles) -> BTreeSet<HostName> {
    let stem = |path: &str| path.strip_prefix("hosts/")?.strip_suffix(".toml")?.parse().ok();
    files.keys().map(String::as_str).chain(files.refused().map(|(path, _)| path)).filter_map(stem).collect()
}

/// The labels that the repo gives a host.
pub fn labels(files: &RepoFiles, host: &HostName) -> Vec<String> {
    let texts = Texts::of(files);
    let known: BTreeSet<&str> = texts.below("services").map(|(_, stem, _)| stem).collect();
    let own = texts.below("hosts").find(|(_, stem, _)| *stem == host.as_str());
    own.map(|(file, stem, text)| read_host(file, stem, text, &known).labels).unwrap_or_default()
}

/// The waves of a repo.
pub fn waves(files: &RepoFiles) -> Vec<Wave> {
    read_top(&Texts::of(files)).waves
}

/// Those of these services that hosts have by a label: one that runs such a service has the label, as far as others can
/// tell.
pub fn by_labels(files: &RepoFiles, services: &BTreeSet<ServiceName>) -> BTreeSet<ServiceName> {
    let texts = Texts::of(files);
    let named = texts.below("services").filter(|(file, _, text)| {
        let findings = Findings::new(file, text);
        let table = parse(&findings);
        let section = Section::new(&findings, "", table.get_ref(), 0..0);
        section.strings("hosts").into_iter().flatten().any(|(entry, _)| entry.contains('='))
    });
    let named: BTreeSet<&str> = named.map(|(_, stem, _)| stem).collect();
    services.iter().filter(|service| named.contains(service.as_str())).cloned().collect()
}

/// Reads a repo for one host.
pub fn read(files: &RepoFiles, host: &HostIdentity, policy: &Policy) -> RepoView {
    read_for(files, host, policy, &BTreeSet::new())
}

/// Reads a repo for a host of which not all labels are known: `also` names services that it runs by these.
pub fn read_for(
    files: &RepoFiles,
    host: &HostIdentity,
    policy: &Policy,
    also: &BTreeSet<ServiceName>,
) -> RepoView {
    let texts = Texts::of(files);
    let top = read_top(&texts);
    let known: BTreeSet<&str> = texts.below("services").map(|(_, stem, _)| stem).collect();
    let declared_in_repo = known.len();
    let own = texts.below("hosts").find(|(_, stem, _)| *stem == host.name.as_str());
    let own = own.map(|(file, stem, text)| read_host(file, stem, text, &known)).unwrap_or_default();
    let mut identity = host.clone();
    identity.labels.extend(own.labels.iter().cloned());
    let mut diagnostics = texts.diagnostics.clone();
    let fatal =
        first_error(&top.diagnostics).map(|error| Refusal::new(Reason::ConfigInvalid, error.one_line()));
    let of_host = format!("hosts/{}.toml", host.name);
    let unread = texts.diagnostics.iter().find(|found| found.file == of_host);
    let some_labels = unread.is_some() || own.lacks_labels;
    let host_error = unread.or_else(|| first_error(&own.diagnostics)).cloned();
    let mut services: BTreeMap<ServiceName, Result<Declared, Refusal>> = BTreeMap::new();
    let sources = Sources::new(files, &top.configs);
    let mut layers: BTreeMap<ServiceName, (Layer, &str, &str)> = BTreeMap::new();
    for (file, stem, text) in texts.below("services") {
        let findings = Findings::new(file, text);
        let name = match stem.parse::<ServiceName>() {
            Ok(name) => name,
            Err(error) => {
                findings.error(0..0, error.to_string(), None);
                diagnostics.extend(findings.into_sorted());
                continue;
            }
        };
        let broken = texts.broken.get(file);
        let table = parse(&findings);
        let section = Section::new(&findings, "", table.get_ref(), 0..0);
        let own_layer = service::read(&section);
        drop(section);
        check_hosts(&findings, &own_layer);
        // A broken file may concern this host: its `hosts` may be what is broken, or what labels the host has.
        let by_label = || own_layer.hosts.iter().flatten().any(|(entry, _)| entry.contains('='));
        let concerns = selects(&own_layer, &identity)
            || (some_labels && by_label())
            || also.contains(&name)
            || (findings.has_errors() && own_layer.hosts.is_none());
        if !concerns {
            diagnostics.extend(findings.into_sorted());
            continue;
        }
        let mut layer = top.defaults.under(&own_layer);
        if let Some(over) = own.overrides.get(stem) {
            layer = layer.under(over);
        }
        let mut spec = layer.clone().into_spec(&findings, &sources);
        if let Some(spec) = &mut spec {
            network::settle(spec, &layer, &top.networks, &findings);
        }
        let mut found = findings.into_sorted();
        if broken.is_some() {
            // Of what is not read nothing else is known.
            found.clear();
        }
        found.append(&mut sources.found.borrow_mut());
        let error = first_error(&found).or(host_error.as_ref()).map(Diagnostic::one_line);
        let result = match (error, broken, spec) {
            (_, Some(why), _) => Err(Refusal::new(Reason::ConfigInvalid, format!("{file} {why}"))),
            (Some(error), None, _) => Err(Refusal::new(Reason::ConfigInvalid, error)),
            (None, None, Some(spec)) => match violation(&spec, policy) {
                Some(refusal) => Err(refusal),
                None => Ok(spec),
            },
            (None, None, None) => Err(Refusal::new(Reason::ConfigInvalid, format!("{file} has no image"))),
        };
        diagnostics.extend(found);
        layers.insert(name.clone(), (layer, file, text));
        services.insert(name, result);
    }
    let contents = sources.contents.into_inner();
    across(&layers, &known, &mut services, &mut diagnostics);
    diagnostics.extend(top.diagnostics);
    diagnostics.extend(own.diagnostics);
    let place = place(&top.waves, &identity.name, &identity.labels);
    let (repo_id, removed, waves) = (top.repo_id, top.removed, top.waves);
    RepoView { repo_id, declared_in_repo, removed, waves, place, services, contents, fatal, diagnostics }
}

/// What services of one host may not do to each other.
fn across(
    layers: &BTreeMap<ServiceName, (Layer, &str, &str)>,
    known: &BTreeSet<&str>,
    services: &mut BTreeMap<ServiceName, Result<Declared, Refusal>>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let specs: BTreeMap<ServiceName, Declared> = services
        .iter()
        .filter_map(|(name, spec)| Some((name.clone(), spec.as_ref().ok()?.clone())))
        .collect();
    for (name, spec) in &specs {
        let Some((layer, file, text)) = layers.get(name) else { continue };
        let findings = Findings::new(file, text);
        for (dependency, span) in layer.depends_on.iter().flatten() {
            let dependency = &dependency.service;
            if let Some(way) = cycles::path(&specs, dependency, name) {
                let message = match dependency == name {
                    true => format!("`depends_on`: {name} depends on itself"),
                    false => format!(
                        "`depends_on`: {dependency} depends on {name} in turn ({})",
                        cycles::shown(name, &way)
                    ),
                };
                findings.error(span.clone(), message, None);
            } else if !known.contains(dependency.as_str()) {
                let names: Vec<&str> = known.iter().copied().collect();
                let hint = super::diagnostic::did_you_mean(dependency.as_str(), &names);
                findings.error(
                    span.clone(),
                    format!("`depends_on`: there is no services/{dependency}.toml"),
                    hint,
                );
            }
        }
        if let Some((message, hint)) = network::joins(name, spec, &specs, services, known) {
            findings.error(layer.network_span.clone().unwrap_or(0..0), message, hint);
        } else if let Some((host, way)) =
            spec.joins().and_then(|host| Some((host, cycles::path(&specs, host, name)?)))
        {
            let way = cycles::shown(name, &way);
            let message = format!("`network_mode`: {host} depends on {name} in turn ({way})");
            findings.error(layer.network_span.clone().unwrap_or(0..0), message, None);
        }
        let found = findings.into_sorted();
        if let Some(error) = first_error(&found) {
            services.insert(name.clone(), Err(Refusal::new(Reason::ConfigInvalid, error.one_line())));
        }
        diagnostics.extend(found);
        // Which of them gets the port is for `reconcile::ports` to say: the one that has it on that host keeps it.
        let findings = Findings::new(file, text);
        for (number, port) in spec.ports.iter().enumerate() {
            let other =
                specs.range(..name).find(|(_, other)| other.ports.iter().any(|known| known.clashes(port)));
            if let Some((other, _)) = other {
                let message = format!(
                    "`ports`: {}/{} of the host is published by services/{other}.toml too",
                    port.host_port, port.protocol
                );
                findings.error(layer.port_span(number), message, None);
            }
        }
        diagnostics.extend(findings.into_sorted());
    }
}

/// Checks a whole repo: once without a host, and once for each host that it has a file of. A policy is checked too
/// where there is one.
pub fn check(files: &RepoFiles, policy: Option<&Policy>) -> CheckReport {
    let texts = Texts::of(files);
    let known: BTreeSet<&str> = texts.below("services").map(|(_, stem, _)| stem).collect();
    // What a repo asks for is for its hosts to allow.
    let open = grants::everything();
    let policy = policy.unwrap_or(&open);
    let mut found: Vec<Diagnostic> = Vec::new();
    let mut hosts = Vec::new();
    let waves = read_top(&texts).waves;
    for (file, stem, text) in texts.below("hosts") {
        let host = read_host(file, stem, text, &known);
        if let Ok(name) = stem.parse() {
            if !waves.is_empty() && place(&waves, &name, &host.labels) == waves.len() {
                let findings = Findings::new(file, text);
                findings.warn(0..0, format!("{name} is in no [[wave]]: it acts after all of them"), None);
                found.extend(findings.into_sorted());
            }
            hosts.push(HostIdentity { name, labels: Vec::new() });
        }
        found.extend(host.diagnostics);
    }
    // Hosts without a file: one for each name and label that a service asks for, and one that nobody names.
    let mut asked: BTreeSet<(String, Vec<String>)> = BTreeSet::from([("any-host".to_owned(), Vec::new())]);
    for (file, _, text) in texts.below("services") {
        let findings = Findings::new(file, text);
        let table = parse(&findings);
        let section = Section::new(&findings, "", table.get_ref(), 0..0);
        for entry in section.strings("hosts").into_iter().flatten().map(|(entry, _)| entry) {
            if entry.contains('=') {
                asked.insert(("any-host".to_owned(), vec![entry]));
            } else {
                asked.insert((entry.replace(['*', '?'], "x"), Vec::new()));
            }
        }
    }
    let more = asked
        .into_iter()
        .filter_map(|(name, labels)| Some(HostIdentity { name: name.parse().ok()?, labels }));
    let mut alone: BTreeMap<ServiceName, bool> = BTreeMap::new();
    for host in hosts.into_iter().chain(more) {
        let view = read(files, &host, policy);
        for (name, spec) in view.services {
            *alone.entry(name).or_insert(true) &= spec.is_ok_and(|spec| spec.deploy.replicas == 1);
        }
        found.extend(view.diagnostics);
    }
    for (file, stem, text) in texts.below("services") {
        if stem.parse().is_ok_and(|name: ServiceName| alone.get(&name) == Some(&true)) {
            found.extend(replicas::without_effect(file, text));
        }
    }
    found.sort_by(|a, b| {
        (&a.file, a.line, a.column, &a.message).cmp(&(&b.file, b.line, b.column, &b.message))
    });
    found.dedup();
    CheckReport { services: known.len(), diagnostics: found }
}
