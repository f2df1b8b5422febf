//! A part of new connections for a second generation: how much, who, and that nothing fails meanwhile.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gitopsd::engine::native::network::Network as _;
use gitopsd::engine::{Route, Traffic as _};
use gitopsd::types::{Branch, ShareBy};

use super::host::*;

const PORTS: &[&str] = &["0.0.0.0:80:8080/tcp", "0.0.0.0:53:5353/udp"];

/// `route` with a branch to generation 2 of its service, at the address `last`.
fn shared(agent: &Agent, route: &Route, last: u8, share: &str, by: ShareBy, ports: &[&str]) -> Route {
    let other = agent.route(&format!("{}.2", route.service), last, ports);
    let mut ports = other.ports;
    ports.sort();
    let branch = Branch {
        generation: other.generation,
        address: other.address,
        also: Vec::new(),
        share: share.parse().unwrap(),
        by,
        ports,
    };
    let mut route = Route { canary: Some(branch), ..route.clone() };
    route.ports.sort();
    route
}

/// Points traffic there, and checks that the kernel says all of it back.
pub fn point(agent: &Agent, route: &Route) {
    agent.traffic.point(route).unwrap();
    let seen = agent.traffic.observe().unwrap().remove(&route.service);
    assert_eq!(seen.as_ref(), Some(route), "{}", run("nft list ruleset"));
}

/// So many of `asked` are five standard deviations at the most from what `share` percent make: once in a million.
pub fn is_about(taken: usize, asked: usize, share: f64) -> bool {
    let expected = asked as f64 * share;
    let slack = 5.0 * (expected * (1.0 - share)).sqrt();
    (taken as f64 - expected).abs() <= slack
}

