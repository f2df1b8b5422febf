//! Who reaches whom: networks, internal ones, and networks that are not a container's own.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use gitopsd::engine::Traffic as _;
use gitopsd::engine::native::net::namespace;
use gitopsd::engine::native::network::Network as _;

use super::host::*;

const SHORT: Duration = Duration::from_millis(300);

fn refused(answer: std::io::Result<String>) -> bool {
    answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn networks_are_islands() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    // Each with a server, at a service address of its own.
    let all = [("web.1", 11), ("db.1", 12), ("edge.1", 13)].map(|(name, last)| {
        let path = agent.container(name, last, 8080);
        let mut route = agent.route(name, last, &[]);
        route.service_address = agent.address(last + 200);
        if name == "db.1" {
            route.ports = vec![port("0.0.0.0:5432:8080/tcp")];
        }
        agent.connect(&["front: 11 13", "back: 11 12"]);
        agent.point(&route);
        (path, (agent.address(last), 8080), (route.service_address, 8080))
    });
    let [(web, web_own, web_service), (db, db_own, db_service), (edge, edge_own, edge_service)] = all;
    for (from, to) in [
        (&web, db_service),
        (&web, edge_service),
        (&db, web_service),
        (&edge, web_service),
        (&web, web_service),
        (&edge, web_own),
    ] {
        ask_from(from, to).unwrap_or_else(|error| panic!("{} to {to:?}: {error}", from.display()));
    }
    // Neither by the service's address nor by the container's; at once, not after a time-out.
    for (from, to) in [(&edge, db_service), (&edge, db_own), (&db, edge_service), (&db, edge_own)] {
        assert!(refused(ask_from(from, to)), "{} to {to:?}", from.display());
    }
    // What is published is open to whoever reaches the host.
    for at in [HOST, agent.address(1)] {
        assert!(ask_from(&edge, (at, 5432)).unwrap().starts_with("db.1 "));
    }
    assert!(ask_from(&host.outside, (HOST, 5432)).unwrap().starts_with("db.1 "));

    // It comes to the network, and goes: who is connected stays.
    agent.connect(&["front: 11", "back: 11 12 13"]);
    let mut client = inside(&edge, || Client::connect(db_service)).unwrap();
    assert!(client.ask().unwrap().starts_with("db.1 "));
    agent.connect(&["back: 11 12"]);
    assert!(client.ask().is_ok());
    assert!(refused(ask_from(&edge, db_service)));
    assert!(!run("nft list table inet gitopsd").contains("net-front"));
    // A record that cannot be read takes nobody off a network.
    agent.traffic.connect(&agent.members(&["back: 12"]), true).unwrap();
    assert!(ask_from(&web, db_service).is_ok());
    agent.teardown();
}

#[test]
fn an_internal_network_has_no_way_out_nor_in() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let (web, db) = (agent.container("web.1", 11, 8080), agent.container("db.1", 12, 8080));
    agent.connect(&["default: 11", "back: 11 12", "internal: 12"]);
    let mut route = agent.route("web.1", 11, &["0.0.0.0:80:8080/tcp"]);
    route.service_address = agent.address(211);
    agent.point(&route);
    agent.point(&agent.route("db.1", 12, &["0.0.0.0:5432:8080/tcp"]));
    let service = (agent.address(201), 8080);
    serve(&host.outside, (OUTSIDE, 7000).into(), "outside");

    assert!(ask_from(&web, (OUTSIDE, 7000)).is_ok());
    assert!(ask_from(&web, service).is_ok() && ask_from(&db, (agent.address(211), 8080)).is_ok());
    assert!(refused(ask_from(&db, (OUTSIDE, 7000))));
    let from_outside = inside(&host.outside, || Client::connect_within((HOST, 5432), SHORT).map(drop));
    assert_eq!(from_outside.unwrap_err().kind(), ErrorKind::TimedOut);
    // The host itself is not outside.
    assert!(ask((Ipv4Addr::LOCALHOST, 5432)).unwrap().starts_with("db.1 "));
    // The way in is closed for connections, not for the answers to a container that may go out.
    agent.connect(&["default: 11", "back: 11 12"]);
    assert!(ask_from(&host.outside, (HOST, 5432)).unwrap().starts_with("db.1 "));
    assert!(ask_from(&db, (OUTSIDE, 7000)).is_ok());
    agent.teardown();
}

