//! Reads our table back: the kernel's chains, sets and rules to routes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::meaning::{Meaning, Ports};
use super::netlink::decode::Expression;
use super::netlink::objects::{Base, Element, Objects};
use super::netlink::would_make;
use super::ruleset::{self, Entry, entries, hairpins};
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
    /// Those of the containers of a branch, by how many they draw from: more than the ones after them.
    drawn: BTreeMap<u32, Rest>,
    /// What one of these draws.
    draw: Option<Draw>,
}

/// The containers of one generation, in the order of their rules.
struct Side {
    service_address: Ipv4Addr,
    generation: Generation,
    address: Ipv4Addr,
    also: Vec<Ipv4Addr>,
    ports: Vec<PortMapping>,
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
    let Side { service_address, generation, address, also, ports } =
        side(rules.lanes.values().rev().chain([&rules.whole]), subnet6)?;
    let canary = match rules.draw {
        Some(draw) => Some(branch(draw, side(rules.drawn.values().rev(), subnet6)?)),
        None => None,
    };
    let route = Route { service: service.clone(), service_address, generation, address, also, ports, canary };
    let led_here = table.entries.iter().filter(|(_, into)| *into == chain).map(|(entry, _)| entry);
    let hairpin = |address| hairpins(address, subnet6).iter().all(|(_, own)| table.hairpins.contains(own));
    let whole = led_here.eq(&entries(&route)) && route.addresses().all(hairpin);
    // One more rule, two in another order, or one that draws from more may send packets elsewhere than the route says.
    let script = ruleset::switch("t", subnet6, &Table::default(), &route);
    let made = self::said(&would_make(&script)?, "t").remove(chain)?;
    (whole && made == said).then_some((service, route))
}

/// The containers that rules lead to, if all lead to the same generation, and from the same ports.
fn side<'a>(rules: impl Iterator<Item = &'a Rest>, subnet6: Option<Subnet6>) -> Option<Side> {
    let mut side: Option<Side> = None;
    for rest in rules {
        let (service_address, generation, address) = rest.service?;
        let ports = rest.ports(address, subnet6)?;
        match &mut side {
            None => side = Some(Side { service_address, generation, address, also: Vec::new(), ports }),
            Some(side) => {
                let is_same = (side.service_address, side.generation) == (service_address, generation);
                (is_same && side.ports == ports).then(|| side.also.push(address))?;
            }
        }
    }
    side
}

/// The branch to `side`. That each of its rules draws what it ought to is seen when they are made anew.
fn branch(draw: Draw, side: Side) -> Branch {
    let (share, by) = draw.share();
    let Side { generation, address, also, ports, .. } = side;
    Branch { generation, address, also, share, by, ports }
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
    rules.draw = rules.draw.or(*draw);
    let lane = match (draw, lane) {
        (Some(draw), None) => rules.drawn.entry(draw.modulus()).or_default(),
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
    use crate::types::ShareBy;

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

    /// Two containers of one generation, three of another.
    fn shared() -> Route {
        let port = |host_port, container_port| PortMapping {
            host_ip: Ipv4Addr::UNSPECIFIED.into(),
            host_port,
            container_port,
            protocol: Protocol::Tcp,
        };
        let address = |last| Ipv4Addr::new(10, 98, 1, last);
        Route {
            service: "web".parse().unwrap(),
            service_address: Ipv4Addr::new(10, 98, 0, 80),
            generation: Generation(1),
            address: address(7),
            also: vec![address(8)],
            ports: vec![port(80, 8080), port(81, 8081)],
            canary: Some(Branch {
                generation: Generation(2),
                address: address(19),
                also: vec![address(17), address(18)],
                share: "60%".parse().unwrap(),
                by: ShareBy::Connection,
                ports: vec![port(80, 9090)],
            }),
        }
    }

    #[test]
    fn a_branch_to_several_is_read_back() {
        let one_each = |share: &str| {
            let canary = shared().canary.map(|it| Branch { share: share.parse().unwrap(), ..it });
            Route { canary, ..shared() }
        };
        for route in [shared(), one_each("0.1%"), one_each("99.9%")] {
            let table = after(&ruleset::switch("t", None, &Table::default(), &route));
            assert_eq!(table.routes.values().collect::<Vec<_>>(), [&route]);
            let six = Some(Subnet6::new("fd00:1:2:3::".parse().unwrap()));
            let script = ruleset::switch("t", six, &Table::default(), &route);
            let table = read(&would_make(&script).unwrap(), "t", six);
            assert_eq!(table.routes.values().collect::<Vec<_>>(), [&route]);
        }
    }

    #[test]
    fn a_damaged_branch_is_none() {
        let whole = ruleset::switch("t", None, &Table::default(), &shared());
        let lines: Vec<&str> = whole.lines().collect();
        let drawn = |modulus: &str| -> Vec<usize> {
            let word = format!("mod {modulus} < 600");
            (0..lines.len()).filter(|place| lines[*place].contains(&word)).collect()
        };
        let (first, second, third) = (drawn("3000"), drawn("2400"), drawn("1800"));
        assert!([&first, &second, &third].iter().all(|places| places.len() == 2), "{whole}");
        let mut damaged = Vec::new();
        for places in [&first, &second, &third] {
            // All rules of one container, its service address's, its port's.
            for gone in [&places[..], &places[..1], &places[1..]] {
                let rest = lines.iter().enumerate().filter(|(place, _)| !gone.contains(place));
                damaged.push(rest.map(|(_, line)| *line).collect::<Vec<_>>().join("\n"));
            }
            // What it draws, and where it leads.
            let line = lines[places[1]];
            for (from, to) in
                [("< 600", "< 601"), (" mod ", " mod 1"), ("10.98.1.1", "10.98.1.2"), (":9090", ":80")]
            {
                let other = line.replace(from, to);
                assert_ne!(other, line);
                damaged.push(whole.replace(line, &other));
            }
            damaged.push(whole.replace(line, &format!("{line}\n{line}")));
        }
        for swapped in [(first[0], second[0]), (second[1], third[1]), (third[1], third[1] + 1)] {
            let mut lines = lines.clone();
            lines.swap(swapped.0, swapped.1);
            damaged.push(lines.join("\n"));
        }
        // As the last three of four would draw.
        let of_four = [("mod 3000", "mod 3400"), ("mod 2400", "mod 2800"), ("mod 1800", "mod 2200")];
        damaged.push(of_four.iter().fold(whole.clone(), |text, (from, to)| text.replace(from, to)));
        // In another generation.
        damaged.push(whole.replacen("generation 2", "generation 3", 1));
        damaged
            .push(whole.replace("hairpin { 10.98.1.18 . 10.98.1.18 }", "hairpin { 10.98.1.7 . 10.98.1.7 }"));
        for script in damaged {
            assert_ne!(script, whole);
            let table = after(&script);
            assert!(table.routes.is_empty(), "{script}");
            assert!(table.chains.contains("svc-web"));
        }
    }
}
