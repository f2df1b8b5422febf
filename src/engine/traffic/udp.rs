//! Where a route leads what UDP clients send, so that flows that go elsewhere can be forgotten.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::conntrack::{Flows, Which};
use super::ruleset::hairpins;
use crate::engine::Route;
use crate::engine::native::net::names::Subnet6;
use crate::types::{InstanceId, PortMapping, Protocol, ServiceName};

/// Makes UDP clients follow changes of routes.
///
/// Only a walk through all of the kernel's connections tells which flows those are: milliseconds, whatever is asked for,
/// as its table is as large as the host's memory allows. So whoever has changed a route waits for it only where a UDP
/// port is published. Otherwise there are at most flows to the service address, and these follow a moment later.
#[derive(Default, Clone)]
pub struct Follower(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// What nobody has begun with.
    owed: Mutex<BTreeMap<ServiceName, Change>>,
    /// One walk at a time: an older change must not be done after a newer one of its service.
    flows: Mutex<Flows>,
}

/// What a change asks for.
#[derive(Debug, Clone)]
struct Change {
    /// Where it led.
    lost: BTreeSet<IpAddr>,
    /// Whether flows of anybody may be meant.
    all: bool,
    new: Option<Route>,
    subnet6: Option<Subnet6>,
}

impl Follower {
    /// After a change from one route of a service to another. `anew`: of all rules, so that clients may have come while
    /// there were none.
    pub fn follow(&self, subnet6: Option<Subnet6>, old: Option<&Route>, new: Option<&Route>, anew: bool) {
        let Some(service) = new.or(old).map(|route| route.service.clone()) else { return };
        let udp = |route: Option<&Route>| -> Vec<PortMapping> {
            let ports = route.map_or(&[][..], |route| &route.ports);
            ports.iter().filter(|port| port.protocol == Protocol::Udp).cloned().collect()
        };
        let (before, after) = (udp(old), udp(new));
        let to = |route: Option<&Route>| -> Vec<Ipv4Addr> {
            route.into_iter().flat_map(Route::addresses).collect()
        };
        let moved = to(old) != to(new);
        if !moved && before == after && !anew {
            return;
        }
        let lost = to(old).into_iter().flat_map(|address| hairpins(address, subnet6));
        let lost = lost.map(|(_, address)| address).collect();
        // Whoever sent to a port before it was published is known to conntrack as somebody who wants the host.
        let all = !after.is_empty() && (anew || after.iter().any(|port| !before.contains(port)));
        let mut change = Change { lost, all, new: new.cloned(), subnet6 };
        let published = !before.is_empty() || !after.is_empty();
        let mut owed = self.0.owed();
        // What was owed for an older route of it is done with this one.
        if let Some(older) = owed.remove(&service) {
            change.lost.extend(older.lost);
            change.all |= older.all;
        }
        if published {
            drop(owed);
            walk(&mut self.flows(), &BTreeMap::from([(service, change)]));
            return;
        }
        // None where it has led nowhere yet: nobody is to be moved.
        if change.lost.is_empty() {
            return;
        }
        owed.insert(service, change);
        drop(owed);
        self.later();
    }

    /// Has all flows of anybody follow these routes, a moment later: of what was changed before nothing is known.
    pub fn catch_up<'a>(&self, subnet6: Option<Subnet6>, routes: impl Iterator<Item = &'a Route>) {
        let mut owed = self.0.owed();
        owed.extend(routes.map(|route| {
            let change = Change { lost: BTreeSet::new(), all: true, new: Some(route.clone()), subnet6 };
            (route.service.clone(), change)
        }));
        let none = owed.is_empty();
        drop(owed);
        if !none {
            self.later();
        }
    }

    /// Forgets the flows that were led to a container which goes, at these addresses.
    pub fn forget(&self, id: &InstanceId, addresses: &[IpAddr]) {
        if addresses.is_empty() {
            return;
        }
        if let Err(error) = self.flows().forget_stale(addresses, false, |_| Vec::new()) {
            tracing::warn!("cannot forget UDP flows of {id}: {error}");
        }
    }

    /// What the kernel knows of flows, for one at a time.
    pub fn flows(&self) -> MutexGuard<'_, Flows> {
        self.0.flows()
    }

    /// Does what is owed, beside the caller.
    fn later(&self) {
        let shared = self.0.clone();
        // In the caller's network namespace, as threads are in that of the one that makes them.
        let later = std::thread::Builder::new().name("udp-flows".to_owned()).spawn(move || shared.catch_up());
        if later.is_err() {
            self.0.catch_up();
        }
    }
}

