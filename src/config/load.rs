//! Reads the host's own configuration: the file, and `conf.d/*.toml` beside it in the order of their names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::agent::{AgentConfig, HostIdentity, RegistryConfig, RepoConfig, S3Config};
use super::diagnostic::Diagnostic;
use super::engine::EnginePart;
use super::forge::ForgePart;
use super::images::ImagesPart;
use super::port::absolute;
use super::registry;
use super::report::ReportPart;
use super::section::{Findings, Section, parse};
use super::trust::TrustPart;
use super::webhook::WebhookPart;
use crate::types::{HostName, Policy, SafeUrl};

/// From one look at the tags of what runs to the next: a registry that counts requests is asked little.
const CHECK_TAGS: Duration = Duration::from_secs(3600);

/// Everything that is wrong with a host's configuration.
#[derive(Debug)]
pub struct ConfigErrors(Vec<Diagnostic>);

impl ConfigErrors {
    fn one(file: &Path, message: String, hint: Option<String>) -> Self {
        let name = file.display().to_string();
        let findings = Findings::new(&name, "");
        findings.error(0..0, message, hint);
        Self(findings.into_sorted())
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for error in self.0.iter().filter(|found| found.is_error()) {
            if !std::mem::take(&mut first) {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One file's part: `None` = it says nothing of it.
#[derive(Debug, Default)]
struct Part {
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    instance: Option<String>,
    url: Option<SafeUrl>,
    branch: Option<String>,
    path: Option<String>,
    poll: Option<Duration>,
    repo_id: Option<String>,
    ssh_key: Option<PathBuf>,
    known_hosts: Option<PathBuf>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    credential_helper: Option<Vec<String>>,
    ca_file: Option<PathBuf>,
    trust: TrustPart,
    name: Option<HostName>,
    labels: Option<Vec<String>>,
    engine: EnginePart,
    registries: BTreeMap<String, RegistryConfig>,
    s3: Option<S3Config>,
    allowed: Option<Vec<String>>,
    host_mounts: Option<Vec<String>>,
    max_removals: Option<u32>,
    require_digest: Option<bool>,
    memory_overcommit: Option<bool>,
    privileged: Option<bool>,
    host_namespaces: Option<bool>,
    host_network: Option<bool>,
    unconfined: Option<bool>,
    capabilities: Option<Vec<String>>,
    devices: Option<Vec<String>>,
    images: ImagesPart,
    report: ReportPart,
    webhook: WebhookPart,
    status: ForgePart,
    secrets: BTreeMap<String, PathBuf>,
}

/// Reads the configuration of this host. All errors at once.
pub fn load(path: &Path) -> Result<AgentConfig, ConfigErrors> {
    let mut parts = Vec::new();
    let mut found = Vec::new();
    for file in files(path)? {
        let text = std::fs::read_to_string(&file).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let hint = missing
                .then(|| "name another with --config, or begin with packaging/gitopsd.toml".to_owned());
            ConfigErrors::one(&file, format!("it cannot be read: {error}"), hint)
        })?;
        let (part, diagnostics) = read(&file, &text);
        parts.push(part);
        found.extend(diagnostics);
    }
    let merged = parts.into_iter().fold(Part::default(), Part::under);
    if found.iter().any(Diagnostic::is_error) {
        return Err(ConfigErrors(found));
    }
    merged.finish(path)
}

/// Who and what is assumed where there is no host configuration: for `check` and `plan` on a laptop.
pub fn without_agent() -> (HostIdentity, Policy) {
    let name = hostname().unwrap_or_else(|| HostName::from_static("localhost"));
    let all = || vec!["*".to_owned()];
    let policy = Policy { registries: all(), host_mounts: all(), ..Policy::default() };
    (HostIdentity { name, labels: Vec::new() }, policy)
}

fn hostname() -> Option<HostName> {
    nix::unistd::gethostname().ok()?.to_str()?.to_ascii_lowercase().parse().ok()
}

/// The file, then its drop-ins.
fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigErrors> {
    let mut files = vec![path.to_owned()];
    let folder = path.parent().unwrap_or(Path::new(".")).join("conf.d");
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            let mut more: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            more.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
            more.sort();
            files.extend(more);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(ConfigErrors::one(&folder, format!("it cannot be read: {error}"), None)),
    }
    Ok(files)
}

fn read(file: &Path, text: &str) -> (Part, Vec<Diagnostic>) {
    let name = file.display().to_string();
    let findings = Findings::new(&name, text);
    let table = parse(&findings);
    let section = Section::new(&findings, "", table.get_ref(), 0..0);
    let mut part = Part {
        state_dir: path(&section, "state_dir"),
        run_dir: path(&section, "run_dir"),
        instance: instance(&section),
        ..Part::default()
    };
    if let Some(repo) = section.table("repo") {
        read_repo(&repo, &mut part);
    }
    if let Some(host) = section.table("host") {
        part.name = host.parsed("name");
        part.labels =
            host.strings("labels").map(|labels| labels.into_iter().map(|(label, _)| label).collect());
        host.finish(|_| None);
    }
    if let Some(engine) = section.table("engine") {
        part.engine = EnginePart::read(&engine);
    }
    if let Some(registries) = section.table("registry") {
        for (host, span, value) in registries.entries() {
            match value.get_ref().as_table() {
                Some(table) => {
                    let section = Section::new(&findings, &format!("[registry.\"{host}\"]"), table, span);
                    part.registries.insert(host.to_owned(), registry::read(&section));
                }
                None => findings.error(value.span(), format!("`{host}` takes a table"), None),
            }
        }
    }
    if let Some(policy) = section.table("policy") {
        read_policy(&policy, &mut part);
    }
    if let Some(images) = section.table("images") {
        part.images = ImagesPart::read(&images);
    }
    if let Some(report) = section.table("report") {
        part.report = ReportPart::read(&report);
    }
    if let Some(webhook) = section.table("webhook") {
        part.webhook = WebhookPart::read(&webhook);
    }
    if let Some(status) = section.table("status") {
        part.status = ForgePart::read(&status);
    }
    if let Some(secrets) = section.table("secrets") {
        part.secrets = super::secrets::files(&secrets);
    }
    if let Some(s3) = section.table("s3") {
        part.s3 = Some(S3Config {
            endpoint: s3.parsed("endpoint"),
            region: s3.string("region"),
            path_style: s3.boolean("path_style").unwrap_or(false),
            ca_file: path(&s3, "ca_file"),
        });
        s3.finish(|_| None);
    }
    section.finish(|_| None);
    drop(section);
    (part, findings.into_sorted())
}

fn read_repo(repo: &Section<'_, '_>, part: &mut Part) {
    part.url = repo.parsed("url");
    part.branch = repo.string("branch");
    part.path = repo.string("path");
    part.poll = repo.duration("poll").filter(|poll| {
        let fine = *poll >= Duration::from_secs(1);
        if !fine {
            repo.findings.error(repo.key_span("poll"), "`poll` is at least 1s", None);
        }
        fine
    });
    part.repo_id = repo.string("repo_id");
    part.ssh_key = secret(repo, "ssh_key");
    part.known_hosts = path(repo, "known_hosts");
    part.username = repo.string("username");
    part.password_file = secret(repo, "password_file");
    part.token_file = secret(repo, "token_file");
    part.credential_helper = program(repo, "credential_helper");
    part.ca_file = path(repo, "ca_file");
    part.trust = TrustPart::read(repo);
    repo.finish(|key| {
        let secret = matches!(key, "password" | "token");
        secret.then(|| format!("`{key}`: a secret is named by its file, as `{key}_file`"))
    });
}

fn read_policy(policy: &Section<'_, '_>, part: &mut Part) {
    part.allowed = globs(policy, "registries");
    part.host_mounts = globs(policy, "host_mounts");
    part.max_removals =
        policy.integer("max_removals", 0..=1_000_000).and_then(|number| u32::try_from(number).ok());
    part.require_digest = policy.boolean("require_digest");
    part.memory_overcommit = policy.boolean("memory_overcommit");
    part.privileged = policy.boolean("privileged");
    part.host_namespaces = policy.boolean("host_namespaces");
    part.unconfined = policy.boolean("unconfined");
    part.capabilities = globs(policy, "capabilities");
    part.devices = globs(policy, "devices");
    part.host_network = policy.boolean("host_network");
    policy.finish(|_| None);
}

fn globs(section: &Section<'_, '_>, key: &'static str) -> Option<Vec<String>> {
    let patterns = section.strings(key)?;
    for (pattern, span) in &patterns {
        if let Err(error) = glob::Pattern::new(pattern) {
            section.findings.error(
                span.clone(),
                format!("`{key}`: `{pattern}` is not a pattern: {error}"),
                None,
            );
        }
    }
    Some(patterns.into_iter().map(|(pattern, _)| pattern).collect())
}

/// An absolute path.
pub(super) fn path(section: &Section<'_, '_>, key: &'static str) -> Option<PathBuf> {
    let text = section.string(key)?;
    let path = absolute(&text);
    if path.is_none() {
        section.findings.error(
            section.key_span(key),
            format!("`{key}` takes an absolute path without `..`"),
            None,
        );
    }
    path
}

/// A path, or `credential:NAME` for what systemd hands over (systemd.exec(5), LoadCredential=).
pub(super) fn secret(section: &Section<'_, '_>, key: &'static str) -> Option<PathBuf> {
    let text = section.get(key).and_then(|value| value.get_ref().as_str().map(str::to_owned));
    let Some(found) = text.as_deref().and_then(credential) else { return path(section, key) };
    if found.is_none() {
        let name = text.as_deref().and_then(|text| text.strip_prefix(CREDENTIAL)).unwrap_or_default();
        let message = format!("`{key}`: `{name}` is not a credential's name");
        section.findings.error(section.key_span(key), message, None);
    }
    found
}

/// Before the name of what systemd hands over.
const CREDENTIAL: &str = "credential:";

/// Where what is named as `credential:NAME` lies; `None`: the text is none, `Some(None)`: with a name that nothing has.
pub(super) fn credential(text: &str) -> Option<Option<PathBuf>> {
    let name = text.strip_prefix(CREDENTIAL)?;
    let fine = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    // Commands of people run without a folder of their own.
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")
        .map_or_else(|| PathBuf::from("/run/credentials/gitopsd.service"), PathBuf::from);
    Some(fine.then(|| folder.join(name)))
}

/// A program by its absolute path, and its arguments.
pub(super) fn program(section: &Section<'_, '_>, key: &'static str) -> Option<Vec<String>> {
    let words: Vec<String> = section.strings(key)?.into_iter().map(|(word, _)| word).collect();
    if words.first().is_none_or(|program| absolute(program).is_none())
        || words.iter().any(|word| word.contains('\0'))
    {
        let message = format!("`{key}` takes a program by its absolute path, and its arguments, as an array");
        section.findings.error(section.key_span(key), message, None);
        return None;
    }
    Some(words)
}

/// Names kernel objects, so it is short and plain.
fn instance(section: &Section<'_, '_>) -> Option<String> {
    let text = section.string("instance")?;
    let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if text.is_empty() || text.len() > 32 || !plain || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        let message = "`instance` takes 1 to 32 of a-z, 0-9 and -, beginning with a letter";
        section.findings.error(section.key_span("instance"), message, None);
        return None;
    }
    Some(text)
}

