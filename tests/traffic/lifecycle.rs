//! Restarts, crashes half-way, neighbours, and leaving nothing behind.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use gitopsd::engine::Traffic as _;
use gitopsd::engine::native::net::{BridgeNetwork, namespace};
use gitopsd::engine::native::network::Network as _;
use gitopsd::types::Reason;

use super::host::*;

const PORTS: &[&str] = &["0.0.0.0:80:8080/tcp"];

#[test]
fn a_restart_of_the_agent_keeps_flows_and_routes() {
    let host = Host::new();
    let before = host.agent("gitopsd", 1);
    before.container("shop.1", 11, 8080);
    before.container("shop.2", 12, 8080);
    before.point(&before.route("shop.1", 11, PORTS));
    let routes = before.traffic.observe().unwrap();
    let mut client = inside(&host.outside, || Client::connect((HOST, 80))).unwrap();
    client.ask().unwrap();
    drop(before);

    let after = host.agent("gitopsd", 1);
    assert_eq!(after.traffic.observe().unwrap(), routes);
    after.network.attach(&id("shop.1"), after.address(11)).unwrap();
    assert!(client.ask().unwrap().starts_with("shop.1 "));
    after.point(&after.route("shop.1", 11, PORTS));
    assert!(client.ask().unwrap().starts_with("shop.1 "));
    after.point(&after.route("shop.2", 12, PORTS));
    assert!(client.ask().unwrap().starts_with("shop.1 "));
    after.teardown();
}

#[test]
fn two_agents_side_by_side_and_no_leftovers() {
    let host = Host::new();
    let clean = host.traces();
    let (one, two) = (host.agent("gitopsd", 1), host.agent("gitopsd-two", 2));
    for (agent, published) in [(&one, "0.0.0.0:80:8080/tcp"), (&two, "0.0.0.0:81:8080/tcp")] {
        agent.container("shop.1", 11, 8080);
        agent.point(&agent.route("shop.1", 11, &[published]));
    }
    assert!(ask_from(&host.outside, (HOST, 80)).is_ok() && ask_from(&host.outside, (HOST, 81)).is_ok());
    assert!(run("ip -o link").contains("gitopsd:gitopsd-two:shop.1"));
    // The container of one is not open to the containers of the other, what is published is.
    let inside_one = one.run_dir.join("netns/shop.1");
    let short = Duration::from_millis(300);
    let direct = inside(&inside_one, || Client::connect_within((two.address(11), 8080), short).map(drop));
    assert!(direct.is_err());
    assert!(ask_from(&inside_one, (HOST, 81)).is_ok());

    let mut client = inside(&host.outside, || Client::connect((HOST, 81))).unwrap();
    client.ask().unwrap();
    one.teardown();
    client.ask().unwrap();
    assert_eq!(one.network.attached().unwrap(), []);
    assert_eq!(two.network.attached().unwrap(), [id("shop.1")]);
    two.teardown();
    two.teardown();
    assert_eq!(host.traces(), clean);
}

#[test]
fn half_made_networks_are_finished_or_replaced() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let shop = id("shop.1");
    let path = agent.container("shop.1", 11, 8080);
    let works = |agent: &Agent| ask((agent.address(11), 8080)).is_ok();
    assert!(works(&agent));
    let link = run("ip -o link").split(": ").find(|word| word.starts_with("gd")).unwrap().to_owned();
    let link = link.split('@').next().unwrap();

    // A second time changes nothing for those who use it.
    let mut client = Client::connect((agent.address(11), 8080)).unwrap();
    assert_eq!(agent.network.attach(&shop, agent.address(11)).unwrap(), path);
    client.ask().unwrap();

    // Settings that were not made yet: label, route, neighbour, state of the interface, bridge.
    for undo in [
        &format!("ip route del {} dev {link}", agent.address(11)),
        &format!("ip neigh flush dev {link} nud permanent"),
        &format!("ip link set {link} down"),
        "ip link del gitopsd0",
    ] {
        run(undo);
        agent.network.attach(&shop, agent.address(11)).unwrap();
        assert!(works(&agent), "after {undo}");
    }
    // The interface is gone, the namespace is there, with its server in it.
    run(&format!("ip link del {link}"));
    agent.network.attach(&shop, agent.address(11)).unwrap();
    assert!(works(&agent));
    // The namespace has lost its name, the interface is there: it leads nowhere that can be found.
    namespace::unpin(&path).unwrap();
    assert_eq!(agent.network.attached().unwrap(), std::slice::from_ref(&shop));
    agent.network.attach(&shop, agent.address(11)).unwrap();
    serve(&path, (Ipv4Addr::UNSPECIFIED, 8080).into(), "again");
    assert!(works(&agent));
    // A plain file where the namespace is to be pinned.
    agent.network.detach(&shop).unwrap();
    std::fs::write(&path, "").unwrap();
    agent.network.attach(&shop, agent.address(11)).unwrap();
    assert!(namespace::is_pinned(&path));
    // Another address for the same name.
    agent.network.attach(&shop, agent.address(13)).unwrap();
    serve(&path, (Ipv4Addr::UNSPECIFIED, 8080).into(), "moved");
    assert!(ask((agent.address(13), 8080)).is_ok());
    assert!(!works(&agent));

    agent.network.detach(&shop).unwrap();
    agent.network.detach(&shop).unwrap();
    assert_eq!(agent.network.attached().unwrap(), []);
    agent.teardown();
}