#[test]
fn the_way_out_is_there_before_the_first_switch() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1).open();
    let shop = agent.container("shop.1", 11, 8080);
    serve(&host.outside, (OUTSIDE, 7000).into(), "outside");
    agent.connect(&["default: 11"]);
    assert_eq!(ask_from(&shop, (OUTSIDE, 7000)).unwrap(), format!("outside {HOST}"));
    // Whatever rule somebody takes away comes back at the next look, and a look at a whole table changes nothing.
    for damage in ["flush chain inet gitopsd nat-post", "flush set inet gitopsd net-default", "flush ruleset"]
    {
        run(&format!("nft {damage}"));
        agent.connect(&["default: 11"]);
        assert!(ask_from(&shop, (OUTSIDE, 7000)).is_ok(), "after {damage}");
        let before = run("nft -a list table inet gitopsd");
        agent.connect(&["default: 11"]);
        assert_eq!(run("nft -a list table inet gitopsd"), before);
    }
    agent.teardown();
}

#[test]
fn a_service_that_has_the_hosts_network_is_reached_by_its_address() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let shop = agent.container("shop.1", 11, 8080);
    agent.network.open_host().unwrap();
    agent.connect(&["default: 11"]);
    serve(std::path::Path::new("/proc/thread-self/ns/net"), (Ipv4Addr::UNSPECIFIED, 9000).into(), "node");
    for (name, last) in [("node.1", 201), ("other.1", 202)] {
        let mut route = agent.route(name, 1, &[]);
        route.service_address = agent.address(last);
        agent.point(&route);
    }
    let own = format!("node {}", agent.address(11));
    assert_eq!(ask_from(&shop, (agent.address(201), 9000)).unwrap(), own);
    assert_eq!(ask_from(&shop, (agent.address(202), 9000)).unwrap(), own);
    assert!(ask((agent.address(201), 9000)).unwrap().starts_with("node "));
    assert!(refused(ask_from(&shop, (agent.address(201), 9001))));
    agent.traffic.withdraw(&id("other.1").service).unwrap();
    assert_eq!(agent.traffic.observe().unwrap().len(), 1);
    assert_eq!(ask_from(&shop, (agent.address(201), 9000)).unwrap(), own);
    agent.teardown();
}

#[test]
fn a_shared_network_is_one_network() {
    let host = Host::new();
    let clean = host.traces();
    let agent = host.agent("gitopsd", 1);
    let (shop, side) = (id("shop.1"), id("side.1"));
    assert!(agent.network.join(&side, &shop).unwrap_err().to_string().contains("shop.1"));
    agent.container("shop.1", 11, 8080);
    let path = agent.network.join(&side, &shop).unwrap();
    // What listens in the one is at the other's loopback address.
    serve(&path, (Ipv4Addr::UNSPECIFIED, 9090).into(), "side.1");
    let shop_path = agent.run_dir.join("netns/shop.1");
    assert!(ask_from(&shop_path, (Ipv4Addr::LOCALHOST, 9090)).unwrap().starts_with("side.1 "));
    agent.point(&agent.route("shop.1", 11, &[]));
    let mut route = agent.route("side.1", 11, &[]);
    route.service_address = agent.address(202);
    agent.point(&route);
    assert!(ask((agent.address(202), 9090)).unwrap().starts_with("side.1 "));
    // One of them goes: the other one still reaches itself.
    agent.traffic.withdraw(&side.service).unwrap();
    assert!(ask_from(&path, (agent.address(200), 8080)).unwrap().starts_with("shop.1 "));
    // Joined again, to another one; and what it had is not what it keeps.
    agent.container("shop.2", 12, 8080);
    agent.network.join(&side, &id("shop.2")).unwrap();
    assert!(refused(ask_from(&path, (Ipv4Addr::LOCALHOST, 9090))));
    agent.network.detach(&side).unwrap();
    assert!(namespace::is_pinned(&shop_path));
    // One without a network at all.
    let alone = agent.network.isolate(&id("job.1")).unwrap();
    assert_eq!(agent.network.isolate(&id("job.1")).unwrap(), alone);
    let links = inside(&alone, || Ok(run("ip -o link"))).unwrap();
    assert!(links.contains("lo: <LOOPBACK,UP") && !links.contains("eth0"), "{links}");
    agent.network.detach(&id("job.1")).unwrap();
    agent.teardown();
    assert_eq!(host.traces(), clean);
}
