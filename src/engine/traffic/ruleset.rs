//! The text of our own nftables table (nft(8)). Pure: what is there and what is wanted in, one transaction out.
//!
//! The table has a fixed skeleton and a chain a service. A switch replaces the rules of that chain and leaves the
//! maps that lead into it alone: before a fix of September 2025 ("netfilter: nf_tables: restart set lookup on base_seq
//! change") a lookup could miss an element that was being replaced, old and new both.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::listing::Table;
use crate::engine::Route;
use crate::engine::native::net::names::{Names, Subnet};
use crate::types::{PortMapping, Protocol, ServiceName};

/// What leads into the chain of a service: an element of one of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Anything sent to a service address.
    Service(Ipv4Addr),
    /// A port of every address of the host.
    Anywhere(Protocol, u16),
    /// A port of one address of the host.
    At(Ipv4Addr, Protocol, u16),
}

impl Entry {
    /// The map that holds it, and its key there.
    fn element(self) -> (&'static str, String) {
        match self {
            Self::Service(address) => ("services", address.to_string()),
            Self::Anywhere(protocol, port) => ("anywhere", format!("{protocol} . {port}")),
            Self::At(address, protocol, port) => ("at", format!("{address} . {protocol} . {port}")),
        }
    }

    /// The entry that leads to a published port.
    pub fn of(port: &PortMapping) -> Self {
        if port.host_ip.is_unspecified() {
            Self::Anywhere(port.protocol, port.host_port)
        } else {
            Self::At(port.host_ip, port.protocol, port.host_port)
        }
    }
}

impl std::fmt::Display for Entry {
    /// For people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(address) => write!(f, "service address {address}"),
            Self::Anywhere(protocol, port) => write!(f, "port {port}/{protocol}"),
            Self::At(address, protocol, port) => write!(f, "port {address}:{port}/{protocol}"),
        }
    }
}

/// The chain of a service.
pub fn chain(service: &ServiceName) -> String {
    format!("svc-{service}")
}

/// The entries that a route needs.
pub fn entries(route: &Route) -> BTreeSet<Entry> {
    let mut entries: BTreeSet<Entry> = route.ports.iter().map(Entry::of).collect();
    entries.insert(Entry::Service(route.service_address));
    entries
}

