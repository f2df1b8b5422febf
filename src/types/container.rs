//! How a container is fitted out beside its program: names, rights, mounts of its own, limits.
//!
//! The keys are those of the Compose Specification. `None` everywhere: the defaults that `docs/config.md` states.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ByteSize;

/// What a process may do beyond its user's rights: the default set of Podman 4.
pub const DEFAULT_CAPABILITIES: [&str; 11] = [
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

/// See the module. One layer of a declaration, or all of them together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Container {
    /// Its own name; `None` = the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Further lines of its `/etc/hosts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_hosts: Option<BTreeMap<String, IpAddr>>,
    /// Whom it asks for names, instead of the host's resolvers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<IpAddr>>,
    /// Domains in which short names are looked up, instead of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_search: Option<Vec<String>>,
    /// Options of resolv.conf(5), instead of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_opt: Option<Vec<String>>,
    /// Further groups of its processes: names or numbers of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_add: Option<Vec<String>>,
    /// Capabilities beyond the default set, as `CAP_NET_ADMIN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_add: Option<Vec<String>>,
    /// Capabilities that are taken away; `ALL` = the whole default set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_drop: Option<Vec<String>>,
    /// Whether its root may only be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Directories in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<Vec<Tmpfs>>,
    /// Size of `/dev/shm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// What asks it to end, instead of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Kernel parameters of its own namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sysctls: Option<BTreeMap<String, String>>,
    /// Resource limits of its processes by setrlimit(2)'s names in small letters, as `nofile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ulimits: Option<BTreeMap<String, Ulimit>>,
    /// Memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memswap_limit: Option<ByteSize>,
    /// Memory that is left to it when there is little on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_reservation: Option<ByteSize>,
    /// Processors it may run on, as `0-3,5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// Its weight where processors are short; 1024 is everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// How readily the kernel ends it for want of memory: 0 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
}

/// A directory in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Most bytes in it; `None` = half of the host's memory (tmpfs(5)).
    pub size: Option<ByteSize>,
    /// Its mode; `None` = 1777.
    pub mode: Option<u32>,
    /// Whether programs in it may be executed.
    pub exec: bool,
}

/// A resource limit; `None` = unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// What a process starts with.
    pub soft: Option<u64>,
    /// What it may raise it to.
    pub hard: Option<u64>,
}

/// Does something with every field, by name: a new one does not compile until it is listed.
macro_rules! fields {
    ($self:ident, $other:ident, $($name:ident),+ $(,)?) => {
        impl Container {
            /// This layer, with `over` on top of it.
            pub fn under(&$self, over: &Self) -> Self {
                Self { $($name: over.$name.clone().or_else(|| $self.$name.clone())),+ }
            }

            /// The key of the first difference. A running container can take over none of them.
            pub fn difference(&$self, $other: &Self) -> Option<&'static str> {
                let Self { $($name),+ } = $self;
                None$(.or_else(|| (*$name != $other.$name).then_some(stringify!($name))))+
            }
        }
    };
}

fields!(
    self,
    other,
    hostname,
    extra_hosts,
    dns,
    dns_search,
    dns_opt,
    group_add,
    cap_add,
    cap_drop,
    read_only,
    tmpfs,
    shm_size,
    stop_signal,
    sysctls,
    ulimits,
    memswap_limit,
    mem_reservation,
    cpuset,
    cpu_shares,
    oom_score_adj,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_differences() {
        let low =
            Container { read_only: Some(true), dns_opt: Some(vec!["edns0".into()]), ..Container::default() };
        let high = Container { read_only: Some(false), dns_opt: Some(Vec::new()), ..Container::default() };
        let both = low.under(&high);
        assert_eq!((both.read_only, both.dns_opt.as_deref()), (Some(false), Some(&[][..])));
        assert_eq!(low.under(&Container::default()), low);
        assert_eq!(low.difference(&low), None);
        assert_eq!(low.difference(&high), Some("dns_opt"));
        assert_eq!(serde_json::to_string(&Container::default()).unwrap(), "{}");
    }
}
