//! A version that dies refuses nobody at once: whoever asks just then is answered by the one before, or by itself once it is started again.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use gitopsd::engine::Traffic as _;
use gitopsd::engine::native::network::Network as _;

use super::host::*;

const PORTS: &[&str] = &["0.0.0.0:80:8080/tcp", "0.0.0.0:81:8081/tcp"];

/// A container without a program, and a socket that listens in it.
fn listening(agent: &Agent, id: &str, last: u8) -> TcpListener {
    let path = agent.network.attach(&self::id(id), agent.address(last)).unwrap();
    inside(&path, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))).unwrap()
}

/// What becomes of a new connection from outside within half a second.
fn try_it(host: &Host, port: u16) -> Option<ErrorKind> {
    let connect = || Ok(TcpStream::connect_timeout(&(HOST, port).into(), Duration::from_millis(500)));
    inside(&host.outside, connect).unwrap().err().map(|error| error.kind())
}

#[test]
fn what_listened_is_quiet_for_a_second_and_then_refuses() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let green = listening(&agent, "shop.2", 12);
    agent.point(&agent.route("shop.2", 12, PORTS));
    // Asked for twice, as after a crash of the agent.
    for _ in 0..2 {
        agent.traffic.delay_refusals(&id("shop.2")).unwrap();
    }
    assert_eq!(try_it(&host, 80), None, "it listens");
    drop(green);
    let since = Instant::now();
    assert_eq!(try_it(&host, 80), Some(ErrorKind::TimedOut));
    assert_eq!(try_it(&host, 81), Some(ErrorKind::ConnectionRefused), "nobody ever listened there");
    while try_it(&host, 80) != Some(ErrorKind::ConnectionRefused) {
        assert!(since.elapsed() < Duration::from_secs(10), "nobody is told");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(since.elapsed() >= Duration::from_secs(1), "{:?}", since.elapsed());
    // Whoever comes later is told at once.
    assert!((0..3).all(|_| try_it(&host, 80) == Some(ErrorKind::ConnectionRefused)));
    agent.teardown();
}

#[test]
fn whoever_asks_a_dead_version_reaches_the_one_before() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    let green = listening(&agent, "shop.2", 12);
    agent.point(&agent.route("shop.2", 12, PORTS));
    agent.traffic.delay_refusals(&id("shop.2")).unwrap();
    drop(green);
    std::thread::scope(|scope| {
        let local = scope.spawn(|| ask((Ipv4Addr::LOCALHOST, 80)));
        let outside = scope.spawn(|| ask_from(&host.outside, (HOST, 80)));
        std::thread::sleep(Duration::from_millis(200));
        // As the agent does it once it has seen the end.
        agent.point(&agent.route("shop.1", 11, PORTS));
        agent.traffic.reset_connections(&id("shop.2")).unwrap();
        agent.traffic.end_connections(&id("shop.2"), Duration::ZERO).unwrap();
        for client in [local, outside] {
            let answer = client.join().unwrap().unwrap();
            assert!(answer.starts_with("shop.1 "), "{answer}");
        }
    });
    agent.teardown();
}
