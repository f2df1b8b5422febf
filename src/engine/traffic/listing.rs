//! Reads our table back: `nft -j list table` (libnftables-json(5)) to routes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::ruleset::{Entry, addresses, entries, hairpins};
use super::skeleton::{Sets, is_member_set};
use super::spread::{Draw, Lane};
use crate::engine::Route;
use crate::engine::native::net::names::Subnet6;
use crate::types::{Branch, Generation, PortMapping, Protocol, ServiceName};

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The routes that are whole: a service's rules agree with each other and have an entry that leads to them.
    pub routes: BTreeMap<ServiceName, Route>,
    /// Every entry of the maps, and the chain it leads into.
    pub entries: BTreeMap<Entry, String>,
    /// Containers that may reach themselves through their service.
    pub hairpins: BTreeSet<IpAddr>,
    /// Who is on which network.
    pub sets: Sets,
    /// Every chain.
    pub chains: BTreeSet<String>,
    /// How many rules each of them has.
    pub rules: BTreeMap<String, usize>,
}

/// The rules of one service's chain, as far as they are ours.
#[derive(Default)]
struct Rules {
    whole: Rest,
    /// Those of the other containers of its generation, by how many are left to choose from.
    lanes: BTreeMap<u32, Rest>,
    /// Those before which something is drawn for a branch, and what.
    drawn: Rest,
    draws: Vec<Draw>,
    strange: bool,
}

/// The rules that lead to one container.
#[derive(Default)]
struct Rest {
    service: Option<(Ipv4Addr, Generation, Ipv4Addr)>,
    ports: Vec<(Ipv4Addr, PortMapping)>,
    ports6: Vec<(Ipv6Addr, PortMapping)>,
}

/// Understands a listing; `None` if it is no listing at all.
pub fn parse(json: &[u8], subnet6: Option<Subnet6>) -> Option<Table> {
    let document: Value = serde_json::from_slice(json).ok()?;
    let mut table = Table::default();
    let mut rules: BTreeMap<String, Rules> = BTreeMap::new();
    for object in document.get("nftables")?.as_array()? {
        if let Some(chain) = object.get("chain") {
            table.chains.extend(text(chain, "name").map(str::to_owned));
        } else if let Some(map) = object.get("map") {
            let into = |entry: &Value| element(text(map, "name")?, entry);
            table.entries.extend(elements(map).iter().filter_map(into));
        } else if let Some(set) = object.get("set") {
            let name = text(set, "name").unwrap_or_default();
            let first = |entry: &Value| concat(entry).first()?.as_str()?.parse::<IpAddr>().ok();
            let addresses = elements(set).iter().filter_map(first);
            match name {
                "hairpin" | "hairpin6" => table.hairpins.extend(addresses),
                name if is_member_set(name) => {
                    table.sets.insert(name.to_owned(), addresses.collect());
                }
                _ => {}
            }
        } else if let Some(rule) = object.get("rule")
            && let Some(chain) = text(rule, "chain")
        {
            *table.rules.entry(chain.to_owned()).or_default() += 1;
            if chain.starts_with("svc-") {
                let rules = rules.entry(chain.to_owned()).or_default();
                rules.strange |= add_rule(rules, rule).is_none();
            }
        }
    }
    table.routes = rules.iter().filter_map(|(chain, rules)| route(chain, rules, &table, subnet6)).collect();
    Some(table)
}

/// A route, if the rules of the chain make one and nothing of it is missing.
fn route(
    chain: &str,
    rules: &Rules,
    table: &Table,
    subnet6: Option<Subnet6>,
) -> Option<(ServiceName, Route)> {
    let service: ServiceName = chain.strip_prefix("svc-")?.parse().ok()?;
    let (service_address, generation, last) = rules.whole.service?;
    let ports = rules.whole.ports(last, subnet6)?;
    let mut containers =
        lanes(rules, (service_address, generation), &ports, subnet6)?.into_iter().chain([last]);
    let (address, also) = (containers.next()?, containers.collect());
    let canary = match &rules.drawn.service {
        Some(_) => Some(branch(&service, service_address, rules, subnet6)?),
        None if rules.draws.is_empty() => None,
        None => return None,
    };
    let route = Route { service: service.clone(), service_address, generation, address, also, ports, canary };
    let led_to = |entry| table.entries.get(&entry).is_some_and(|into| into == chain);
    let hairpin = |address| hairpins(address, subnet6).iter().all(|(_, own)| table.hairpins.contains(own));
    let whole = entries(&route).into_iter().all(led_to) && addresses(&route).all(hairpin);
    (whole && !rules.strange).then_some((service, route))
}

