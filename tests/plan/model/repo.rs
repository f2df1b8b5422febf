//! The config repo and the registry's tags: from what was committed to what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gitopsd::reconcile::later;
use gitopsd::reconcile::pins::{known_digest, pin};
use gitopsd::reconcile::world::{Desired, DesiredService};
use gitopsd::types::{CommitInfo, Declared, Reason, Refusal, ServiceName, Timestamp};

use super::Host;

/// What the branch holds.
#[derive(Debug, Clone, Default)]
pub struct Repo {
    /// How many commits there were.
    pub commits: u64,
    /// What the newest one declares; `Err` = that file is broken.
    pub declared: BTreeMap<ServiceName, Result<Declared, String>>,
    /// The newest commit says that windows do not count for it.
    pub now: bool,
    /// What the newest one names as meant to go.
    pub removed: BTreeSet<ServiceName>,
}

/// From one look at a tag that could not be resolved to the next.
const RETRY: Duration = Duration::from_secs(30);

impl Host {
    /// A new commit with what [`Repo::declared`] holds by now.
    pub fn commit(&mut self) {
        self.repo.commits += 1;
        let (former, records) = (self.desired.take(), self.readable());
        let mut services = BTreeMap::new();
        for (name, declared) in self.repo.declared.clone() {
            let service = match declared {
                Err(why) => DesiredService::Refused {
                    refusal: Refusal::new(Reason::ConfigInvalid, why),
                    retry_at: None,
                },
                Ok(spec) => {
                    let former = former.as_ref().and_then(|former| former.services.get(&name));
                    match known_digest(&spec, former, records.get(&name)) {
                        Some(digest) => DesiredService::Run(Box::new(pin(spec, digest))),
                        None => self.look_up(spec),
                    }
                }
            };
            services.insert(name, service);
        }
        let number = self.repo.commits;
        let commit = CommitInfo {
            id: format!("{number:010x}{:030}", 0).parse().unwrap(),
            subject: format!("commit {number}"),
            author: "Ada <ada@example.org>".to_owned(),
            committed_at: self.began,
        };
        let declared_in_repo = services.len();
        let published = self.repo.declared.iter().filter_map(|(name, spec)| match spec {
            Ok(spec) => Some((name.clone(), spec.ports.clone())).filter(|_| spec.schedule.is_none()),
            Err(_) => Some((name.clone(), former.as_ref()?.ports.get(name)?.clone())),
        });
        let ports = published.collect();
        let (removed, window_waived) = (self.repo.removed.clone(), self.repo.now);
        self.desired = Some(Desired { commit, declared_in_repo, services, ports, removed, window_waived });
        self.audit_tags();
    }

    /// Looks those tags up again whose time has come. What is known stays.
    pub(super) fn retry_resolving(&mut self) {
        let Some(mut desired) = self.desired.take() else { return };
        for (name, service) in &mut desired.services {
            let due =
                matches!(service, DesiredService::Refused { retry_at: Some(at), .. } if *at <= self.now);
            if let (true, Some(Ok(spec))) = (due, self.repo.declared.get(name).cloned()) {
                *service = self.look_up(spec);
            }
        }
        self.desired = Some(desired);
        self.audit_tags();
    }

    /// What the registry says by now.
    fn look_up(&mut self, spec: Declared) -> DesiredService {
        let tag = spec.image.to_string();
        let behaviour = self.behaviour(&tag).clone();
        let refused = |reason, message: String| DesiredService::Refused {
            refusal: Refusal::new(reason, message),
            retry_at: Some(later(self.now, RETRY)),
        };
        if !self.registry_up {
            return refused(Reason::RegistryUnreachable, format!("{tag}: the registry does not answer"));
        }
        if !behaviour.exists {
            return refused(Reason::ImageNotFound, format!("{tag} is not in the registry"));
        }
        DesiredService::Run(Box::new(pin(spec, behaviour.digest(&tag))))
    }

    /// When a tag that could not be resolved is looked up again.
    pub(super) fn retry_resolving_at(&self) -> Option<Timestamp> {
        let services = self.desired.iter().flat_map(|desired| desired.services.values());
        services
            .filter_map(|service| match service {
                DesiredService::Refused { retry_at, .. } => *retry_at,
                _ => None,
            })
            .min()
    }
}