/// Everything but the services. Run again on a table that is in use it changes nothing that a packet could notice.
pub fn skeleton(names: &Names, subnet: Subnet) -> String {
    let Names { table: t, bridge, veth_prefix: veth, .. } = names;
    let gateway = subnet.gateway();
    // `"gd…*"` is any container of this instance. What leads to the bridge has no container behind it; but in the
    // output hook a packet still shows the interface it had before its DNAT, so those are let through there.
    format!(
        r#"add table inet {t}
add map inet {t} services {{ type ipv4_addr : verdict ; }}
add map inet {t} anywhere {{ type inet_proto . inet_service : verdict ; }}
add map inet {t} at {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add set inet {t} hairpin {{ type ipv4_addr . ipv4_addr ; }}
add chain inet {t} published
add chain inet {t} nat-pre {{ type nat hook prerouting priority -105 ; policy accept ; }}
add chain inet {t} nat-out {{ type nat hook output priority -105 ; policy accept ; }}
add chain inet {t} nat-post {{ type nat hook postrouting priority 95 ; policy accept ; }}
add chain inet {t} guard {{ type filter hook prerouting priority -300 ; policy accept ; }}
add chain inet {t} filter-forward {{ type filter hook forward priority -5 ; policy accept ; }}
add chain inet {t} filter-out {{ type filter hook output priority -5 ; policy accept ; }}
flush chain inet {t} published
flush chain inet {t} nat-pre
flush chain inet {t} nat-out
flush chain inet {t} nat-post
flush chain inet {t} guard
flush chain inet {t} filter-forward
flush chain inet {t} filter-out
add rule inet {t} published ip daddr . meta l4proto . th dport vmap @at
add rule inet {t} published meta nfproto ipv4 fib daddr type local meta l4proto . th dport vmap @anywhere
add rule inet {t} nat-pre iifname "{veth}*" ip daddr vmap @services
add rule inet {t} nat-pre jump published
add rule inet {t} nat-out ip daddr vmap @services
add rule inet {t} nat-out jump published
add rule inet {t} nat-post oifname "{veth}*" ip saddr 127.0.0.0/8 snat ip to {gateway}
add rule inet {t} nat-post ip saddr . ip daddr @hairpin snat ip to {gateway}
add rule inet {t} nat-post iifname "{veth}*" oifname != "{veth}*" oifname != "{bridge}" ip saddr {subnet} masquerade
add rule inet {t} guard iifname "{veth}*" ip daddr 127.0.0.0/8 drop
add rule inet {t} filter-forward oifname "{veth}*" ct state invalid drop
add rule inet {t} filter-forward iifname "{veth}*" ct state invalid drop
add rule inet {t} filter-forward oifname "{bridge}" meta l4proto tcp reject with tcp reset
add rule inet {t} filter-forward oifname "{bridge}" reject
add rule inet {t} filter-forward oifname "{veth}*" iifname != "{veth}*" ct state new ct status & dnat != dnat drop
add rule inet {t} filter-out oifname "{bridge}" ct status & dnat == dnat accept
add rule inet {t} filter-out oifname "{bridge}" meta l4proto tcp reject with tcp reset
add rule inet {t} filter-out oifname "{bridge}" reject
"#
    )
}

/// Sends new connections of a service along `route`: its rules are replaced, ports that came or went follow.
///
/// `now` is the table as it is; no entry of `route` may belong to another service.
pub fn switch(table: &str, now: &Table, route: &Route) -> String {
    let chain = chain(&route.service);
    let address = route.address;
    let mut text = format!("add chain inet {table} {chain}\nflush chain inet {table} {chain}\n");
    line(
        &mut text,
        format_args!(
            "add rule inet {table} {chain} ip daddr {} dnat ip to {address} comment \"generation {}\"",
            route.service_address, route.generation
        ),
    );
    // The narrower mapping first: all of them share this chain.
    let mut ports: Vec<&PortMapping> = route.ports.iter().collect();
    ports.sort_by_key(|port| (port.host_ip.is_unspecified(), *port));
    for port in ports {
        let PortMapping { host_ip, host_port, container_port, protocol } = port;
        let at = if host_ip.is_unspecified() { String::new() } else { format!("ip daddr {host_ip} ") };
        line(
            &mut text,
            format_args!(
                "add rule inet {table} {chain} {at}{protocol} dport {host_port} dnat ip to {address}:{container_port}"
            ),
        );
    }
    let wanted = entries(route);
    take_entries(&mut text, table, now, &chain, &wanted);
    for entry in wanted.iter().filter(|entry| !now.entries.contains_key(entry)) {
        let (map, key) = entry.element();
        line(&mut text, format_args!("add element inet {table} {map} {{ {key} : goto {chain} }}"));
    }
    if let Some(old) = now.routes.get(&route.service).filter(|old| old.address != address) {
        take_hairpin(&mut text, table, now, old.address);
    }
    if !now.hairpins.contains(&address) {
        line(&mut text, format_args!("add element inet {table} hairpin {{ {address} . {address} }}"));
    }
    text
}

/// Takes a service away.
pub fn withdraw(table: &str, now: &Table, service: &ServiceName) -> String {
    let chain = chain(service);
    let mut text = String::new();
    take_entries(&mut text, table, now, &chain, &BTreeSet::new());
    if let Some(old) = now.routes.get(service) {
        take_hairpin(&mut text, table, now, old.address);
    }
    if now.chains.contains(&chain) {
        line(&mut text, format_args!("flush chain inet {table} {chain}"));
        line(&mut text, format_args!("delete chain inet {table} {chain}"));
    }
    text
}

/// Deletes the entries that lead into `chain`, except those to `keep`.
fn take_entries(text: &mut String, table: &str, now: &Table, chain: &str, keep: &BTreeSet<Entry>) {
    for (entry, _) in now.entries.iter().filter(|(entry, into)| *into == chain && !keep.contains(entry)) {
        let (map, key) = entry.element();
        line(text, format_args!("delete element inet {table} {map} {{ {key} }}"));
    }
}

fn take_hairpin(text: &mut String, table: &str, now: &Table, address: Ipv4Addr) {
    if now.hairpins.contains(&address) {
        line(text, format_args!("delete element inet {table} hairpin {{ {address} . {address} }}"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    fn route(generation: u64, last: u8, ports: &[(&str, u16, u16, Protocol)]) -> Route {
        let port = |&(host_ip, host_port, container_port, protocol): &(&str, u16, u16, Protocol)| {
            PortMapping { host_ip: host_ip.parse().unwrap(), host_port, container_port, protocol }
        };
        Route {
            service: "shop".parse().unwrap(),
            service_address: Ipv4Addr::new(10, 98, 0, 80),
            generation: Generation(generation),
            address: Ipv4Addr::new(10, 98, 1, last),
            ports: ports.iter().map(port).collect(),
        }
    }

    fn after(route: &Route) -> Table {
        let mut table = Table::default();
        table.chains.insert(chain(&route.service));
        table.entries.extend(entries(route).into_iter().map(|entry| (entry, chain(&route.service))));
        table.hairpins.insert(route.address);
        table.routes.insert(route.service.clone(), route.clone());
        table
    }

    #[test]
    fn first_switch() {
        let ports = [("0.0.0.0", 80, 8080, Protocol::Tcp), ("127.0.0.1", 80, 9000, Protocol::Tcp)];
        assert_eq!(
            switch("t", &Table::default(), &route(1, 7, &ports)),
            "\
add chain inet t svc-shop
flush chain inet t svc-shop
add rule inet t svc-shop ip daddr 10.98.0.80 dnat ip to 10.98.1.7 comment \"generation 1\"
add rule inet t svc-shop ip daddr 127.0.0.1 tcp dport 80 dnat ip to 10.98.1.7:9000
add rule inet t svc-shop tcp dport 80 dnat ip to 10.98.1.7:8080
add element inet t services { 10.98.0.80 : goto svc-shop }
add element inet t anywhere { tcp . 80 : goto svc-shop }
add element inet t at { 127.0.0.1 . tcp . 80 : goto svc-shop }
add element inet t hairpin { 10.98.1.7 . 10.98.1.7 }
"
        );
    }

    #[test]
    fn a_switch_touches_no_entry() {
        let ports = [("0.0.0.0", 80, 8080, Protocol::Tcp)];
        assert_eq!(
            switch("t", &after(&route(1, 7, &ports)), &route(2, 8, &ports)),
            "\
add chain inet t svc-shop
flush chain inet t svc-shop
add rule inet t svc-shop ip daddr 10.98.0.80 dnat ip to 10.98.1.8 comment \"generation 2\"
add rule inet t svc-shop tcp dport 80 dnat ip to 10.98.1.8:8080
delete element inet t hairpin { 10.98.1.7 . 10.98.1.7 }
add element inet t hairpin { 10.98.1.8 . 10.98.1.8 }
"
        );
    }

    #[test]
    fn ports_come_and_go() {
        let old = route(1, 7, &[("0.0.0.0", 80, 8080, Protocol::Tcp)]);
        let new = route(1, 7, &[("0.0.0.0", 53, 53, Protocol::Udp)]);
        let text = switch("t", &after(&old), &new);
        assert!(text.contains("delete element inet t anywhere { tcp . 80 }\n"), "{text}");
        assert!(text.contains("add element inet t anywhere { udp . 53 : goto svc-shop }\n"), "{text}");
        assert!(text.contains("udp dport 53 dnat ip to 10.98.1.7:53\n"), "{text}");
        assert!(!text.contains("services") && !text.contains("hairpin"), "{text}");
    }

    #[test]
    fn withdrawing_leaves_nothing() {
        let old = route(1, 7, &[("10.0.0.5", 80, 8080, Protocol::Tcp)]);
        assert_eq!(
            withdraw("t", &after(&old), &old.service),
            "\
delete element inet t services { 10.98.0.80 }
delete element inet t at { 10.0.0.5 . tcp . 80 }
delete element inet t hairpin { 10.98.1.7 . 10.98.1.7 }
flush chain inet t svc-shop
delete chain inet t svc-shop
"
        );
        assert_eq!(withdraw("t", &Table::default(), &old.service), "");
    }
}
