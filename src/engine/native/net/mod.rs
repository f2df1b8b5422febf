//! The network of the built-in engine: a namespace a container, and one routed interface into it.
//!
//! Each container hangs on a veth pair of its own whose host end is a plain routed interface, with a /32 route, fixed
//! neighbours on both sides and the subnet's first address as gateway. The bridge holds that address and the route of
//! the subnet, and has no ports: where `net.bridge.bridge-nf-call-iptables` is on (Docker and Kubernetes turn it on for
//! the whole host) the rules see a frame while it is still being bridged, and a packet that is DNATed there never
//! reaches another port that is isolated, nor its own. Routed interfaces behave the same on every host.
//!
//! Everything is found again by name; nothing is remembered. Traffic rules are `engine::traffic`'s.

pub mod ipv6;
pub(crate) mod links;
pub mod names;
pub mod namespace;
mod sysctl;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use links::{Link, Links};
use names::{Names, Subnet, Subnet6};

use super::network::Network;
use crate::engine::EngineError;
use crate::types::{InstanceId, Reason};

/// The container's end of its interface.
const INSIDE: &str = "eth0";

/// Where nothing says another size: Ethernet's.
const USUAL_MTU: u32 = 1500;

/// Networks of one instance's containers.
pub struct BridgeNetwork {
    names: Names,
    subnet: Subnet,
    subnet6: Option<Subnet6>,
    namespaces: PathBuf,
    /// One change at a time: finding and making are two steps.
    turn: Mutex<()>,
}

/// Where the namespace of `id` is pinned, below the agent's run directory.
pub fn namespace_path(run_dir: &Path, id: &InstanceId) -> PathBuf {
    run_dir.join("netns").join(id.to_string())
}

impl BridgeNetwork {
    /// Checks the subnet. Nothing is made before the first container needs it.
    pub fn new(instance: &str, subnet: (Ipv4Addr, u8), run_dir: &Path) -> Result<Self, EngineError> {
        Ok(Self {
            names: Names::new(instance),
            subnet: Subnet::new(subnet)?,
            subnet6: None,
            namespaces: run_dir.join("netns"),
            turn: Mutex::new(()),
        })
    }

    /// The same, for containers that have IPv6.
    pub fn with_ipv6(mut self, subnet6: Option<Subnet6>) -> Self {
        self.subnet6 = subnet6;
        self
    }

    /// Takes everything of this instance away: namespaces, interfaces, bridge. Settings of the host stay.
    pub fn teardown(&self) -> Result<(), EngineError> {
        for id in self.attached()? {
            self.detach(&id)?;
        }
        let _turn = self.turn();
        let mut links = Links::new();
        let remove = |links: &mut Links| -> io::Result<()> {
            // Also interfaces that a crash left without a label.
            for link in links.list()? {
                if link.name == self.names.bridge || link.name.starts_with(&self.names.veth_prefix) {
                    links.delete(link.index)?;
                }
            }
            // What is still in it is not ours.
            let done = [io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty];
            match fs::remove_dir(&self.namespaces) {
                Err(error) if done.contains(&error.kind()) => Ok(()),
                other => other,
            }
        };
        remove(&mut links).map_err(|error| {
            failed(format!("cannot take away the network of instance {}", self.names.instance), error)
        })
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin_path(&self, id: &InstanceId) -> PathBuf {
        self.namespaces.join(id.to_string())
    }

    /// Makes the bridge with the gateway's address, and turns forwarding on.
    fn ensure_bridge(&self, links: &mut Links) -> io::Result<()> {
        let bridge = links.find(&self.names.bridge)?;
        if let Some(overlap) = self.overlap(links, bridge.as_ref())? {
            // With it go the route of the subnet, the gateway's address, and the routes into containers.
            if let Some(bridge) = bridge {
                links.delete(bridge.index)?;
            }
            return Err(io::Error::other(overlap));
        }
        let bridge = match bridge {
            Some(bridge) => bridge,
            None => {
                links.add_bridge(&self.names.bridge)?;
                found(links, &self.names.bridge)?
            }
        };
        let gateway = self.subnet.gateway();
        match self.subnet6 {
            Some(_) => ipv6::prepare_outside(&bridge.name)?,
            None => sysctl::set_if_known(&format!("ipv6/conf/{}/disable_ipv6", bridge.name), "1")?,
        }
        links.add_address(bridge.index, gateway.into(), self.subnet.prefix)?;
        links.set_up(bridge.index)?;
        if let Some(subnet6) = self.subnet6 {
            // What no container has is refused by the rules, rather than sent to the host's own gateway.
            links.add_address(bridge.index, subnet6.of(gateway).into(), Subnet6::PREFIX)?;
            // IPv4 works all the same.
            if let Err(error) = ipv6::forward() {
                tracing::warn!("IPv6 of containers ends at this host: {error}");
            }
        }
        sysctl::set("ipv4/ip_forward", "1")
    }

    /// A subnet that the host uses elsewhere would cut off whatever is there; at a boot the host's own network may come
    /// after the first container. Says where it is used. Of a network that comes to where the bridge is already, only one
    /// that claims the gateway's address as its own counts. The routes of one that lies elsewhere within are narrower than
    /// the subnet's, and so are taken. A wider one, as a VPN's, loses what the subnet has of it, but services that run are
    /// not ended for that.
    fn overlap(&self, links: &mut Links, bridge: Option<&Link>) -> io::Result<Option<String>> {
        for (index, address, prefix) in links.addresses()? {
            if bridge.is_some_and(|bridge| bridge.index == index) {
                continue;
            }
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(prefix.into())).unwrap_or(0);
            let inside = address.to_bits() & mask == self.subnet.gateway().to_bits() & mask;
            let harms = match bridge {
                None => inside || self.subnet.contains(address),
                Some(_) => inside && prefix >= self.subnet.prefix,
            };
            if harms {
                let name = links.list()?.into_iter().find(|link| link.index == index).map(|link| link.name);
                return Ok(Some(format!(
                    "engine.subnet {} overlaps {address}/{prefix} of interface {}",
                    self.subnet,
                    name.unwrap_or_default()
                )));
            }
        }
        Ok(None)
    }

