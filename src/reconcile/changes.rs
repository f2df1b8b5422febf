//! Which change of a declaration needs a new generation, and which a running container takes over.
//!
//! What the container sees (its files, its environment, its program, its namespaces) is never changed under it: that is
//! a new generation. What is around it (limits, published ports, health check, how it is deployed) is changed in place.
//! This is the one table of that; it takes the declaration apart without `..`, so that a new field does not compile until
//! somebody decides.

use std::fmt::{self, Display};

use super::record::Spec;
use crate::types::{Declared, Deploy, Options, PortMapping, Protocol, SecretFile, ServiceSpec, plural};

/// How a change of one key comes into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// By a new generation.
    NewGeneration,
    /// In the running container's control group.
    Limits,
    /// In the rules that lead to it.
    Ports,
    /// By telling what ends it when the host goes down.
    Supervisor,
    /// By further containers, or fewer.
    Replicas,
    /// By being known: whoever reads it next reads the new one.
    Settings,
}

impl How {
    /// The word in `gitopsd plan --json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::NewGeneration => "new-generation",
            Self::Limits | Self::Ports | Self::Supervisor | Self::Replicas | Self::Settings => "live",
        }
    }

    /// Why.
    pub fn why(self) -> &'static str {
        match self {
            Self::NewGeneration => "the container sees it",
            Self::Limits => "a limit of its control group",
            Self::Ports => "a rule of the host",
            Self::Supervisor => "read when it is stopped",
            Self::Replicas => "further containers, or fewer",
            Self::Settings => "the container does not see it",
        }
    }
}

/// One key that two declarations have differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// As in the service file.
    pub key: &'static str,
    /// How it comes into force.
    pub how: How,
    /// What it was and what it is to be, where that fits on a line and tells no secret.
    pub values: Option<(String, String)>,
    /// What people read instead of the key, where that says more.
    pub said: Option<String>,
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.said, &self.values) {
            (Some(said), _) => f.write_str(said),
            (None, Some((from, to))) => write!(f, "{} {from} -> {to}", self.key),
            (None, None) => f.write_str(self.key),
        }
    }
}

impl Difference {
    /// Whether something of the host is to be made anew for it.
    pub fn touches(&self) -> bool {
        matches!(self.how, How::Limits | How::Ports | How::Supervisor)
    }
}

