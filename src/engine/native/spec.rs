//! The OCI configuration of a container. Pure: from what was asked for to the JSON that the runtime reads.
//!
//! Source: OCI runtime-spec, config.md and config-linux.md. Everything that matters for safety is spelled out, as the
//! library's defaults are not those of Docker and Podman.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::launch::Launch;
use super::limits::{self, Device};
use super::rights;
use super::user::Identity;
use crate::types::{ByteSize, NetworkMode, Options, Tmpfs};

/// Kernel interfaces that show or change the host.
pub(super) const MASKED: [&CStr; 12] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/interrupts",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/sys/devices/virtual/powercap",
    c"/sys/firmware",
];

/// Kernel interfaces that may be read.
pub(super) const READ_ONLY: [&CStr; 5] =
    [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

/// Bytes of `/dev/shm` where a service says nothing, as Docker has it.
const SHM_SIZE: u64 = 64 << 20;

/// A file or directory of the host, seen in the container.
#[derive(Debug, Clone)]
pub(super) struct BindMount {
    /// On the host, resolved already.
    pub source: std::path::PathBuf,
    /// In the container.
    pub target: std::path::PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// What the configuration depends on beside the request: the host and the image's files.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    /// Where the root is mounted.
    pub rootfs: &'a Path,
    /// Who the program runs as.
    pub identity: &'a Identity,
    /// Volumes and generated files.
    pub binds: &'a [BindMount],
    /// Devices of the host that it may use.
    pub devices: &'a [Device],
    /// The most open files that this host lets us allow.
    pub file_limit: u64,
    /// See [`super::cgroup::Cgroups::v1_names`].
    pub v1_cgroups: &'a [String],
}

/// Writes the configuration.
///
/// # Errors
/// A disk that the service names is not there.
pub(super) fn config(launch: &Launch, around: &Surroundings<'_>) -> io::Result<Value> {
    let Surroundings { rootfs, identity, binds, devices, file_limit, v1_cgroups } = around;
    let options = &launch.options;
    let privileged = options.privileged == Some(true);
    let capabilities = rights::capabilities(options);
    // The library mounts v1 hierarchies writable whatever the options say: a container could lift its own limits.
    let v1 = v1_cgroups.iter().map(|name| format!("/sys/fs/cgroup/{name}"));
    let v1 = v1_cgroups.first().map(|_| "/sys/fs/cgroup".to_owned()).into_iter().chain(v1);
    let read_only: Vec<String> = texts(&READ_ONLY).chain(v1).collect();
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": options.read_only == Some(true) },
        "hostname": hostname(launch),
        "process": {
            "terminal": false,
            "user": {
                "uid": identity.uid,
                "gid": identity.gid,
                "additionalGids": identity.groups,
                "umask": 0o022,
            },
            "args": launch.args,
            "env": environment(launch, identity),
            "cwd": launch.cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": limits::rlimits(options, *file_limit),
            "noNewPrivileges": true,
            // The agent itself may be set to survive a lack of memory; that is no right of its containers.
            "oomScoreAdj": options.oom_score_adj.unwrap_or(0),
        },
        "mounts": mounts(options, binds),
        "linux": {
            "cgroupsPath": launch.group(),
            "namespaces": namespaces(launch),
            "resources": limits::resources(launch, devices)?,
            "devices": devices.iter().map(device).collect::<Vec<_>>(),
            "sysctl": sysctls(options),
            "maskedPaths": texts(&MASKED).collect::<Vec<_>>(),
            "readonlyPaths": read_only,
            // Before anything is mounted: a mount(2) that binds takes no propagation, and what systemd shares would come in later.
            "rootfsPropagation": "private",
        },
    });
    if privileged {
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
    }
    if let Some(profile) = &launch.apparmor {
        config["process"]["apparmorProfile"] = profile.as_str().into();
    }
    if let Some(name) = &options.domainname {
        config["domainname"] = name.as_str().into();
    }
    Ok(config)
}

fn texts(paths: &[&'static CStr]) -> impl Iterator<Item = String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned())
}

/// What every program may count on, beside what service and image say. Source: environ(7); Docker and Podman set both.
fn environment(launch: &Launch, identity: &Identity) -> Vec<String> {
    let mut env = launch.env.clone();
    for (name, value) in [("HOME", identity.home.as_str()), ("HOSTNAME", hostname(launch))] {
        let said = |entry: &String| entry.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        if !env.iter().any(said) {
            env.push(format!("{name}={value}"));
        }
    }
    env
}

fn hostname(launch: &Launch) -> &str {
    launch.options.hostname.as_deref().unwrap_or(launch.id.service.as_str())
}

fn namespaces(launch: &Launch) -> Vec<Value> {
    let mut namespaces =
        vec![json!({ "type": "mount" }), json!({ "type": "uts" }), json!({ "type": "cgroup" })];
    if let Some(path) = &launch.netns {
        namespaces.push(json!({ "type": "network", "path": path }));
    }
    if launch.options.host_pid != Some(true) {
        namespaces.push(json!({ "type": "pid" }));
    }
    if launch.options.host_ipc != Some(true) {
        namespaces.push(json!({ "type": "ipc" }));
    }
    namespaces
}

fn sysctls(options: &Options) -> BTreeMap<&str, &str> {
    let mut sysctls = BTreeMap::new();
    // As Docker does: the ports below 1024 are the container's own, unless they are the host's, and so is asking who is there.
    if !options.network_mode.as_ref().is_some_and(NetworkMode::is_shared) {
        sysctls.insert("net.ipv4.ip_unprivileged_port_start", "0");
        sysctls.insert("net.ipv4.ping_group_range", "0 2147483647");
    }
    sysctls.extend(options.sysctls.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())));
    sysctls
}

