//! The OCI configuration of a container. Pure: from what was asked for to the JSON that the runtime reads.
//!
//! Source: OCI runtime-spec, config.md and config-linux.md. Everything that matters for safety is spelled out, as the
//! library's defaults are not those of Docker and Podman.

use std::path::Path;

use serde_json::{Value, json};

use super::launch::Launch;
use super::user::Identity;

/// What a process may do beyond its user's rights: the default set of Podman 4.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

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
    let files = (*file_limit).min(MAX_FILES);
    // The library mounts v1 hierarchies writable whatever the options say: a container could lift its own limits.
    let v1 = v1_cgroups.iter().map(|name| format!("/sys/fs/cgroup/{name}"));
    let v1 = v1_cgroups.first().map(|_| "/sys/fs/cgroup".to_owned()).into_iter().chain(v1);
    let read_only: Vec<String> = READ_ONLY.iter().map(|path| (*path).to_owned()).chain(v1).collect();
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": false },
        "hostname": launch.id.service,
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
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": files, "hard": files }],
            "noNewPrivileges": true,
            // The agent itself may be set to survive a lack of memory; that is no right of its containers.
            "oomScoreAdj": 0,
        },
        "mounts": mounts(binds),
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
            // As Docker does: the ports below 1024 are the container's own, not the host's.
            "sysctl": { "net.ipv4.ip_unprivileged_port_start": "0" },
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
    if let Some(limit) = launch.memory.and_then(|bytes| i64::try_from(bytes).ok()) {
        resources["memory"] = json!({ "limit": limit });
    }
    if let Some(milli) = launch.milli_cpus {
        let quota = (u64::from(milli) * CPU_PERIOD / 1000).max(MIN_CPU_QUOTA);
        resources["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD });
    }
    if let Some(limit) = launch.pids {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

fn mounts(binds: &[BindMount]) -> Vec<Value> {
    let kernel = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        kernel("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        kernel("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        kernel(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        kernel("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        kernel("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        kernel("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    let mut binds: Vec<_> = binds.iter().collect();
    // A volume inside another one has to come after it, however they are listed.
    binds.sort_by_key(|bind| bind.target.components().count());
    mounts.extend(binds.into_iter().map(|bind| {
        let mut options = vec!["rbind", "rprivate", "rnodev"];
        options.extend(if bind.read_only { &["ro", "rro"][..] } else { &["rw"][..] });
        json!({ "destination": bind.target, "type": "bind", "source": bind.source, "options": options })
    }));
    mounts
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
            netns: "/run/netns/x".into(),
            layers: vec!["/l/0".into()],
            args: vec!["serve".into()],
            env: vec!["PATH=/bin".into()],
            user: String::new(),
            cwd: "/".into(),
            stop_signal: 15,
            volumes: Vec::new(),
            memory: Some(64 << 20),
            milli_cpus: Some(1500),
            pids: Some(32),
            image: "r.io/shop:1".into(),
            commit: "c".repeat(40),
        }
    }

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
        let value = config(&launch(), &around);
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
