//! What one file says of a service, laid over what another says, and the spec that all of them make.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::canary::{self, CanaryLayer};
use super::configs::{self, Config, EnvFile, Sources};
use super::health::HealthLayer;
use super::memory;
use super::network;
use super::options::foreign_to_its_users;
use super::replicas::{self, ReplicasLayer};
use super::section::{Findings, Place};
use crate::types::{
    ByteSize, Declared, Dependency, Deploy, DrainSignal, ImageRef, Options, PortMapping, RestartPolicy,
    Schedule, SecretFile, Strategy, Tmpfs, VolumeMount, Window,
};

/// One layer: what a file says of a service. `None` = nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    pub hosts: Option<Vec<(String, Range<usize>)>>,
    pub image: Option<ImageRef>,
    pub fallback: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub command: Option<Vec<String>>,
    pub environment: BTreeMap<String, String>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub ports: Option<Vec<PortMapping>>,
    pub volumes: Option<Vec<VolumeMount>>,
    /// What `volumes` asks for in memory: there with these, or not at all.
    pub memory: Option<Vec<Tmpfs>>,
    pub env_files: Option<Vec<EnvFile>>,
    pub configs: Option<Vec<Config>>,
    pub secrets: Option<Vec<SecretFile>>,
    pub depends_on: Option<Vec<(Dependency, Range<usize>)>>,
    pub restart: Option<RestartPolicy>,
    pub schedule: Option<Schedule>,
    pub stop_grace_period: Option<Duration>,
    pub mem_limit: Option<ByteSize>,
    /// Where `memswap_limit` is written, or else `mem_limit`.
    pub memory_place: Option<Place>,
    pub milli_cpus: Option<u32>,
    pub pids_limit: Option<u32>,
    pub options: Options,
    pub healthcheck: HealthLayer,
    pub deploy: DeployLayer,
    /// It names an image, right or wrong.
    pub names_image: bool,
    pub port_spans: Vec<Range<usize>>,
    /// Where `network_mode` or `networks` is written.
    pub network_span: Option<Range<usize>>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct DeployLayer {
    pub strategy: Option<Strategy>,
    pub drain: Option<Duration>,
    pub bake: Option<Duration>,
    pub timeout: Option<Duration>,
    pub pre: Option<Vec<String>>,
    pub min_healthy_time: Option<Duration>,
    pub max_error_rate: Option<u8>,
    pub span: Option<Range<usize>>,
    pub post: Option<Vec<String>>,
    pub reversible: Option<bool>,
    pub window: Option<Vec<Window>>,
    pub drain_signal: Option<DrainSignal>,
    pub canary: CanaryLayer,
    pub replicas: ReplicasLayer,
}