    /// Finds a complete pair or makes one; returns the host's end. A half-made one is replaced.
    fn ensure_pair(&self, links: &mut Links, id: &InstanceId, address: Ipv4Addr) -> io::Result<Link> {
        let path = self.pin_path(id);
        let name = self.names.veth(id);
        let fresh = !namespace::is_pinned(&path);
        if fresh {
            namespace::pin(&path)?;
        }
        let mtu = mtu(links)?;
        if let Some(link) = links.find(&name)? {
            if !fresh && namespace::inside(&path, || fits(address))? {
                let Some(mtu) = mtu.filter(|mtu| link.mtu > *mtu) else { return Ok(link) };
                // The host's end last: it is what a look sees.
                namespace::inside(&path, || {
                    let mut links = Links::new();
                    let inside = found(&mut links, INSIDE)?;
                    links.set_mtu(inside.index, mtu)
                })?;
                links.set_mtu(link.index, mtu)?;
                return Ok(Link { mtu, ..link });
            }
            // It leads into a namespace that nobody can name any more, or has another address.
            links.delete(link.index)?;
        }
        links.add_veth(&name, INSIDE, mtu.unwrap_or(USUAL_MTU), fs::File::open(&path)?.as_fd())?;
        found(links, &name)
    }

    /// Every setting of a pair. All of it may be there already.
    fn configure(&self, links: &mut Links, id: &InstanceId, address: Ipv4Addr, six: bool) -> io::Result<()> {
        let host = self.ensure_pair(links, id, address)?;
        links.set_alias(host.index, &self.names.alias(id))?;
        let subnet6 = self.subnet6.filter(|_| six && host.mtu >= ipv6::MIN_MTU);
        // 127.0.0.1 of the host leads to published ports through this interface; the rules guard the way back.
        sysctl::set(&format!("ipv4/conf/{}/route_localnet", host.name), "1")?;
        // The container may only send from its own address.
        sysctl::set(&format!("ipv4/conf/{}/rp_filter", host.name), "1")?;
        match subnet6 {
            Some(_) => ipv6::prepare_outside(&host.name)?,
            None => sysctl::set_if_known(&format!("ipv6/conf/{}/disable_ipv6", host.name), "1")?,
        }
        links.set_up(host.index)?;

        let gateway = self.subnet.gateway();
        let address6 = subnet6.map(|subnet6| subnet6.of(address));
        let inside = || configure_inside(address, address6, gateway, &host.mac);
        let mac = namespace::inside(&self.pin_path(id), inside)?;
        links.add_neighbour(host.index, address.into(), &mac)?;
        links.add_route((address.into(), 32), host.index, None, Some(gateway.into()))?;
        if let Some(address6) = address6 {
            links.add_address(host.index, ipv6::GATEWAY.into(), 64)?;
            links.add_neighbour(host.index, address6.into(), &mac)?;
            links.add_route((address6.into(), 128), host.index, None, None)?;
        }
        Ok(())
    }

    /// Whether the host has the addresses that are its own in the containers' networks, and nobody else needs them.
    fn has_gateways(&self, links: &mut Links) -> io::Result<bool> {
        let Some(bridge) = links.find(&self.names.bridge)? else { return Ok(false) };
        if self.overlap(links, Some(&bridge))?.is_some() {
            return Ok(false);
        }
        let gateway = self.subnet.gateway();
        let six = self.subnet6.map(|subnet6| subnet6.of(gateway));
        Ok(links.has_address(gateway.into())?
            && six.map_or(Ok(true), |gateway| links.has_address(gateway.into()))?)
    }

