//! Who else redirects a port of the host: another instance of this program, or rules of somebody else. Of two redirects
//! of one port the kernel takes one, and the other service never hears of its clients.
//!
//! What is in the sets of others is read only where a rule that redirects, or an instance, has it: some hosts have
//! millions of addresses there.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use super::listing::{self, INET};
use super::meaning::{Meaning, Ports};
use super::netlink::ask::Asker;
use super::netlink::objects::{Element, Home, Objects, Rule};
use super::ruleset::Entry;
use crate::types::PortMapping;

/// How long the others' look and change may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// `NF_INET_PRE_ROUTING`
const PREROUTING: u32 = 0;

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

/// Who has one of `ports`, as one line for people. `own`: the table that is ours.
pub fn who_has(asker: &mut Asker, own: &str, ports: &[PortMapping]) -> io::Result<Option<String>> {
    let chains = Objects::read(&asker.chains(0)?).chains;
    // How every instance's table is called: see `net::names`.
    let is_instance =
        |home: &&Home| home.family == INET && home.table.starts_with("gitopsd") && home.table != own;
    let instances: BTreeSet<&Home> = chains.iter().map(|chain| &chain.home).filter(is_instance).collect();
    for home in instances {
        for map in PUBLISHED {
            let found =
                elements(asker, home, map)?.iter().find_map(|element| published(home, element, ports));
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    // What the host itself sends elsewhere (a proxy for its own requests) is nobody's published port.
    let outgoing =
        chains.iter().filter(|chain| chain.base.as_ref().is_some_and(|base| base.hook != PREROUTING));
    let outgoing: BTreeSet<(&Home, &str)> =
        outgoing.map(|chain| (&chain.home, chain.name.as_str())).collect();
    let rules = Objects::read(&asker.all_rules()?).rules;
    let mut theirs = rules
        .iter()
        .filter(|rule| rule.home.table != own && !outgoing.contains(&(&rule.home, rule.chain.as_str())));
    theirs.find_map(|rule| redirected(asker, rule, ports).transpose()).transpose()
}

/// What is in a set. One that is gone since, or was never there, has nothing.
fn elements(asker: &mut Asker, home: &Home, set: &str) -> io::Result<Vec<Element>> {
    match asker.elements(home.family, &home.table, set) {
        Ok(messages) => Ok(Objects::read(&messages).elements),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// An element of another instance's maps: see `ruleset`.
fn published(home: &Home, element: &Element, ports: &[PortMapping]) -> Option<String> {
    let service = element.into.as_ref()?.strip_prefix("svc-")?;
    let entry = listing::entry(element)?;
    let port = ports.iter().find(|port| match entry {
        Entry::Service(_) => false,
        Entry::Anywhere(protocol, number) => (protocol, number) == (port.protocol, port.host_port),
        // Of IPv6 only: no address of IPv4 is meant.
        Entry::Anywhere6(protocol, number) => {
            (protocol, number) == (port.protocol, port.host_port)
                && (port.host_ip.is_ipv6() || port.host_ip.is_unspecified())
        }
        Entry::At(address, protocol, number) => {
            (protocol, number) == (port.protocol, port.host_port) && reaches(Some(address), port)
        }
    })?;
    Some(format!(
        "port {}/{} is published by service {service} of another instance (nftables table inet {})",
        port.host_port, port.protocol, home.table
    ))
}

/// A rule that sends a port elsewhere.
fn redirected(asker: &mut Asker, rule: &Rule, ports: &[PortMapping]) -> io::Result<Option<String>> {
    let Home { family, table } = &rule.home;
    let meaning = Meaning::of(*family, &rule.expressions);
    let (true, Ok(protocol), Some(theirs)) = (meaning.is_redirect, meaning.protocol(), &meaning.ports) else {
        return Ok(None);
    };
    let ranges = match theirs {
        Ports::One(port) => vec![(*port, *port)],
        Ports::Range(first, last) => vec![(*first, *last)],
        Ports::Set(set) => ranges(&elements(asker, &rule.home, set)?),
    };
    let port = ports.iter().find(|port| {
        protocol.is_none_or(|protocol| protocol == port.protocol)
            && ranges.iter().any(|(first, last)| (*first..=*last).contains(&port.host_port))
            && reaches(meaning.to, port)
    });
    let Some(port) = port else { return Ok(None) };
    let family = match family {
        1 => "inet",
        2 => "ip",
        7 => "bridge",
        10 => "ip6",
        _ => "",
    };
    Ok(Some(format!(
        "port {}/{} is redirected by a rule of chain {} (nftables table {family} {table})",
        port.host_port, port.protocol, rule.chain
    )))
}

/// Whether what is sent to the published port may be sent to `address`; `None` = any.
fn reaches(address: Option<IpAddr>, port: &PortMapping) -> bool {
    address.is_none_or(|address| port.takes(address))
}

/// The ports of a set: first and last of each range.
fn ranges(elements: &[Element]) -> Vec<(u16, u16)> {
    let number = |key: &[u8]| key.first_chunk().map(|port| u16::from_be_bytes(*port));
    let ends: Vec<u16> =
        elements.iter().filter(|element| element.is_end).filter_map(|element| number(&element.key)).collect();
    let range = |element: &Element| {
        let first = number(&element.key)?;
        let last = match &element.last {
            Some(last) => number(last)?,
            None if ends.is_empty() => first,
            // The first value behind it; nothing = up to the last one that there is.
            None => ends.iter().filter(|end| **end > first).min().map_or(u16::MAX, |end| end - 1),
        };
        Some((first, last))
    };
    elements.iter().filter(|element| !element.is_end).filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::types::Protocol;

    /// Another instance, rules by hand, and Docker's.
    const SCRIPT: &str = r#"
        table inet gitopsd-two {
            chain svc-web { }
            chain svc-dns { }
            chain svc-six { }
            map anywhere { type inet_proto . inet_service : verdict; elements = { tcp . 80 : goto svc-web } }
            map at { type ipv4_addr . inet_proto . inet_service : verdict
                elements = { 127.0.0.1 . udp . 53 : goto svc-dns } }
            map anywhere6 { type inet_proto . inet_service : verdict; elements = { udp . 7000 : goto svc-six } }
            map at6 { type ipv6_addr . inet_proto . inet_service : verdict
                elements = { 2001:db8::1 . tcp . 7001 : goto svc-six } }
        }
        table ip nat {
            chain prerouting {
                type nat hook prerouting priority -100;
                tcp dport { 443, 9000-9010 } dnat to 192.0.2.7
                tcp dport { 1443, 1444 } dnat to 192.0.2.7
                udp dport 5000-5010 counter redirect to :9
                ip daddr 192.0.2.1 th dport 6000 dnat to 192.0.2.7
                ip protocol tcp tcp sport 1 tcp dport 6001 redirect
                meta l4proto icmp dnat to 192.0.2.7
                tcp dport != 6002 dnat to 192.0.2.7
            }
            chain out { type nat hook output priority -100; tcp dport 3128 redirect to :1; }
        }
        table ip6 nat {
            chain prerouting { type nat hook prerouting priority -100; tcp dport 6600 redirect to :1; }
        }
        table inet filter { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }
    "#;

    fn run(program: &str, words: &str, input: &str) {
        let mut child =
            Command::new(program).args(words.split(' ')).stdin(Stdio::piped()).spawn().expect(program);
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{program} {words}");
    }

    fn who(host_ip: &str, host_port: u16, protocol: Protocol) -> Option<String> {
        let port = PortMapping { host_ip: host_ip.parse().unwrap(), host_port, container_port: 1, protocol };
        who_has(&mut Asker::default(), "gitopsd", &[port]).unwrap()
    }

    /// Needs root, as most tests do; in a network namespace of its own.
    #[test]
    fn whoever_redirects_a_port_is_named() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
            assert_eq!(who("0.0.0.0", 80, Protocol::Tcp), None);
            run("nft", "-f -", SCRIPT);
            run("iptables-nft", "-t nat -N DOCKER", "");
            for rule in [
                "! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 192.0.2.7:80",
                "-d 192.0.2.1 -p udp -m udp --dport 8081:8083 -j DNAT --to-destination 192.0.2.7:80",
                "-p tcp -m tcp ! --dport 8084 -j REDIRECT --to-ports 9",
            ] {
                run("iptables-nft", &format!("-t nat -A DOCKER {rule}"), "");
            }
            all_of_them();
        })
        .join()
        .unwrap();
    }

    fn all_of_them() {
        let tcp = |port| who("0.0.0.0", port, Protocol::Tcp);
        let udp = |port| who("0.0.0.0", port, Protocol::Udp);
        assert!(tcp(80).unwrap().contains("80/tcp is published by service web of another instance"));
        assert!(tcp(80).unwrap().contains("gitopsd-two"));
        assert!(tcp(443).unwrap().contains("chain prerouting (nftables table ip nat)"));
        for (first, last) in [(9000, 9010), (1443, 1444), (6000, 6001), (8080, 8080)] {
            assert!(tcp(first).is_some() && tcp(last).is_some(), "{first}");
            assert!(tcp(first - 1).is_none() && tcp(last + 1).is_none(), "{first}");
        }
        for (first, last) in [(5000, 5010), (6000, 6000), (8081, 8083)] {
            assert!(udp(first).is_some() && udp(last).is_some(), "{first}");
            assert!(udp(first - 1).is_none() && udp(last + 1).is_none(), "{first}");
        }
        assert!(tcp(8080).unwrap().contains("chain DOCKER (nftables table ip nat)"));
        assert!(tcp(6600).unwrap().contains("nftables table ip6 nat"));
        // An address of its own is none of another one.
        assert!(
            who("192.0.2.1", 6000, Protocol::Tcp).is_some()
                && who("192.0.2.9", 6000, Protocol::Tcp).is_none()
        );
        // A filter redirects nothing, what the host sends is not what it gets, another protocol is another port.
        for free in [22, 3128, 6002, 8084, 5000] {
            assert_eq!(tcp(free), None, "{free}");
        }
        assert_eq!(udp(80), None);
        assert!(who("127.0.0.1", 53, Protocol::Udp).is_some());
        assert_eq!(who("127.0.0.2", 53, Protocol::Udp), None);
        assert!(udp(53).is_some());
        for taken in ["::", "0.0.0.0", "2001:db8::2"] {
            assert!(who(taken, 7000, Protocol::Udp).unwrap().contains("by service six"), "{taken}");
        }
        assert_eq!(who("127.0.0.1", 7000, Protocol::Udp), None);
        for taken in ["2001:db8::1", "::"] {
            assert!(who(taken, 7001, Protocol::Tcp).is_some(), "{taken}");
        }
        assert_eq!(who("2001:db8::2", 7001, Protocol::Tcp), None);
        assert_eq!(who_has(&mut Asker::default(), "gitopsd", &[]).unwrap(), None);
        // A set that is not there is empty; of one that cannot be asked for nothing is known.
        let home = |table: &str| Home { family: INET, table: table.to_owned() };
        assert!(elements(&mut Asker::default(), &home("gitopsd-two"), "none").unwrap().is_empty());
        assert!(elements(&mut Asker::default(), &home("none"), "anywhere").unwrap().is_empty());
        let error = elements(&mut Asker::default(), &home("gitopsd-two"), &"x".repeat(300)).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::NotFound, "{error}");
        // What is ours is nobody else's.
        let own = PortMapping {
            host_ip: [0, 0, 0, 0].into(),
            host_port: 80,
            container_port: 1,
            protocol: Protocol::Tcp,
        };
        assert_eq!(who_has(&mut Asker::default(), "gitopsd-two", &[own]).unwrap(), None);
    }
}
