//! The switch: new connections move, established ones stay, nothing fails.

use std::time::{Duration, Instant};

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};

use gitopsd::engine::{Route, Traffic as _};
use gitopsd::types::PortMapping;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::host::*;
use super::load::changes_under_load;

const PORTS: &[&str] = &["0.0.0.0:80:8080/tcp"];

#[test]
fn two_hundred_switches_under_load() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    agent.container("shop.2", 12, 8080);
    let routes = [agent.route("shop.1", 11, PORTS), agent.route("shop.2", 12, PORTS)];
    agent.point(&routes[0]);

    changes_under_load(&host, (agent.address(200), 8080), |turn| {
        let to = &routes[turn % 2];
        agent.traffic.point(to).unwrap();
        // What is asked after the switch is answered by the new generation.
        let answer = ask((HOST, 80)).unwrap();
        assert!(answer.starts_with(&format!("shop.{} ", to.generation)), "turn {turn}: {answer}");
    });
    agent.teardown();
}

#[test]
fn established_connections_stay_until_they_are_reset() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    agent.container("shop.2", 12, 8080);
    agent.point(&agent.route("shop.1", 11, PORTS));
    let mut early = inside(&host.outside, || Client::connect((HOST, 80))).unwrap();
    assert!(early.ask().unwrap().starts_with("shop.1 "));

    agent.point(&agent.route("shop.2", 12, PORTS));
    let mut late = inside(&host.outside, || Client::connect((HOST, 80))).unwrap();
    assert!(early.ask().unwrap().starts_with("shop.1 "));
    assert!(late.ask().unwrap().starts_with("shop.2 "));
    assert_eq!(agent.traffic.connections(&id("shop.1")).unwrap(), 1);
    assert_eq!(agent.traffic.connections(&id("shop.2")).unwrap(), 1);

    // The return: new connections at once, those of the bad generation once they are reset.
    agent.point(&agent.route("shop.1", 11, PORTS));
    assert!(late.ask().unwrap().starts_with("shop.2 "));
    agent.traffic.reset_connections(&id("shop.2")).unwrap();
    assert!(late.ask().is_err());
    assert!(early.ask().unwrap().starts_with("shop.1 "));
    assert!(ask_from(&host.outside, (HOST, 80)).unwrap().starts_with("shop.1 "));
    wait_for("no connections on shop.2", || agent.traffic.connections(&id("shop.2")).unwrap() == 0);
    agent.teardown();
}

#[test]
fn ports_come_and_go_with_the_route() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    let path = agent.container("shop.2", 12, 8080);
    serve(&path, (Ipv4Addr::UNSPECIFIED, 9090).into(), "metrics");
    agent.point(&agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp", "0.0.0.0:81:8080/tcp"]));
    assert!(ask((HOST, 81)).unwrap().starts_with("shop.1 "));

    let next = agent.route("shop.2", 12, &["0.0.0.0:80:8080/tcp", "127.0.0.1:9000:9090/tcp"]);
    agent.point(&next);
    assert!(ask((HOST, 80)).unwrap().starts_with("shop.2 "));
    assert!(ask(([127, 0, 0, 1], 9000)).unwrap().starts_with("metrics "));
    assert!(ask((HOST, 81)).is_err());
    let mut seen = agent.traffic.observe().unwrap().remove(&next.service).unwrap();
    seen.ports.sort();
    let mut wanted = next.ports.clone();
    wanted.sort();
    assert_eq!(seen.ports, wanted);

    // A port that another service has is refused, and nothing changes.
    let thief = agent.route("db.1", 12, &["0.0.0.0:80:8080/tcp"]);
    let error = agent.traffic.point(&thief).unwrap_err();
    assert_eq!(error.reason, gitopsd::types::Reason::PortInUse);
    assert_eq!(error.to_string(), "port 80/tcp of db belongs to service shop");
    assert_eq!(agent.traffic.observe().unwrap().len(), 1);
    agent.teardown();
}

