//! The text of our own nftables table (nft(8)). Pure: what is there and what is wanted in, one transaction out.
//!
//! The table has a fixed part (`skeleton`) and a chain a service. A switch replaces the rules of that chain and leaves the
//! maps that lead into it alone: before a fix of September 2025 ("netfilter: nf_tables: restart set lookup on base_seq
//! change") a lookup could miss an element that was being replaced, old and new both.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::listing::Table;
use super::spread::{self, Lane};
use crate::engine::Route;
use crate::engine::native::net::names::Subnet6;
use crate::types::{PortMapping, Protocol, ServiceName};

/// What leads into the chain of a service: an element of one of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Anything sent to a service address.
    Service(Ipv4Addr),
    /// A port of every address of the host, IPv6 ones too where containers have IPv6.
    Anywhere(Protocol, u16),
    /// A port of every IPv6 address of the host.
    Anywhere6(Protocol, u16),
    /// A port of one address of the host.
    At(IpAddr, Protocol, u16),
}

impl Entry {
    /// The map that holds it, and its key there.
    pub fn element(self) -> (&'static str, String) {
        match self {
            Self::Service(address) => ("services", address.to_string()),
            Self::Anywhere(protocol, port) => ("anywhere", format!("{protocol} . {port}")),
            Self::Anywhere6(protocol, port) => ("anywhere6", format!("{protocol} . {port}")),
            Self::At(address, protocol, port) => {
                let map = if address.is_ipv6() { "at6" } else { "at" };
                (map, format!("{address} . {protocol} . {port}"))
            }
        }
    }

    /// The entry that leads to a published port.
    pub fn of(port: &PortMapping) -> Self {
        match port.host_ip {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Self::Anywhere(port.protocol, port.host_port),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Self::Anywhere6(port.protocol, port.host_port),
            address => Self::At(address, port.protocol, port.host_port),
        }
    }
}

impl std::fmt::Display for Entry {
    /// For people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(address) => write!(f, "service address {address}"),
            Self::Anywhere(protocol, port) => write!(f, "port {port}/{protocol}"),
            Self::Anywhere6(protocol, port) => write!(f, "port [::]:{port}/{protocol}"),
            Self::At(IpAddr::V6(address), protocol, port) => write!(f, "port [{address}]:{port}/{protocol}"),
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

/// Sends new connections of a service along `route`: its rules are replaced, ports that came or went follow.
///
/// `now` is the table as it is; no entry of `route` may belong to another service.
pub fn switch(table: &str, subnet6: Option<Subnet6>, now: &Table, route: &Route) -> String {
    let chain = chain(&route.service);
    let lanes: Vec<(Ipv4Addr, Lane)> = spread::lanes(route).collect();
    let mut text = format!("add chain inet {table} {chain}\nflush chain inet {table} {chain}\n");
    let branch = route.canary.as_ref().map(|branch| (branch, spread::drawn(&route.service, branch)));
    if let Some((branch, drawn)) = &branch {
        for (address, draw) in drawn {
            line(
                &mut text,
                format_args!(
                    "add rule inet {table} {chain} ip daddr {} {draw} dnat ip to {address} comment \"generation {}\"",
                    route.service_address, branch.generation
                ),
            );
        }
    }
    for (address, lane) in &lanes {
        line(
            &mut text,
            format_args!(
                "add rule inet {table} {chain} ip daddr {} {lane}dnat ip to {address} comment \"generation {}\"",
                route.service_address, route.generation
            ),
        );
    }
    for port in narrower_first(&route.ports) {
        let PortMapping { host_port, protocol, .. } = port;
        // A port that the second generation has not is the first one's alone.
        if let Some((branch, drawn)) = &branch
            && let Some(other) = branch.ports.iter().find(|other| Entry::of(other) == Entry::of(port))
        {
            for (address, draw) in drawn {
                for (at, to) in ways(other, *address, subnet6) {
                    let draw = draw.of_family(to.starts_with("ip6"));
                    line(
                        &mut text,
                        format_args!(
                            "add rule inet {table} {chain} {at}{protocol} dport {host_port} {draw} dnat {to}"
                        ),
                    );
                }
            }
        }
        for (address, lane) in &lanes {
            for (at, to) in ways(port, *address, subnet6) {
                line(
                    &mut text,
                    format_args!(
                        "add rule inet {table} {chain} {at}{protocol} dport {host_port} {lane}dnat {to}"
                    ),
                );
            }
        }
    }
    let wanted = entries(route);
    take_entries(&mut text, table, now, &chain, &wanted);
    for entry in wanted.iter().filter(|entry| now.entries.get(entry).is_none_or(|into| into.is_empty())) {
        let (map, key) = entry.element();
        line(&mut text, format_args!("add element inet {table} {map} {{ {key} : goto {chain} }}"));
    }
    let leads_to: Vec<Ipv4Addr> = route.addresses().collect();
    for old in now.routes.get(&route.service).into_iter().flat_map(Route::addresses) {
        if !leads_to.contains(&old) {
            take_hairpin(&mut text, table, subnet6, now, &route.service, old);
        }
    }
    for (set, own) in leads_to.iter().flat_map(|address| hairpins(*address, subnet6)) {
        if !now.hairpins.contains(&own) {
            line(&mut text, format_args!("add element inet {table} {set} {{ {own} . {own} }}"));
        }
    }
    text
}

/// The narrower mapping first: all of them share a chain.
pub fn narrower_first(ports: &[PortMapping]) -> Vec<&PortMapping> {
    let mut ports: Vec<&PortMapping> = ports.iter().collect();
    ports.sort_by_key(|port| (port.host_ip.is_unspecified(), *port));
    ports.dedup();
    ports
}

/// The rules of one port: what they match beside the port, and where they lead. One for each family that it has.
pub fn ways(port: &PortMapping, address: Ipv4Addr, subnet6: Option<Subnet6>) -> Vec<(String, String)> {
    let to = port.container_port;
    let four = format!("ip to {address}:{to}");
    let six = subnet6.map(|subnet6| format!("ip6 to [{}]:{to}", subnet6.of(address)));
    let everywhere = String::new;
    match port.host_ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
            std::iter::once((everywhere(), four)).chain(six.map(|six| (everywhere(), six))).collect()
        }
        IpAddr::V4(host) => vec![(format!("ip daddr {host} "), four)],
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => six.map(|six| (everywhere(), six)).into_iter().collect(),
        IpAddr::V6(host) => six.map(|six| (format!("ip6 daddr {host} "), six)).into_iter().collect(),
    }
}

