//! Reads our table back: the kernel's chains, sets and rules to routes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::meaning::{Meaning, Ports};
use super::netlink::decode::Expression;
use super::netlink::objects::{Base, Element, Objects};
use super::netlink::would_make;
use super::ruleset::{self, Entry, addresses, entries, hairpins};
use super::skeleton::{Sets, is_member_set};
use super::spread::Draw;
use crate::engine::Route;
use crate::engine::native::net::names::Subnet6;
use crate::types::{Branch, Generation, PortMapping, Protocol, ServiceName};

/// `NFPROTO_INET`: our table's family.
pub const INET: u8 = 1;

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The routes that are whole: a service's rules are those that its route makes, and so are the entries that lead to
    /// them.
    pub routes: BTreeMap<ServiceName, Route>,
    /// Every entry of the maps, and the chain it leads into; nothing = none.
    pub entries: BTreeMap<Entry, String>,
    /// Containers that may reach themselves through their service.
    pub hairpins: BTreeSet<IpAddr>,
    /// Who is on which network.
    pub sets: Sets,
    /// Every chain.
    pub chains: BTreeSet<String>,
    /// The hooks of those that have one.
    pub bases: BTreeMap<String, Base>,
    /// Whether somebody has put the whole of it to sleep: `NFT_TABLE_F_DORMANT`.
    pub is_dormant: bool,
    /// The rules of the chains of the fixed part.
    pub rules: BTreeMap<String, Vec<Vec<Expression>>>,
}

/// A rule of a service's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// What it does.
    pub meaning: Meaning,
    /// The generation that it leads to is in there.
    pub comment: Option<String>,
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
}

/// The rules that lead to one container.
#[derive(Default)]
struct Rest {
    service: Option<(Ipv4Addr, Generation, Ipv4Addr)>,
    ports: Vec<(Ipv4Addr, PortMapping)>,
    ports6: Vec<(Ipv6Addr, PortMapping)>,
}

/// Understands what the kernel has of `table`.
pub fn read(objects: &Objects, table: &str, subnet6: Option<Subnet6>) -> Table {
    let mut read = Table::default();
    let ours = |home: &super::netlink::objects::Home| home.family == INET && home.table == table;
    for chain in objects.chains.iter().filter(|chain| ours(&chain.home)) {
        read.chains.insert(chain.name.clone());
        if let Some(base) = &chain.base {
            read.bases.insert(chain.name.clone(), base.clone());
        }
    }
    for set in objects.sets.iter().filter(|set| ours(&set.home) && is_member_set(&set.name)) {
        read.sets.insert(set.name.clone(), BTreeSet::new());
    }
    for element in &objects.elements {
        if let Some(members) = read.sets.get_mut(&element.set) {
            members.extend(address(&element.key));
        } else if element.set == "hairpin" || element.set == "hairpin6" {
            let half = element.key.len() / 2;
            read.hairpins.extend(element.key.get(..half).and_then(address));
        } else if let Some(entry) = entry(element) {
            read.entries.insert(entry, element.into.clone().unwrap_or_default());
        }
    }
    for (chain, rules) in fixed(objects, table) {
        read.rules.insert(chain, rules);
    }
    let routes: Vec<_> =
        said(objects, table).iter().filter_map(|(chain, said)| route(chain, said, &read, subnet6)).collect();
    read.routes.extend(routes);
    read
}

/// The rules of the fixed part, chain by chain.
pub fn fixed(objects: &Objects, table: &str) -> BTreeMap<String, Vec<Vec<Expression>>> {
    let mut chains: BTreeMap<String, Vec<Vec<Expression>>> = BTreeMap::new();
    let ours = |home: &super::netlink::objects::Home| home.family == INET && home.table == table;
    for rule in objects.rules.iter().filter(|rule| ours(&rule.home) && !rule.chain.starts_with(SERVICE)) {
        chains.entry(rule.chain.clone()).or_default().push(rule.expressions.clone());
    }
    chains
}

/// What the rules of the services say, chain by chain.
pub fn said(objects: &Objects, table: &str) -> BTreeMap<String, Vec<Said>> {
    let mut chains: BTreeMap<String, Vec<Said>> = BTreeMap::new();
    for rule in objects.rules.iter().filter(|rule| rule.home.table == table && rule.home.family == INET) {
        if rule.chain.starts_with(SERVICE) {
            let meaning = Meaning::of(INET, &rule.expressions);
            chains
                .entry(rule.chain.clone())
                .or_default()
                .push(Said { meaning, comment: rule.comment.clone() });
        }
    }
    chains
}

