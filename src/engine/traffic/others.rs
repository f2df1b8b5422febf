//! Who else redirects a port of the host: another instance of this program, or rules of somebody else. Of two redirects
//! of one port the kernel takes one, and the other service never hears of its clients.
//!
//! Reads `nft -t -j list ruleset` and single maps (libnftables-json(5)). [`find`] and [`maps`] are pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::types::{PortMapping, Protocol};

/// How long the others' look and change may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The maps of published ports: see `ruleset`.
const PUBLISHED: [&str; 4] = ["anywhere", "anywhere6", "at", "at6"];

/// Held while the others' tables are read and our own is changed, so that two instances that want a port at the same
/// moment do not both find it free. A socket's abstract name, as that belongs to the network namespace like the rules
/// do, and ends with its process (unix(7)). Whoever holds it for longer than [`PATIENCE`] is not waited for.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, not read")] Option<UnixDatagram>);

impl Turn {
    /// Waits for it.
    pub fn take() -> Self {
        let end = Instant::now() + PATIENCE;
        loop {
            let name = SocketAddr::from_abstract_name("gitopsd-published-ports");
            match name.and_then(|name| UnixDatagram::bind_addr(&name)) {
                Ok(socket) => return Self(Some(socket)),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return Self(None),
            }
        }
    }
}

/// The maps of other instances' published ports: table and name.
pub fn maps(listing: &[u8], own: &str) -> Vec<(String, String)> {
    let document: Value = serde_json::from_slice(listing).unwrap_or_default();
    let objects = document.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let ours = |map: &Value| {
        let (table, name) = (text(map, "table")?, text(map, "name")?);
        // How every instance's table is called: see `net::names`.
        let instance = text(map, "family")? == "inet" && table.starts_with("gitopsd") && table != own;
        (instance && PUBLISHED.contains(&name)).then(|| (table.to_owned(), name.to_owned()))
    };
    objects.filter_map(|object| ours(object.get("map")?)).collect()
}

/// Who has one of `ports`, as one line for people. `own`: the table that is ours.
pub fn find(listing: &[u8], own: &str, ports: &[PortMapping]) -> Option<String> {
    let document: Value = serde_json::from_slice(listing).ok()?;
    let objects = document.get("nftables")?.as_array()?;
    // What the host itself sends elsewhere (a proxy for its own requests) is nobody's published port.
    let outgoing = |chain: &&Value| text(chain, "hook").is_some_and(|hook| hook != "prerouting");
    let outgoing: BTreeSet<_> =
        objects.iter().filter_map(|object| object.get("chain")).filter(outgoing).map(place).collect();
    let mut found = objects.iter().filter_map(|object| {
        let (kind, object) = object.as_object()?.iter().next()?;
        let table = text(object, "table").filter(|table| *table != own)?;
        match kind.as_str() {
            "map" => published(table, object, ports),
            "rule" if !outgoing.contains(&rule_place(object)) => redirected(table, object, ports),
            _ => None,
        }
    });
    found.next()
}

/// Family, table and name of a chain.
type Place<'a> = [Option<&'a str>; 3];

fn place(chain: &Value) -> Place<'_> {
    ["family", "table", "name"].map(|key| text(chain, key))
}

/// The chain of a rule.
fn rule_place(rule: &Value) -> Place<'_> {
    ["family", "table", "chain"].map(|key| text(rule, key))
}

