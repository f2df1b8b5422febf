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
