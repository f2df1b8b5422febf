//! How a container differs from the default one: the keys of a Compose service beside image, command and volumes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ByteSize, NetworkLink, NetworkMode, NetworkName, Protocol};

/// What a service file says of its container. `None` = nothing: the engine's default. The same type serves as one
/// layer of configuration and as what all layers together make.
///
/// A new field has to be thought about in `reconcile::changes`, which takes it apart without `..`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Further groups, names or numbers of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_add: Option<Vec<String>>,
    /// Instead of the service's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NIS domain name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Lines for `/etc/hosts`: name and address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_hosts: Option<Vec<(String, IpAddr)>>,
    /// Resolvers instead of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<IpAddr>>,
    /// `search` of resolv.conf(5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_search: Option<Vec<String>>,
    /// `options` of resolv.conf(5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_opt: Option<Vec<String>>,
    /// Capabilities beyond the default set, as `CAP_NET_ADMIN`, or `ALL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_add: Option<Vec<String>>,
    /// Capabilities taken from the default set, or `ALL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_drop: Option<Vec<String>>,
    /// Whether system calls are not filtered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unconfined: Option<bool>,
    /// Whether its processes are under no profile of AppArmor. Said together with the one before, by `security_opt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_apparmor: Option<bool>,
    /// Every capability and device, no filter, nothing masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileged: Option<bool>,
    /// Devices of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<DeviceMapping>>,
    /// Kernel parameters of the container's own namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sysctls: Option<BTreeMap<String, String>>,
    /// Resource limits by their names in Compose: soft and hard; -1 = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ulimits: Option<BTreeMap<String, (i64, i64)>>,
    /// Size of `/dev/shm`; `None` = 64 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// File systems in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<Vec<Tmpfs>>,
    /// Whether the image's files cannot be written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Whether a small first process reaps children and passes signals on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Name or number, instead of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Memory and swap together, bytes; -1 = no limit of swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memswap_limit: Option<i64>,
    /// Memory that is left to it while the host is short of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_reservation: Option<ByteSize>,
    /// Processors it may run on, as `0-2,4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// Weight beside others when processors are short; 1024 is the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// From -1000 (never killed for want of memory) to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Limits of disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blkio: Option<Blkio>,
    /// Marks for people and tools; the container does not see them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// How much of its output is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<LogLimits>,
    /// Whether it sees the host's processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_pid: Option<bool>,
    /// Whether it shares the host's System V IPC and message queues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_ipc: Option<bool>,
    /// Whose network it has. `Bridge` only in one layer of configuration: what all make says `None` for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<NetworkMode>,
    /// The networks it is on. `None`: the default one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<BTreeMap<NetworkName, NetworkLink>>,
    /// Whether its users are others on the host: it has a user namespace with numbers of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<bool>,
    /// Ports it listens on; only for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expose: Option<Vec<(u16, Protocol)>>,
}

/// A device of the host in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceMapping {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Of `r`, `w` and `m`.
    pub access: String,
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Mount options: `size=…`, `mode=…`, `uid=…`, `gid=…`, `ro`, `exec`, `suid`.
    pub options: Vec<String>,
}

/// Limits of disks. Source: cgroup-v2.rst, "IO".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Blkio {
    /// 10 to 1000; 500 is the usual one.
    pub weight: Option<u16>,
    /// Device of the host and bytes a second.
    pub read_bps: Vec<(PathBuf, u64)>,
    /// Device of the host and bytes a second.
    pub write_bps: Vec<(PathBuf, u64)>,
    /// Device of the host and operations a second.
    pub read_iops: Vec<(PathBuf, u64)>,
    /// Device of the host and operations a second.
    pub write_iops: Vec<(PathBuf, u64)>,
}

/// How much of a container's output is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogLimits {
    /// Bytes of one file.
    pub max_size: Option<ByteSize>,
    /// Files, the one written to included.
    pub max_file: Option<u32>,
}

impl Options {
    /// Whether nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Why `memswap_limit`, which counts memory too, does not go with a limit of memory, told as Docker does: no runtime
    /// starts a container with both.
    pub fn swap_misfit(&self, memory: Option<ByteSize>) -> Option<String> {
        // Below 0: no limit of swap.
        let both = ByteSize(u64::try_from(self.memswap_limit?).ok()?);
        match memory {
            None => Some("`memswap_limit` needs a `mem_limit`: it is memory and swap together".to_owned()),
            Some(memory) if both < memory => Some(format!(
                "`memswap_limit` ({}) is less than `mem_limit` ({}): it is memory and swap together",
                both.human(),
                memory.human()
            )),
            Some(_) => None,
        }
    }

    /// These, with `over` on top of them: maps are merged, all else is replaced.
    pub fn under(&self, over: &Self) -> Self {
        macro_rules! merged {
            ($($field:ident),* ; $($map:ident),*) => {
                Self {
                    $($field: over.$field.clone().or_else(|| self.$field.clone()),)*
                    $($map: match (&self.$map, &over.$map) {
                        (Some(low), Some(high)) => {
                            Some(low.clone().into_iter().chain(high.clone()).collect())
                        }
                        (low, high) => high.clone().or_else(|| low.clone()),
                    },)*
                }
            };
        }
        let mut both = merged!(
            group_add, hostname, domainname, extra_hosts, dns, dns_search, dns_opt, cap_add, cap_drop,
            unconfined, without_apparmor, privileged, devices, shm_size, tmpfs, read_only, init, stop_signal, memswap_limit,
            mem_reservation, cpuset, cpu_shares, oom_score_adj, blkio, logging, host_pid, host_ipc, network_mode,
            networks, user_namespace, expose;
            sysctls, ulimits, labels
        );
        if over.unconfined.is_some() {
            both.without_apparmor = over.without_apparmor;
        }
        both
    }
}
