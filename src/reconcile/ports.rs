//! Which service may publish a port of the host, where several want it: the one that has it keeps it. A file that came
//! later stops nobody but itself. A service that has just left a port may want it back, until its change is over.

use std::collections::{BTreeMap, BTreeSet};

use super::exchange::leads_to;
use super::record::{Phase, ServiceRecord};
use super::view::View;
use super::world::DesiredService;
use super::{handover, irreversible};
use crate::types::{PortMapping, Reason, Refusal, ServiceName};

/// What one service has to do with the host's ports.
#[derive(Debug, Clone, Default)]
pub struct Claim<'a> {
    /// What it publishes, or is about to.
    pub has: Vec<&'a PortMapping>,
    /// What it is to publish once all is done; `None` = it stays as it is.
    pub wants: Option<&'a [PortMapping]>,
    /// Whether it runs here already.
    pub runs: bool,
}

/// Every service's claim.
pub type Claims<'a> = BTreeMap<&'a ServiceName, Claim<'a>>;

impl<'a> Claim<'a> {
    /// What a record says that the service has.
    pub fn of(record: Option<&'a ServiceRecord>) -> Self {
        let Some(record) = record else { return Self::default() };
        let live = record.incumbent.iter().chain(record.rollout.as_ref().map(|rollout| &rollout.to));
        Self {
            has: live.flat_map(|deployed| &deployed.spec.ports).collect(),
            wants: None,
            runs: record.incumbent.is_some(),
        }
    }

    fn publishes(&self, port: &PortMapping) -> bool {
        self.has.iter().any(|known| known.clashes(port))
    }

    fn asks_for(&self, port: &PortMapping) -> bool {
        self.wants.is_some_and(|ports| ports.iter().any(|known| known.clashes(port)))
    }
}

/// Why `name` may not publish `ports`; `None` = no other service stands in its way for good.
pub fn refusal(claims: &Claims<'_>, name: &ServiceName, ports: &[PortMapping]) -> Option<Refusal> {
    let nobody = Claim::default();
    let own = claims.get(name).unwrap_or(&nobody);
    for port in ports.iter().filter(|port| !own.publishes(port)) {
        for (other, claim) in claims.iter().filter(|(other, _)| **other != name) {
            let shown = shown(port);
            let message = match (claim.publishes(port), claim.wants.is_some(), claim.asks_for(port)) {
                (true, false, _) | (true, _, true) => {
                    format!("{shown} is published by service {other}, which had it first")
                }
                // Neither has it: one that runs comes before one that does not, then the first by name.
                (false, _, true) if (!claim.runs, *other) < (!own.runs, name) => {
                    format!("{shown} is claimed by service {other} too, which comes first")
                }
                _ => continue,
            };
            return Some(Refusal::new(Reason::PortInUse, message));
        }
    }
    circle(claims, name, ports)
}

/// Services that are to take each other's ports: each would wait until another one has left its own, and none can be first.
fn circle(claims: &Claims<'_>, name: &ServiceName, ports: &[PortMapping]) -> Option<Refusal> {
    let wants = |name: &ServiceName| claims.get(name).and_then(|claim| claim.wants).unwrap_or_default();
    let from = |name: &ServiceName| givers(claims, name, wants(name)).into_iter().cloned().collect();
    let mut first = givers(claims, name, ports).into_iter();
    let other = first.find(|other| leads_to(other, name, from))?;
    let message = format!(
        "it is to take a port of the host from service {other}, which cannot leave it before this service has left one of its own: let \
         one of them move to a free port in a commit before"
    );
    Some(Refusal::new(Reason::PortInUse, message))
}

/// The services that are to leave a port which `name` is to take with `ports`.
fn givers<'c>(
    claims: &'c Claims<'_>,
    name: &ServiceName,
    ports: &[PortMapping],
) -> BTreeSet<&'c ServiceName> {
    let own = claims.get(name);
    let new: Vec<_> = ports.iter().filter(|port| own.is_none_or(|own| !own.publishes(port))).collect();
    let gives = |claim: &Claim<'_>| new.iter().any(|port| claim.publishes(port) && !claim.asks_for(port));
    let others =
        claims.iter().filter(|(other, claim)| **other != name && claim.wants.is_some() && gives(claim));
    others.map(|(other, _)| *other).collect()
}

/// Another service that has one of `ports` and does not only keep it for whoever comes, and which port it is.
pub(super) fn elsewhere<'a>(view: &View<'a>, ports: &[PortMapping]) -> Option<(&'a ServiceName, String)> {
    let new = added(view, ports);
    let mut routes = view.observed.routes.iter().filter(|(other, _)| *other != view.name);
    routes.find_map(|(other, route)| {
        let held: Vec<_> =
            route.ports.iter().filter(|port| !handover::is_free(view, other, port)).cloned().collect();
        Some((other, shown(common(&new, &held)?)))
    })
}

/// Another service whose former generation had one of `ports` and may get its traffic back by itself, in a sentence.
pub(super) fn wanted_back(view: &View<'_>, ports: &[PortMapping]) -> Option<String> {
    let new = added(view, ports);
    let goes_back = |name: &ServiceName, record: &ServiceRecord| {
        let rollout = record.rollout.as_ref();
        name != view.name
            && rollout.is_some_and(|it| matches!(it.phase, Phase::Baking | Phase::Abandoning))
            && !rollout.is_some_and(|it| irreversible::holds(record, it))
            && !view.observed.frozen.contains_key(name)
    };
    let mut others = view.records.iter().filter(|(name, record)| goes_back(name, record));
    others.find_map(|(other, record)| {
        let port = common(&new, &record.incumbent.as_ref()?.spec.ports)?;
        Some(format!("service {other} may go back to where it had {}", shown(port)))
    })
}

