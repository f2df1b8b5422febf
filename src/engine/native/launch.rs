//! What the agent hands to a shim, and what it hears back. Pure: from a request to the exact thing to run.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::layout::{Layout, is_volume_name};
use super::record;
use super::supervisor::Unit;
use crate::engine::{ContainerRequest, EngineError};
use crate::types::{
    Blkio, ConfigFile, InstanceId, Options, Reason, Refusal, SecretFile, VolumeMount, VolumeSource,
    check_target,
};

/// As in a Debian root shell, and in the OCI runtime's default.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `launch.json`: all that a shim needs to know. Holds the environment, so it is readable by root only.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Launch {
    /// See [`record::FORMAT`].
    pub format: u32,
    /// Names the container, its cgroup and its files.
    pub id: InstanceId,
    /// Where those files are.
    pub layout: Layout,
    /// The container's own address.
    pub address: Ipv4Addr,
    /// Network namespace to join; `None` = the host's.
    pub netns: Option<PathBuf>,
    /// Lowest first.
    pub layers: Vec<PathBuf>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// `user[:group]`; empty = root.
    pub user: String,
    /// Absolute.
    pub cwd: PathBuf,
    /// Signal number that asks it to end.
    pub stop_signal: i32,
    /// In order.
    pub volumes: Vec<VolumeMount>,
    /// Files of the config repo; of older versions none.
    #[serde(default)]
    pub configs: Vec<ConfigFile>,
    /// Secrets of the host; of older versions none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretFile>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub milli_cpus: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// What else sets it apart; of older versions nothing.
    #[serde(default)]
    pub options: Options,
    /// The program of an OCI runtime; `None` = the built-in one, as in all older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<PathBuf>,
    /// The host's number of its root, where it has a user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_id: Option<u32>,
    /// The profile of AppArmor that its processes run under; of older versions none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apparmor: Option<String>,
    /// Whether its program is given a `NOTIFY_SOCKET`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub notify: bool,
    /// For the journal: image reference.
    pub image: String,
    /// For the journal: the image's digest; older versions did not write it.
    #[serde(default)]
    pub digest: String,
    /// For the journal: commit.
    pub commit: String,
    /// From the stop signal to SIGKILL where not the agent but the host stops it.
    #[serde(default = "default_grace")]
    pub grace: Duration,
    /// Its unit; without systemd, and of older versions, none.
    #[serde(default)]
    pub unit: Option<Unit>,
    /// Limits that it was to be given, of which it may have some: changes in place that were cut short or refused. Its
    /// last ones are above. None as soon as a change is whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<Tried>,
}

/// Limits of which it cannot be seen later whether they are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tried {
    pub memory: Option<u64>,
    pub milli_cpus: Option<u32>,
    pub pids: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blkio: Option<Blkio>,
}

impl From<&Launch> for Tried {
    fn from(launch: &Launch) -> Self {
        let Launch { memory, milli_cpus, pids, .. } = *launch;
        Self { memory, milli_cpus, pids, blkio: launch.options.blkio.clone() }
    }
}

/// As the service file has it.
fn default_grace() -> Duration {
    Duration::from_secs(10)
}

/// What a shim writes on the pipe of its report, before that, while it does something that takes long. A space, which is
/// nothing to those who read JSON: agents of older versions wait no longer for it.
pub(super) const PROGRESS: u8 = b' ';

/// What a shim says to the agent, once, as a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The program runs: execve(2) succeeded.
    Started,
    /// It does not, and nothing of it is left running.
    Failed(Refusal),
}

impl Launch {
    /// Where its control group is, below each hierarchy's mount.
    pub fn group(&self) -> PathBuf {
        match &self.unit {
            Some(unit) => unit.group.join(super::supervisor::CONTAINER),
            None => Path::new("/").join(&self.layout.instance).join(self.id.to_string()),
        }
    }

    /// Works out what to run. `netns` is where the network was attached.
    pub fn new(
        request: &ContainerRequest,
        layout: &Layout,
        netns: Option<PathBuf>,
    ) -> Result<Self, EngineError> {
        let id = &request.id;
        let fail = |what: String| EngineError::plain(Reason::StartFailed, format!("{id}: {what}"));
        let spec = &request.spec;
        let config = &request.image.config;

        let args = arguments(request);
        if args.is_empty() {
            return Err(fail("neither the service nor the image names a command".into()));
        }
        if request.image.layers.is_empty() {
            return Err(fail(format!("image {} has no layers", request.image.digest)));
        }
        let mut env = BTreeMap::new();
        for entry in config.env.iter().filter_map(|entry| entry.split_once('=')) {
            env.insert(entry.0.to_owned(), entry.1.to_owned());
        }
        env.extend(spec.environment.clone());
        if args.iter().any(|text| text.contains('\0')) || env.iter().any(|(k, v)| bad_variable(k, v)) {
            return Err(fail("a NUL in the command or the environment, or a variable without a name".into()));
        }
        let mut env: Vec<String> = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.push(DEFAULT_PATH.into());
        }
        let notify = request.one_shot.is_none() && spec.notifies();
        if notify {
            env.retain(|entry| !entry.starts_with("NOTIFY_SOCKET="));
            env.push(super::shim::NOTIFY_VARIABLE.to_owned());
        }
        let cwd = spec.working_dir.as_deref().unwrap_or(&config.working_dir);
        // Docker takes a relative WORKDIR as relative to the root.
        let cwd = Path::new("/").join(cwd);
        let signal = spec.options.stop_signal.as_ref().unwrap_or(&config.stop_signal);
        let stop_signal =
            parse_signal(signal).ok_or_else(|| fail(format!("stop signal `{signal}` is unknown")))?;
        for volume in &spec.volumes {
            check_volume(volume).map_err(&fail)?;
        }
        for config in &spec.configs {
            check_target(&config.target).map_err(|error| fail(format!("config target {error}")))?;
        }
        for secret in &spec.secrets {
            check_target(&secret.target).map_err(|error| fail(format!("secret target {error}")))?;
        }
        Ok(Self {
            format: record::FORMAT,
            id: id.clone(),
            layout: layout.clone(),
            address: request.address,
            netns,
            layers: request.image.layers.clone(),
            args,
            env,
            user: spec.user.clone().unwrap_or_else(|| config.user.clone()),
            cwd,
            stop_signal,
            volumes: spec.volumes.clone(),
            configs: spec.configs.clone(),
            secrets: spec.secrets.clone(),
            memory: spec.mem_limit.map(|size| size.0),
            milli_cpus: spec.milli_cpus,
            pids: spec.pids_limit,
            options: spec.options.clone(),
            runtime: None,
            first_id: None,
            apparmor: None,
            notify,
            image: spec.image.reference.to_string(),
            digest: request.image.digest.to_string(),
            commit: request.commit.to_string(),
            grace: spec.stop_grace_period,
            unit: None,
            tried: Vec::new(),
        })
    }
}