#[test]
fn a_withdrawn_service_is_gone() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    agent.container("db.1", 12, 8080);
    let (shop, db) = (agent.route("shop.1", 11, PORTS), agent.route("db.1", 12, &["0.0.0.0:5432:8080/tcp"]));
    agent.traffic.withdraw(&shop.service).unwrap();
    agent.point(&shop);
    agent.point(&db);
    for _ in 0..2 {
        agent.traffic.withdraw(&shop.service).unwrap();
        assert!(agent.traffic.observe().unwrap().keys().eq([&db.service]));
    }
    assert!(ask((HOST, 80)).is_err());
    assert!(ask((agent.address(200), 8080)).is_err());
    assert!(ask((HOST, 5432)).unwrap().starts_with("db.1 "));
    // What it had can be had again, by itself or by another.
    agent.point(&agent.route("db.2", 11, PORTS));
    assert!(ask((HOST, 80)).unwrap().starts_with("shop.1 "));
    agent.teardown();
}

#[test]
fn udp_follows_the_switch() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    for (name, last) in [("dns.1", 11), ("dns.2", 12)] {
        let path = agent.container(name, last, 8080);
        serve_udp(&path, 5353, name);
    }
    let ports = &["0.0.0.0:53:5353/udp"];
    agent.point(&agent.route("dns.1", 11, ports));
    // One socket each, one source port: to conntrack the same flow for ever. From outside, from the host, from another
    // container and from the container itself.
    let (other, own) = (agent.container("shop.1", 13, 8080), agent.run_dir.join("netns/dns.1"));
    let open = |to: (Ipv4Addr, u16)| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(socket)
    };
    let service = (agent.address(201), 5353);
    let clients = [
        inside(&host.outside, || open((HOST, 53))).unwrap(),
        open(service).unwrap(),
        open((Ipv4Addr::LOCALHOST, 53)).unwrap(),
        inside(&other, || open(service)).unwrap(),
        inside(&own, || open(service)).unwrap(),
    ];
    let ask = || {
        clients.each_ref().map(|client| {
            client.send(b"who").unwrap();
            let mut buffer = [0; 64];
            let length = client.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        })
    };
    for (name, last) in [("dns.1", 11), ("dns.2", 12), ("dns.1", 11)] {
        agent.point(&agent.route(name, last, ports));
        assert_eq!(ask(), [name; 5]);
        assert_eq!(ask(), [name; 5]);
    }
    agent.teardown();
}

/// To conntrack a client that goes on sending from one port is one flow, whatever is published meanwhile.
#[test]
fn udp_follows_ports_that_come_and_go() {
    let host = Host::new();
    let agent = host.agent6("gitopsd", 1);
    let path = agent.container("dns.1", 11, 8080);
    for port in [5353, 5354] {
        let socket = inside(&path, || UdpSocket::bind(("::", port))).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("dns at {port}").as_bytes(), peer);
            }
        });
    }
    let open = |to: std::net::SocketAddr| {
        let any: std::net::IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    };
    let clients = [
        inside(&host.outside, || open((HOST, 53).into())).unwrap(),
        inside(&host.outside, || open((HOST6, 53).into())).unwrap(),
        open((Ipv4Addr::LOCALHOST, 53).into()).unwrap(),
    ];
    let ask = || {
        clients.each_ref().map(|client| {
            // What an earlier answer said: nobody is there.
            let _ = client.take_error();
            client.send(b"who").or_else(|_| client.send(b"who")).unwrap();
            let mut buffer = [0; 64];
            client
                .recv(&mut buffer)
                .ok()
                .map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    };
    let said = |port: u16| [(); 3].map(|()| Some(format!("dns at {port}")));
    assert_eq!(ask(), [None, None, None]);
    // Somebody else's flow, which is none of this service's: it must not be cut.
    let other = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    serve_udp(&host.outside, 53, "outside");
    other.connect((OUTSIDE, 53)).unwrap();
    other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 64];
    other.send(b"who").unwrap();
    other.recv(&mut buffer).unwrap();

    agent.point(&agent.route("dns.1", 11, &["0.0.0.0:53:5353/udp"]));
    assert_eq!(ask(), said(5353), "a port that is published anew");
    agent.point(&agent.route("dns.1", 11, &["0.0.0.0:53:5354/udp"]));
    assert_eq!(ask(), said(5354), "a port that leads elsewhere");
    agent.point(&agent.route("dns.1", 11, &["0.0.0.0:54:5354/udp"]));
    assert_eq!(ask(), [None, None, None], "a port that is taken away");
    agent.point(&agent.route("dns.1", 11, &["0.0.0.0:53:5354/udp"]));
    assert_eq!(ask(), said(5354));
    other.send(b"who").unwrap();
    other.recv(&mut buffer).unwrap();
    agent.teardown();
}