/// How the chains of services begin.
const SERVICE: &str = "svc-";

/// A route, if the rules of the chain are those that it makes, and the entries too.
fn route(
    chain: &str,
    said: &[Said],
    table: &Table,
    subnet6: Option<Subnet6>,
) -> Option<(ServiceName, Route)> {
    let mut rules = Rules::default();
    said.iter().try_for_each(|said| add_rule(&mut rules, said))?;
    let service: ServiceName = chain.strip_prefix(SERVICE)?.parse().ok()?;
    let (service_address, generation, last) = rules.whole.service?;
    let ports = rules.whole.ports(last, subnet6)?;
    let mut containers =
        lanes(&rules, (service_address, generation), &ports, subnet6)?.into_iter().chain([last]);
    let (address, also) = (containers.next()?, containers.collect());
    let canary = match &rules.drawn.service {
        Some(_) => Some(branch(&service, service_address, &rules, subnet6)?),
        None if rules.draws.is_empty() => None,
        None => return None,
    };
    let route = Route { service: service.clone(), service_address, generation, address, also, ports, canary };
    let led_here = table.entries.iter().filter(|(_, into)| *into == chain).map(|(entry, _)| entry);
    let hairpin = |address| hairpins(address, subnet6).iter().all(|(_, own)| table.hairpins.contains(own));
    let whole = led_here.eq(&entries(&route)) && addresses(&route).all(hairpin);
    // One more rule, or two in another order, may send packets elsewhere than the route says.
    let script = ruleset::switch("t", subnet6, &Table::default(), &route);
    let made = self::said(&would_make(&script)?, "t").remove(chain)?;
    (whole && made == said).then_some((service, route))
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

/// Takes one rule apart; `None` if it is none of ours.
fn add_rule(rules: &mut Rules, said: &Said) -> Option<()> {
    let Meaning { to: at, ports, draw, lane, target, is_strange: false, .. } = &said.meaning else {
        return None;
    };
    let (target, container_port) = (*target)?;
    rules.draws.extend(*draw);
    let lane = match (draw, lane) {
        (Some(_), None) => &mut rules.drawn,
        (None, Some(lane)) => rules.lanes.entry(lane.left()).or_default(),
        (None, None) => &mut rules.whole,
        (Some(_), Some(_)) => return None,
    };
    match ports {
        None => {
            let generation = said.comment.as_ref()?.strip_prefix("generation ")?.parse().ok()?;
            let (IpAddr::V4(at), IpAddr::V4(target)) = ((*at)?, target) else { return None };
            lane.service = Some((at, Generation(generation), target));
        }
        Some(Ports::One(host_port)) => {
            let protocol = said.meaning.protocol().ok()??;
            let container_port = container_port?;
            let mapping = |all: IpAddr| PortMapping {
                host_ip: at.unwrap_or(all),
                host_port: *host_port,
                container_port,
                protocol,
            };
            match target {
                IpAddr::V4(to) => lane.ports.push((to, mapping(Ipv4Addr::UNSPECIFIED.into()))),
                IpAddr::V6(to) => lane.ports6.push((to, mapping(Ipv6Addr::UNSPECIFIED.into()))),
            }
        }
        Some(_) => return None,
    }
    Some(())
}

/// An element of one of our maps.
pub fn entry(element: &Element) -> Option<Entry> {
    // Every part fills whole units of four bytes.
    let part = |at: usize| element.key.get(at..)?.first_chunk::<2>();
    let port = |at: usize| {
        let protocol = match part(at)? {
            [6, _] => Protocol::Tcp,
            [17, _] => Protocol::Udp,
            _ => return None,
        };
        Some((protocol, u16::from_be_bytes(*part(at + 4)?)))
    };
    let at = |long: usize| {
        let (protocol, number) = port(long)?;
        Some(Entry::At(element.key.get(..long).and_then(address)?, protocol, number))
    };
    match element.set.as_str() {
        "services" => match address(&element.key)? {
            IpAddr::V4(address) => Some(Entry::Service(address)),
            IpAddr::V6(_) => None,
        },
        "anywhere" => port(0).map(|(protocol, number)| Entry::Anywhere(protocol, number)),
        "anywhere6" => port(0).map(|(protocol, number)| Entry::Anywhere6(protocol, number)),
        "at" => at(4),
        "at6" => at(16),
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(|it| IpAddr::V4(it.into()));
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(|it| IpAddr::V6(it.into()))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a script makes of a table that is not there.
    fn after(script: &str) -> Table {
        read(&would_make(script).unwrap(), "t", None)
    }

    const SCRIPT: &str = r#"add table inet t
add chain inet t nat-pre { type nat hook prerouting priority -105 ; policy accept ; }
add rule inet t nat-pre jump published
add map inet t anywhere { type inet_proto . inet_service : verdict ; }
add element inet t services { 10.98.0.80 : goto svc-web }
add element inet t anywhere { tcp . 80 : goto svc-web }
add element inet t at { 127.0.0.1 . udp . 53 : goto svc-web }
add element inet t hairpin { 10.98.1.7 . 10.98.1.7 }
add set inet t net-a { type ipv4_addr ; }
add element inet t net-a { 10.98.1.7, 10.98.1.8 }
add chain inet t svc-web
add rule inet t svc-web ip daddr 10.98.0.80 dnat ip to 10.98.1.7 comment "generation 7"
add rule inet t svc-web ip daddr 127.0.0.1 udp dport 53 dnat ip to 10.98.1.7:5353
add rule inet t svc-web tcp dport 80 dnat ip to 10.98.1.7:8080
"#;

    #[test]
    fn a_whole_route_is_read_back() {
        let table = after(SCRIPT);
        let route = &table.routes[&"web".parse().unwrap()];
        assert_eq!(route.generation, Generation(7));
        assert_eq!(route.service_address, Ipv4Addr::new(10, 98, 0, 80));
        assert_eq!(route.address, Ipv4Addr::new(10, 98, 1, 7));
        let shown: Vec<String> = route.ports.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["0.0.0.0:80->8080/tcp", "127.0.0.1:53->5353/udp"]);
        assert_eq!((table.entries.len(), table.hairpins.len(), table.sets["net-a"].len()), (3, 1, 2));
        assert_eq!((table.bases["nat-pre"].priority, table.rules["nat-pre"].len()), (-105, 1));
        let another = read(&would_make(SCRIPT).unwrap(), "another", None);
        assert!(another.routes.is_empty() && another.chains.is_empty() && another.rules.is_empty());
    }

    /// Whatever somebody has changed of it: then it is to be pointed again.
    #[test]
    fn a_damaged_route_is_none() {
        let twice = "add rule inet t svc-web tcp dport 80 dnat ip to 10.98.1.7:8080\n";
        for (from, to) in [
            ("10.98.1.7:8080", "10.98.1.9:8080"),
            ("{ tcp . 80 : goto svc-web }", "{ tcp . 81 : goto svc-web }"),
            ("{ tcp . 80 : goto svc-web }", "{ tcp . 80 : goto svc-db }"),
            ("{ tcp . 80 : goto svc-web }", "{ tcp . 80 : goto svc-web, tcp . 81 : goto svc-web }"),
            ("{ 10.98.1.7 . 10.98.1.7 }", "{ 10.98.1.8 . 10.98.1.8 }"),
            ("generation 7", "hello"),
            (twice, ""),
            (twice, "add rule inet t svc-web tcp dport 80 accept\n"),
            (twice, &format!("{twice}{twice}")),
            (twice, &format!("{twice}add rule inet t svc-web accept\n")),
            (twice, &twice.replace("tcp", "iifname \"eth0\" tcp")),
            (twice, &twice.replace("add", "insert")),
        ] {
            let damaged = SCRIPT.replace(from, to);
            assert_ne!(damaged, SCRIPT);
            let mut objects = would_make(&damaged).unwrap();
            if to.starts_with("insert") {
                // The kernel lists it where it stands.
                objects.rules.rotate_right(1);
            }
            let table = read(&objects, "t", None);
            assert!(table.routes.is_empty(), "{from} -> {to}");
            assert!(table.chains.contains("svc-web"));
        }
    }
}
