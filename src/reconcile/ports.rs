//! Which service may publish a port of the host, where several want it: the one that has it keeps it. A file that came
//! later stops nobody but itself. A port that is to move is taken once the one that has it cannot want it back any more.

use std::collections::BTreeMap;

use super::record::{Deployed, ServiceRecord};
use super::view::View;
use super::world::DesiredService;
use crate::types::{PortMapping, Reason, Refusal, ServiceName};

/// What one service has to do with the host's ports.
#[derive(Debug, Clone, Default)]
pub struct Claim<'a> {
    /// What it publishes.
    pub has: Vec<&'a PortMapping>,
    /// What its candidate is to publish.
    pub begun: Vec<&'a PortMapping>,
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
        let of = |deployed: Option<&'a Deployed>| deployed.iter().flat_map(|it| &it.spec.ports).collect();
        Self {
            has: of(record.incumbent.as_ref()),
            begun: of(record.rollout.as_ref().map(|rollout| &rollout.to)),
            wants: None,
            runs: record.incumbent.is_some(),
        }
    }

    fn serves(&self, port: &PortMapping) -> bool {
        self.has.iter().any(|known| known.clashes(port))
    }

    fn publishes(&self, port: &PortMapping) -> bool {
        self.serves(port) || self.begun.iter().any(|known| known.clashes(port))
    }

    fn asks_for(&self, port: &PortMapping) -> bool {
        self.wants.is_some_and(|ports| ports.iter().any(|known| known.clashes(port)))
    }

    /// What it has to get before it is what it is to be.
    fn lacks(&self) -> Vec<&'a PortMapping> {
        let wanted = self.wants.unwrap_or_default().iter().chain(self.begun.iter().copied());
        wanted.filter(|port| !self.serves(port)).collect()
    }
}

/// Why `name` may not publish `ports`; `None` = no other service stands in its way for good.
pub fn refusal(claims: &Claims<'_>, name: &ServiceName, ports: &[PortMapping]) -> Option<Refusal> {
    let new = ports.iter().filter(|port| claims.get(name).is_none_or(|own| !own.publishes(port)));
    obstacle(claims, name, &new.collect::<Vec<_>>(), &[])
        .map(|message| Refusal::new(Reason::PortInUse, message))
}

/// What keeps `name` from `ports`. `waiting`: those that wait for it.
fn obstacle(
    claims: &Claims<'_>,
    name: &ServiceName,
    ports: &[&PortMapping],
    waiting: &[&ServiceName],
) -> Option<String> {
    let runs = claims.get(name).is_some_and(|own| own.runs);
    let waiting = [waiting, &[name]].concat();
    ports.iter().find_map(|port| {
        let shown = port_of_host(port);
        claims.iter().filter(|(other, _)| **other != name).find_map(|(other, claim)| {
            match (claim.publishes(port), claim.wants.is_some(), claim.asks_for(port)) {
                (true, false, _) | (true, _, true) => {
                    Some(format!("{shown} is published by service {other}, which had it first"))
                }
                (true, true, false) if waiting.contains(other) => Some(format!(
                    "{shown} is published by service {other}, which waits in turn: let one of them move to a free port in a commit \
                     before"
                )),
                (true, true, false) => obstacle(claims, other, &claim.lacks(), &waiting)
                    .map(|why| format!("{shown} is published by service {other}, which cannot leave it: {why}")),
                // Neither has it: one that runs comes before one that does not, then the first by name.
                (false, _, true) if (!claim.runs, *other) < (!runs, name) => {
                    Some(format!("{shown} is claimed by service {other} too, which comes first"))
                }
                (false, ..) => None,
            }
        })
    })
}

fn port_of_host(port: &PortMapping) -> String {
    format!("port {}/{} of the host", port.host_port, port.protocol)
}

/// [`refusal`] for a service that the core is about to begin.
pub(super) fn contested(view: &View<'_>, ports: &[PortMapping]) -> Option<Refusal> {
    refusal(&claims(view)?, view.name, ports)
}

/// The service that still publishes one of `ports`, and is to leave it by a change that may fail: it goes back to what it was
/// then, with all of its ports.
pub(super) fn awaited(view: &View<'_>, ports: &[PortMapping]) -> Option<Refusal> {
    let (desired, claims) = (view.desired?, claims(view)?);
    let own = claims.get(view.name)?;
    ports.iter().filter(|port| !own.publishes(port)).find_map(|port| {
        let stays = |name| matches!(desired.services.get(name), Some(DesiredService::Run(_)));
        let mut others = claims.iter().filter(|(name, _)| **name != view.name && stays(name));
        let (other, _) = others.find(|(_, claim)| claim.publishes(port))?;
        let message =
            format!("{} is still published by service {other}, which is to leave it", port_of_host(port));
        Some(Refusal::new(Reason::PortInUse, message))
    })
}

/// What each service has to do with ports; `None` = the repo was not read yet.
fn claims<'a>(view: &View<'a>) -> Option<Claims<'a>> {
    let desired = view.desired?;
    let names = view.records.keys().chain(desired.services.keys()).chain(view.observed.routes.keys());
    let mut claims = Claims::new();
    for name in names {
        claims.entry(name).or_insert_with(|| {
            let record = view.records.get(name);
            let mut claim = Claim::of(record);
            claim.has.extend(view.observed.routes.get(name).into_iter().flat_map(|route| &route.ports));
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
    Some(claims)
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
        let runs = || Claim { runs: true, ..Claim::default() };
        let has = |port| Claim { has: vec![port], ..runs() };
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
        // Nobody has it: what runs here comes before what is new.
        claims.insert(m, Claim { wants: Some(&p80), ..runs() });
        assert!(refusal(&claims, a, &p80).unwrap().message.contains("service m"));
        assert_eq!(refusal(&claims, m, &p80), None);
        // Two that want each other's would both wait for good.
        claims.insert(z, Claim { wants: Some(&p80), ..has(&p81[0]) });
        claims.insert(m, Claim { wants: Some(&p81), ..has(&p80[0]) });
        claims.remove(a);
        for (name, ports) in [(m, &p81), (z, &p80)] {
            let message = refusal(&claims, name, ports).unwrap().message;
            assert!(message.contains("in a commit before"), "{message}");
        }
        // Also where one of them has begun.
        claims.insert(m, Claim { begun: vec![&p81[0]], wants: Some(&p80), ..has(&p80[0]) });
        assert!(refusal(&claims, z, &p80).is_some());
        // A row of them moves, and stays where its first cannot.
        let p82 = [port(82)];
        claims.insert(m, Claim { wants: Some(&p82), ..has(&p80[0]) });
        assert_eq!(refusal(&claims, z, &p80), None);
        claims.insert(a, has(&p82[0]));
        let message = refusal(&claims, z, &p80).unwrap().message;
        assert!(
            message.contains("cannot leave it: port 82/tcp") && message.contains("service a"),
            "{message}"
        );
    }
}