/// Asks `times` with a new connection each; how many the second generation answered.
fn count(times: usize, address: impl Into<SocketAddr>) -> usize {
    let address = address.into();
    let second = |_: &usize| {
        let answer = ask(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(answer.starts_with("shop.1 ") || answer.starts_with("shop.2 "), "{answer}");
        answer.starts_with("shop.2 ")
    };
    (0..times).filter(second).count()
}

fn two(host: &Host, six: bool) -> Agent {
    let agent = if six { host.agent6("gitopsd", 1) } else { host.agent("gitopsd", 1) };
    for (name, last) in [("shop.1", 11), ("shop.2", 12)] {
        let path = agent.network.attach(&id(name), agent.address(last)).unwrap();
        let any: IpAddr = if six { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        serve(&path, (any, 8080).into(), name);
        serve_udp(&path, 5353, name);
    }
    agent
}

#[test]
fn a_tenth_of_new_connections_and_none_fails() {
    let host = Host::new();
    let agent = two(&host, false);
    let blue = agent.route("shop.1", 11, PORTS);
    agent.point(&blue);
    let mut early = inside(&host.outside, || Client::connect((HOST, 80))).unwrap();
    assert!(early.ask().unwrap().starts_with("shop.1 "));
    point(&agent, &shared(&agent, &blue, 12, "10%", ShareBy::Connection, PORTS));

    let outside = inside(&host.outside, || Ok(count(2000, (HOST, 80)))).unwrap();
    assert!(is_about(outside, 2000, 0.1), "{outside} of 2000");
    for local in [(Ipv4Addr::LOCALHOST, 80), (agent.address(200), 8080)] {
        let taken = count(500, local);
        assert!(is_about(taken, 500, 0.1), "{local:?}: {taken} of 500");
    }
    assert!(early.ask().unwrap().starts_with("shop.1 "), "what is established stays");

    // The return: none goes there any more, and whoever was there comes back.
    let mut late = loop {
        let mut client = inside(&host.outside, || Client::connect((HOST, 80))).unwrap();
        if client.ask().unwrap().starts_with("shop.2 ") {
            break client;
        }
    };
    agent.point(&blue);
    agent.traffic.reset_connections(&id("shop.2")).unwrap();
    assert!(late.ask().is_err());
    assert_eq!(inside(&host.outside, || Ok(count(300, (HOST, 80)))).unwrap(), 0);
    // The switch: all of them.
    agent.point(&agent.route("shop.2", 12, PORTS));
    assert_eq!(inside(&host.outside, || Ok(count(300, (HOST, 80)))).unwrap(), 300);
    assert!(early.ask().unwrap().starts_with("shop.1 "));
    agent.teardown();
}

#[test]
fn shares_come_and_go_under_load() {
    let host = Host::new();
    let agent = two(&host, false);
    let blue = agent.route("shop.1", 11, PORTS);
    let green = agent.route("shop.2", 12, PORTS);
    agent.point(&blue);
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = || {
        let mut failures = Vec::new();
        while failures.is_empty() && !stop.load(Ordering::Relaxed) {
            failures.extend(ask((HOST, 80)).err().map(|error| error.to_string()));
            asked.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(500));
        }
        std::io::Result::Ok(failures)
    };
    let failures = std::thread::scope(|scope| {
        let outside = scope.spawn(|| inside(&host.outside, load));
        for turn in 0..20 {
            let by = if turn % 2 == 0 { ShareBy::Connection } else { ShareBy::Client };
            for route in [&shared(&agent, &blue, 12, "50%", by, PORTS), &green, &blue] {
                agent.traffic.point(route).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        outside.join().unwrap().unwrap()
    });
    assert_eq!(failures, Vec::<String>::new(), "of {asked:?}");
    assert!(asked.load(Ordering::Relaxed) > 100, "no load to speak of: {asked:?}");
    agent.teardown();
}

#[test]
fn by_client_each_address_has_one_side() {
    let host = Host::new();
    let agent = two(&host, false);
    let blue = agent.route("shop.1", 11, PORTS);
    point(&agent, &shared(&agent, &blue, 12, "30%", ShareBy::Client, PORTS));
    let once = inside(&host.outside, || Ok(count(200, (HOST, 80)))).unwrap();
    assert!(once == 0 || once == 200, "one client on two sides: {once}");

    let clients: Vec<Ipv4Addr> = (20..220).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect();
    let asked = inside(&host.outside, || {
        clients.iter().for_each(|client| drop(run(&format!("ip addr add {client}/24 dev eth0"))));
        let side = |client: &Ipv4Addr| {
            // Another port each time: another flow.
            let socket = UdpSocket::bind((*client, 0)).unwrap();
            socket.connect((HOST, 53)).unwrap();
            who(&socket)
        };
        let rounds: Vec<Vec<String>> = (0..3).map(|_| clients.iter().map(side).collect()).collect();
        Ok(rounds)
    })
    .unwrap();
    assert!(asked[0] == asked[1] && asked[1] == asked[2], "a client changed sides");
    let second = asked[0].iter().filter(|name| *name == "shop.2").count();
    assert!(is_about(second, clients.len(), 0.3), "{second} of {}", clients.len());
    agent.teardown();
}

#[test]
fn six_too() {
    let host = Host::new();
    let agent = two(&host, true);
    let blue = agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp", "[::]:81:8080/tcp"]);
    let both = ["0.0.0.0:80:8080/tcp", "[::]:81:8080/tcp"];
    point(&agent, &shared(&agent, &blue, 12, "20%", ShareBy::Connection, &both));
    for (to, port) in [(IpAddr::V6(HOST6), 80), (HOST6.into(), 81), (HOST.into(), 80)] {
        let taken = inside(&host.outside, || Ok(count(400, (to, port)))).unwrap();
        assert!(is_about(taken, 400, 0.2), "{to} {port}: {taken} of 400");
    }
    point(&agent, &shared(&agent, &blue, 12, "50%", ShareBy::Client, &both));
    let addresses: Vec<Ipv6Addr> =
        (1..=30).map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, last)).collect();
    let sides: Vec<usize> = inside(&host.outside, || {
        let sides = addresses.iter().map(|address| {
            run(&format!("ip -6 addr add {address}/64 dev eth0 nodad"));
            run(&format!("ip -6 route replace {HOST6}/128 dev eth0 src {address}"));
            count(3, (HOST6, 80))
        });
        Ok(sides.collect())
    })
    .unwrap();
    assert!(sides.iter().all(|side| *side == 0 || *side == 3), "a client on two sides: {sides:?}");
    assert!(sides.contains(&0) && sides.contains(&3), "{sides:?}");
    agent.teardown();
}

#[test]
fn udp_flows_keep_their_side_until_it_is_gone() {
    let host = Host::new();
    let agent = two(&host, false);
    let blue = agent.route("shop.1", 11, PORTS);
    agent.point(&blue);
    let open = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect((HOST, 53)).unwrap();
        socket
    };
    let old = inside(&host.outside, || Ok((0..20).map(|_| open()).collect::<Vec<_>>())).unwrap();
    assert!(old.iter().all(|socket| who(socket) == "shop.1"));
    point(&agent, &shared(&agent, &blue, 12, "25%", ShareBy::Connection, PORTS));
    assert!(old.iter().all(|socket| who(socket) == "shop.1"), "what flows stays");
    let new = inside(&host.outside, || Ok((0..400).map(|_| open()).collect::<Vec<_>>())).unwrap();
    let sides: Vec<String> = new.iter().map(who).collect();
    let second = sides.iter().filter(|name| *name == "shop.2").count();
    assert!(is_about(second, new.len(), 0.25), "{second} of {}", new.len());
    assert_eq!(new.iter().map(who).collect::<Vec<_>>(), sides);
    agent.point(&blue);
    assert_eq!(new.iter().map(who).collect::<BTreeSet<_>>(), BTreeSet::from(["shop.1".to_owned()]));
    agent.point(&agent.route("shop.2", 12, PORTS));
    assert_eq!(
        new.iter().chain(&old).map(who).collect::<BTreeSet<_>>(),
        BTreeSet::from(["shop.2".to_owned()])
    );
    agent.teardown();
}

