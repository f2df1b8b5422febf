//! Counting connections, and finding who holds a port.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use gitopsd::engine::Traffic as _;

use super::host::*;

#[test]
fn only_connections_of_clients_count() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let shop = agent.container("shop.1", 11, 8080);
    let count = || agent.traffic.connections(&id("shop.1")).unwrap();
    agent.point(&agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp"]));
    assert_eq!(agent.traffic.connections(&id("nobody.1")).unwrap(), 0);
    assert_eq!(count(), 0);

    let clients: Vec<Client> = (0..50)
        .map(|_| {
            let mut client = Client::connect((HOST, 80)).unwrap();
            client.ask().unwrap();
            client
        })
        .collect();
    assert_eq!(count(), 50);
    // What the container opens itself, to others or to itself, is not waited for.
    serve(&host.outside, (OUTSIDE, 7000).into(), "outside");
    let own = inside(&shop, || {
        Ok([TcpStream::connect((OUTSIDE, 7000))?, TcpStream::connect((Ipv4Addr::LOCALHOST, 8080))?])
    })
    .unwrap();
    assert_eq!(count(), 50);
    drop(own);
    // One that the container has closed is over, however long the client keeps its own end.
    let listener = inside(&shop, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9090))).unwrap();
    let lazy = TcpStream::connect((agent.address(11), 9090)).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(count(), 51);
    drop(accepted);
    wait_for("its end", || count() == 50);
    drop((lazy, listener));
    // The clients close first: TIME-WAIT is theirs, and the server's ends are gone.
    drop(clients);
    wait_for("no connections", || count() == 0);
    agent.teardown();
}

#[test]
fn whoever_holds_a_port_is_named() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let conflict = |ports: &[&str]| {
        let ports: Vec<_> = ports.iter().map(|text| port(text)).collect();
        agent.traffic.port_conflict(&ports).unwrap()
    };
    assert_eq!(conflict(&["0.0.0.0:80:8080/tcp", "0.0.0.0:53:53/udp"]), None);

    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 80)).unwrap();
    let line = conflict(&["0.0.0.0:81:8080/tcp", "0.0.0.0:80:8080/tcp"]).unwrap();
    let pid = std::process::id();
    assert!(line.starts_with("port 80/tcp is held by ") && line.contains(&format!("(pid {pid})")), "{line}");
    assert!(line.ends_with("listens on 127.0.0.1:80"), "{line}");
    assert_eq!(conflict(&["192.0.2.1:80:8080/tcp", "0.0.0.0:80:8080/udp"]), None);
    assert!(conflict(&["127.0.0.1:80:8080/tcp"]).is_some());
    drop(tcp);
    assert_eq!(conflict(&["0.0.0.0:80:8080/tcp"]), None);

    let any = TcpListener::bind("[::]:80").unwrap();
    assert!(conflict(&["127.0.0.1:80:8080/tcp"]).unwrap().ends_with("listens on [::]:80"));
    drop(any);
    let other = TcpListener::bind("[::1]:80").unwrap();
    assert_eq!(conflict(&["0.0.0.0:80:8080/tcp"]), None);
    drop(other);

    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
    assert!(conflict(&["127.0.0.1:53:53/udp"]).is_some());
    assert_eq!(conflict(&["127.0.0.1:53:53/tcp"]), None);
    drop(udp);

    // The same in IPv6, where containers have it.
    let six = host.agent6("gitopsd-two", 2);
    let conflict6 = |ports: &[&str]| {
        let ports: Vec<_> = ports.iter().map(|text| port(text)).collect();
        six.traffic.port_conflict(&ports).unwrap()
    };
    let own = TcpListener::bind((HOST6, 80)).unwrap();
    let line = conflict6(&["0.0.0.0:80:8080/tcp"]).unwrap();
    assert!(line.contains(&format!("(pid {pid})")), "{line}");
    assert!(line.ends_with("listens on [2001:db8::1]:80"), "{line}");
    assert!(
        conflict6(&["[::]:80:8080/tcp"]).is_some() && conflict6(&["[2001:db8::1]:80:8080/tcp"]).is_some()
    );
    assert_eq!(conflict6(&["[2001:db8::7]:80:8080/tcp", "127.0.0.1:80:8080/tcp"]), None);
    assert_eq!(conflict(&["0.0.0.0:80:8080/tcp"]), None, "without IPv6 it is nobody's");
    drop(own);
    let udp = UdpSocket::bind("[::]:53").unwrap();
    assert!(conflict6(&["[::]:53:53/udp"]).unwrap().starts_with("port 53/udp is held by "));
    assert!(conflict6(&["127.0.0.1:53:53/udp"]).is_some());
    assert_eq!(conflict6(&["[::]:53:53/tcp"]), None);
    drop(udp);

    // Publishing a port is no listening: a service is not in its own way.
    agent.container("shop.1", 11, 8080);
    agent.point(&agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp"]));
    assert_eq!(conflict(&["0.0.0.0:80:8080/tcp"]), None);
    agent.teardown();
}
