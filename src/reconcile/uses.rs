//! Which images a host needs, and for what: these are never collected.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::record::{ServiceRecord, Spec};
use super::world::{Desired, DesiredService};
use crate::types::{Digest, PinnedImage, ServiceName};

/// What a service needs an image for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It has traffic.
    Current,
    /// What `rollback` goes back to.
    Previous,
    /// On its way.
    Candidate,
    /// On its way out.
    Retiring,
    /// The repo asks for it, and it is not under way: held, failed, or next.
    Wanted,
}

impl Role {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
            Self::Candidate => "in flight",
            Self::Retiring => "retiring",
            Self::Wanted => "wanted",
        }
    }

    /// Whether a container may run on it.
    pub fn runs(self) -> bool {
        matches!(self, Self::Current | Self::Candidate | Self::Retiring)
    }
}

/// A service's need of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Use {
    /// The image.
    pub image: PinnedImage,
    /// Who needs it.
    pub service: ServiceName,
    /// What for.
    pub role: Role,
    /// Whether an operator holds the service.
    pub held: bool,
    /// The archives that may stand in for it, as they are written.
    pub fallback: Vec<String>,
}

/// Every need, by service; an image that a service needs twice is named for the first of its roles.
pub fn uses(desired: Option<&Desired>, records: &BTreeMap<ServiceName, ServiceRecord>) -> Vec<Use> {
    let mut uses: Vec<Use> = Vec::new();
    let mut add = |spec: &Spec, service: &ServiceName, role, held| {
        let Spec { image, fallback, .. } = spec;
        match uses.iter_mut().find(|known| known.image == *image && known.service == *service) {
            None => uses.push(Use {
                image: image.clone(),
                service: service.clone(),
                role,
                held,
                fallback: fallback.clone(),
            }),
            // Where it comes from may have been changed since.
            Some(known) => known.fallback.extend(fallback.iter().cloned()),
        }
    };
    for (service, record) in records {
        let held = record.hold.is_some();
        let rollout = record.rollout.as_ref().map(|rollout| &rollout.to);
        let retiring = record.retiring.as_ref().map(|retiring| &retiring.old);
        for (deployed, role) in [
            (record.incumbent.as_ref(), Role::Current),
            (rollout, Role::Candidate),
            (retiring, Role::Retiring),
            (record.previous.as_ref(), Role::Previous),
        ] {
            if let Some(deployed) = deployed {
                add(&deployed.spec, service, role, held);
            }
        }
    }
    for (service, wanted) in desired.into_iter().flat_map(|desired| &desired.services) {
        if let DesiredService::Run(spec) = wanted {
            let held = records.get(service).is_some_and(|record| record.hold.is_some());
            add(spec, service, Role::Wanted, held);
        }
    }
    uses
}

/// The contents of secrets that a container of a generation may be started with: of those that run, and of those that
/// `rollback` goes back to.
pub fn secrets(records: &BTreeMap<ServiceName, ServiceRecord>) -> BTreeSet<Digest> {
    let recorded = records.values().flat_map(|record| record.live_generations().chain(&record.previous));
    let files = recorded.flat_map(|deployed| &deployed.spec.secrets);
    files.filter_map(|secret| Some(secret.content.as_ref()?.keyed.clone())).collect()
}

/// The contents of config files that a container may be started with: of every generation that `uses` an image.
pub fn contents(
    desired: Option<&Desired>,
    records: &BTreeMap<ServiceName, ServiceRecord>,
) -> BTreeSet<Digest> {
    let recorded = records.values().flat_map(|record| record.live_generations().chain(&record.previous));
    let wanted = desired.into_iter().flat_map(|desired| desired.services.values());
    let wanted = wanted.filter_map(|service| match service {
        DesiredService::Run(spec) => Some(&**spec),
        _ => None,
    });
    let specs = recorded.map(|deployed| &deployed.spec).chain(wanted);
    specs.flat_map(|spec| spec.configs.iter().map(|config| config.content.clone())).collect()
}