#[test]
fn ports_that_move_are_shared_where_both_have_them() {
    let host = Host::new();
    let agent = two(&host, false).open();
    serve(&agent.run_dir.join("netns/shop.2"), (Ipv4Addr::UNSPECIFIED, 9090).into(), "shop.2");
    let blue =
        agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp", "0.0.0.0:81:8080/tcp", "127.0.0.1:80:8080/tcp"]);
    // Inside of the new generation it is another port; 81 it does not publish any more.
    let route = shared(&agent, &blue, 12, "50%", ShareBy::Connection, &["0.0.0.0:80:9090/tcp"]);
    point(&agent, &route);
    let taken = inside(&host.outside, || Ok(count(200, (HOST, 80)))).unwrap();
    assert!(is_about(taken, 200, 0.5), "{taken} of 200");
    assert_eq!(count(100, (HOST, 81)), 0);
    assert_eq!(count(100, (Ipv4Addr::LOCALHOST, 80)), 0, "the narrower mapping is not shared");

    // What somebody took away of it is seen, and put right.
    let chain = "svc-shop";
    let handle = |text: &str| {
        let list = run(&format!("nft -a list chain inet gitopsd {chain}"));
        let line = list.lines().find(|line| line.contains(text)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next().map(str::to_owned)).unwrap()
    };
    run(&format!("nft delete rule inet gitopsd {chain} handle {}", handle("dport 80 numgen")));
    assert_ne!(agent.traffic.observe().unwrap().get(&route.service), Some(&route));
    point(&agent, &route);
    run(&format!("nft delete rule inet gitopsd {chain} handle {}", handle("\"generation 2\"")));
    assert_ne!(agent.traffic.observe().unwrap().get(&route.service), Some(&route));
    point(&agent, &route);
    agent.traffic.withdraw(&route.service).unwrap();
    assert!(agent.traffic.observe().unwrap().is_empty());
    agent.teardown();
}

/// Which container has this flow.
pub fn who(socket: &UdpSocket) -> String {
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send(b"who").unwrap();
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Several containers of one generation: each has its part, which containers these are changes under load, and what is
/// established stays where it is.
#[test]
fn several_containers_share_what_comes() {
    let host = Host::new();
    let agent = two(&host, false);
    let path = agent.network.attach(&id("shop.3"), agent.address(13)).unwrap();
    serve(&path, (Ipv4Addr::UNSPECIFIED, 8080).into(), "shop.3");
    serve_udp(&path, 5353, "shop.3");
    let mut one = agent.route("shop.1", 11, PORTS);
    one.ports.sort();
    let lanes = |first: u8, also: &[u8]| Route {
        address: agent.address(first),
        also: also.iter().map(|last| agent.address(*last)).collect(),
        ..one.clone()
    };
    let three = lanes(11, &[12, 13]);
    point(&agent, &three);
    let asked = 1500;
    let counted = |address: SocketAddr| {
        let mut counts = [0usize; 3];
        for _ in 0..asked {
            let answer = ask(address).unwrap_or_else(|error| panic!("{address}: {error}"));
            let place = ["shop.1 ", "shop.2 ", "shop.3 "].iter().position(|name| answer.starts_with(name));
            counts[place.unwrap_or_else(|| panic!("{answer}"))] += 1;
        }
        counts
    };
    let outside = inside(&host.outside, || Ok(counted((HOST, 80).into()))).unwrap();
    let service = counted((agent.address(200), 8080).into());
    for counts in [outside, service] {
        assert!(counts.iter().all(|count| is_about(*count, asked, 1.0 / 3.0)), "{counts:?}");
    }
    let mut held: Vec<Client> =
        (0..12).map(|_| inside(&host.outside, || Client::connect((HOST, 80))).unwrap()).collect();
    let first: Vec<String> = held.iter_mut().map(|client| client.ask().unwrap()).collect();
    let who = |answer: &String| answer.split(' ').next().unwrap().to_owned();

    let stop = AtomicBool::new(false);
    let load = || {
        let mut failures = Vec::new();
        while failures.is_empty() && !stop.load(Ordering::Relaxed) {
            failures.extend(ask((HOST, 80)).err().map(|error| error.to_string()));
            std::thread::sleep(Duration::from_micros(500));
        }
        std::io::Result::Ok(failures)
    };
    let failures = std::thread::scope(|scope| {
        let outside = scope.spawn(|| inside(&host.outside, load));
        for _ in 0..10 {
            for route in [lanes(11, &[13]), lanes(12, &[13]), lanes(12, &[]), lanes(11, &[12, 13])] {
                point(&agent, &route);
            }
        }
        stop.store(true, Ordering::Relaxed);
        outside.join().unwrap().unwrap()
    });
    assert_eq!(failures, Vec::<String>::new());
    let after: Vec<String> = held.iter_mut().map(|client| client.ask().unwrap()).collect();
    assert_eq!(
        after.iter().map(who).collect::<Vec<_>>(),
        first.iter().map(who).collect::<Vec<_>>(),
        "what is established stays"
    );

    // Beside a branch of another generation, all of it is read back too.
    let mut both = shared(&agent, &lanes(11, &[12]), 13, "50%", ShareBy::Connection, PORTS);
    both.ports.sort();
    point(&agent, &both);
    point(&agent, &lanes(11, &[]));
    let alone = inside(&host.outside, || Ok(counted((HOST, 80).into()))).unwrap();
    assert_eq!(alone, [asked, 0, 0]);
    agent.teardown();
}