    /// The host's ends of containers' interfaces that the way into their container leads out of, by name. None of them is
    /// without the bridge's addresses: who takes those away takes all routes that have one as their source. And none that
    /// takes larger packets than the host's way out: that may come after a container that is started at boot.
    fn whole_pairs(&self) -> io::Result<BTreeSet<String>> {
        let mut links = Links::new();
        if !self.has_gateways(&mut links)? {
            return Ok(BTreeSet::new());
        }
        let mtu = mtu(&mut links)?;
        let list = links.list()?;
        let into = links.with_host_route(false)?;
        let into6 = if self.subnet6.is_some() { Some(links.with_host_route(true)?) } else { None };
        let is_whole = |link: &Link| {
            // Not every container has IPv6.
            let six =
                into6.as_ref().is_none_or(|into6| into6.contains(&link.index) || !ipv6::is_on(&link.name));
            into.contains(&link.index) && six && mtu.is_none_or(|mtu| link.mtu <= mtu)
        };
        let pairs = list.into_iter().filter(|link| link.name.starts_with(&self.names.veth_prefix));
        Ok(pairs.filter(is_whole).map(|link| link.name).collect())
    }

    fn connect(&self, id: &InstanceId, address: Ipv4Addr, six: bool) -> Result<PathBuf, EngineError> {
        if !self.subnet.usable(address) {
            return Err(EngineError::plain(
                Reason::Network,
                format!("{id} cannot have the address {address}: not one of subnet {}", self.subnet),
            ));
        }
        let _turn = self.turn();
        let mut links = Links::new();
        self.ensure_bridge(&mut links)
            .map_err(|error| failed(format!("cannot set up the bridge {}", self.names.bridge), error))?;
        self.configure(&mut links, id, address, six)
            .map_err(|error| failed(format!("cannot set up the network of {id}"), error))?;
        Ok(self.pin_path(id))
    }
}

impl Network for BridgeNetwork {
    fn attach(&self, id: &InstanceId, address: Ipv4Addr) -> Result<PathBuf, EngineError> {
        self.connect(id, address, true)
    }

    fn attach_ipv4(&self, id: &InstanceId, address: Ipv4Addr) -> Result<PathBuf, EngineError> {
        self.connect(id, address, false)
    }

    fn isolate(&self, id: &InstanceId) -> Result<PathBuf, EngineError> {
        let _turn = self.turn();
        let path = self.pin_path(id);
        let make = || {
            if !namespace::is_pinned(&path) {
                namespace::pin(&path)?;
            }
            namespace::inside(&path, || {
                let mut links = Links::new();
                let loopback = found(&mut links, "lo")?;
                links.set_up(loopback.index)?;
                sysctl::set_if_known("ipv4/ip_unprivileged_port_start", "0")
            })
        };
        make().map_err(|error: io::Error| failed(format!("cannot set up the network of {id}"), error))?;
        Ok(path)
    }

    fn join(&self, id: &InstanceId, host: &InstanceId) -> Result<PathBuf, EngineError> {
        let _turn = self.turn();
        let (path, theirs) = (self.pin_path(id), self.pin_path(host));
        let share = || {
            if !namespace::is_pinned(&theirs) {
                return Err(io::Error::other("it has none"));
            }
            // What an earlier run of it had may be another one.
            namespace::unpin(&path)?;
            namespace::pin_again(&path, fs::File::open(&theirs)?.as_fd())
        };
        share().map_err(|error| failed(format!("{id} cannot share the network of {host}"), error))?;
        Ok(path)
    }

    fn open_host(&self) -> Result<(), EngineError> {
        let _turn = self.turn();
        let mut links = Links::new();
        // Asked at every look for services that have the host's network: mostly it is there.
        if self.has_gateways(&mut links).unwrap_or(false) {
            return Ok(());
        }
        self.ensure_bridge(&mut links)
            .map_err(|error| failed(format!("cannot set up the bridge {}", self.names.bridge), error))
    }

    fn detach(&self, id: &InstanceId) -> Result<(), EngineError> {
        let _turn = self.turn();
        let mut links = Links::new();
        let remove = |links: &mut Links| {
            if let Some(link) = links.find(&self.names.veth(id))? {
                links.delete(link.index)?;
            }
            namespace::unpin(&self.pin_path(id))
        };
        remove(&mut links).map_err(|error| failed(format!("cannot take away the network of {id}"), error))
    }