/// The containers before the last, in the order of their rules: each takes its part of what is left, all lead to the same
/// generation, and from the same ports.
fn lanes(
    rules: &Rules,
    of: (Ipv4Addr, Generation),
    ports: &[PortMapping],
    subnet6: Option<Subnet6>,
) -> Option<Vec<Ipv4Addr>> {
    let lane = |(left, (drawn, rest)): (usize, (&u32, &Rest))| {
        let (at, generation, address) = rest.service?;
        let right = usize::try_from(*drawn).ok()? == left && (at, generation) == of;
        (right && rest.ports(address, subnet6)? == ports).then_some(address)
    };
    let mut found = (2..).zip(&rules.lanes).map(lane).collect::<Option<Vec<Ipv4Addr>>>()?;
    found.reverse();
    Some(found)
}

/// The branch that the drawn rules make: all of them to one generation, with one share.
fn branch(
    service: &ServiceName,
    service_address: Ipv4Addr,
    rules: &Rules,
    subnet6: Option<Subnet6>,
) -> Option<Branch> {
    let (at, generation, address) = rules.drawn.service?;
    let Draw { share, by, .. } = *rules.draws.first()?;
    let one = |draw: &Draw| draw.belongs(service, generation) && (draw.share, draw.by) == (share, by);
    let ports = rules.drawn.ports(address, subnet6)?;
    (at == service_address && rules.draws.iter().all(one)).then_some(Branch {
        generation,
        address,
        share,
        by,
        ports,
    })
}

impl Rest {
    /// The ports that lead to `address`, sorted; `None` if one leads elsewhere, or in one family only.
    fn ports(&self, address: Ipv4Addr, subnet6: Option<Subnet6>) -> Option<Vec<PortMapping>> {
        let six = subnet6.map(|subnet6| subnet6.of(address));
        let one_target = self.ports.iter().all(|(target, _)| *target == address)
            && self.ports6.iter().all(|(target, _)| Some(*target) == six);
        let mut ports: Vec<PortMapping> = self.ports.iter().map(|(_, port)| port.clone()).collect();
        // A port of every address has a rule for each family.
        let both = |port: &PortMapping| PortMapping { host_ip: Ipv4Addr::UNSPECIFIED.into(), ..port.clone() };
        let mut halves: Vec<&PortMapping> =
            ports.iter().filter(|port| port.host_ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED)).collect();
        let mut only6 = Vec::new();
        for (_, port) in &self.ports6 {
            match halves.iter().position(|half| port.host_ip.is_unspecified() && **half == both(port)) {
                Some(place) => {
                    halves.swap_remove(place);
                }
                None => only6.push(port.clone()),
            }
        }
        let paired = halves.is_empty() || six.is_none();
        ports.extend(only6);
        ports.sort();
        (one_target && paired).then_some(ports)
    }
}

/// Takes one rule apart: matches on destination and port, what is drawn, then the DNAT.
fn add_rule(rules: &mut Rules, rule: &Value) -> Option<()> {
    let mut at: Option<IpAddr> = None;
    let mut port = None;
    let (mut draw, mut lane) = (None, None);
    for expression in rule.get("expr")?.as_array()? {
        if let Some(matched) = expression.get("match") {
            if let Some(drawn) = Draw::read(matched) {
                draw = Some(drawn);
                continue;
            }
            if let Some(drawn) = Lane::read(matched) {
                lane = Some(drawn);
                continue;
            }
            let payload = matched.get("left")?.get("payload")?;
            let right = matched.get("right")?;
            match (text(payload, "protocol")?, text(payload, "field")?) {
                ("ip" | "ip6", "daddr") => at = Some(right.as_str()?.parse().ok()?),
                (name, "dport") => port = Some((protocol(name)?, number(right)?)),
                _ => return None,
            }
        } else {
            let dnat = expression.get("dnat")?;
            rules.draws.extend(draw);
            let lane = match (draw, lane) {
                (Some(_), None) => &mut rules.drawn,
                (None, Some(lane)) => rules.lanes.entry(lane.left()).or_default(),
                (None, None) => &mut rules.whole,
                (Some(_), Some(_)) => return None,
            };
            let target: IpAddr = text(dnat, "addr")?.parse().ok()?;
            match (port, target) {
                (None, IpAddr::V4(target)) => {
                    let comment = text(rule, "comment")?;
                    let generation = comment.strip_prefix("generation ")?.parse().ok()?;
                    let IpAddr::V4(at) = at? else { return None };
                    lane.service = Some((at, Generation(generation), target));
                }
                (None, IpAddr::V6(_)) => return None,
                (Some((protocol, host_port)), target) => {
                    let container_port = number(dnat.get("port")?)?;
                    let mapping = |all: IpAddr| PortMapping {
                        host_ip: at.unwrap_or(all),
                        host_port,
                        container_port,
                        protocol,
                    };
                    match target {
                        IpAddr::V4(to) => lane.ports.push((to, mapping(Ipv4Addr::UNSPECIFIED.into()))),
                        IpAddr::V6(to) => lane.ports6.push((to, mapping(Ipv6Addr::UNSPECIFIED.into()))),
                    }
                }
            }
        }
    }
    Some(())
}

