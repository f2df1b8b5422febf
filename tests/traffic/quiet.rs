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

/// Clients of this namespace that have asked, and got no answer.
fn asking() -> std::io::Result<usize> {
    let text = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
    // TCP_SYN_SENT
    Ok(text.lines().filter(|line| line.split_whitespace().nth(3) == Some("02")).count())
}

/// Two clients ask a container that has ended, one from this host and one from outside; then `change`. What they are told.
fn told_after(host: &Host, change: impl FnOnce()) -> [String; 2] {
    let begun = Instant::now();
    let ends = std::thread::scope(|scope| {
        let local = scope.spawn(|| ask((Ipv4Addr::LOCALHOST, 80)));
        let outside = scope.spawn(|| ask_from(&host.outside, (HOST, 80)));
        wait_for("both to ask in vain", || {
            asking().unwrap() == 1 && inside(&host.outside, asking).unwrap() == 1
        });
        change();
        [local, outside].map(|client| client.join().unwrap().unwrap())
    });
    assert!(begun.elapsed() >= Duration::from_millis(900), "nobody had to wait: {:?}", begun.elapsed());
    ends
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
    let answers = told_after(&host, || {
        agent.point(&agent.route("shop.1", 11, PORTS));
        agent.traffic.forget_unanswered(&id("shop.2"));
    });
    assert!(answers.iter().all(|answer| answer.starts_with("shop.1 ")), "{answers:?}");
    agent.teardown();
}

#[test]
fn whoever_asks_a_dead_container_reaches_it_once_it_is_started_again() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let first = listening(&agent, "shop.1", 11);
    agent.point(&agent.route("shop.1", 11, PORTS));
    agent.traffic.delay_refusals(&id("shop.1")).unwrap();
    drop(first);
    let answers = told_after(&host, || drop(agent.container("shop.1", 11, 8080)));
    assert!(answers.iter().all(|answer| answer.starts_with("shop.1 ")), "{answers:?}");
    agent.teardown();
}
