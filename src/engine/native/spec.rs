//! The OCI configuration of a container. Pure: from what was asked for to the JSON that the runtime reads.
//!
//! Source: OCI runtime-spec, config.md and config-linux.md. Everything that matters for safety is spelled out, as the
//! library's defaults are not those of Docker and Podman.

use std::path::Path;

use serde_json::{Value, json};

use super::fitting;
use super::launch::Launch;
use super::user::Identity;
use crate::types::{ByteSize, Container};

/// Kernel interfaces that show or change the host.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Kernel interfaces that may be read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Files that a process may have open, where the host allows as many.
const MAX_FILES: u64 = 1 << 20;

/// As Docker has it.
const SHM_SIZE: u64 = 64 << 20;

/// Microseconds over which a share of the processors is counted. Source: cgroup-v2.rst, `cpu.max`.
const CPU_PERIOD: u64 = 100_000;
/// The kernel takes no smaller quota.
const MIN_CPU_QUOTA: u64 = 1_000;

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
    /// The most open files that this host lets us allow.
    pub file_limit: u64,
    /// See [`super::cgroup::Cgroups::v1_names`].
    pub v1_cgroups: &'a [String],
}

/// Writes the configuration.
pub(super) fn config(launch: &Launch, around: &Surroundings<'_>) -> Value {
    let Surroundings { rootfs, identity, binds, file_limit, v1_cgroups } = around;
    let container = &launch.container;
    let capabilities = fitting::capabilities(container);
    // The library mounts v1 hierarchies writable whatever the options say: a container could lift its own limits.
    let v1 = v1_cgroups.iter().map(|name| format!("/sys/fs/cgroup/{name}"));
    let v1 = v1_cgroups.first().map(|_| "/sys/fs/cgroup".to_owned()).into_iter().chain(v1);
    let read_only: Vec<String> = READ_ONLY.iter().map(|path| (*path).to_owned()).chain(v1).collect();
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": container.read_only.unwrap_or(false) },
        "hostname": fitting::hostname(launch),
        "process": {
            "terminal": false,
            "user": {
                "uid": identity.uid,
                "gid": identity.gid,
                "additionalGids": identity.groups,
                "umask": 0o022,
            },
            "args": launch.args,
            "env": launch.env,
            "cwd": launch.cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": fitting::limits(container, (*file_limit).min(MAX_FILES)),
            "noNewPrivileges": true,
            // The agent itself may be set to survive a lack of memory; that is no right of its containers.
            "oomScoreAdj": container.oom_score_adj.unwrap_or(0),
        },
        "mounts": mounts(container, binds),
        "linux": {
            "cgroupsPath": format!("/{}/{}", launch.layout.instance, launch.id),
            "namespaces": [
                { "type": "pid" },
                { "type": "mount" },
                { "type": "uts" },
                { "type": "ipc" },
                { "type": "cgroup" },
                { "type": "network", "path": launch.netns },
            ],
            "resources": resources(launch),
            "sysctl": fitting::sysctls(container),
            "maskedPaths": MASKED,
            "readonlyPaths": read_only,
        },
    })
}

fn resources(launch: &Launch) -> Value {
    let mut resources = json!({
        // v1 only: the standard devices are allowed by the runtime. On v2 the missing CAP_MKNOD and `nodev` do the same.
        "devices": [{ "allow": false, "access": "rwm" }],
    });
    let bytes = |size: Option<ByteSize>| size.and_then(|size| i64::try_from(size.0).ok());
    let container = &launch.container;
    for (key, value) in [
        ("limit", bytes(launch.memory.map(ByteSize))),
        ("swap", bytes(container.memswap_limit)),
        ("reservation", bytes(container.mem_reservation)),
    ] {
        if let Some(value) = value {
            resources["memory"][key] = json!(value);
        }
    }
    if let Some(milli) = launch.milli_cpus {
        let quota = (u64::from(milli) * CPU_PERIOD / 1000).max(MIN_CPU_QUOTA);
        resources["cpu"]["quota"] = json!(quota);
        resources["cpu"]["period"] = json!(CPU_PERIOD);
    }
    if let Some(shares) = container.cpu_shares {
        resources["cpu"]["shares"] = json!(shares);
    }
    if let Some(processors) = &container.cpuset {
        resources["cpu"]["cpus"] = json!(processors);
    }
    if let Some(limit) = launch.pids {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

fn mounts(container: &Container, binds: &[BindMount]) -> Vec<Value> {
    let shm = format!("size={}", container.shm_size.map_or(SHM_SIZE, |size| size.0));
    let kernel = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        kernel("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        kernel("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        kernel(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        kernel("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        kernel("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        kernel("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    let mut own: Vec<(&Path, Value)> = container.tmpfs.iter().flatten().map(fitting::tmpfs).collect();
    own.extend(binds.iter().map(|bind| {
        let mut options = vec!["rbind", "rprivate", "rnodev"];
        options.extend(if bind.read_only { &["ro", "rro"][..] } else { &["rw"][..] });
        let mount =
            json!({ "destination": bind.target, "type": "bind", "source": bind.source, "options": options });
        (bind.target.as_path(), mount)
    }));
    // One inside another has to come after it, however they are listed.
    own.sort_by_key(|(target, _)| target.components().count());
    mounts.extend(own.into_iter().map(|(_, mount)| mount));
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_takes_it_and_no_right_is_left_by_default() {
        let identity = Identity { uid: 1000, gid: 1001, groups: vec![10] };
        let binds = [
            BindMount { source: "/a".into(), target: "/data/inner".into(), read_only: true },
            BindMount { source: "/b".into(), target: "/data".into(), read_only: false },
        ];
        let around = Surroundings {
            rootfs: Path::new("/s/rootfs"),
            identity: &identity,
            binds: &binds,
            file_limit: 20_000,
            v1_cgroups: &["memory".into()],
        };
        let value = config(&Launch::sample("shop.7"), &around);
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
        assert_eq!(process.rlimits().as_ref().unwrap()[0].hard(), 20_000);
        assert_eq!(value["linux"]["resources"]["cpu"]["quota"], 150_000);
        let targets: Vec<_> =
            spec.mounts().as_ref().unwrap().iter().map(|m| m.destination().clone()).collect();
        let at = |path: &str| targets.iter().position(|target| target == Path::new(path)).unwrap();
        assert!(at("/data") < at("/data/inner"), "the outer mount would hide the inner one");
    }
}
