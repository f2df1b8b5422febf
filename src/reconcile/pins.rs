//! Which digest a declaration has already. A tag is looked up once for what a commit says of a service: one that is moved later
//! changes nothing by itself, nor does a commit that says the same of that service.

use super::record::{Deployed, ServiceRecord, Spec};
use super::world::DesiredService;
use crate::types::{Declared, Digest, PinnedImage};

/// The digest that a declaration was given before: by the last commit, or by what runs or ran (so that a revert
/// brings the same bytes back, and needs no registry). `None`: its tag is to be looked up.
pub fn known_digest(
    spec: &Declared,
    former: Option<&DesiredService>,
    record: Option<&ServiceRecord>,
) -> Option<Digest> {
    let former = match former {
        Some(DesiredService::Run(former)) => Some(&**former),
        _ => None,
    };
    let record = record.into_iter().flat_map(|record| [record.incumbent.as_ref(), record.previous.as_ref()]);
    let deployed = record.flatten().map(|deployed: &Deployed| &deployed.spec);
    former
        .into_iter()
        .chain(deployed)
        .find(|known| unpinned(known).without_contents() == *spec)
        .map(|known| known.image.digest.clone())
}

/// A declaration with the bytes that its image stands for.
pub fn pin(spec: Declared, digest: Digest) -> Spec {
    let reference = spec.image.clone();
    spec.with_image(PinnedImage { reference, digest })
}

/// What was declared for it.
pub fn unpinned(spec: &Spec) -> Declared {
    spec.clone().with_image(spec.image.reference.clone())
}
