//! What is promised of tags: what a commit says of a service stands for the same bytes for as long as it says so, wherever
//! the tag is moved in the registry.

use gitopsd::reconcile::record::{Cause, Deployed, Spec};
use gitopsd::reconcile::world::DesiredService;
use gitopsd::types::ServiceName;

use super::Host;

impl Host {
    /// What is wanted of a service, where that is known.
    fn wanted(&self, name: &ServiceName) -> Option<&Spec> {
        match self.desired.as_ref()?.services.get(name)? {
            DesiredService::Run(spec) => Some(&**spec),
            _ => None,
        }
    }

    /// There was a commit, or tags were looked up.
    pub(super) fn audit_tags(&mut self) {
        let mut known = std::mem::take(&mut self.audit.declared);
        for (name, declared) in &self.repo.declared {
            let Ok(declared) = declared else { continue };
            let before =
                known.remove(name).filter(|(before, _)| before == declared).map(|(_, digest)| digest);
            let found = self.wanted(name).map(|wanted| wanted.image.digest.clone());
            let same = found.is_none() || before.is_none() || found == before;
            self.demand(same, "a tag is looked up once for what a commit says", name);
            if let Some(digest) = found.or(before) {
                self.audit.declared.insert(name.clone(), (declared.clone(), digest));
            }
        }
    }

    /// A candidate is about to be begun.
    pub(super) fn audit_bytes(&self, name: &ServiceName, spec: &Spec, cause: Cause) {
        if cause == Cause::Rollback {
            let digest = &spec.image.digest;
            let ran =
                self.audit.specs.iter().any(|(id, old)| id.service == *name && old.image.digest == *digest);
            self.demand(ran, "what an operator goes back to are the bytes that ran", name);
            return;
        }
        self.demand(self.wanted(name) == Some(spec), "what is begun is what its commit stands for", name);
        // What a container did not take in place needs another one, and so does a guest whose host has another one.
        let own = |incumbent: &&Deployed| incumbent.amending.is_none() && incumbent.spec.joins().is_none();
        let runs = self.incumbent(name).filter(own).is_some_and(|incumbent| incumbent.spec == *spec);
        self.demand(!runs, "what runs already is not begun once more", name);
    }
}
