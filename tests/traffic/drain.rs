//! The last words of a container that has ended.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use gitopsd::engine::Traffic as _;
use gitopsd::engine::native::network::Network as _;

use super::host::*;

/// More than fits into the buffers of one side.
const LONG: usize = 512 << 10;

/// A server that answers with much and closes its end at once, as a program that is ended does; gives what it could
/// write.
fn last_words(path: &Path, port: u16) -> std::thread::JoinHandle<usize> {
    let listener = inside(path, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut written = 0;
        while written < LONG {
            match stream.write(&vec![7; LONG - written]) {
                Ok(count) => written += count,
                Err(_) => break,
            }
        }
        written
    })
}

#[test]
fn what_was_written_last_arrives() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let path = agent.container("shop.1", 11, 8080);
    agent.point(&agent.route("shop.1", 11, &["0.0.0.0:80:8080/tcp", "0.0.0.0:81:9090/tcp"]));
    let server = last_words(&path, 9090);
    let mut client = inside(&host.outside, || TcpStream::connect((HOST, 81))).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let written = server.join().unwrap();
    // A client that takes its time, while the container is being taken away.
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut some = vec![0; 32 << 10];
        loop {
            match client.read(&mut some)? {
                0 => return std::io::Result::Ok(all.len()),
                count => all.extend_from_slice(&some[..count]),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let reset = agent.traffic.end_connections(&id("shop.1"), Duration::from_secs(60)).unwrap();
    agent.network.detach(&id("shop.1")).unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), written);
    assert_eq!(reset, 0);
    agent.teardown();
}

#[test]
fn who_does_not_listen_hears_a_reset() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let path = agent.container("shop.1", 11, 8080);
    agent.point(&agent.route("shop.1", 11, &["0.0.0.0:81:9090/tcp"]));
    let server = last_words(&path, 9090);
    let mut client = inside(&host.outside, || TcpStream::connect((HOST, 81))).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(server.join().unwrap() > 0);
    let begun = Instant::now();
    let reset = agent.traffic.end_connections(&id("shop.1"), Duration::from_millis(300)).unwrap();
    assert_eq!(reset, 1);
    assert!((Duration::from_millis(300)..Duration::from_secs(20)).contains(&begun.elapsed()));
    agent.network.detach(&id("shop.1")).unwrap();
    // What had come before is there; then the client hears that there is no more, rather than wait.
    let mut rest = Vec::new();
    let error = client.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(agent.traffic.end_connections(&id("shop.1"), Duration::from_secs(5)).unwrap(), 0);
    agent.teardown();
}