fn device(device: &Device) -> Value {
    let Device { target, kind, major, minor, mode, uid, gid, .. } = device;
    json!({
        "path": target, "type": kind, "major": major, "minor": minor,
        "fileMode": mode, "uid": uid, "gid": gid,
    })
}

/// Where volumes and generated files go is sorted, so that an outer one never hides an inner one.
fn mounts(options: &Options, binds: &[BindMount]) -> Vec<Value> {
    let kernel = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let shm = options.shm_size.map_or(SHM_SIZE, |size| size.0);
    let access = if options.privileged == Some(true) { "rw" } else { "ro" };
    let mut mounts = vec![
        kernel("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        kernel("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        kernel(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        if options.host_ipc == Some(true) {
            // Shared memory by POSIX's names is files there: shm_overview(7).
            let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev"];
            json!({ "destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": options })
        } else {
            kernel("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &format!("size={shm}")])
        },
        kernel("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        kernel("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    let mut ours: Vec<(&Path, Value)> = binds
        .iter()
        .map(|bind| {
            let mut options = vec!["rbind", "rprivate", "rnodev"];
            options.extend(if bind.read_only { &["ro", "rro"][..] } else { &["rw"][..] });
            let mount =
                json!({ "destination": bind.target, "type": "bind", "source": bind.source, "options": options });
            (bind.target.as_path(), mount)
        })
        .collect();
    ours.extend(options.tmpfs.iter().flatten().map(|tmpfs| (tmpfs.target.as_path(), memory(tmpfs))));
    ours.sort_by_key(|(target, _)| target.components().count());
    mounts.extend(ours.into_iter().map(|(_, mount)| mount));
    mounts
}

fn memory(tmpfs: &Tmpfs) -> Value {
    // As Docker has it; what a service says comes later and wins.
    let mut options: Vec<String> = ["nosuid", "nodev", "noexec", "mode=1777"].map(str::to_owned).into();
    for option in &tmpfs.options {
        let size = option.strip_prefix("size=").and_then(|text| text.parse::<ByteSize>().ok());
        options.push(size.map_or_else(|| option.clone(), |size| format!("size={}", size.0)));
    }
    json!({ "destination": tmpfs.target, "type": "tmpfs", "source": "tmpfs", "options": options })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::native::layout::Layout;

    fn launch() -> Launch {
        Launch {
            format: 1,
            id: "shop.7".parse().unwrap(),
            layout: Layout { state_dir: "/s".into(), run_dir: "/r".into(), instance: "gitopsd".into() },
            address: [10, 98, 0, 2].into(),
            netns: Some("/run/netns/x".into()),
            layers: vec!["/l/0".into()],
            args: vec!["serve".into()],
            env: vec!["PATH=/bin".into()],
            user: String::new(),
            cwd: "/".into(),
            stop_signal: 15,
            volumes: Vec::new(),
            configs: Vec::new(),
            secrets: Vec::new(),
            memory: Some(64 << 20),
            milli_cpus: Some(1500),
            pids: Some(32),
            options: Options::default(),
            runtime: None,
            first_id: None,
            apparmor: None,
            notify: false,
            image: "r.io/shop:1".into(),
            digest: String::new(),
            commit: "c".repeat(40),
            grace: std::time::Duration::ZERO,
            unit: None,
            tried: Vec::new(),
        }
    }

    #[test]
    fn the_runtime_takes_it_and_no_right_is_left_by_default() {
        let identity = Identity { uid: 1000, gid: 1001, groups: vec![10], home: "/home/app".into() };
        let binds = [
            BindMount { source: "/a".into(), target: "/data/inner".into(), read_only: true },
            BindMount { source: "/b".into(), target: "/data".into(), read_only: false },
        ];
        let around = Surroundings {
            rootfs: Path::new("/s/rootfs"),
            identity: &identity,
            binds: &binds,
            devices: &[],
            file_limit: 20_000,
            v1_cgroups: &["memory".into()],
        };
        let value = config(&launch(), &around).unwrap();
        let read_only = value["linux"]["readonlyPaths"].as_array().unwrap();
        assert!(read_only.contains(&"/sys/fs/cgroup/memory".into()));
        let spec: oci_spec::runtime::Spec = serde_json::from_value(value.clone()).unwrap();
        let process = spec.process().as_ref().unwrap();
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 11);
        for empty in [capabilities.inheritable(), capabilities.ambient()] {
            assert!(empty.as_ref().unwrap().is_empty());
        }
        assert_eq!(process.no_new_privileges(), Some(true));
        let env = process.env().as_ref().unwrap();
        assert_eq!(*env, ["PATH=/bin", "HOME=/home/app", "HOSTNAME=shop"]);
        assert_eq!(process.rlimits().as_ref().unwrap()[0].hard(), 20_000);
        assert_eq!(value["linux"]["resources"]["cpu"]["quota"], 150_000);
        let targets: Vec<_> =
            spec.mounts().as_ref().unwrap().iter().map(|m| m.destination().clone()).collect();
        let at = |path: &str| targets.iter().position(|target| target == Path::new(path)).unwrap();
        assert!(at("/data") < at("/data/inner"), "the outer mount would hide the inner one");
    }
}