/// The sets of those that reach themselves through their service, and the container's addresses in them.
pub fn hairpins(address: Ipv4Addr, subnet6: Option<Subnet6>) -> Vec<(&'static str, IpAddr)> {
    let six = subnet6.map(|subnet6| ("hairpin6", IpAddr::V6(subnet6.of(address))));
    std::iter::once(("hairpin", IpAddr::V4(address))).chain(six).collect()
}

/// Takes a service away.
pub fn withdraw(table: &str, subnet6: Option<Subnet6>, now: &Table, service: &ServiceName) -> String {
    let chain = chain(service);
    let mut text = String::new();
    take_entries(&mut text, table, now, &chain, &BTreeSet::new());
    for old in now.routes.get(service).into_iter().flat_map(Route::addresses) {
        take_hairpin(&mut text, table, subnet6, now, service, old);
    }
    if now.chains.contains(&chain) {
        line(&mut text, format_args!("flush chain inet {table} {chain}"));
        line(&mut text, format_args!("delete chain inet {table} {chain}"));
    }
    text
}

/// Deletes the entries that lead into `chain`, except those to `keep`, and of these the ones that lead nowhere: somebody
/// has put them there.
fn take_entries(text: &mut String, table: &str, now: &Table, chain: &str, keep: &BTreeSet<Entry>) {
    let goes = |entry: &Entry, into: &str| match keep.contains(entry) {
        true => into.is_empty(),
        false => into == chain,
    };
    for (entry, _) in now.entries.iter().filter(|(entry, into)| goes(entry, into)) {
        let (map, key) = entry.element();
        line(text, format_args!("delete element inet {table} {map} {{ {key} }}"));
    }
}

