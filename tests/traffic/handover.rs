//! A port that goes from one service to another: in one transaction, so that there is no moment without either.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use gitopsd::engine::{Route, Traffic as _};
use gitopsd::types::Reason;

use super::host::*;
use super::load::changes_under_load;

const OWN: [&str; 2] = ["0.0.0.0:81:8080/tcp", "0.0.0.0:82:8080/tcp"];
const BOTH: &str = "0.0.0.0:80:8080/tcp";

/// Takes what `from` has of its ports.
fn take(agent: &Agent, route: &Route, from: &Route) {
    agent.traffic.take_over(route, &BTreeSet::from([from.service.clone()])).unwrap();
}

#[test]
fn two_hundred_handovers_under_load() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let names = ["shop.1", "web.1"];
    names.iter().zip([11, 12]).for_each(|(name, last)| drop(agent.container(name, last, 8080)));
    let route = |of: usize| agent.route(names[of], [11, 12][of], &[BOTH, OWN[of]]);
    let routes = [route(0), route(1)];
    agent.point(&routes[0]);
    agent.point(&agent.route(names[1], 12, &[OWN[1]]));
    changes_under_load(&host, (Ipv4Addr::LOCALHOST, 80), |turn| {
        let (to, from) = (turn % 2, (turn + 1) % 2);
        take(&agent, &routes[to], &routes[from]);
        // What is asked from then on is answered by the one that took it; each keeps what is its own.
        for (port, of) in [(80, to), (81, 0), (82, 1)] {
            let answer = ask((HOST, port)).unwrap();
            assert!(answer.starts_with(names[of]), "turn {turn}, port {port}: {answer}");
        }
    });
    let seen = agent.traffic.observe().unwrap();
    let ports: usize = seen.values().map(|route| route.ports.len()).sum();
    assert_eq!(ports, 3, "{seen:?}");
    agent.teardown();
}

#[test]
fn what_nobody_gives_up_is_not_taken() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let (shop, web) = (agent.route("shop.1", 11, &[BOTH]), agent.route("web.1", 12, &[OWN[1], BOTH]));
    agent.container("shop.1", 11, 8080);
    agent.container("web.1", 12, 8080);
    agent.point(&shop);
    for givers in [BTreeSet::new(), BTreeSet::from(["db".parse().unwrap(), "web".parse().unwrap()])] {
        let error = agent.traffic.take_over(&web, &givers).unwrap_err();
        assert_eq!((error.reason, error.to_string().contains("shop")), (Reason::PortInUse, true), "{error}");
    }
    assert!(ask((HOST, 80)).unwrap().starts_with("shop.1 "));
    assert!(ask((HOST, 82)).is_err(), "nothing of a change that is refused is made");
    // Who took it has it, also once somebody has flushed the rules.
    agent.connect(&["default: 11 12"]);
    take(&agent, &web, &shop);
    run("nft flush ruleset");
    agent.traffic.restore().unwrap();
    assert!(ask((HOST, 80)).unwrap().starts_with("web.1 "));
    assert_eq!(agent.traffic.observe().unwrap()[&shop.service].ports, []);
    // The one that lost it gets it back the same way.
    take(&agent, &shop, &web);
    assert!(ask((HOST, 80)).unwrap().starts_with("shop.1 "));
    assert!(ask((HOST, 82)).unwrap().starts_with("web.1 "));
    agent.teardown();
}

#[test]
fn udp_clients_follow_the_port() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    for (name, last) in [("dns.1", 11), ("shop.1", 12)] {
        serve_udp(&agent.container(name, last, 8080), 5353, name);
    }
    let ports = &["0.0.0.0:53:5353/udp"];
    let (dns, shop) = (agent.route("dns.1", 11, ports), agent.route("shop.1", 12, ports));
    agent.point(&agent.route("shop.1", 12, &[]));
    agent.point(&dns);
    let open = |to: (Ipv4Addr, u16)| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    };
    let clients =
        [inside(&host.outside, || open((HOST, 53))).unwrap(), open((Ipv4Addr::LOCALHOST, 53)).unwrap()];
    let said_by = |name: &str| {
        for client in &clients {
            let mut buffer = [0; 64];
            client.send(b"who").unwrap();
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), name);
        }
    };
    said_by("dns.1");
    take(&agent, &shop, &dns);
    said_by("shop.1");
    take(&agent, &dns, &shop);
    said_by("dns.1");
    agent.teardown();
}

/// What the process that gets killed is told: the agent's directory.
const DIRECTORY: &str = "TEST_HANDOVER";

/// Not a test of its own: an agent that is killed in the middle of it.
#[test]
#[ignore = "the next one runs it"]
fn killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let _scenario = fail::FailScenario::setup();
    let agent = Agent::at(std::path::Path::new(&directory), "gitopsd", 1);
    let shop = agent.route("shop.1", 11, &[BOTH]);
    agent.point(&shop);
    take(&agent, &agent.route("web.1", 12, &[BOTH]), &shop);
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn what_an_agent_leaves_that_was_killed_meanwhile_is_taken_away() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    agent.container("web.1", 12, 8080);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "handover::killed", "--ignored"]).env("FAILPOINTS", "moving::after=return");
    assert!(!child.env(DIRECTORY, &agent.run_dir).output().unwrap().status.success(), "it was not killed");
    let moving = || run("nft list chain inet gitopsd moving");
    assert!(moving().contains("dport 80"), "{}", moving());
    assert!(ask((HOST, 80)).unwrap().starts_with("web.1 "));
    let next = host.agent("gitopsd", 1);
    next.connect(&["default: 11 12"]);
    assert!(!moving().contains("dport"), "{}", moving());
    assert!(ask((HOST, 80)).unwrap().starts_with("web.1 "));
    next.teardown();
}