/// Those that the service does not publish yet.
fn added<'p>(view: &View<'_>, ports: &'p [PortMapping]) -> Vec<&'p PortMapping> {
    let incumbent = view.record.and_then(|record| record.incumbent.as_ref());
    let own = incumbent.map_or(&[][..], |incumbent| &incumbent.spec.ports);
    ports.iter().filter(|port| !own.iter().any(|known| known.clashes(port))).collect()
}

fn common<'p>(ours: &[&'p PortMapping], theirs: &[PortMapping]) -> Option<&'p PortMapping> {
    ours.iter().find(|port| theirs.iter().any(|other| other.clashes(port))).copied()
}

pub(super) fn shown(port: &PortMapping) -> String {
    format!("port {}/{} of the host", port.host_port, port.protocol)
}

/// [`refusal`] for a service that the core is about to begin.
pub(super) fn contested(view: &View<'_>, ports: &[PortMapping]) -> Option<Refusal> {
    let desired = view.desired?;
    let names = view.records.keys().chain(desired.services.keys()).chain(view.observed.routes.keys());
    let mut claims = Claims::new();
    for name in names {
        claims.entry(name).or_insert_with(|| {
            let record = view.records.get(name);
            let mut claim = Claim::of(record);
            let routed = view.observed.routes.get(name).into_iter().flat_map(|route| &route.ports);
            claim.has.extend(routed.filter(|port| !handover::is_kept(view, name, port)));
            // What is held, or has failed at this commit, stays as it is.
            let stays = record.is_some_and(|record| {
                let wanted = desired.services.get(name);
                let failed = record.failure.as_ref().is_some_and(|it| it.is_of(&desired.commit.id, wanted));
                record.hold.is_some() || failed
            });
            claim.wants = match desired.services.get(name) {
                _ if stays || view.observed.frozen.contains_key(name) => None,
                Some(DesiredService::Run(spec)) => Some(&spec.ports),
                Some(DesiredService::Resolving | DesiredService::Refused { .. }) => None,
                None if view.removal_refusal.is_some() => None,
                None => Some(&[]),
            };
            claim
        });
    }
    refusal(&claims, view.name, ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Protocol;

    fn port(number: u16) -> PortMapping {
        PortMapping {
            host_ip: [0, 0, 0, 0].into(),
            host_port: number,
            container_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn who_has_a_port_keeps_it_whatever_the_names() {
        let names: Vec<ServiceName> = ["a", "m", "z"].iter().map(|name| name.parse().unwrap()).collect();
        let (a, m, z) = (&names[0], &names[1], &names[2]);
        let (p80, p81) = ([port(80)], [port(81)]);
        let runs = |has: &'static [u16; 0]| Claim { runs: has.is_empty(), ..Claim::default() };
        let has = |ports| Claim { has: vec![ports], wants: None, runs: true };
        let mut claims = Claims::new();
        // `m` has it and keeps it: neither an earlier nor a later name gets it.
        claims.insert(m, Claim { wants: Some(&p80), ..has(&p80[0]) });
        claims.insert(a, Claim { wants: Some(&p80), ..Claim::default() });
        claims.insert(z, Claim { wants: Some(&p80), ..Claim::default() });
        assert!(refusal(&claims, a, &p80).unwrap().message.contains("service m"));
        assert!(refusal(&claims, z, &p80).unwrap().message.contains("80/tcp"));
        assert_eq!(refusal(&claims, m, &p80), None);
        // It gives it up: the first of the others gets it, once the switch finds it free.
        claims.insert(m, Claim { wants: Some(&p81), ..has(&p80[0]) });
        assert_eq!(refusal(&claims, a, &p80), None);
        assert!(refusal(&claims, z, &p80).unwrap().message.contains("service a"));
        // It cannot be acted on: it stays, and so does its port.
        claims.insert(m, has(&p80[0]));
        assert!(refusal(&claims, a, &p80).is_some());
        // Two that want each other's would both wait for good.
        claims.insert(z, Claim { wants: Some(&p80), ..has(&p81[0]) });
        claims.insert(m, Claim { wants: Some(&p81), ..has(&p80[0]) });
        claims.remove(a);
        for (name, ports) in [(m, &p81), (z, &p80)] {
            let message = refusal(&claims, name, ports).unwrap().message;
            assert!(message.contains("in a commit before"), "{message}");
        }
        // A row of them can move.
        let p82 = [port(82)];
        claims.insert(m, Claim { wants: Some(&p82), ..has(&p80[0]) });
        assert_eq!(refusal(&claims, z, &p80), None);
        // Nobody has it: what runs here comes before what is new.
        claims.insert(a, Claim { wants: Some(&p80), ..Claim::default() });
        claims.remove(z);
        claims.insert(m, Claim { wants: Some(&p80), ..runs(&[]) });
        assert!(refusal(&claims, a, &p80).unwrap().message.contains("service m"));
        assert_eq!(refusal(&claims, m, &p80), None);
    }
}
