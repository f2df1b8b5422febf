//! What a host allows the config repo to ask for.

/// The host's own rules, from `[policy]` of its configuration, never from git. The effective grant is the request
/// within the policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Globs over `registry/repository` and the addresses of archives; empty = all but files of this host.
    pub registries: Vec<String>,
    /// Globs over host paths that may be bind-mounted; empty = none.
    pub host_mounts: Vec<String>,
    /// How many services one commit may take off this host; `None` = one, or a quarter of them, whichever is more.
    pub max_removals: Option<u32>,
    /// Whether an image has to be named with its digest.
    pub require_digest: bool,
    /// Whether a candidate may be started beside its incumbent where memory for both may not suffice.
    pub memory_overcommit: bool,
    /// Whether a service may be privileged.
    pub privileged: bool,
    /// Whether a service may share the host's processes or IPC.
    pub host_namespaces: bool,
    /// Whether a service may share the host's network.
    pub host_network: bool,
    /// Whether a service may run without the filter of system calls.
    pub unconfined: bool,
    /// Capabilities that may be added, as globs over `CAP_NET_ADMIN`; empty = none.
    pub capabilities: Vec<String>,
    /// Globs over devices of the host; empty = none.
    pub devices: Vec<String>,
}

impl Policy {
    /// The number of services that one commit may take off a host that runs `running` of them.
    pub fn removals_allowed(&self, running: usize) -> usize {
        match self.max_removals {
            Some(limit) => limit as usize,
            None => (running / 4).max(1),
        }
    }
}
