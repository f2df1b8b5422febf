//! What the kernel has after a script is what nft(8) would have made of it, to the last expression. Needs root, as most
//! tests do; each side has a network namespace of its own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use super::super::listing::Table;
use super::super::skeleton::Frame;
use super::super::{handover, nft, owner, ruleset};
use super::ask::Asker;
use crate::engine::Route;
use crate::engine::native::net::names::{Names, Subnet, Subnet6};
use crate::types::{Branch, Generation, Membership, PortMapping, Protocol, ServiceName, ShareBy};

/// What is not in any of our scripts today, but may be asked for.
const MORE: &str = r#"
add chain inet gitopsd spare
add rule inet gitopsd svc-shop tcp dport 80 numgen random mod 100 < 10 dnat ip to 10.98.1.7:8080
add rule inet gitopsd svc-shop tcp dport 80 jhash ip saddr mod 100 seed 0xdeadbeef < 10 dnat ip to 10.98.1.7:8080
add rule inet gitopsd svc-shop tcp dport 80 jhash ip6 saddr mod 3 seed 0x0 < 1 dnat ip6 to [fd00::7]:8080
insert rule inet gitopsd svc-shop ip saddr 10.0.0.0/8 ip daddr != 10.64.0.0/11 goto spare
add rule inet gitopsd spare iifname != "lo" tcp flags syn / fin,syn,rst,ack drop
add set inet gitopsd quiet { type inet_proto . inet_service ; }
add rule inet gitopsd spare oifname != "lo" meta l4proto . th sport @quiet tcp flags rst,ack / syn,rst,ack tcp sequence 0 drop
add set inet gitopsd asked { type inet_proto . inet_service ; size 512 ; flags dynamic,timeout ; timeout 60s ; }
add rule inet gitopsd spare meta l4proto . th sport != @asked add @asked { meta l4proto . th sport } drop
insert rule inet gitopsd svc-shop ct original ip daddr 10.98.0.0/17 udp dport 53 accept
"#;

/// As the kernel has it: nft's words, and the expressions. Elements are in no order.
fn shown() -> String {
    let shown =
        Command::new("nft").args(["--debug=netlink", "list", "table", "inet", "gitopsd"]).output().unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let text = String::from_utf8_lossy(&shown.stdout).replace("\telement", "\n\telement");
    let (mut elements, mut lines): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("\telement"));
    elements.sort_unstable();
    lines.append(&mut elements);
    lines.join("\n")
}

fn by_nft(script: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
}

fn by_netlink(script: &str) {
    owner::apply_once(script).unwrap_or_else(|error| panic!("{error}\n{script}"));
}

/// Runs both in namespaces of their own, script by script; gives what the kernel has after each.
fn both(scripts: Vec<String>) -> [Vec<String>; 2] {
    [by_nft as fn(&str), by_netlink].map(|apply| {
        let scripts = scripts.clone();
        let run = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
            scripts
                .iter()
                .map(|script| {
                    apply(script);
                    shown()
                })
                .collect()
        };
        std::thread::spawn(run).join().unwrap()
    })
}

pub fn frame(six: bool) -> Frame {
    Frame {
        names: Names::new("gitopsd"),
        subnet: Subnet::new((Ipv4Addr::new(10, 98, 0, 0), 17)).unwrap(),
        subnet6: six.then(|| Subnet6::new("fd00:1:2:3::".parse().unwrap())),
    }
}

fn route(service: &str, generation: u64, last: u8, by: Option<ShareBy>) -> Route {
    let port = |host_ip: &str, host_port, protocol| PortMapping {
        host_ip: host_ip.parse().unwrap(),
        host_port,
        container_port: 8080,
        protocol,
    };
    let base = if service == "shop" { 80 } else { 9000 };
    let ports = vec![
        port("0.0.0.0", base, Protocol::Tcp),
        port("0.0.0.0", base, Protocol::Udp),
        port("127.0.0.1", base + 1, Protocol::Tcp),
        port("::", base + 2, Protocol::Udp),
        port("2001:db8::1", base + 3, Protocol::Tcp),
    ];
    let canary = by.map(|by| Branch {
        generation: Generation(generation + 1),
        address: Ipv4Addr::new(10, 98, 1, last + 9),
        // Several containers where it is by connection, from 30 on.
        also: (1..=last / 30)
            .filter(|_| by == ShareBy::Connection)
            .map(|further| Ipv4Addr::new(10, 98, 1, last + 9 + further))
            .collect(),
        share: "12.5%".parse().unwrap(),
        by,
        ports: ports.clone(),
    });
    Route {
        service: service.parse().unwrap(),
        service_address: Ipv4Addr::new(10, 98, 0, if service == "shop" { 200 } else { 201 }),
        generation: Generation(generation),
        address: Ipv4Addr::new(10, 98, 1, last),
        // Several containers, from 30 on.
        also: (1..=last / 30).map(|further| Ipv4Addr::new(10, 98, 1, last + further)).collect(),
        ports,
        canary,
    }
}

fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

pub fn whole(frame: &Frame) -> Vec<String> {
    let mut members = Membership::default();
    let of = |last: &[u8]| last.iter().map(|last| Ipv4Addr::new(10, 98, 1, *last)).collect();
    members.networks =
        BTreeMap::from([("default".parse().unwrap(), of(&[7, 8])), ("back".parse().unwrap(), of(&[9]))]);
    members.internal = of(&[9]);
    let sets = frame.sets(&members);
    let first = frame.script(&Table::default(), Some(&sets));
    let mut table = Table::default();
    let mut scripts = vec![first, frame.script(&table, None)];
    let (connection, client) = (Some(ShareBy::Connection), Some(ShareBy::Client));
    for (service, generation, last, by) in [
        ("shop", 1, 7, None),
        ("db", 1, 19, None),
        ("shop", 1, 7, client),
        ("shop", 2, 8, None),
        ("db", 2, 90, None),
        ("db", 2, 60, client),
        ("db", 1, 19, connection),
        ("db", 1, 60, connection),
        ("db", 1, 90, connection),
    ] {
        let route = route(service, generation, last, by);
        scripts.push(ruleset::switch("gitopsd", frame.subnet6, &table, &route));
        table.chains.insert(ruleset::chain(&route.service));
        let chain = ruleset::chain(&route.service);
        table.entries.extend(ruleset::entries(&route).into_iter().map(|entry| (entry, chain.clone())));
        table.routes.insert(route.service.clone(), route);
        let led_to = table.routes.values().flat_map(Route::addresses);
        let own = led_to.flat_map(|address| ruleset::hairpins(address, frame.subnet6));
        table.hairpins = own.map(|(_, own)| own).collect();
    }
    // The one takes all ports of the other.
    let taker = Route { ports: table.routes[&name("db")].ports.clone(), ..route("shop", 3, 90, None) };
    let given = handover::given(&table, &taker, &[name("db")].into());
    scripts.push(handover::cover("gitopsd", frame.subnet6, &taker, &taker.ports));
    let (text, left) = handover::give("gitopsd", frame.subnet6, &table, &given);
    scripts.push(text + &ruleset::switch("gitopsd", frame.subnet6, &left, &taker));
    let chain = ruleset::chain(&taker.service);
    table.entries.retain(|entry, into| *into != chain && left.entries.contains_key(entry));
    table.entries.extend(ruleset::entries(&taker).into_iter().map(|entry| (entry, chain.clone())));
    table
        .hairpins
        .extend(taker.addresses().flat_map(|it| ruleset::hairpins(it, frame.subnet6)).map(|(_, own)| own));
    table.routes.insert(taker.service.clone(), taker);
    scripts.push(MORE.to_owned());
    scripts.push(ruleset::withdraw("gitopsd", frame.subnet6, &table, &name("shop")));
    scripts
}

#[test]
fn with_and_without_ipv6() {
    for six in [false, true] {
        let frame = frame(six);
        let [nft, ours] = both(whole(&frame));
        for (place, (nft, ours)) in nft.iter().zip(&ours).enumerate() {
            for (nft, ours) in nft.lines().zip(ours.lines()) {
                assert_eq!(ours, nft, "script {place}");
            }
            assert_eq!(ours, nft, "script {place}");
        }
        assert_eq!(nft.len(), ours.len());
    }
}

/// A change of which one line cannot be done is not done at all, and says which line it was.
#[test]
fn all_or_nothing() {
    let run = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
        by_netlink("add table inet gitopsd\nadd chain inet gitopsd a\n");
        let before = shown();
        let bad =
            "add chain inet gitopsd b\nadd rule inet gitopsd b jump nowhere\nadd chain inet gitopsd c\n";
        let error = owner::apply_once(bad).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("`add rule inet gitopsd b jump nowhere`: "), "{error}");
        assert_eq!(shown(), before);
        // What cannot be sent is not sent either.
        assert!(owner::apply_once("delete table inet gitopsd\nsomething else\n").is_err());
        assert_eq!(shown(), before);
        assert_eq!(nft::table(&mut Asker::default(), "gitopsd", None).unwrap().unwrap().chains.len(), 1);
        // Thousands of elements, as a large network has, are one transaction all the same.
        by_netlink("add set inet gitopsd net-a { type ipv4_addr ; }\n");
        let many: Vec<String> = (0..20_000u32).map(|n| Ipv4Addr::from_bits(n).to_string()).collect();
        by_netlink(&format!("add element inet gitopsd net-a {{ {} }}\n", many.join(", ")));
        let table = nft::table(&mut Asker::default(), "gitopsd", None).unwrap().unwrap();
        assert_eq!(table.sets["net-a"].len(), 20_000);
    };
    std::thread::spawn(run).join().unwrap();
}