/// What the process that gets killed is told: the agent's directory, and the route.
const POINT: &str = "TEST_POINT";

/// Not a test of its own: an agent that is killed just after it has pointed a route.
#[test]
#[ignore = "the next one runs it"]
fn killed() {
    let Ok(point) = std::env::var(POINT) else { return };
    let _scenario = fail::FailScenario::setup();
    let words: Vec<&str> = point.split(' ').collect();
    let agent = Agent::at(std::path::Path::new(words[0]), "gitopsd", 1);
    agent.traffic.point(&agent.route(words[1], words[2].parse().unwrap(), &words[3..])).unwrap();
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn udp_follows_a_switch_that_was_cut_short() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    for (name, last) in [("dns.1", 11), ("dns.2", 12)] {
        serve_udp(&agent.container(name, last, 8080), 5353, name);
    }
    let point = |words: &str, failpoints: &str| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "switch::killed", "--ignored"]);
        child.env(POINT, format!("{} {words}", agent.run_dir.display())).env("FAILPOINTS", failpoints);
        child.output().unwrap().status.success()
    };
    let open = |to: (Ipv4Addr, u16)| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    };
    let clients = [
        inside(&host.outside, || open((HOST, 53))).unwrap(),
        open((agent.address(201), 5353)).unwrap(),
        open((Ipv4Addr::LOCALHOST, 53)).unwrap(),
    ];
    let ask = |client: &UdpSocket| {
        // What an earlier answer said: nobody is there.
        let _ = client.take_error();
        client.send(b"who").or_else(|_| client.send(b"who")).unwrap();
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let all = || clients.each_ref().map(ask);
    let said = |name: &str| [(); 3].map(|()| Some(name.to_owned()));
    assert!(point("dns.1 11 0.0.0.0:53:5353/udp", ""));
    assert_eq!(all(), said("dns.1"));
    // Killed after the rules have changed, before the flows were looked for.
    assert!(!point("dns.2 12 0.0.0.0:53:5353/udp", "flows::before=return"), "it was not killed");
    assert_eq!(all(), said("dns.1"), "nobody has told them yet");
    agent.connect(&["default: 11 12"]);
    wait_for("green, by all of them", || all() == said("dns.2"));
    agent.traffic.teardown().unwrap();

    // A port that went with the switch leads nowhere: who sent to it is let go with the container.
    assert!(point("dns.1 11 0.0.0.0:53:5353/udp", ""));
    wait_for("blue", || ask(&clients[0]).as_deref() == Some("dns.1"));
    assert!(!point("dns.2 12 0.0.0.0:54:5353/udp", "flows::before=return"), "it was not killed");
    let next = host.agent("gitopsd", 1);
    next.connect(&["default: 11 12"]);
    assert_eq!(ask(&clients[0]).as_deref(), Some("dns.1"));
    next.traffic.end_connections(&id("dns.1"), Duration::ZERO).unwrap();
    assert_eq!(ask(&clients[0]), None, "its address may be another one's soon");
    next.teardown();
}

