//! Who can reach what, and as whom.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::host::*;

#[test]
fn every_way_to_a_service() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let shop = agent.container("shop.1", 11, 8080);
    let db = agent.container("db.1", 12, 8080);
    agent.point(&agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp"]));
    agent.point(&agent.route("db.1", 12, &["127.0.0.1:5432:8080/tcp"]));
    let (shop_service, db_service) = (agent.address(200), agent.address(201));
    let gateway = agent.address(1);

    // A published port, from outside: the service sees who asks.
    assert_eq!(ask_from(&host.outside, (HOST, 80)).unwrap(), format!("shop.1 {OUTSIDE}"));
    // From the host: its addresses, the loopback address, the service address, the container itself.
    for address in [HOST, Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9), gateway] {
        assert!(ask((address, 80)).unwrap().starts_with("shop.1 "), "{address}");
    }
    assert_eq!(ask((Ipv4Addr::LOCALHOST, 80)).unwrap(), format!("shop.1 {gateway}"));
    assert_eq!(ask((shop_service, 8080)).unwrap(), format!("shop.1 {gateway}"));
    assert_eq!(ask((agent.address(11), 8080)).unwrap(), format!("shop.1 {gateway}"));
    // From another container: the source is its own.
    assert_eq!(ask_from(&db, (shop_service, 8080)).unwrap(), format!("shop.1 {}", agent.address(12)));
    assert_eq!(ask_from(&db, (HOST, 80)).unwrap(), format!("shop.1 {}", agent.address(12)));
    assert_eq!(ask_from(&shop, (db_service, 8080)).unwrap(), format!("db.1 {}", agent.address(11)));
    // From the container itself: through its service address and its published port.
    assert_eq!(ask_from(&shop, (shop_service, 8080)).unwrap(), format!("shop.1 {gateway}"));
    assert_eq!(ask_from(&shop, (HOST, 80)).unwrap(), format!("shop.1 {gateway}"));
    // Published on one address only.
    assert!(ask((Ipv4Addr::LOCALHOST, 5432)).unwrap().starts_with("db.1 "));
    for elsewhere in [ask((HOST, 5432)), ask_from(&host.outside, (HOST, 5432))] {
        assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    agent.teardown();
}

#[test]
fn containers_reach_the_outside_as_the_host() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let shop = agent.container("shop.1", 11, 8080);
    agent.point(&agent.route("shop.1", 11, &[]));
    serve(&host.outside, (OUTSIDE, 7000).into(), "outside");
    assert_eq!(ask_from(&shop, (OUTSIDE, 7000)).unwrap(), format!("outside {HOST}"));
    agent.teardown();
}

#[test]
fn what_is_not_published_is_closed() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let shop = agent.container("shop.1", 11, 8080);
    agent.point(&agent.route("shop.1", 11, &[]));
    let short = Duration::from_millis(300);

    // The outside sends everything to this host: neither the container nor its service address answer.
    let direct = inside(&host.outside, || Client::connect_within((agent.address(11), 8080), short).map(drop));
    assert_eq!(direct.unwrap_err().kind(), ErrorKind::TimedOut);
    for nobody in [200, 99] {
        let address = agent.address(nobody);
        let refused = inside(&host.outside, || Client::connect((address, 8080)).map(drop));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    // Addresses of the subnet that nobody has are refused at once, also from the host.
    assert_eq!(ask((agent.address(99), 8080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(ask_from(&shop, (agent.address(99), 8080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    agent.teardown();
}

/// route_localnet opens 127.0.0.0/8 to whoever is on the link: a container with NET_ADMIN could reach services of the
/// host that trust the loopback address.
#[test]
fn the_loopback_of_the_host_stays_its_own() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1).open();
    let shop = agent.container("shop.1", 11, 8080);
    agent.point(&agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp"]));
    let gateway = agent.address(1);
    let own = agent.address(11);
    serve(std::path::Path::new("/proc/thread-self/ns/net"), (Ipv4Addr::LOCALHOST, 6000).into(), "secret");
    assert!(ask((Ipv4Addr::LOCALHOST, 6000)).unwrap().starts_with("secret"));

    let attack = || {
        inside(&shop, || {
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1")?;
            run("ip addr flush dev lo");
            run(&format!("ip route replace 127.0.0.1 via {gateway} dev eth0 onlink src {own}"));
            Client::connect_within((Ipv4Addr::LOCALHOST, 6000), Duration::from_millis(300)).map(drop)
        })
    };
    assert_eq!(attack().unwrap_err().kind(), ErrorKind::TimedOut);
    // The attack is a real one: it works without the guard.
    run("nft flush chain inet gitopsd guard");
    attack().unwrap();
    agent.teardown();
}