/// What a change comes to, in a line: `new generation: image; live: mem_limit 256m -> 512m`. With a new generation, the
/// rest comes with it.
pub fn summary(differences: &[Difference]) -> String {
    let (new, live): (Vec<_>, Vec<_>) = differences.iter().partition(|it| it.how == How::NewGeneration);
    let part = |word: &str, part: Vec<&Difference>| match part.is_empty() {
        true => None,
        false => Some(format!("{word}: {}", listed(part))),
    };
    let live_word = if new.is_empty() { "live" } else { "with it" };
    let parts = [part("new generation", new), part(live_word, live)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Several, as people read them.
pub fn listed<'a>(differences: impl IntoIterator<Item = &'a Difference>) -> String {
    let all: Vec<String> = differences.into_iter().map(Difference::to_string).collect();
    all.join(", ")
}

/// What differs between what runs and what is wanted. The same bytes under another name are no other container.
pub fn between(before: &Spec, after: &Spec) -> Vec<Difference> {
    let (from, to) = (&before.image, &after.image);
    let how = if from.digest == to.digest { How::Settings } else { How::NewGeneration };
    let image = (from != to).then(|| {
        let names = (from.reference.to_string(), to.reference.to_string());
        let values = if names.0 == names.1 {
            // The tag was moved, and a commit asked again what it stands for.
            (from.digest.to_string(), to.digest.to_string())
        } else {
            names
        };
        Difference { key: "image", how, values: Some(values), said: None }
    });
    image.into_iter().chain(rest(before, after)).collect()
}

/// What is said of a new generation where nothing but contents of secrets differs: no commit asked for it.
pub fn of_the_host(before: &Spec, after: &Spec) -> Option<String> {
    match &between(before, after)[..] {
        [Difference { said, .. }] => said.clone(),
        _ => None,
    }
}

/// What differs where tags were not looked up: another name counts as another image.
pub fn between_declared(before: &Declared, after: &Declared) -> Vec<Difference> {
    let image = (before.image != after.image).then(|| {
        let values = Some((before.image.to_string(), after.image.to_string()));
        Difference { key: "image", how: How::NewGeneration, values, said: None }
    });
    image.into_iter().chain(rest(before, after)).collect()
}

/// Whether some of them can only come into force with a new generation.
pub fn need_new_generation(differences: &[Difference]) -> bool {
    differences.iter().any(|difference| difference.how == How::NewGeneration)
}

/// Collects what differs.
struct Table(Vec<Difference>);

impl Table {
    fn add<T: PartialEq>(&mut self, key: &'static str, how: How, from: &T, to: &T) {
        if from != to {
            self.0.push(Difference { key, how, values: None, said: None });
        }
    }

    /// The same, with its values; `none` stands for nothing.
    fn tell<T: PartialEq>(
        &mut self,
        key: &'static str,
        how: How,
        (from, to): (&Option<T>, &Option<T>),
        none: &str,
        show: impl Fn(&T) -> String,
    ) {
        if from != to {
            let text = |value: &Option<T>| value.as_ref().map_or_else(|| none.to_owned(), &show);
            let values = Some((text(from), text(to)));
            self.0.push(Difference { key, how, values, said: None });
        }
    }
}

/// All but the image.
fn rest<I>(before: &ServiceSpec<I>, after: &ServiceSpec<I>) -> Vec<Difference> {
    let ServiceSpec {
        image: _, // the callers' part
        fallback,
        entrypoint,
        command,
        environment,
        user,
        working_dir,
        ports,
        volumes,
        configs,
        secrets,
        depends_on,
        restart,
        schedule,
        stop_grace_period,
        mem_limit,
        milli_cpus,
        pids_limit,
        options,
        healthcheck,
        deploy,
    } = before;
    let mut table = Table(Vec::new());
    let t = &mut table;
    // Only where the image comes from: the same bytes.
    t.add("fallback", How::Settings, fallback, &after.fallback);
    t.add("entrypoint", How::NewGeneration, entrypoint, &after.entrypoint);
    t.add("command", How::NewGeneration, command, &after.command);
    // Of files too (`env_file`): they are read into it.
    t.add("environment", How::NewGeneration, environment, &after.environment);
    t.add("user", How::NewGeneration, user, &after.user);
    t.add("working_dir", How::NewGeneration, working_dir, &after.working_dir);
    if *ports != after.ports {
        let how = if are_proved(before, after) { How::Ports } else { How::NewGeneration };
        let values = Some((shown(ports), shown(&after.ports)));
        t.0.push(Difference { key: "ports", how, values, said: None });
    }
    t.add("volumes", How::NewGeneration, volumes, &after.volumes);
    // With their contents, by digest.
    t.add("configs", How::NewGeneration, configs, &after.configs);
    if *secrets != after.secrets {
        let said = other_contents(secrets, &after.secrets);
        t.0.push(Difference { key: "secrets", how: How::NewGeneration, values: None, said });
    }
    // Only the order of starts.
    t.add("depends_on", How::Settings, depends_on, &after.depends_on);
    // Read when it has ended.
    t.tell("restart", How::Settings, (&Some(*restart), &Some(after.restart)), "", ToString::to_string);
    // One that has none runs all the time; another time counts from now on.
    let how = if schedule.is_some() == after.schedule.is_some() { How::Settings } else { How::NewGeneration };
    t.add("schedule", how, schedule, &after.schedule);
    let times = (&Some(*stop_grace_period), &Some(after.stop_grace_period));
    t.tell("stop_grace_period", How::Supervisor, times, "", |time| crate::types::format_duration(*time));
    t.tell("mem_limit", How::Limits, (mem_limit, &after.mem_limit), "none", ToString::to_string);
    t.tell("cpus", How::Limits, (milli_cpus, &after.milli_cpus), "none", |milli| {
        (f64::from(*milli) / 1000.0).to_string()
    });
    t.tell("pids_limit", How::Limits, (pids_limit, &after.pids_limit), "none", ToString::to_string);
    of_options(t, options, &after.options);
    // Read by the probes, which begin anew; of `notify` the program is told when it starts.
    let how = if before.notifies() == after.notifies() { How::Settings } else { How::NewGeneration };
    t.add("healthcheck", how, healthcheck, &after.healthcheck);
    // Read by the next rollout.
    let but_replicas = |deploy: &Deploy| Deploy { replicas: 1, ..deploy.clone() };
    t.add("deploy", How::Settings, &but_replicas(deploy), &but_replicas(&after.deploy));
    // Containers come and go beside those that run.
    let counts = (&Some(deploy.replicas), &Some(after.deploy.replicas));
    t.tell("replicas", How::Replicas, counts, "", ToString::to_string);
    table.0
}

fn of_options(t: &mut Table, before: &Options, after: &Options) {
    let Options {
        group_add,
        hostname,
        domainname,
        extra_hosts,
        dns,
        dns_search,
        dns_opt,
        cap_add,
        cap_drop,
        unconfined,
        without_apparmor,
        privileged,
        devices,
        sysctls,
        ulimits,
        shm_size,
        tmpfs,
        read_only,
        init,
        stop_signal,
        memswap_limit,
        mem_reservation,
        cpuset,
        cpu_shares,
        oom_score_adj,
        blkio,
        labels,
        logging,
        host_pid,
        host_ipc,
        network_mode,
        networks,
        user_namespace,
        expose,
    } = before;
    let new = How::NewGeneration;
    t.add("group_add", new, group_add, &after.group_add);
    t.add("hostname", new, hostname, &after.hostname);
    t.add("domainname", new, domainname, &after.domainname);
    t.add("extra_hosts", new, extra_hosts, &after.extra_hosts);
    t.add("dns", new, dns, &after.dns);
    t.add("dns_search", new, dns_search, &after.dns_search);
    t.add("dns_opt", new, dns_opt, &after.dns_opt);
    t.add("cap_add", new, cap_add, &after.cap_add);
    t.add("cap_drop", new, cap_drop, &after.cap_drop);
    let confined = (unconfined, without_apparmor);
    t.add("security_opt", new, &confined, &(&after.unconfined, &after.without_apparmor));
    t.add("privileged", new, privileged, &after.privileged);
    t.add("devices", new, devices, &after.devices);
    t.add("sysctls", new, sysctls, &after.sysctls);
    // Of processes, not of the group: those that run keep theirs.
    t.add("ulimits", new, ulimits, &after.ulimits);
    t.add("oom_score_adj", new, oom_score_adj, &after.oom_score_adj);
    t.add("shm_size", new, shm_size, &after.shm_size);
    t.add("tmpfs", new, tmpfs, &after.tmpfs);
    t.add("read_only", new, read_only, &after.read_only);
    t.add("init", new, init, &after.init);
    // Its supervisor reads these two once, and may be of an older version.
    t.add("stop_signal", new, stop_signal, &after.stop_signal);
    t.add("logging", new, logging, &after.logging);
    let swap = |limit: &i64| match u64::try_from(*limit) {
        Ok(bytes) => crate::types::ByteSize(bytes).to_string(),
        Err(_) => "-1".to_owned(),
    };
    let limits = How::Limits;
    t.tell("memswap_limit", limits, (memswap_limit, &after.memswap_limit), "default", swap);
    let reserved = (mem_reservation, &after.mem_reservation);
    t.tell("mem_reservation", limits, reserved, "none", ToString::to_string);
    t.tell("cpuset", limits, (cpuset, &after.cpuset), "all", Clone::clone);
    t.tell("cpu_shares", limits, (cpu_shares, &after.cpu_shares), "default", ToString::to_string);
    t.add("blkio_config", limits, blkio, &after.blkio);
    t.add("labels", How::Settings, labels, &after.labels);
    t.add("pid", new, host_pid, &after.host_pid);
    t.add("ipc", new, host_ipc, &after.host_ipc);
    t.add("network_mode", new, network_mode, &after.network_mode);
    t.add("networks", new, networks, &after.networks);
    t.add("userns_mode", new, user_namespace, &after.user_namespace);
    // Only for people.
    t.add("expose", How::Settings, expose, &after.expose);
}

/// Whether the container was asked on every port that is to lead to it. Without a health check of its own it is judged
/// by the ports that it publishes: one that was never asked is proved by a new generation first.
fn are_proved<I>(before: &ServiceSpec<I>, after: &ServiceSpec<I>) -> bool {
    let asked = |port: &PortMapping| {
        let same =
            |old: &PortMapping| old.container_port == port.container_port && old.protocol == port.protocol;
        port.protocol != Protocol::Tcp || before.ports.iter().any(same)
    };
    (before.healthcheck.is_some() && after.healthcheck.is_some()) || after.ports.iter().all(asked)
}

/// Which secrets have another content, where nothing else of them differs; nothing of what they hold.
fn other_contents(before: &[SecretFile], after: &[SecretFile]) -> Option<String> {
    let declared = |files: &[SecretFile]| -> Vec<SecretFile> {
        files.iter().map(|file| SecretFile { content: None, ..file.clone() }).collect()
    };
    if declared(before) != declared(after) {
        return None;
    }
    let others = before.iter().zip(after).filter(|(before, after)| before.content != after.content);
    let mut names: Vec<String> = others.map(|(_, after)| format!("`{}`", after.source)).collect();
    names.sort();
    names.dedup();
    Some(format!("{} {} changed", if names.len() == 1 { "secret" } else { "secrets" }, names.join(", ")))
}

fn shown(ports: &[PortMapping]) -> String {
    const FEW: usize = 3;
    match ports.len() {
        0 => "none".to_owned(),
        1..=FEW => ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        many => plural(many, "port", "ports"),
    }
}

#[cfg(test)]
mod tests;
