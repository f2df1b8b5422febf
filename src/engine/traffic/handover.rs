//! Ports that go from one service to another, so that no client is refused in between.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;

use super::listing::Table;
use super::spread::{self, Lane};
use super::{Known, NftTraffic, ruleset};
use crate::engine::Route;
use crate::engine::native::net::names::Subnet6;
use crate::types::{PortMapping, ServiceName};

/// The chain of what finds no entry; it has rules only while ports go from one service to another.
pub const MOVING: &str = "moving";

impl NftTraffic {
    /// Changes the rules so that `route` is whole and the others are as in `given`, where ports of theirs go over to it;
    /// `before` comes first.
    ///
    /// A packet on its way through the chains may see the rules as they were and the entries as they are; or, before a fix of
    /// September 2025 (see [`ruleset`]), no entry at all. So the rules for these ports are there before the entries are moved,
    /// and meanwhile what finds no entry is led along `route` too.
    pub(super) fn move_ports(
        &self,
        known: &mut Known,
        before: &str,
        now: &Table,
        route: &Route,
        given: &[Route],
    ) -> io::Result<()> {
        let (table, subnet6) = (self.table(), self.frame.subnet6);
        let moving: Vec<_> = given.iter().filter_map(|left| now.routes.get(&left.service)).collect();
        let is_moving =
            |port: &&PortMapping| moving.iter().any(|old| old.ports.iter().any(|it| it.clashes(port)));
        let ports: Vec<_> = route.ports.iter().filter(is_moving).cloned().collect();
        let rules =
            [before, &cover(table, subnet6, route, &ports), &ruleset::switch(table, subnet6, now, route)];
        let moved = self.apply(known, &rules.concat()).and_then(|()| {
            let now = self.read(known)?.unwrap_or_default();
            let (text, left) = give(table, subnet6, &now, given);
            self.apply(known, &(text + &ruleset::switch(table, subnet6, &left, route)))
        });
        crate::failpoint::hit("moving::after");
        moved.and(self.apply(known, &cover(table, subnet6, route, &[])))
    }
}

/// What is left of the routes of `givers` that have a port of `route`.
pub fn given(now: &Table, route: &Route, givers: &BTreeSet<ServiceName>) -> Vec<Route> {
    let theirs = givers.iter().filter(|giver| **giver != route.service).filter_map(|it| now.routes.get(it));
    let left = theirs.map(|theirs| {
        let mut left = theirs.clone();
        left.ports.retain(|port| !route.ports.iter().any(|taken| taken.clashes(port)));
        (theirs, left)
    });
    left.filter(|(theirs, left)| theirs.ports.len() != left.ports.len()).map(|(_, left)| left).collect()
}

/// Leads what finds none of the entries of `ports` along `route`: those of a port that goes from one service to another. A
/// transaction before and one after the one that moves them, for kernels that may miss an entry which is being replaced.
pub fn cover(table: &str, subnet6: Option<Subnet6>, route: &Route, ports: &[PortMapping]) -> String {
    let mut text = format!("flush chain inet {table} {MOVING}\n");
    let lanes: Vec<(Ipv4Addr, Lane)> = spread::lanes(route).collect();
    for port in ruleset::narrower_first(ports) {
        let PortMapping { host_port, protocol, .. } = port;
        for (address, lane) in &lanes {
            for (at, to) in ruleset::ways(port, *address, subnet6) {
                // What the maps are asked for.
                let at = match (at.is_empty(), to.starts_with("ip6")) {
                    (true, true) => "ip6 daddr != ::1 fib daddr type local ",
                    (true, false) => "meta nfproto ipv4 fib daddr type local ",
                    (false, _) => &at,
                };
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "add rule inet {table} {MOVING} {at}{protocol} dport {host_port} {lane}dnat {to}"
                );
            }
        }
    }
    text
}

/// Leaves services with these routes, which have lost ports; and the table as it is then.
pub fn give(table: &str, subnet6: Option<Subnet6>, now: &Table, left: &[Route]) -> (String, Table) {
    let (mut text, mut now) = (String::new(), now.clone());
    for route in left {
        text.push_str(&ruleset::switch(table, subnet6, &now, route));
        let (own, wanted) = (ruleset::chain(&route.service), ruleset::entries(route));
        now.entries.retain(|entry, into| *into != own || wanted.contains(entry));
        now.routes.insert(route.service.clone(), route.clone());
    }
    (text, now)
}