/// An element of another instance's maps: see `ruleset`.
fn published(table: &str, map: &Value, ports: &[PortMapping]) -> Option<String> {
    let name = text(map, "name").filter(|name| PUBLISHED.contains(name))?;
    let elements = map.get("elem")?.as_array()?;
    elements.iter().find_map(|element| {
        let service = text(element.get(1)?.get("goto")?, "target")?.strip_prefix("svc-")?;
        let key = element.get(0)?.get("concat")?.as_array()?;
        let (address, rest) = match (name, key.as_slice()) {
            ("at" | "at6", [address, rest @ ..]) => (address.as_str()?.parse().ok(), rest),
            (_, rest) => (None, rest),
        };
        let [protocol, number] = rest else { return None };
        let port = ports.iter().find(|port| {
            names(protocol, port.protocol)
                && number.as_u64() == Some(port.host_port.into())
                && match name {
                    // Of IPv6 only: no address of IPv4 is meant.
                    "anywhere6" => port.host_ip.is_ipv6() || port.host_ip.is_unspecified(),
                    _ => reaches(address, port),
                }
        })?;
        Some(format!(
            "port {}/{} is published by service {service} of another instance (nftables table inet {table})",
            port.host_port, port.protocol
        ))
    })
}

/// A rule that sends a port elsewhere.
fn redirected(table: &str, rule: &Value, ports: &[PortMapping]) -> Option<String> {
    let expressions = rule.get("expr")?.as_array()?;
    let redirects = expressions.iter().any(|expression| {
        let by_iptables =
            || text(expression.get("xt")?, "name").map(|name| matches!(name, "DNAT" | "REDIRECT"));
        expression.get("dnat").is_some()
            || expression.get("redirect").is_some()
            || by_iptables().unwrap_or(false)
    });
    if !redirects {
        return None;
    }
    let (mut address, mut dport) = (None, None);
    for expression in expressions {
        let Some(matched) = expression.get("match") else { continue };
        let Some(payload) = matched.get("left").and_then(|left| left.get("payload")) else { continue };
        let equal = text(matched, "op").is_none_or(|op| op == "==");
        match (text(payload, "protocol"), text(payload, "field"), matched.get("right")) {
            (Some("ip" | "ip6"), Some("daddr"), Some(right)) if equal => {
                address = right.as_str().and_then(|text| text.parse().ok());
            }
            (Some(protocol), Some("dport"), Some(right)) if equal => dport = Some((protocol, right)),
            _ => {}
        }
    }
    let (protocol, right) = dport?;
    let port = ports.iter().find(|port| {
        (protocol == "th" || protocol == word(port.protocol))
            && holds(right, port.host_port)
            && reaches(address, port)
    })?;
    let (family, chain) = (text(rule, "family")?, text(rule, "chain")?);
    Some(format!(
        "port {}/{} is redirected by a rule of chain {chain} (nftables table {family} {table})",
        port.host_port, port.protocol
    ))
}

/// Whether what is sent to the published port may be sent to `address`; `None` = any.
fn reaches(address: Option<IpAddr>, port: &PortMapping) -> bool {
    address.is_none_or(|address| port.takes(address))
}

/// Whether the right side of a match has a port: a number, a range, or a set of these.
fn holds(right: &Value, port: u16) -> bool {
    let number = |value: &Value| value.as_u64();
    if let Some(range) = right.get("range").and_then(Value::as_array) {
        let ends = (range.first().and_then(number), range.get(1).and_then(number));
        return matches!(ends, (Some(first), Some(last)) if (first..=last).contains(&port.into()));
    }
    match right.get("set").and_then(Value::as_array) {
        Some(set) => set.iter().any(|one| holds(one, port)),
        None => number(right) == Some(port.into()),
    }
}

