//! Services that share the network of another one: which generation of that one theirs belongs to, and what a change
//! of it means for them.
//!
//! A network goes with its container. So once another generation of the other service has traffic, a service that
//! shares its network is begun anew in that one's; and the old generation is kept until it has left.

use std::collections::BTreeMap;
use std::time::Duration;

use super::record::{Deployed, ServiceRecord};
use super::view::View;
use super::world::DesiredService;
use crate::types::{Generation, Reason, Refusal, ServiceName};

/// How long beyond its drain a generation is kept for those that share its network and have not moved on.
pub const KEPT: Duration = Duration::from_secs(300);

/// Why `deployed` is in a network that has lost its traffic; `None` = it has its own, or is where it belongs.
pub(super) fn left_behind(
    records: &BTreeMap<ServiceName, ServiceRecord>,
    deployed: &Deployed,
) -> Option<Refusal> {
    let host = deployed.spec.joins()?;
    let serving = records.get(host)?.serving()?.generation;
    (deployed.joined != Some(serving)).then(|| {
        let message = format!("{host}, whose network it shares, is at generation {serving} now");
        Refusal::new(Reason::Superseded, message)
    })
}

/// Whether the network that `deployed` shares is still there.
pub(super) fn is_there(view: &View<'_>, deployed: &Deployed) -> bool {
    let Some(host) = deployed.spec.joins() else { return true };
    match view.records.get(host) {
        Some(record) => deployed.joined.is_some_and(|joined| record.live(joined).is_some()),
        // Its record cannot be read: its container is left as it is, and its network with it.
        None => view.observed.frozen.contains_key(host),
    }
}

/// Why a service cannot be begun yet: nothing has the network that it is to share.
pub(super) fn missing(view: &View<'_>, host: &ServiceName) -> Option<Refusal> {
    let serving = view.records.get(host).and_then(|record| record.serving());
    serving
        .is_none()
        .then(|| Refusal::new(Reason::Dependency, format!("{host}, whose network it shares, is not running")))
}

/// A service that still runs in the network of `generation` of this one, and can be expected to move on.
pub(super) fn guest<'a>(view: &View<'a>, generation: Generation) -> Option<&'a ServiceName> {
    let stays =
        |deployed: &Deployed| deployed.spec.joins() == Some(view.name) && deployed.joined == Some(generation);
    let refused = |name: &ServiceName| {
        let wanted = view.desired.and_then(|desired| desired.services.get(name));
        matches!(wanted, Some(DesiredService::Refused { retry_at: None, .. }))
    };
    let guest = view.records.iter().find(|(name, record)| {
        let moves =
            record.hold.is_none() && record.failure.is_none() && record.removing.is_none() && !refused(name);
        (moves || record.rollout.is_some()) && record.live_generations().any(stays)
    });
    guest.map(|(name, _)| name)
}