/// One element of a verdict map: where it leads.
fn element(map: &str, element: &Value) -> Option<(Entry, String)> {
    let key = element.get(0)?;
    let chain = text(element.get(1)?.get("goto")?, "target")?.to_owned();
    let entry = match (map, concat(key).as_slice()) {
        ("services", [address]) => Entry::Service(address.as_str()?.parse().ok()?),
        ("anywhere", [proto, port]) => Entry::Anywhere(named(proto)?, number(port)?),
        ("anywhere6", [proto, port]) => Entry::Anywhere6(named(proto)?, number(port)?),
        ("at" | "at6", [address, proto, port]) => {
            Entry::At(address.as_str()?.parse().ok()?, named(proto)?, number(port)?)
        }
        _ => return None,
    };
    Some((entry, chain))
}

/// The parts of a key, be it one or several.
fn concat(key: &Value) -> Vec<&Value> {
    match key.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.iter().collect(),
        None => vec![key],
    }
}

fn elements(set: &Value) -> &[Value] {
    set.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

/// A protocol in a map's key. nft names it by /etc/protocols, and shows its number on a host without that file.
fn named(value: &Value) -> Option<Protocol> {
    match (value.as_str(), value.as_u64()) {
        (Some(name), _) => protocol(name),
        (_, Some(6)) => Some(Protocol::Tcp),
        (_, Some(17)) => Some(Protocol::Udp),
        _ => None,
    }
}

fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.0.6 prints it.
    const LISTING: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "t", "handle": 1}},
        {"map": {"family": "inet", "name": "services", "table": "t", "type": "ipv4_addr", "map": "verdict",
            "elem": [["10.98.0.80", {"goto": {"target": "svc-web"}}]]}},
        {"map": {"family": "inet", "name": "anywhere", "table": "t", "type": ["inet_proto", "inet_service"],
            "map": "verdict", "elem": [[{"concat": ["tcp", 80]}, {"goto": {"target": "svc-web"}}]]}},
        {"map": {"family": "inet", "name": "at", "table": "t", "type": ["ipv4_addr", "inet_proto", "inet_service"],
            "map": "verdict",
            "elem": [[{"concat": ["127.0.0.1", "udp", 53]}, {"goto": {"target": "svc-web"}}]]}},
        {"set": {"family": "inet", "name": "hairpin", "table": "t", "type": ["ipv4_addr", "ipv4_addr"],
            "elem": [{"concat": ["10.98.1.7", "10.98.1.7"]}]}},
        {"chain": {"family": "inet", "table": "t", "name": "svc-web", "handle": 5}},
        {"rule": {"family": "inet", "table": "t", "chain": "svc-web", "handle": 6, "comment": "generation 7", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "10.98.0.80"}},
            {"dnat": {"family": "ip", "addr": "10.98.1.7"}}]}},
        {"rule": {"family": "inet", "table": "t", "chain": "svc-web", "handle": 7, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "127.0.0.1"}},
            {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 53}},
            {"dnat": {"family": "ip", "addr": "10.98.1.7", "port": 5353}}]}},
        {"rule": {"family": "inet", "table": "t", "chain": "svc-web", "handle": 8, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}},
            {"dnat": {"family": "ip", "addr": "10.98.1.7", "port": 8080}}]}}]}"#;

    #[test]
    fn a_whole_route_is_read_back() {
        let table = parse(LISTING.as_bytes(), None).unwrap();
        let route = &table.routes[&"web".parse().unwrap()];
        assert_eq!(route.generation, Generation(7));
        assert_eq!(route.service_address, Ipv4Addr::new(10, 98, 0, 80));
        assert_eq!(route.address, Ipv4Addr::new(10, 98, 1, 7));
        let shown: Vec<String> = route.ports.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["0.0.0.0:80->8080/tcp", "127.0.0.1:53->5353/udp"]);
        assert_eq!(table.entries.len(), 3);
    }

    #[test]
    fn a_host_need_not_have_a_list_of_protocols() {
        let numbers = LISTING.replace(r#"["tcp", 80]"#, "[6, 80]").replace(r#""udp", 53]"#, "17, 53]");
        assert_ne!(numbers, LISTING);
        assert_eq!(parse(numbers.as_bytes(), None), parse(LISTING.as_bytes(), None));
    }

    #[test]
    fn a_damaged_route_is_none() {
        let other_target =
            LISTING.replace(r#""addr": "10.98.1.7", "port": 8080"#, r#""addr": "10.98.1.9", "port": 8080"#);
        let no_entry = LISTING.replace(r#"["tcp", 80]"#, r#"["tcp", 81]"#);
        let no_comment = LISTING.replace("generation 7", "hello");
        for damaged in [other_target, no_entry, no_comment] {
            assert_ne!(damaged, LISTING);
            let table = parse(damaged.as_bytes(), None).unwrap();
            assert!(table.routes.is_empty());
            assert!(table.chains.contains("svc-web"));
        }
        assert_eq!(parse(b"Error: syntax error", None), None);
    }
}