impl Part {
    /// This part, with `over` on top of it.
    fn under(self, over: Self) -> Self {
        let mut registries = self.registries;
        registries.extend(over.registries);
        let mut secrets = self.secrets;
        secrets.extend(over.secrets);
        Self {
            state_dir: over.state_dir.or(self.state_dir),
            run_dir: over.run_dir.or(self.run_dir),
            instance: over.instance.or(self.instance),
            url: over.url.or(self.url),
            branch: over.branch.or(self.branch),
            path: over.path.or(self.path),
            poll: over.poll.or(self.poll),
            repo_id: over.repo_id.or(self.repo_id),
            ssh_key: over.ssh_key.or(self.ssh_key),
            known_hosts: over.known_hosts.or(self.known_hosts),
            username: over.username.or(self.username),
            password_file: over.password_file.or(self.password_file),
            token_file: over.token_file.or(self.token_file),
            credential_helper: over.credential_helper.or(self.credential_helper),
            ca_file: over.ca_file.or(self.ca_file),
            trust: self.trust.under(over.trust),
            name: over.name.or(self.name),
            labels: over.labels.or(self.labels),
            engine: self.engine.under(over.engine),
            registries,
            s3: over.s3.or(self.s3),
            allowed: over.allowed.or(self.allowed),
            host_mounts: over.host_mounts.or(self.host_mounts),
            max_removals: over.max_removals.or(self.max_removals),
            require_digest: over.require_digest.or(self.require_digest),
            memory_overcommit: over.memory_overcommit.or(self.memory_overcommit),
            privileged: over.privileged.or(self.privileged),
            host_namespaces: over.host_namespaces.or(self.host_namespaces),
            host_network: over.host_network.or(self.host_network),
            unconfined: over.unconfined.or(self.unconfined),
            capabilities: over.capabilities.or(self.capabilities),
            devices: over.devices.or(self.devices),
            images: self.images.under(over.images),
            report: self.report.under(over.report),
            webhook: self.webhook.under(over.webhook),
            status: self.status.under(over.status),
            secrets,
        }
    }

