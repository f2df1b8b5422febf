//! Whether the table can hold a route, before anything is changed for it.

use super::listing::Table;
use super::{NftTraffic, ruleset};
use crate::engine::{EngineError, Route};
use crate::types::{PortMapping, Reason};

impl NftTraffic {
    /// Takes care that a route is one that the table can hold.
    pub(super) fn check(&self, route: &Route, now: &Table) -> Result<(), EngineError> {
        // Services that have the host's network are reached at the host's own address.
        let of_host = |address| address == self.frame.subnet.gateway() && address == route.address;
        for address in route.addresses().chain([route.service_address]) {
            if !self.frame.subnet.usable(address) && !of_host(address) {
                return Err(EngineError::plain(
                    Reason::Network,
                    format!(
                        "{} cannot use {address}: not one of subnet {}",
                        route.service, self.frame.subnet
                    ),
                ));
            }
        }
        let only6 = |port: &&PortMapping| port.host_ip.is_ipv6();
        if let (None, Some(port)) = (self.frame.subnet6, route.ports.iter().find(only6)) {
            return Err(EngineError::plain(
                Reason::Network,
                format!("{} cannot publish {port}: containers have no IPv6 on this host", route.service),
            ));
        }
        let chain = ruleset::chain(&route.service);
        for entry in ruleset::entries(route) {
            let is_anothers = |other: &&String| !other.is_empty() && **other != chain;
            if let Some(other) = now.entries.get(&entry).filter(is_anothers) {
                return Err(EngineError::plain(
                    Reason::PortInUse,
                    format!(
                        "{entry} of {} belongs to service {}",
                        route.service,
                        other.strip_prefix("svc-").unwrap_or(other)
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The ports of a route that no entry of the table leads to yet.
pub fn new_ports(now: &Table, route: &Route) -> Vec<PortMapping> {
    let is_new = |port: &&PortMapping| !now.entries.contains_key(&ruleset::Entry::of(port));
    route.ports.iter().filter(is_new).cloned().collect()
}