    fn attached(&self) -> Result<Vec<InstanceId>, EngineError> {
        let list = || -> io::Result<Vec<InstanceId>> {
            let mut ids: Vec<InstanceId> = Vec::new();
            match fs::read_dir(&self.namespaces) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(entries) => {
                    for entry in entries {
                        ids.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
                    }
                }
            }
            let links = Links::new().list()?;
            let aliases = links
                .iter()
                .filter(|link| link.name.starts_with(&self.names.veth_prefix))
                .filter_map(|link| self.names.parse_alias(link.alias.as_deref()?));
            ids.extend(aliases);
            ids.sort();
            ids.dedup();
            Ok(ids)
        };
        list().map_err(|error| {
            failed(format!("cannot list the networks of instance {}", self.names.instance), error)
        })
    }

    fn broken(&self, running: &[InstanceId]) -> Result<Vec<InstanceId>, EngineError> {
        if running.is_empty() {
            return Ok(Vec::new());
        }
        let whole = self
            .whole_pairs()
            .map_err(|error| failed("cannot list interfaces and routes".to_owned(), error))?;
        let is_whole = |id: &&InstanceId| {
            whole.contains(&self.names.veth(id)) && namespace::is_pinned(&self.pin_path(id))
        };
        Ok(running.iter().filter(|id| !is_whole(id)).cloned().collect())
    }

    fn pin(&self, id: &InstanceId, namespace: BorrowedFd<'_>) -> Result<(), EngineError> {
        let _turn = self.turn();
        if namespace::is_pinned(&self.pin_path(id)) {
            return Ok(());
        }
        namespace::pin_again(&self.pin_path(id), namespace)
            .map_err(|error| failed(format!("cannot pin the network of {id}"), error))
    }
}

/// What the way out of the host takes, if there is one: packets that fit a container's interface are to fit that too.
fn mtu(links: &mut Links) -> io::Result<Option<u32>> {
    let uplink = links.uplink()?;
    let mtu = links.list()?.into_iter().find(|link| Some(link.index) == uplink).map(|link| link.mtu);
    Ok(mtu.filter(|mtu| (68..=65535).contains(mtu)))
}

/// The interface that was made a moment ago.
fn found(links: &mut Links, name: &str) -> io::Result<Link> {
    links
        .find(name)?
        .ok_or_else(|| io::Error::other(format!("interface {name} is gone right after it was made")))
}

/// Whether this namespace has the container's interface, and on it no address but `address`.
fn fits(address: Ipv4Addr) -> io::Result<bool> {
    let mut links = Links::new();
    let Some(inside) = links.find(INSIDE)? else { return Ok(false) };
    Ok(links
        .addresses()?
        .iter()
        .filter(|(index, ..)| *index == inside.index)
        .all(|(_, own, _)| *own == address))
}

/// The container's side; runs inside its namespace. Returns its hardware address.
fn configure_inside(
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
    gateway: Ipv4Addr,
    gateway_mac: &[u8],
) -> io::Result<Vec<u8>> {
    let mut links = Links::new();
    let loopback = found(&mut links, "lo")?;
    links.set_up(loopback.index)?;
    let inside = found(&mut links, INSIDE)?;
    // A redirect would make it try to reach a peer directly.
    sysctl::set("ipv4/conf/all/accept_redirects", "0")?;
    sysctl::set(&format!("ipv4/conf/{INSIDE}/accept_redirects"), "0")?;
    // Nothing but the container's own services is here: any user of it may listen on port 80.
    sysctl::set_if_known("ipv4/ip_unprivileged_port_start", "0")?;
    match address6 {
        Some(_) => ipv6::prepare_inside(INSIDE)?,
        None => sysctl::set_if_known(&format!("ipv6/conf/{INSIDE}/disable_ipv6"), "1")?,
    }
    let (own, gateway) = (IpAddr::V4(address), IpAddr::V4(gateway));
    links.add_address(inside.index, own, 32)?;
    links.set_up(inside.index)?;
    links.add_neighbour(inside.index, gateway, gateway_mac)?;
    links.add_route((gateway, 32), inside.index, None, Some(own))?;
    links.add_route((Ipv4Addr::UNSPECIFIED.into(), 0), inside.index, Some(gateway), Some(own))?;
    if let Some(own) = address6 {
        let gateway = IpAddr::V6(ipv6::GATEWAY);
        links.add_address(inside.index, own.into(), 128)?;
        links.add_neighbour(inside.index, gateway, gateway_mac)?;
        links.add_route((Ipv6Addr::UNSPECIFIED.into(), 0), inside.index, Some(gateway), Some(own.into()))?;
    }
    Ok(inside.mac)
}

fn failed(what: String, error: io::Error) -> EngineError {
    EngineError::new(Reason::Network, what, error)
}