/// Program and arguments. As in Compose, an entrypoint of the service's own sets aside the image's command too; a
/// one-shot takes the place of the command and keeps the entrypoint.
fn arguments(request: &ContainerRequest) -> Vec<String> {
    let (spec, config) = (&request.spec, &request.image.config);
    let mut args = spec.entrypoint.as_ref().unwrap_or(&config.entrypoint).clone();
    let image_command = if spec.entrypoint.is_some() { &Vec::new() } else { &config.cmd };
    args.extend_from_slice(request.one_shot.as_ref().or(spec.command.as_ref()).unwrap_or(image_command));
    args
}

fn bad_variable(name: &str, value: &str) -> bool {
    name.is_empty() || name.contains(['\0', '=']) || value.contains('\0')
}

fn check_volume(volume: &VolumeMount) -> Result<(), String> {
    check_target(&volume.target).map_err(|error| format!("volume target {error}"))?;
    let down = |path: &Path| path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if let Some(path) = volume.subpath.as_ref().filter(|path| !down(path)) {
        return Err(format!("`{}` is not a path inside a volume", path.display()));
    }
    match &volume.source {
        VolumeSource::Named(name) if !is_volume_name(name) => Err(format!("`{name}` is not a volume name")),
        VolumeSource::Bind(path) if !path.is_absolute() => {
            Err(format!("bind source {} is not an absolute path", path.display()))
        }
        _ => Ok(()),
    }
}

/// Signal number of `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; empty = SIGTERM.
///
/// Source: OCI image-spec config.md, `StopSignal`; signal(7).
fn parse_signal(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if upper.is_empty() {
        return Some(nix::libc::SIGTERM);
    }
    let (first, last) = (nix::libc::SIGRTMIN(), nix::libc::SIGRTMAX());
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=last).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=last - first).contains(&offset).then(|| first + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse::<i32>().ok()? };
        return (0..=last - first).contains(&offset).then(|| last - offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_in_every_spelling() {
        let rtmin = nix::libc::SIGRTMIN();
        for (text, number) in [
            ("", 15),
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", rtmin + 3),
            ("RTMAX-1", nix::libc::SIGRTMAX() - 1),
        ] {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for bad in ["SIGFOO", "0", "99", "-1", "RTMIN+99", "RTMIN-1", "RTMIN3"] {
            assert_eq!(parse_signal(bad), None, "{bad}");
        }
    }

    /// As agents of older versions read it: the line as a whole.
    #[test]
    fn a_report_after_word_of_progress_is_one_to_older_versions_too() {
        let line = [&[PROGRESS; 3][..], &serde_json::to_vec(&Report::Started).unwrap(), b"\n"].concat();
        assert!(matches!(serde_json::from_slice(&line), Ok(Report::Started)));
    }

    #[test]
    fn what_an_older_version_wrote_is_read() {
        let old = r#"{"format":1,"id":"shop.7","layout":{"state_dir":"/s","run_dir":"/r","instance":"gitopsd"},
            "address":"10.98.0.2","netns":"/n","layers":["/l"],"args":["serve"],"env":[],"user":"","cwd":"/",
            "stop_signal":15,"volumes":[],"memory":null,"milli_cpus":null,"pids":null,"image":"i","commit":"c"}"#;
        let launch: Launch = serde_json::from_str(old).unwrap();
        assert_eq!((launch.digest.as_str(), launch.image.as_str()), ("", "i"));
        assert_eq!((&launch.runtime, launch.first_id, &launch.apparmor), (&None, None, &None));
        assert!(launch.options.is_default());
        assert_eq!((launch.unit.as_ref(), launch.grace), (None, Duration::from_secs(10)));
        assert_eq!(launch.group(), Path::new("/gitopsd/shop.7"), "it is where it was");
        let unit = Unit { name: "gitopsd-shop.7.service".into(), group: "/gitopsd.slice/u".into() };
        let text = serde_json::to_string(&Launch { unit: Some(unit.clone()), ..launch }).unwrap();
        let again: Launch = serde_json::from_str(&text).unwrap();
        assert_eq!((again.group().to_str(), again.unit), (Some("/gitopsd.slice/u/ctr"), Some(unit)));
    }
}
