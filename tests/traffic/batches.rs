//! A part of new connections for several containers of a second generation, as a swap in batches has it: how much each
//! gets, what is noticed of it, and that nothing fails meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use gitopsd::engine::native::network::Network as _;
use gitopsd::engine::{Route, Traffic as _};
use gitopsd::types::{Branch, ShareBy};

use super::host::*;
use super::pressure::Pressure;
use super::spread::{is_about, point, who};

const PORTS: &[&str] = &["0.0.0.0:53:5353/udp", "0.0.0.0:80:8080/tcp"];

/// A generation's number, and which of its containers get connections, by index.
type Lanes<'a> = (u8, &'a [u8]);

fn name((generation, index): (u8, u8)) -> String {
    match index {
        1 => format!("shop.{generation}"),
        _ => format!("shop.{generation}-{index}"),
    }
}

fn names(lanes: &[Lanes<'_>]) -> BTreeSet<String> {
    lanes.iter().flat_map(|(of, indices)| indices.iter().map(|index| name((*of, *index)))).collect()
}

fn addresses(agent: &Agent, (generation, indices): Lanes<'_>) -> Vec<Ipv4Addr> {
    indices.iter().map(|index| agent.address(generation * 10 + index)).collect()
}

/// So many containers of generation 1, and of generation 2.
fn start(agent: &Agent, counts: [u8; 2], at: IpAddr) {
    for (generation, count) in (1..).zip(counts) {
        for index in 1..=count {
            let name = name((generation, index));
            let path = agent.network.attach(&id(&name), agent.address(generation * 10 + index)).unwrap();
            serve(&path, (at, 8080).into(), &name);
            serve_udp(&path, 5353, &name);
        }
    }
}

/// All connections to these containers.
fn whole(agent: &Agent, to: Lanes<'_>, ports: &[&str]) -> Route {
    let addresses = addresses(agent, to);
    let mut route = agent.route(&name((to.0, 1)), 1, ports);
    route.ports.sort();
    Route { address: addresses[0], also: addresses[1..].to_vec(), ..route }
}

/// A share of them to containers of another generation.
fn shared(agent: &Agent, from: Lanes<'_>, to: Lanes<'_>, share: &str, ports: &[&str]) -> Route {
    let Route { generation, address, also, ports: same, .. } = whole(agent, to, ports);
    let share = share.parse().unwrap();
    let branch = Branch { generation, address, also, share, by: ShareBy::Connection, ports: same };
    Route { canary: Some(branch), ..whole(agent, from, ports) }
}

/// Asks `times` with a new connection each, in this thread's namespace; how many each container answered.
fn count(times: usize, address: impl Into<SocketAddr>) -> BTreeMap<String, usize> {
    let address = address.into();
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let answer = ask(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        *counts.entry(answer.split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

/// Each of these has an even part of `times`, and nobody else has any.
fn assert_even(counts: &BTreeMap<String, usize>, times: usize, lanes: &[Lanes<'_>]) {
    let names = names(lanes);
    let even = 1.0 / names.len() as f64;
    assert!(counts.keys().eq(&names), "{counts:?}");
    assert!(counts.values().all(|count| is_about(*count, times, even)), "{counts:?}");
}

#[test]
fn each_of_five_has_its_fifth() {
    let host = Host::new();
    let agent = host.agent6("gitopsd", 1);
    start(&agent, [2, 3], Ipv6Addr::UNSPECIFIED.into());
    let ports = ["0.0.0.0:80:8080/tcp", "[::]:81:8080/tcp"];
    let all: [Lanes<'_>; 2] = [(1, &[1, 2]), (2, &[1, 2, 3])];
    let [old, new] = all;
    point(&agent, &whole(&agent, old, &ports));
    point(&agent, &shared(&agent, old, new, "60%", &ports));
    for (to, times) in [
        (SocketAddr::from((HOST, 80)), 2000),
        (SocketAddr::from((HOST6, 80)), 500),
        (SocketAddr::from((HOST6, 81)), 500),
    ] {
        let counts = inside(&host.outside, || Ok(count(times, to))).unwrap();
        assert_even(&counts, times, &all);
    }
    for local in [(agent.address(200), 8080), (Ipv4Addr::LOCALHOST, 80)] {
        assert_even(&count(500, local), 500, &all);
    }
    // A part that is not even: each of three has a hundredth.
    point(&agent, &shared(&agent, old, new, "3%", &ports));
    let counts = inside(&host.outside, || Ok(count(1500, (HOST, 80)))).unwrap();
    let few: usize = names(&[new]).iter().filter_map(|name| counts.get(name)).sum();
    assert!(is_about(few, 1500, 0.03), "{counts:?}");
    point(&agent, &whole(&agent, new, &ports));
    let counts = inside(&host.outside, || Ok(count(500, (HOST, 80)))).unwrap();
    assert_even(&counts, 500, &[new]);
    agent.teardown();
}

#[test]
fn udp_flows_stay_with_their_container() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    start(&agent, [2, 3], Ipv4Addr::UNSPECIFIED.into());
    let all: [Lanes<'_>; 2] = [(1, &[1, 2]), (2, &[1, 2, 3])];
    let [old, new] = all;
    point(&agent, &shared(&agent, old, new, "60%", PORTS));
    let open = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect((HOST, 53)).unwrap();
        socket
    };
    let flows = inside(&host.outside, || Ok((0..400).map(|_| open()).collect::<Vec<_>>())).unwrap();
    let sides = || flows.iter().map(who).collect::<Vec<String>>();
    let first = sides();
    let mut counts = BTreeMap::new();
    first.iter().for_each(|name| *counts.entry(name.clone()).or_default() += 1);
    assert_even(&counts, flows.len(), &all);
    assert_eq!(sides(), first);
    // Each change moves those alone whose container is out.
    let mut before = first;
    let (fewer, last): (Lanes<'_>, Lanes<'_>) = ((2, &[1, 3]), (1, &[2]));
    for (route, lanes) in [
        (shared(&agent, old, fewer, "60%", PORTS), vec![old, fewer]),
        (shared(&agent, last, fewer, "75%", PORTS), vec![last, fewer]),
        (whole(&agent, new, PORTS), vec![new]),
    ] {
        point(&agent, &route);
        let (there, after) = (names(&lanes), sides());
        for (before, after) in before.iter().zip(&after) {
            let stays = before == after || !there.contains(before);
            assert!(stays && there.contains(after), "{before} -> {after}, there are {there:?}");
        }
        before = after;
    }
    agent.teardown();
}

#[test]
fn what_somebody_changed_is_noticed() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1).open();
    start(&agent, [2, 3], Ipv4Addr::UNSPECIFIED.into());
    let route = shared(&agent, (1, &[1, 2]), (2, &[1, 2, 3]), "60%", PORTS);
    let rules = "inet gitopsd svc-shop";
    let (port, service) = ("tcp dport 80 numgen random mod", "ip daddr 10.213.1.200 numgen random mod");
    let handle = |text: &str| {
        let list = run(&format!("nft -a list chain {rules}"));
        let line = list.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {list}"));
        line.rsplit(' ').next().unwrap().to_owned()
    };
    let delete = |text: &str| drop(run(&format!("nft delete rule {rules} handle {}", handle(text))));
    let to = |index: u8| format!("dnat ip to {}:8080", agent.address(20 + index));
    let changes: [(&str, &dyn Fn()); 8] = [
        ("one has no port", &|| delete(&format!("{port} 2400"))),
        ("one has no service address", &|| delete(&format!("{service} 1800"))),
        ("one has nothing", &|| {
            delete(&format!("{service} 3000"));
            delete(&format!("{port} 3000"));
            delete("udp dport 53 numgen random mod 3000");
        }),
        ("a port leads to one only", &|| {
            delete(&format!("{port} 3000"));
            delete(&format!("{port} 2400"));
        }),
        ("one draws from more", &|| {
            let handle = handle(&format!("{port} 2400"));
            drop(run(&format!("nft replace rule {rules} handle {handle} {port} 2500 < 600 {}", to(2))));
        }),
        ("the last is the first", &|| {
            delete(&format!("{port} 1800"));
            drop(run(&format!("nft insert rule {rules} {port} 1800 < 600 {}", to(3))));
        }),
        ("one is there twice", &|| {
            drop(run(&format!("nft insert rule {rules} {port} 3000 < 600 {}", to(1))))
        }),
        ("one does not reach itself", &|| {
            let own = agent.address(22);
            drop(run(&format!("nft delete element inet gitopsd hairpin {{ {own} . {own} }}")));
        }),
    ];
    for (what, change) in changes {
        point(&agent, &route);
        change();
        assert_eq!(agent.traffic.observe().unwrap().get(&route.service), None, "{what}");
    }
    // Whatever it was, pointing there again puts it right.
    point(&agent, &route);
    let counts = inside(&host.outside, || Ok(count(200, (HOST, 80)))).unwrap();
    assert_even(&counts, 200, &[(1, &[1, 2]), (2, &[1, 2, 3])]);
    agent.traffic.withdraw(&route.service).unwrap();
    assert!(
        !run("nft list table inet gitopsd").contains("10.213.1.2"),
        "{}",
        run("nft list table inet gitopsd")
    );
    agent.teardown();
}

/// Four containers, one more of the new generation for each of the old one that goes: a quarter, a half, three, all.
#[test]
fn batches_under_load() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    start(&agent, [4, 4], Ipv4Addr::UNSPECIFIED.into());
    const ALL: &[u8] = &[1, 2, 3, 4];
    point(&agent, &whole(&agent, (1, ALL), PORTS));
    let pressure = Pressure::begin(&host, 4);
    for turn in 0..5 {
        let (old, new) = if turn % 2 == 0 { (1, 2) } else { (2, 1) };
        for (come, share) in [(1, "25%"), (2, "50%"), (3, "75%")] {
            pressure.runs();
            point(&agent, &shared(&agent, (old, &ALL[come..]), (new, &ALL[..come]), share, PORTS));
        }
        pressure.runs();
        point(&agent, &whole(&agent, (new, ALL), PORTS));
    }
    pressure.runs();
    let noticed = pressure.end();
    assert_eq!((noticed.failed, noticed.broken), (0, 0), "{noticed:?}");
    assert!(noticed.answered > 100, "no load to speak of: {noticed:?}");
    let most: [Lanes<'_>; 2] = [(1, &ALL[3..]), (2, &ALL[..3])];
    point(&agent, &shared(&agent, most[0], most[1], "75%", PORTS));
    let counts = inside(&host.outside, || Ok(count(800, (HOST, 80)))).unwrap();
    assert_even(&counts, 800, &most);
    agent.teardown();
}