/// Whether a map's key names the protocol. nft shows its number on a host without /etc/protocols.
fn names(key: &Value, protocol: Protocol) -> bool {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    key.as_str() == Some(word(protocol)) || key.as_u64() == Some(number)
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.0.6 prints it, shortened: another instance, a rule by hand, one of Docker's.
    const LISTING: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"map": {"family": "inet", "name": "anywhere", "table": "gitopsd-two", "map": "verdict",
            "elem": [[{"concat": ["tcp", 80]}, {"goto": {"target": "svc-web"}}]]}},
        {"map": {"family": "inet", "name": "at", "table": "gitopsd-two", "map": "verdict",
            "elem": [[{"concat": ["127.0.0.1", "udp", 53]}, {"goto": {"target": "svc-dns"}}]]}},
        {"map": {"family": "inet", "name": "anywhere6", "table": "gitopsd-two", "map": "verdict",
            "elem": [[{"concat": ["udp", 7000]}, {"goto": {"target": "svc-six"}}]]}},
        {"map": {"family": "inet", "name": "at6", "table": "gitopsd-two", "map": "verdict",
            "elem": [[{"concat": ["2001:db8::1", "tcp", 7001]}, {"goto": {"target": "svc-six"}}]]}},
        {"rule": {"family": "ip", "table": "nat", "chain": "prerouting", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                "right": {"set": [443, {"range": [9000, 9010]}]}}},
            {"dnat": {"addr": "192.0.2.7"}}]}},
        {"rule": {"family": "ip", "table": "nat", "chain": "DOCKER", "expr": [
            {"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "docker0"}},
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}},
            {"counter": {"packets": 0, "bytes": 0}}, {"xt": {"type": "target", "name": "DNAT"}}]}},
        {"chain": {"family": "ip", "table": "nat", "name": "out", "type": "nat", "hook": "output", "prio": -100}},
        {"rule": {"family": "ip", "table": "nat", "chain": "out", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 3128}},
            {"redirect": {"port": 1}}]}},
        {"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}},
            {"accept": null}]}}]}"#;

    fn who(host_ip: &str, host_port: u16, protocol: Protocol) -> Option<String> {
        let port = PortMapping { host_ip: host_ip.parse().unwrap(), host_port, container_port: 1, protocol };
        find(LISTING.as_bytes(), "gitopsd", &[port])
    }

    #[test]
    fn whoever_redirects_a_port_is_named() {
        let tcp = |port| who("0.0.0.0", port, Protocol::Tcp);
        assert!(tcp(80).unwrap().contains("80/tcp is published by service web of another instance"));
        assert!(tcp(80).unwrap().contains("gitopsd-two"));
        assert!(tcp(443).unwrap().contains("chain prerouting (nftables table ip nat)"));
        assert!(tcp(9005).is_some() && tcp(9011).is_none());
        assert!(tcp(8080).unwrap().contains("chain DOCKER"));
        // A filter redirects nothing, what the host sends is not what it gets, another protocol is another port.
        assert_eq!(tcp(3128), None);
        assert_eq!((tcp(22), who("0.0.0.0", 80, Protocol::Udp)), (None, None));
        assert!(who("127.0.0.1", 53, Protocol::Udp).is_some());
        assert_eq!(who("127.0.0.2", 53, Protocol::Udp), None);
        assert!(who("0.0.0.0", 53, Protocol::Udp).is_some());
        for taken in ["::", "0.0.0.0", "2001:db8::2"] {
            assert!(who(taken, 7000, Protocol::Udp).unwrap().contains("by service six"), "{taken}");
        }
        assert_eq!(who("127.0.0.1", 7000, Protocol::Udp), None);
        assert!(
            who("2001:db8::1", 7001, Protocol::Tcp).is_some() && who("::", 7001, Protocol::Tcp).is_some()
        );
        assert_eq!(who("2001:db8::2", 7001, Protocol::Tcp), None);
        assert_eq!(find(LISTING.as_bytes(), "gitopsd-two", &[]), None);
        let numbers = LISTING.replace(r#"["tcp", 80]"#, "[6, 80]");
        let wanted = PortMapping {
            host_ip: [0, 0, 0, 0].into(),
            host_port: 80,
            container_port: 1,
            protocol: Protocol::Tcp,
        };
        assert_eq!(find(numbers.as_bytes(), "gitopsd", &[wanted]), tcp(80));
        let maps = maps(LISTING.as_bytes(), "gitopsd");
        let names: Vec<&str> = maps.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["anywhere", "at", "anywhere6", "at6"]);
        assert!(super::maps(LISTING.as_bytes(), "gitopsd-two").is_empty());
    }
}