#[test]
fn a_table_that_was_flushed_is_made_again() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1).open();
    agent.container("shop.1", 11, 8080);
    let route = agent.route("shop.1", 11, PORTS);
    for damage in [
        "flush ruleset",
        "flush chain inet gitopsd svc-shop",
        "delete element inet gitopsd anywhere { tcp . 80 }",
    ] {
        agent.point(&route);
        assert!(ask((HOST, 80)).is_ok());
        run(&format!("nft {damage}"));
        assert_eq!(agent.traffic.observe().unwrap().len(), 0, "{damage}");
    }
    agent.point(&route);
    assert!(ask((HOST, 80)).is_ok());
    agent.teardown();
}

/// A settled round asks often: that must not start a process each time.
#[test]
fn looking_is_cheap_while_nothing_changes() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    let route = agent.route("shop.1", 11, PORTS);
    agent.point(&route);
    agent.connect(&["default: 11"]);
    let start = Instant::now();
    for _ in 0..1000 {
        agent.connect(&["default: 11"]);
        assert_eq!(agent.traffic.observe().unwrap().len(), 1);
        agent.traffic.point(&route).unwrap();
    }
    // nft(8) takes some 10 ms: 1000 of them would be 10 s and more.
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    agent.teardown();
}

/// The table as version 0.1.0 made it before there were networks and IPv6, with one service in it.
const OLDER: &str = r#"add table inet gitopsd
add map inet gitopsd services { type ipv4_addr : verdict ; }
add map inet gitopsd anywhere { type inet_proto . inet_service : verdict ; }
add map inet gitopsd at { type ipv4_addr . inet_proto . inet_service : verdict ; }
add set inet gitopsd hairpin { type ipv4_addr . ipv4_addr ; }
add chain inet gitopsd published
add chain inet gitopsd nat-pre { type nat hook prerouting priority -105 ; policy accept ; }
add chain inet gitopsd nat-out { type nat hook output priority -105 ; policy accept ; }
add chain inet gitopsd nat-post { type nat hook postrouting priority 95 ; policy accept ; }
add chain inet gitopsd filter-forward { type filter hook forward priority -5 ; policy accept ; }
add chain inet gitopsd svc-shop
add rule inet gitopsd svc-shop ip daddr 10.213.1.200 dnat ip to 10.213.1.11 comment "generation 1"
add rule inet gitopsd svc-shop tcp dport 80 dnat ip to 10.213.1.11:8080
add element inet gitopsd services { 10.213.1.200 : goto svc-shop }
add element inet gitopsd anywhere { tcp . 80 : goto svc-shop }
add element inet gitopsd hairpin { 10.213.1.11 . 10.213.1.11 }
add rule inet gitopsd published meta nfproto ipv4 fib daddr type local meta l4proto . th dport vmap @anywhere
add rule inet gitopsd nat-pre jump published
add rule inet gitopsd nat-out jump published
"#;