/// Unless another service has that address too, as those that share a network have.
fn take_hairpin(
    text: &mut String,
    table: &str,
    subnet6: Option<Subnet6>,
    now: &Table,
    service: &ServiceName,
    address: Ipv4Addr,
) {
    let mut others = now.routes.values().filter(|route| route.service != *service).flat_map(Route::addresses);
    if others.any(|other| other == address) {
        return;
    }
    for (set, own) in hairpins(address, subnet6) {
        if now.hairpins.contains(&own) {
            line(text, format_args!("delete element inet {table} {set} {{ {own} . {own} }}"));
        }
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Branch, Generation, ShareBy};

    fn route(generation: u64, last: u8, ports: &[(&str, u16, u16, Protocol)]) -> Route {
        let port = |&(host_ip, host_port, container_port, protocol): &(&str, u16, u16, Protocol)| {
            PortMapping { host_ip: host_ip.parse().unwrap(), host_port, container_port, protocol }
        };
        Route {
            service: "shop".parse().unwrap(),
            service_address: Ipv4Addr::new(10, 98, 0, 80),
            generation: Generation(generation),
            address: Ipv4Addr::new(10, 98, 1, last),
            also: Vec::new(),
            ports: ports.iter().map(port).collect(),
            canary: None,
        }
    }

    fn after(route: &Route) -> Table {
        let mut table = Table::default();
        table.chains.insert(chain(&route.service));
        table.entries.extend(entries(route).into_iter().map(|entry| (entry, chain(&route.service))));
        table.hairpins.extend(route.addresses().map(IpAddr::V4));
        table.routes.insert(route.service.clone(), route.clone());
        table
    }

    #[test]
    fn first_switch() {
        let ports = [("0.0.0.0", 80, 8080, Protocol::Tcp), ("127.0.0.1", 80, 9000, Protocol::Tcp)];
        assert_eq!(
            switch("t", None, &Table::default(), &route(1, 7, &ports)),
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
            switch("t", None, &after(&route(1, 7, &ports)), &route(2, 8, &ports)),
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
    fn a_branch_comes_before_what_it_takes_from() {
        let ports = [("0.0.0.0", 80, 8080, Protocol::Tcp), ("127.0.0.1", 53, 53, Protocol::Udp)];
        let old = route(1, 7, &ports);
        let branch = Branch {
            generation: Generation(2),
            address: Ipv4Addr::new(10, 98, 1, 8),
            also: Vec::new(),
            share: "10%".parse().unwrap(),
            by: ShareBy::Connection,
            ports: route(2, 8, &[("0.0.0.0", 80, 9090, Protocol::Tcp)]).ports,
        };
        let shared = Route { canary: Some(branch), ..old.clone() };
        assert_eq!(
            switch("t", None, &after(&old), &shared),
            "\
add chain inet t svc-shop
flush chain inet t svc-shop
add rule inet t svc-shop ip daddr 10.98.0.80 numgen random mod 1000 < 100 dnat ip to 10.98.1.8 comment \"generation 2\"
add rule inet t svc-shop ip daddr 10.98.0.80 dnat ip to 10.98.1.7 comment \"generation 1\"
add rule inet t svc-shop ip daddr 127.0.0.1 udp dport 53 dnat ip to 10.98.1.7:53
add rule inet t svc-shop tcp dport 80 numgen random mod 1000 < 100 dnat ip to 10.98.1.8:9090
add rule inet t svc-shop tcp dport 80 dnat ip to 10.98.1.7:8080
add element inet t hairpin { 10.98.1.8 . 10.98.1.8 }
"
        );
        // The return takes the branch's own away, and nothing of the one that stays.
        let back = switch("t", None, &after(&shared), &old);
        assert!(back.ends_with("8080\ndelete element inet t hairpin { 10.98.1.8 . 10.98.1.8 }\n"), "{back}");
        assert!(!back.contains("numgen"), "{back}");
        let gone = withdraw("t", None, &after(&shared), &old.service);
        assert_eq!(gone.matches("delete element inet t hairpin").count(), 2, "{gone}");
    }

    #[test]
    fn a_branch_may_lead_to_several() {
        let ports = [("0.0.0.0", 80, 8080, Protocol::Tcp), ("0.0.0.0", 81, 8080, Protocol::Tcp)];
        let of = |last: u8| Ipv4Addr::new(10, 98, 1, last);
        let old = Route { also: vec![of(8)], ..route(1, 7, &ports) };
        let branch = Branch {
            generation: Generation(2),
            address: of(17),
            also: vec![of(18), of(19)],
            share: "60%".parse().unwrap(),
            by: ShareBy::Connection,
            ports: route(2, 17, &[("0.0.0.0", 80, 9090, Protocol::Tcp)]).ports,
        };
        let shared = Route { canary: Some(branch), ..old.clone() };
        let text = switch("t", None, &after(&old), &shared);
        assert_eq!(
            text,
            "\
add chain inet t svc-shop
flush chain inet t svc-shop
add rule inet t svc-shop ip daddr 10.98.0.80 numgen random mod 3000 < 600 dnat ip to 10.98.1.17 comment \"generation 2\"
add rule inet t svc-shop ip daddr 10.98.0.80 numgen random mod 2400 < 600 dnat ip to 10.98.1.18 comment \"generation 2\"
add rule inet t svc-shop ip daddr 10.98.0.80 numgen random mod 1800 < 600 dnat ip to 10.98.1.19 comment \"generation 2\"
add rule inet t svc-shop ip daddr 10.98.0.80 numgen random mod 2 < 1 dnat ip to 10.98.1.7 comment \"generation 1\"
add rule inet t svc-shop ip daddr 10.98.0.80 dnat ip to 10.98.1.8 comment \"generation 1\"
add rule inet t svc-shop tcp dport 80 numgen random mod 3000 < 600 dnat ip to 10.98.1.17:9090
add rule inet t svc-shop tcp dport 80 numgen random mod 2400 < 600 dnat ip to 10.98.1.18:9090
add rule inet t svc-shop tcp dport 80 numgen random mod 1800 < 600 dnat ip to 10.98.1.19:9090
add rule inet t svc-shop tcp dport 80 numgen random mod 2 < 1 dnat ip to 10.98.1.7:8080
add rule inet t svc-shop tcp dport 80 dnat ip to 10.98.1.8:8080
add rule inet t svc-shop tcp dport 81 numgen random mod 2 < 1 dnat ip to 10.98.1.7:8080
add rule inet t svc-shop tcp dport 81 dnat ip to 10.98.1.8:8080
add element inet t hairpin { 10.98.1.17 . 10.98.1.17 }
add element inet t hairpin { 10.98.1.18 . 10.98.1.18 }
add element inet t hairpin { 10.98.1.19 . 10.98.1.19 }
"
        );
        // Each family draws for itself, and one container of the branch may go while the others stay.
        let six = Some(Subnet6::new("fd00:1:2:3::".parse().unwrap()));
        let both = switch("t", six, &after(&old), &shared);
        let count = |drawn: &str| both.matches(&format!("dport 80 {drawn} dnat ip6 to [")).count();
        assert_eq!(
            ["3000", "2400", "1800"].map(|of| count(&format!("numgen random mod {of} < 600"))),
            [1; 3]
        );
        let branch = shared.canary.clone().map(|branch| Branch { also: vec![of(19)], ..branch });
        let less = switch("t", None, &after(&shared), &Route { canary: branch, ..shared.clone() });
        assert_eq!(less.matches("delete element inet t hairpin").count(), 1, "{less}");
        assert!(less.ends_with("delete element inet t hairpin { 10.98.1.18 . 10.98.1.18 }\n"), "{less}");
        let gone = withdraw("t", None, &after(&shared), &old.service);
        assert_eq!(gone.matches("delete element inet t hairpin").count(), 5, "{gone}");
    }

    #[test]
    fn several_containers_share_evenly() {
        let ports = [("0.0.0.0", 80, 8080, Protocol::Tcp)];
        let also = [8, 9].map(|last| Ipv4Addr::new(10, 98, 1, last)).to_vec();
        let three = Route { also, ..route(1, 7, &ports) };
        assert_eq!(
            switch("t", None, &after(&route(1, 7, &ports)), &three),
            "\
add chain inet t svc-shop
flush chain inet t svc-shop
add rule inet t svc-shop ip daddr 10.98.0.80 numgen random mod 3 < 1 dnat ip to 10.98.1.7 comment \"generation 1\"
add rule inet t svc-shop ip daddr 10.98.0.80 numgen random mod 2 < 1 dnat ip to 10.98.1.8 comment \"generation 1\"
add rule inet t svc-shop ip daddr 10.98.0.80 dnat ip to 10.98.1.9 comment \"generation 1\"
add rule inet t svc-shop tcp dport 80 numgen random mod 3 < 1 dnat ip to 10.98.1.7:8080
add rule inet t svc-shop tcp dport 80 numgen random mod 2 < 1 dnat ip to 10.98.1.8:8080
add rule inet t svc-shop tcp dport 80 dnat ip to 10.98.1.9:8080
add element inet t hairpin { 10.98.1.8 . 10.98.1.8 }
add element inet t hairpin { 10.98.1.9 . 10.98.1.9 }
"
        );
        let gone = withdraw("t", None, &after(&three), &three.service);
        assert_eq!(gone.matches("delete element inet t hairpin").count(), 3, "{gone}");
    }

    #[test]
    fn ports_come_and_go() {
        let old = route(1, 7, &[("0.0.0.0", 80, 8080, Protocol::Tcp)]);
        let new = route(1, 7, &[("0.0.0.0", 53, 53, Protocol::Udp)]);
        let text = switch("t", None, &after(&old), &new);
        assert!(text.contains("delete element inet t anywhere { tcp . 80 }\n"), "{text}");
        assert!(text.contains("add element inet t anywhere { udp . 53 : goto svc-shop }\n"), "{text}");
        assert!(text.contains("udp dport 53 dnat ip to 10.98.1.7:53\n"), "{text}");
        assert!(!text.contains("services") && !text.contains("hairpin"), "{text}");
    }

    #[test]
    fn withdrawing_leaves_nothing() {
        let old = route(1, 7, &[("10.0.0.5", 80, 8080, Protocol::Tcp)]);
        assert_eq!(
            withdraw("t", None, &after(&old), &old.service),
            "\
delete element inet t services { 10.98.0.80 }
delete element inet t at { 10.0.0.5 . tcp . 80 }
delete element inet t hairpin { 10.98.1.7 . 10.98.1.7 }
flush chain inet t svc-shop
delete chain inet t svc-shop
"
        );
        assert_eq!(withdraw("t", None, &Table::default(), &old.service), "");
    }
}