impl Shared {
    fn owed(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Change>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flows(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does all that is owed. A route that changes meanwhile is owed again, and what was forgotten too much begins anew.
    fn catch_up(&self) {
        let mut flows = self.flows();
        let owed = std::mem::take(&mut *self.owed());
        walk(&mut flows, &owed);
    }
}

/// One walk for several changes.
fn walk(flows: &mut Flows, changes: &BTreeMap<ServiceName, Change>) {
    if changes.is_empty() {
        return;
    }
    let lost: Vec<IpAddr> = changes.values().flat_map(|change| change.lost.iter().copied()).collect();
    let all = changes.values().any(|change| change.all);
    let local = OnceCell::new();
    // An address of the host's leads to one service at the most.
    let leads = |to| {
        let by = |change: &Change| Some(leads(change.new.as_ref()?, change.subnet6, &local, to));
        changes.values().filter_map(by).find(|found| !found.is_empty()).unwrap_or_default()
    };
    let services = || changes.keys().map(ServiceName::as_str).collect::<Vec<_>>().join(", ");
    // The switch itself is done; these flows follow once their clients have been silent for a while.
    if let Err(error) = flows.forget_stale(&lost, all, leads) {
        tracing::warn!("cannot move UDP flows of {}: {error}", services());
    }
    // A TCP client that uses a port again is to be led by the rules, and not where its former connection went (`farewell`).
    if let Err(error) = flows.forget_connections(&lost, Which::Over) {
        tracing::warn!("cannot forget connections of {} that are over: {error}", services());
    }
}

/// Where the rules of a route send on what is sent to `to`: nowhere, or to any of these containers of one generation or two.
fn leads(
    route: &Route,
    subnet6: Option<Subnet6>,
    local: &OnceCell<BTreeSet<IpAddr>>,
    to: SocketAddr,
) -> Vec<SocketAddr> {
    if to.ip() == IpAddr::V4(route.service_address) {
        return route.addresses().map(|address| (address, to.port()).into()).collect();
    }
    let by = |ports, address| leads_by(ports, address, subnet6, local, to);
    let mut found: Vec<SocketAddr> = route.lanes().filter_map(|lane| by(&route.ports, lane)).collect();
    if let Some(branch) = route.canary.as_ref().filter(|_| !found.is_empty()) {
        found.extend(branch.lanes().filter_map(|lane| by(&branch.ports, lane)));
    }
    found
}

/// The same by the ports that lead to one generation's `address`.
fn leads_by(
    ports: &[PortMapping],
    address: Ipv4Addr,
    subnet6: Option<Subnet6>,
    local: &OnceCell<BTreeSet<IpAddr>>,
    to: SocketAddr,
) -> Option<SocketAddr> {
    let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp && port.host_port == to.port());
    // The narrower mapping first, as in the rules.
    let at = udp.clone().find(|port| port.host_ip == to.ip());
    let everywhere = |port: &&PortMapping| {
        port.host_ip.is_unspecified() && (port.host_ip.is_ipv4() || to.is_ipv6()) && is_local(local, to.ip())
    };
    let port = at.or_else(|| udp.clone().find(everywhere))?;
    let address: IpAddr = match to {
        SocketAddr::V4(_) => address.into(),
        SocketAddr::V6(_) => subnet6?.of(address).into(),
    };
    Some((address, port.container_port).into())
}

/// Whether an address is the host's own, as the rules take it: `::1` cannot be led off the host.
fn is_local(local: &OnceCell<BTreeSet<IpAddr>>, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) if address.is_loopback() => return true,
        IpAddr::V6(address) if address.is_loopback() => return false,
        _ => {}
    }
    local.get_or_init(|| addresses().collect()).contains(&address)
}

