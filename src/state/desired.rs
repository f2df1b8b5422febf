//! The last thing the repo wanted of this host: what it holds to when git or the registry is away.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic};
use crate::reconcile::record::Spec;
use crate::reconcile::world::{Desired, DesiredService};
use crate::types::{CommitInfo, PortMapping, Refusal, ServiceName};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    commit: CommitInfo,
    declared_in_repo: usize,
    services: BTreeMap<ServiceName, Entry>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ports: BTreeMap<ServiceName, Vec<PortMapping>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    removed: BTreeSet<ServiceName>,
    #[serde(default, skip_serializing_if = "is_no")]
    window_waived: bool,
}

fn is_no(flag: &bool) -> bool {
    !*flag
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Entry {
    Run(Box<Spec>),
    Resolving,
    Refused(Refusal),
}

impl StateDir {
    /// What was wanted last; `None` before the first admission.
    pub fn load_desired(&self) -> Result<Option<Desired>, StateError> {
        read_desired(self.root())
    }

    /// Makes it durable.
    pub fn save_desired(&self, desired: &Desired) -> Result<(), StateError> {
        let services = desired.services.iter().map(|(name, service)| {
            let entry = match service {
                DesiredService::Run(spec) => Entry::Run(spec.clone()),
                DesiredService::Resolving => Entry::Resolving,
                DesiredService::Refused { refusal, .. } => Entry::Refused(refusal.clone()),
            };
            (name.clone(), entry)
        });
        let file = File {
            commit: desired.commit.clone(),
            declared_in_repo: desired.declared_in_repo,
            services: services.collect(),
            ports: desired.ports.clone(),
            removed: desired.removed.clone(),
            window_waived: desired.window_waived,
        };
        atomic::write(&self.root().join("desired.json"), &file)
    }
}

/// What was wanted last, read without holding the state directory: for commands beside an agent. Its former version
/// never stands in: that is what an older commit wanted.
pub fn read_desired(state_dir: &std::path::Path) -> Result<Option<Desired>, StateError> {
    let file: Option<File> = atomic::read_one(&state_dir.join("desired.json"))?;
    Ok(file.map(|file| Desired {
        commit: file.commit,
        declared_in_repo: file.declared_in_repo,
        ports: file.ports,
        removed: file.removed,
        window_waived: file.window_waived,
        services: file
            .services
            .into_iter()
            .map(|(name, entry)| {
                let service = match entry {
                    Entry::Run(spec) => DesiredService::Run(spec),
                    Entry::Resolving => DesiredService::Resolving,
                    Entry::Refused(refusal) => DesiredService::Refused { refusal, retry_at: None },
                };
                (name, service)
            })
            .collect(),
    }))
}