    /// Fills the defaults in.
    fn finish(self, path: &Path) -> Result<AgentConfig, ConfigErrors> {
        let Some(url) = self.url else {
            let hint = Some("[repo]\n         url = \"https://git.example.org/ops/config.git\"".to_owned());
            return Err(ConfigErrors::one(path, "`repo.url` is missing".to_owned(), hint));
        };
        let Some(name) = self.name.or_else(hostname) else {
            let hint = Some("[host]\n         name = \"web-1\"".to_owned());
            return Err(ConfigErrors::one(
                path,
                "this machine's name is no host name: set `host.name`".to_owned(),
                hint,
            ));
        };
        if let Some(message) = self.trust.contradiction() {
            return Err(ConfigErrors::one(path, message, Some("repo.verify = \"ssh\"".to_owned())));
        }
        let contradicted = |(message, hint): (&str, &str)| {
            ConfigErrors::one(path, message.to_owned(), Some(hint.to_owned()))
        };
        let webhook = self.webhook.finish().map_err(contradicted)?;
        let status = self.status.finish(&url).map_err(contradicted)?;
        let report = self.report.finish().map_err(contradicted)?;
        let plain = RepoConfig::new(url);
        let labels = self.labels.unwrap_or_default();
        let labels: BTreeSet<String> = labels.into_iter().collect();
        Ok(AgentConfig {
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/gitopsd".into()),
            run_dir: self.run_dir.unwrap_or_else(|| "/run/gitopsd".into()),
            instance: self.instance.unwrap_or_else(|| "gitopsd".to_owned()),
            repo: RepoConfig {
                url: plain.url,
                branch: self.branch.unwrap_or(plain.branch),
                path: self.path.unwrap_or(plain.path),
                poll: self.poll.unwrap_or(plain.poll),
                repo_id: self.repo_id,
                ssh_key: self.ssh_key,
                known_hosts: self.known_hosts,
                username: self.username,
                password_file: self.password_file,
                token_file: self.token_file,
                credential_helper: self.credential_helper.unwrap_or_default(),
                ca_file: self.ca_file,
                trust: self.trust.finish(),
            },
            host: HostIdentity { name, labels: labels.into_iter().collect() },
            engine: self.engine.finish(),
            registries: self.registries,
            s3: self.s3.unwrap_or_default(),
            policy: Policy {
                registries: self.allowed.unwrap_or_default(),
                host_mounts: self.host_mounts.unwrap_or_default(),
                max_removals: self.max_removals,
                require_digest: self.require_digest.unwrap_or(false),
                memory_overcommit: self.memory_overcommit.unwrap_or(false),
                privileged: self.privileged.unwrap_or(false),
                host_namespaces: self.host_namespaces.unwrap_or(false),
                host_network: self.host_network.unwrap_or(false),
                unconfined: self.unconfined.unwrap_or(false),
                capabilities: self.capabilities.unwrap_or_default(),
                devices: self.devices.unwrap_or_default(),
            },
            follow: self.images.follow.unwrap_or(false),
            check_tags: Some(self.images.check_tags.unwrap_or(CHECK_TAGS)).filter(|every| !every.is_zero()),
            keep_blobs: self.images.keep_blobs.unwrap_or(false),
            images: self.images.finish(),
            report,
            webhook,
            status,
            secrets: self.secrets,
        })
    }
}
