//! IPv6: the same ways to a service as in IPv4, and the packet size of the way out.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use gitopsd::engine::Traffic as _;
use gitopsd::engine::native::network::Network as _;

use super::host::*;

#[test]
fn every_way_to_a_service_in_ipv6() {
    let host = Host::new();
    let clean = host.traces();
    let agent = host.agent6("gitopsd", 1);
    let (shop, db) = (agent.container("shop.1", 11, 8080), agent.container("db.1", 12, 8080));
    serve(&shop, (Ipv6Addr::UNSPECIFIED, 8081).into(), "shop6");
    serve(&db, (Ipv6Addr::UNSPECIFIED, 8081).into(), "db6");
    agent.connect(&["front: 11", "back: 12"]);
    agent.point(&agent.route(
        "shop.1",
        11,
        &[
            "0.0.0.0:80:8081/tcp",
            "[::]:81:8081/tcp",
            &format!("[{HOST6}]:82:8081/tcp"),
            "192.0.2.1:83:8081/tcp",
        ],
    ));
    let gateway = agent.address6(1);

    // From outside, with the client's own address; from the host; from another container; from itself.
    for number in [80, 81, 82] {
        assert_eq!(ask_from(&host.outside, (HOST6, number)).unwrap(), format!("shop6 {OUTSIDE6}"));
        assert!(ask((HOST6, number)).unwrap().starts_with("shop6 "), "{number}");
        let expected = format!("shop6 {}", agent.address6(12));
        assert_eq!(ask_from(&db, (HOST6, number)).unwrap(), expected, "{number}");
        assert_eq!(ask_from(&shop, (HOST6, number)).unwrap(), format!("shop6 {gateway}"), "{number}");
    }
    assert!(ask_from(&host.outside, (HOST, 80)).unwrap().starts_with("shop6 "), "and in IPv4");
    // Only in one of the two families; not at all; ::1, where clients go on to 127.0.0.1.
    for refused in [
        ask_from(&host.outside, (HOST, 81)),
        ask_from(&host.outside, (HOST6, 83)),
        ask_from(&host.outside, (HOST6, 8081)),
        ask((Ipv6Addr::LOCALHOST, 80)),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert!(ask((Ipv4Addr::LOCALHOST, 80)).unwrap().starts_with("shop6 "));
    // Networks are islands here too, and the container itself is closed to the outside.
    let own = (agent.address6(12), 8081);
    assert_eq!(ask_from(&shop, own).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    agent.connect(&["both: 11 12"]);
    assert_eq!(ask_from(&shop, own).unwrap(), format!("db6 {}", agent.address6(11)));
    let short = Duration::from_millis(300);
    assert!(inside(&host.outside, || Client::connect_within(own, short).map(drop)).is_err());
    // The way out, as the host.
    serve(&host.outside, (OUTSIDE6, 7000).into(), "outside");
    assert_eq!(ask_from(&shop, (OUTSIDE6, 7000)).unwrap(), format!("outside {HOST6}"));
    agent.connect(&["both: 11 12", "internal: 11"]);
    assert_eq!(ask_from(&shop, (OUTSIDE6, 7000)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // Addresses that no container has, such as those of containers of an older version.
    let nobody = (agent.address6(99), 8081);
    assert_eq!(ask(nobody).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(ask_from(&db, nobody).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    agent.teardown();
    let without_six = |text: String| text.replace("accept_ra", "");
    assert_eq!(without_six(host.traces()), clean);
}

#[test]
fn a_switch_takes_ipv6_along() {
    let host = Host::new();
    let agent = host.agent6("gitopsd", 1).open();
    for (name, last) in [("dns.1", 11), ("dns.2", 12)] {
        let path = agent.container(name, last, 8080);
        serve(&path, (Ipv6Addr::UNSPECIFIED, 8081).into(), name);
        let socket = inside(&path, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 5353))).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
    }
    let ports = &["0.0.0.0:53:5353/udp", "0.0.0.0:80:8081/tcp"];
    agent.point(&agent.route("dns.1", 11, ports));
    // One source port: to conntrack the same flow for ever.
    let client = inside(&host.outside, || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        socket.connect((HOST6, 53))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(socket)
    })
    .unwrap();
    let asked = || {
        client.send(b"who").unwrap();
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(asked(), "dns.1");
    let mut stays = inside(&host.outside, || Client::connect((HOST6, 80))).unwrap();
    assert!(stays.ask().unwrap().starts_with("dns.1 "));
    agent.point(&agent.route("dns.2", 12, ports));
    assert_eq!(asked(), "dns.2");
    assert!(stays.ask().unwrap().starts_with("dns.1 "));
    assert!(ask_from(&host.outside, (HOST6, 80)).unwrap().starts_with("dns.2 "));

    // Half of it gone is all of it gone: the next look finds that it is not as it should be.
    let chain = run("nft -a list chain inet gitopsd svc-dns");
    let rule = chain.lines().find(|line| line.contains("ip6 to") && line.contains("tcp")).unwrap();
    let handle = rule.rsplit(' ').next().unwrap();
    run(&format!("nft delete rule inet gitopsd svc-dns handle {handle}"));
    assert!(agent.traffic.observe().unwrap().is_empty());
    agent.point(&agent.route("dns.2", 12, ports));
    assert!(ask_from(&host.outside, (HOST6, 80)).unwrap().starts_with("dns.2 "));
    agent.teardown();
}

#[test]
fn a_container_sends_from_its_own_address_only() {
    let host = Host::new();
    let agent = host.agent6("gitopsd", 1);
    let shop = agent.container("shop.1", 11, 8080);
    agent.container("db.1", 12, 8080);
    agent.connect(&["default: 11 12"]);
    serve(&host.outside, (OUTSIDE6, 7000).into(), "outside");
    let forge = || {
        inside(&shop, || {
            run(&format!("ip -6 addr replace {}/128 dev eth0 nodad", agent.address6(12)));
            run(&format!("ip -6 route replace default via fe80::1 dev eth0 src {}", agent.address6(12)));
            Client::connect_within((OUTSIDE6, 7000), Duration::from_millis(300)).map(drop)
        })
    };
    assert_eq!(forge().unwrap_err().kind(), ErrorKind::TimedOut);
    agent.teardown();
}

#[test]
fn a_network_without_ipv6_has_none() {
    let host = Host::new();
    let agent = host.agent6("gitopsd", 1);
    let path = agent.network.attach_ipv4(&id("shop.1"), agent.address(11)).unwrap();
    serve(&path, (Ipv4Addr::UNSPECIFIED, 8080).into(), "shop.1");
    agent.connect(&["default: 11"]);
    agent.point(&agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp"]));
    let four = host.agent("gitopsd-two", 2);
    let refused = four.traffic.point(&four.route("shop.1", 11, &["[::]:81:8080/tcp"])).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "shop cannot publish [::]:81->8080/tcp: containers have no IPv6 on this host"
    );
    let addresses = inside(&path, || Ok(run("ip -6 -o addr show dev eth0"))).unwrap();
    assert_eq!(addresses, "");
    assert!(ask_from(&host.outside, (HOST, 80)).is_ok());
    assert_eq!(
        ask_from(&host.outside, (HOST6, 80)).unwrap_err().kind(),
        ErrorKind::ConnectionRefused,
        "clients are to go on to IPv4 at once"
    );
    agent.teardown();
}

#[test]
fn packets_fit_the_way_out() {
    let host = Host::new();
    run("ip link set uplink mtu 1400");
    let agent = host.agent("gitopsd", 1);
    let mtu = |last: u8| {
        let name = format!("shop.{last}");
        agent.network.attach(&id(&name), agent.address(last)).unwrap();
        let path = agent.run_dir.join("netns").join(name);
        let shown = inside(&path, || Ok(run("ip -o link show eth0"))).unwrap();
        shown.split("mtu ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    };
    assert_eq!(mtu(11), "1500", "without a default route there is nothing to fit");
    run(&format!("ip route add default via {OUTSIDE} metric 200"));
    assert_eq!(mtu(12), "1400");
    run("ip link add other type veth peer name others");
    run("ip link set others up");
    run("ip link set other mtu 9000 up");
    run("ip route add default dev other metric 100");
    assert_eq!(mtu(13), "9000");
    agent.teardown();
}

#[test]
fn a_host_that_listens_to_routers_still_does() {
    let host = Host::new();
    let accepts = || std::fs::read_to_string("/proc/sys/net/ipv6/conf/uplink/accept_ra").unwrap();
    assert_eq!(accepts().trim(), "1");
    let agent = host.agent6("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap().trim(), "1");
    assert_eq!(accepts().trim(), "2");
    agent.teardown();
}