impl Layer {
    /// This layer, with `over` on top of it.
    pub fn under(&self, over: &Self) -> Self {
        let mut environment = self.environment.clone();
        environment.extend(over.environment.clone());
        Self {
            hosts: over.hosts.clone().or_else(|| self.hosts.clone()),
            image: over.image.clone().or_else(|| self.image.clone()),
            fallback: over.fallback.clone().or_else(|| self.fallback.clone()),
            entrypoint: over.entrypoint.clone().or_else(|| self.entrypoint.clone()),
            command: over.command.clone().or_else(|| self.command.clone()),
            environment,
            user: over.user.clone().or_else(|| self.user.clone()),
            working_dir: over.working_dir.clone().or_else(|| self.working_dir.clone()),
            port_spans: if over.ports.is_some() { over.port_spans.clone() } else { self.port_spans.clone() },
            ports: over.ports.clone().or_else(|| self.ports.clone()),
            volumes: over.volumes.clone().or_else(|| self.volumes.clone()),
            memory: over.memory.clone().or_else(|| self.memory.clone()),
            env_files: over.env_files.clone().or_else(|| self.env_files.clone()),
            configs: over.configs.clone().or_else(|| self.configs.clone()),
            secrets: over.secrets.clone().or_else(|| self.secrets.clone()),
            depends_on: over.depends_on.clone().or_else(|| self.depends_on.clone()),
            restart: over.restart.or(self.restart),
            schedule: over.schedule.clone().or_else(|| self.schedule.clone()),
            stop_grace_period: over.stop_grace_period.or(self.stop_grace_period),
            mem_limit: over.mem_limit.or(self.mem_limit),
            memory_place: over.memory_place.clone().or_else(|| self.memory_place.clone()),
            milli_cpus: over.milli_cpus.or(self.milli_cpus),
            pids_limit: over.pids_limit.or(self.pids_limit),
            options: network::under(&self.options, &over.options),
            healthcheck: self.healthcheck.under(&over.healthcheck),
            deploy: DeployLayer {
                strategy: over.deploy.strategy.or(self.deploy.strategy),
                drain: over.deploy.drain.or(self.deploy.drain),
                bake: over.deploy.bake.or(self.deploy.bake),
                timeout: over.deploy.timeout.or(self.deploy.timeout),
                pre: over.deploy.pre.clone().or_else(|| self.deploy.pre.clone()),
                min_healthy_time: over.deploy.min_healthy_time.or(self.deploy.min_healthy_time),
                max_error_rate: over.deploy.max_error_rate.or(self.deploy.max_error_rate),
                span: over.deploy.span.clone().or_else(|| self.deploy.span.clone()),
                post: over.deploy.post.clone().or_else(|| self.deploy.post.clone()),
                reversible: over.deploy.reversible.or(self.deploy.reversible),
                window: over.deploy.window.clone().or_else(|| self.deploy.window.clone()),
                drain_signal: over.deploy.drain_signal.or(self.deploy.drain_signal),
                canary: self.deploy.canary.under(&over.deploy.canary),
                replicas: self.deploy.replicas.under(&over.deploy.replicas),
            },
            names_image: over.names_image || self.names_image,
            network_span: over.network_span.clone().or_else(|| self.network_span.clone()),
        }
    }

    /// The files of the repo that it names, by their paths.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        configs::files_of(&self.env_files, &self.configs).chain(self.healthcheck.files())
    }

    /// The spec that all layers together make. What is missing is a finding of the service's own file.
    pub fn into_spec(self, findings: &Findings<'_>, sources: &Sources<'_>) -> Option<Declared> {
        let Some(image) = self.image else {
            if !self.names_image && !findings.is_guessed() {
                let hint = Some("image = \"registry/name:tag\"".to_owned());
                findings.error(0..0, "the service has no `image`", hint);
            }
            return None;
        };
        let ports = self.ports.unwrap_or_default();
        let mut spec = Declared::new(image);
        spec.healthcheck = self.healthcheck.into_check(findings, sources, &ports).ok()?;
        let default = Deploy::default();
        let replicas = self.deploy.replicas.count().unwrap_or(default.replicas);
        spec.deploy = Deploy {
            strategy: self.deploy.strategy,
            drain: self.deploy.drain.unwrap_or(default.drain),
            bake: self.deploy.bake.unwrap_or(default.bake),
            timeout: self.deploy.timeout.unwrap_or(default.timeout),
            pre: self.deploy.pre.unwrap_or_default(),
            min_healthy_time: self.deploy.min_healthy_time.unwrap_or_default(),
            max_error_rate: self.deploy.max_error_rate,
            post: self.deploy.post.unwrap_or_default(),
            reversible: self.deploy.reversible.unwrap_or(default.reversible),
            window: self.deploy.window.unwrap_or_default(),
            drain_signal: self.deploy.drain_signal.unwrap_or_default(),
            canary: self.deploy.canary.settled(),
            replicas,
            parallelism: self.deploy.replicas.parallelism(replicas),
        };
        if spec.deploy.min_healthy_time >= spec.deploy.timeout && !spec.deploy.min_healthy_time.is_zero() {
            let message =
                "`min_healthy_time` has to be shorter than `timeout`, within which it is to be over";
            findings.error(self.deploy.span.clone().unwrap_or(0..0), message, None);
        }
        spec.fallback = self.fallback.unwrap_or_default();
        spec.entrypoint = self.entrypoint;
        spec.command = self.command;
        spec.environment = sources.environment(findings, &self.env_files.unwrap_or_default());
        spec.environment.extend(self.environment);
        check_environment(findings, &spec.environment);
        spec.configs = sources.configs(findings, self.configs.unwrap_or_default());
        spec.secrets = self.secrets.unwrap_or_default();
        spec.user = self.user;
        spec.working_dir = self.working_dir;
        spec.ports = ports;
        spec.volumes = self.volumes.unwrap_or_default();
        spec.depends_on = self.depends_on.unwrap_or_default().into_iter().map(|(name, _)| name).collect();
        spec.restart = self.restart.unwrap_or_default();
        spec.schedule = self.schedule;
        check_schedule(findings, &spec, self.restart);
        spec.stop_grace_period = self.stop_grace_period.unwrap_or(spec.stop_grace_period);
        spec.mem_limit = self.mem_limit;
        spec.milli_cpus = self.milli_cpus;
        spec.pids_limit = self.pids_limit;
        spec.options = self.options;
        // "host" only sets aside what stands below it; in a spec it is as if nothing was said.
        spec.options.user_namespace = spec.options.user_namespace.filter(|own| *own);
        check_users(findings, &spec);
        if let Some(memory) = self.memory.filter(|memory| !memory.is_empty()) {
            spec.options.tmpfs.get_or_insert_default().extend(memory);
        }
        check_targets(findings, &spec);
        memory::check(findings, &spec, self.memory_place.as_ref());
        canary::check(findings, &spec);
        replicas::check(findings, &spec);
        Some(spec)
    }

    /// Where a published port is written.
    pub fn port_span(&self, number: usize) -> Range<usize> {
        self.port_spans.get(number).cloned().unwrap_or(0..0)
    }
}