#[test]
fn a_table_of_an_older_version_is_taken_over() {
    let host = Host::new();
    let older = host.agent("gitopsd", 1);
    older.container("shop.1", 11, 8080);
    let script = host.dir.path().join("older.nft");
    std::fs::write(&script, OLDER).unwrap();
    run(&format!("nft -f {}", script.display()));
    let mut client = inside(&host.outside, || Client::connect((HOST, 80))).unwrap();
    client.ask().unwrap();
    drop(older);

    // As the agent does at its start: who is on which network, then every route where it leads.
    let newer = host.agent6("gitopsd", 1);
    newer.network.open_host().unwrap();
    newer.connect(&["default: 11"]);
    assert!(client.ask().is_ok());
    newer.point(&newer.route("shop.1", 11, PORTS));
    assert!(client.ask().is_ok(), "an upgrade has cut a connection");
    assert!(ask_from(&host.outside, (HOST, 80)).unwrap().starts_with("shop.1 "));
    // The container has no IPv6 address yet: clients are told so at once, and go on to IPv4.
    let refused = ask_from(&host.outside, (HOST6, 80)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    newer.teardown();
}

#[test]
fn foolish_subnets_are_refused() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let overlapping = BridgeNetwork::new("x", (Ipv4Addr::new(192, 0, 0, 0), 16), host.dir.path()).unwrap();
    let error = overlapping.attach(&id("shop.1"), Ipv4Addr::new(192, 0, 9, 9)).unwrap_err();
    assert_eq!(error.reason, Reason::Network);
    assert!(error.to_refusal().message.contains("overlaps 192.0.2.1/24 of interface uplink"), "{error:?}");
    assert!(agent.network.attach(&id("shop.1"), agent.address(1)).is_err());
    assert!(agent.network.attach(&id("shop.1"), Ipv4Addr::new(10, 1, 1, 1)).is_err());
    let mut route = agent.route("shop.1", 11, &[]);
    route.address = OUTSIDE;
    assert_eq!(agent.traffic.point(&route).unwrap_err().reason, Reason::Network);
    overlapping.teardown().unwrap();
    agent.teardown();
}

/// At a boot the first containers may be there before the host's own network is.
#[test]
fn a_network_of_the_host_that_comes_later_is_the_hosts() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let shop = [id("shop.1")];
    agent.container("shop.1", 11, 8080);
    let broken = || agent.network.broken(&shop).unwrap();
    // The first packets through a link that was just set up may be lost.
    let client = || Client::connect_within((agent.address(11), 8080), Duration::from_secs(20));
    let connected = "10.213.1.0/24 dev gitopsd0";
    assert!(broken().is_empty() && client().is_ok() && run("ip route").contains(connected));
    // One that lies within, and away from the gateway's address, is what its own route leads to.
    run("ip addr add 10.213.1.130/25 dev uplink");
    assert!(broken().is_empty() && client().is_ok());
    run("ip addr del 10.213.1.130/25 dev uplink");
    // Services that run are not ended for a wider one, as a VPN's.
    run("ip addr add 10.213.1.77/16 dev uplink");
    assert!(broken().is_empty() && client().is_ok());
    run("ip addr del 10.213.1.77/16 dev uplink");
    for prefix in [24, 25] {
        run(&format!("ip addr add 10.213.1.77/{prefix} dev uplink"));
        assert_eq!(broken(), shop);
        for what in [agent.network.attach(&shop[0], agent.address(11)).map(drop), agent.network.open_host()] {
            let message = what.unwrap_err().to_refusal().message;
            let expected = format!("overlaps 10.213.1.77/{prefix} of interface uplink");
            assert!(message.contains(&expected), "{message}");
        }
        for address in ["10.213.1.1", "10.213.1.2", "10.213.1.11"] {
            let way = run(&format!("ip route get {address}"));
            assert!(way.contains("dev uplink"), "{way}");
        }
        run(&format!("ip addr del 10.213.1.77/{prefix} dev uplink"));
        // As a look does with what is broken.
        assert_eq!(broken(), shop);
        agent.network.attach(&shop[0], agent.address(11)).unwrap();
        assert!(broken().is_empty() && client().is_ok() && run("ip route").contains(connected));
    }
    run("ip addr add 10.213.1.77/24 dev uplink");
    assert!(agent.network.open_host().is_err() && !run("ip route").contains("gitopsd0"));
    agent.teardown();
}

#[test]
fn a_way_out_that_comes_later_says_how_large_packets_are() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let shop = [id("shop.1")];
    let path = agent.container("shop.1", 11, 8080);
    let mtus = || {
        let outside = run("ip -o link").lines().find(|line| line.contains("shop.1")).unwrap().to_owned();
        let within = inside(&path, || Ok(run("ip -o link show eth0"))).unwrap();
        [outside, within]
            .map(|line| line.split_once(" mtu ").unwrap().1.split(' ').next().unwrap().to_owned())
    };
    assert_eq!(mtus(), ["1500", "1500"]);
    assert!(agent.network.broken(&shop).unwrap().is_empty());
    run("ip link set uplink mtu 1420");
    run(&format!("ip route add default via {OUTSIDE}"));
    assert_eq!(agent.network.broken(&shop).unwrap(), shop);
    agent.network.attach(&shop[0], agent.address(11)).unwrap();
    assert_eq!(mtus(), ["1420", "1420"]);
    assert!(agent.network.broken(&shop).unwrap().is_empty());
    assert!(Client::connect((agent.address(11), 8080)).unwrap().ask().is_ok());
    agent.teardown();
}
