//! The config repo and the registry's tags: from what was committed to what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gitopsd::reconcile::later;
use gitopsd::reconcile::world::{Desired, DesiredService};
use gitopsd::types::{CommitInfo, Declared, ImageRef, PinnedImage, Reason, Refusal, ServiceName, Timestamp};

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
    /// Tags that were looked up for this commit.
    pins: BTreeMap<ImageRef, PinnedImage>,
}

/// From one look at a tag that could not be resolved to the next.
const RETRY: Duration = Duration::from_secs(30);

impl Host {
    /// A new commit with what [`Repo::declared`] holds by now.
    pub fn commit(&mut self) {
        self.repo.commits += 1;
        self.repo.pins.clear();
        self.resolve();
    }

    /// Looks up what is not known yet. What is known stays: a tag is resolved once a commit.
    pub(super) fn resolve(&mut self) {
        let mut services = BTreeMap::new();
        for (name, declared) in self.repo.declared.clone() {
            let service = match declared {
                Err(why) => DesiredService::Refused {
                    refusal: Refusal::new(Reason::ConfigInvalid, why),
                    retry_at: None,
                },
                Ok(spec) => self.pin(spec),
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
        let (removed, window_waived) = (self.repo.removed.clone(), self.repo.now);
        self.desired = Some(Desired { commit, declared_in_repo, services, removed, window_waived });
    }

    fn pin(&mut self, spec: Declared) -> DesiredService {
        let reference = spec.image.clone();
        let tag = reference.to_string();
        let behaviour = self.behaviour(&tag).clone();
        let refused = |reason, message: String| DesiredService::Refused {
            refusal: Refusal::new(reason, message),
            retry_at: Some(later(self.now, RETRY)),
        };
        if !self.repo.pins.contains_key(&reference) {
            if !self.registry_up {
                return refused(Reason::RegistryUnreachable, format!("{tag}: the registry does not answer"));
            }
            if !behaviour.exists {
                return refused(Reason::ImageNotFound, format!("{tag} is not in the registry"));
            }
            let pinned = PinnedImage { digest: behaviour.digest(&tag), reference: reference.clone() };
            self.repo.pins.insert(reference.clone(), pinned);
        }
        DesiredService::Run(Box::new(spec.with_image(self.repo.pins[&reference].clone())))
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