/// The addresses of this thread's network namespace.
pub fn addresses() -> impl Iterator<Item = IpAddr> {
    let ip = |address: SockaddrStorage| {
        let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    getifaddrs().into_iter().flatten().filter_map(|interface| interface.address).filter_map(ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Branch, Generation, ShareBy};

    #[test]
    fn the_narrower_mapping_comes_first() {
        let port = |host_ip: &str, host_port, container_port, protocol| PortMapping {
            host_ip: host_ip.parse().unwrap(),
            host_port,
            container_port,
            protocol,
        };
        let route = Route {
            service: "dns".parse().unwrap(),
            service_address: "10.98.0.200".parse().unwrap(),
            generation: Generation(1),
            address: "10.98.1.7".parse().unwrap(),
            also: Vec::new(),
            ports: vec![
                port("0.0.0.0", 53, 5353, Protocol::Udp),
                port("0.0.0.0", 54, 5354, Protocol::Tcp),
                port("127.0.0.1", 53, 5355, Protocol::Udp),
            ],
            canary: None,
        };
        let six = Some(Subnet6::new("fd00:1:2:3::".parse().unwrap()));
        let own = OnceCell::from(BTreeSet::from(["192.0.2.1", "2001:db8::1"].map(|it| it.parse().unwrap())));
        let to = |to: &str| leads(&route, six, &own, to.parse().unwrap()).first().map(ToString::to_string);
        assert_eq!(to("10.98.0.200:99").as_deref(), Some("10.98.1.7:99"));
        assert_eq!(to("127.0.0.1:53").as_deref(), Some("10.98.1.7:5355"));
        assert_eq!(to("127.0.0.2:53").as_deref(), Some("10.98.1.7:5353"));
        assert_eq!(to("192.0.2.1:53").as_deref(), Some("10.98.1.7:5353"));
        assert_eq!(to("[2001:db8::1]:53").as_deref(), Some("[fd00:1:2:3::a62:107]:5353"));
        for elsewhere in ["192.0.2.2:53", "192.0.2.1:54", "[::1]:53", "[2001:db8::2]:53"] {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
        }
        // With a part for another generation a flow may be of either; a port that only one has is that one's.
        let branch = Branch {
            generation: Generation(2),
            address: "10.98.1.8".parse().unwrap(),
            also: vec!["10.98.1.10".parse().unwrap()],
            share: "10%".parse().unwrap(),
            by: ShareBy::Connection,
            ports: vec![port("127.0.0.1", 53, 5356, Protocol::Udp)],
        };
        let shared = Route { canary: Some(branch), ..route };
        let both = |to: &str| -> Vec<String> {
            leads(&shared, six, &own, to.parse().unwrap()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(both("10.98.0.200:99"), ["10.98.1.7:99", "10.98.1.8:99", "10.98.1.10:99"]);
        assert_eq!(both("127.0.0.1:53"), ["10.98.1.7:5355", "10.98.1.8:5356", "10.98.1.10:5356"]);
        assert_eq!(both("127.0.0.2:53"), ["10.98.1.7:5353"]);
        // A flow to any container that is in stays where it is.
        let several = Route { canary: None, also: vec!["10.98.1.9".parse().unwrap()], ..shared.clone() };
        let all: Vec<String> = leads(&several, six, &own, "192.0.2.1:53".parse().unwrap())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(all, ["10.98.1.7:5353", "10.98.1.9:5353"]);
    }
}