/// Longest variable, its name and the NUL included, that a program can be given: execve(2), MAX_ARG_STRLEN.
const MAX_VARIABLE: usize = 128 << 10;

/// Longest environment in all: a few of the longest variables. Programs take more, records of it get slow.
const MAX_ENVIRONMENT: usize = 256 << 10;

fn check_environment(findings: &Findings<'_>, environment: &BTreeMap<String, String>) {
    let mut total = 0usize;
    for (name, value) in environment {
        let length = name.len().saturating_add(value.len()).saturating_add(2);
        total = total.saturating_add(length);
        if length > MAX_VARIABLE {
            let message =
                format!("`environment`: `{name}` is longer than the 128 KiB that a program can be given");
            findings.error(0..0, message, None);
        }
    }
    if total > MAX_ENVIRONMENT {
        let message = format!("`environment`, with `env_file`, has {total} bytes; up to 256 KiB are taken");
        findings.error(0..0, message, None);
    }
}

/// What comes and goes serves nobody, and ends by itself.
fn check_schedule(findings: &Findings<'_>, spec: &Declared, restart: Option<RestartPolicy>) {
    if spec.schedule.is_none() {
        return;
    }
    let restarts = restart.is_some_and(|restart| restart != RestartPolicy::No);
    for (key, wrong) in [
        ("ports", !spec.ports.is_empty()),
        ("healthcheck", spec.healthcheck.is_some()),
        ("restart", restarts),
    ] {
        if wrong {
            let hint = Some(format!("leave `{key}` out: a run that fails is told, and the next one comes"));
            findings.error(0..0, format!("`{key}` does not go with `schedule`"), hint);
        }
    }
}

/// Across layers what [`super::options`] looks for in each, which has been told with its place.
fn check_users(findings: &Findings<'_>, spec: &Declared) {
    if let Some(message) = foreign_to_its_users(&spec.options).filter(|_| !findings.has_errors()) {
        findings.error(0..0, message, Some("userns_mode = \"host\"".to_owned()));
    }
}

/// Two things at one place of the container: one of them would not be seen.
fn check_targets(findings: &Findings<'_>, spec: &Declared) {
    let volumes = spec.volumes.iter().map(|volume| volume.target.as_path());
    let configs = spec.configs.iter().map(|config| config.target.as_path());
    let secrets = spec.secrets.iter().map(|secret| secret.target.as_path());
    let memory = spec.options.tmpfs.iter().flatten().map(|tmpfs| tmpfs.target.as_path());
    // What is wrong within one of them has been told with its place.
    if findings.has_errors() {
        return;
    }
    if let Some(target) = configs::doubled(volumes.chain(configs).chain(secrets).chain(memory)) {
        let message =
            format!("two of `volumes`, `configs`, `secrets` and `tmpfs` go to {}", target.display());
        findings.error(0..0, message, None);
    }
}