/// Whatever is asked for in whatever order: the kernel says it back, and holds nothing else.
#[test]
fn the_kernel_says_what_it_was_told() {
    let host = Host::new();
    let agent = host.agent("gitopsd-any", 1);
    let port = (0..3u8, 80..84u16, 8080..8083u16, any::<bool>()).prop_map(|(at, host_port, to, udp)| {
        let host_ip = ["0.0.0.0", "127.0.0.1", "192.0.2.1"][usize::from(at)];
        port(&format!("{host_ip}:{host_port}:{to}/{}", if udp { "udp" } else { "tcp" }))
    });
    let step = (0..2u8, 1..5u64, proptest::collection::vec(port, 0..4), proptest::bool::weighted(0.2));
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() });
    let run = runner.run(&proptest::collection::vec(step, 1..8), |steps| {
        let mut wanted = BTreeMap::new();
        for (service, generation, mut ports, withdraw) in steps {
            let name = ["shop", "db"][usize::from(service)];
            let last = 10 + 10 * service + u8::try_from(generation).unwrap();
            let mut route = agent.route(&format!("{name}.{generation}"), last, &[]);
            // One target a port of the host, as the configuration takes care of.
            ports.sort();
            ports.dedup_by_key(|port| (port.host_ip, port.host_port, port.protocol));
            route.ports = ports;
            let taken = |other: &Route| {
                let key = |port: &PortMapping| (port.host_ip, port.host_port, port.protocol);
                other.service != route.service
                    && other.ports.iter().any(|port| route.ports.iter().any(|own| key(own) == key(port)))
            };
            if withdraw {
                agent.traffic.withdraw(&route.service).unwrap();
                wanted.remove(&route.service);
            } else if wanted.values().any(taken) {
                prop_assert!(agent.traffic.point(&route).is_err());
            } else {
                agent.traffic.point(&route).unwrap();
                wanted.insert(route.service.clone(), route);
            }
            let mut seen = agent.traffic.observe().unwrap();
            seen.values_mut().for_each(|route| route.ports.sort());
            prop_assert_eq!(&seen, &wanted);
            // Another process, which has to ask the kernel, sees the same.
            let mut fresh = host.agent("gitopsd-any", 1).traffic.observe().unwrap();
            fresh.values_mut().for_each(|route| route.ports.sort());
            prop_assert_eq!(&fresh, &wanted);
        }
        agent.traffic.teardown().unwrap();
        prop_assert!(agent.traffic.observe().unwrap().is_empty());
        Ok(())
    });
    run.unwrap();
}

/// `scripts/bench-switch`: how long the change itself takes, beside the same one by the command.
#[test]
#[ignore = "a measurement"]
fn how_long_a_switch_takes() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1).open();
    let shown = |what: &str, mut took: Vec<Duration>| {
        took.sort();
        let at = |share: usize| took[(took.len() - 1) * share / 100];
        println!("{what}: p50 {:?}, p99 {:?}, max {:?}, {} times", at(50), at(99), at(100), took.len());
    };
    let ports = &["0.0.0.0:80:8080/tcp", "127.0.0.1:81:8080/tcp"];
    let routes = [agent.route("shop.1", 11, ports), agent.route("shop.2", 12, ports)];
    let turns = || routes.iter().cycle().take(500);
    agent.point(&routes[1]);
    let mut looks = Vec::new();
    let mut switch = |route: &Route| {
        // What a round does before it decides.
        let since = Instant::now();
        agent.traffic.observe().unwrap();
        looks.push(since.elapsed());
        let since = Instant::now();
        agent.traffic.point(route).unwrap();
        since.elapsed()
    };
    let netlink = turns().map(&mut switch).collect();
    // Flows are looked for before it returns.
    let with_udp = |route: &Route| {
        let ports = [ports.as_slice(), &["0.0.0.0:53:5353/udp"]].concat();
        Route { ports: ports.iter().map(|text| port(text)).collect(), ..route.clone() }
    };
    let udp = turns().map(|route| switch(&with_udp(route))).collect();
    agent.point(&routes[1]);
    shown("netlink", netlink);
    shown("netlink, with a UDP port", udp);
    shown("a look at a table that has changed", looks);
    let command = turns().map(|route| {
        let (to, own) = (route.address, route.service_address);
        let script = format!(
            "flush chain inet gitopsd svc-shop\n\
             add rule inet gitopsd svc-shop ip daddr {own} dnat ip to {to} comment \"generation {}\"\n\
             add rule inet gitopsd svc-shop ip daddr 127.0.0.1 tcp dport 81 dnat ip to {to}:8080\n\
             add rule inet gitopsd svc-shop tcp dport 80 dnat ip to {to}:8080\n",
            route.generation
        );
        let path = host.dir.path().join("script");
        std::fs::write(&path, script).unwrap();
        let since = Instant::now();
        run(&format!("nft -f {}", path.display()));
        since.elapsed()
    });
    shown("nft -f", command.collect());
    agent.teardown();
}
