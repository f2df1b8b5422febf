//! What is not HTTP/1.1: servers that say good-bye, and such that do not.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use base64::Engine as _;
use sha1::Digest as _;

use super::load::client::Failure;
use super::load::websocket_key::accept_of;
use super::load::{Mode, Options, run};
use super::tests::{assert_good, options, read_request, server};

/// Reads one masked text frame of fewer than 126 bytes, and gives what is in it.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = [0; 6];
    stream.read_exact(&mut head).ok()?;
    let mut payload = vec![0; usize::from(head[1] & 0x7f)];
    stream.read_exact(&mut payload).ok()?;
    for (byte, mask) in payload.iter_mut().zip(head[2..].iter().cycle()) {
        *byte ^= mask;
    }
    Some(payload)
}

/// The answer of a server that has understood the key of `load`.
const UPGRADE: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
    Sec-WebSocket-Accept: V7WmSmo10AuM1NxPFiRuAtGIfsM=\r\n\r\n";

/// A WebSocket server that echoes so many messages, and does something else with the next.
fn socket_server(served: usize, last: &'static [u8]) -> String {
    server(move |mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(UPGRADE.as_bytes());
        for _ in 0..served {
            let Some(text) = message(&mut stream) else { return };
            let _ = stream.write_all(&[0x81, u8::try_from(text.len() + 10).unwrap()]);
            let _ = stream.write_all(b"version 7 ");
            let _ = stream.write_all(&text);
        }
        message(&mut stream);
        let _ = stream.write_all(last);
    })
}

#[test]
fn a_websocket_that_says_good_bye_is_asked_again_elsewhere() {
    // A close frame with 1001, "going away".
    let polite = run(&options(&socket_server(5, &[0x88, 2, 3, 0xe9]), Mode::WebSocket));
    assert_good(&polite);
    assert!(polite.retries > 0);
    assert_eq!(polite.answered_by("7"), polite.requests());

    let rude = run(&options(&socket_server(5, b""), Mode::WebSocket));
    assert_eq!(rude.failed_with(Failure::Closed) + rude.failed_with(Failure::Reset), rude.failed());
    assert!(rude.failed() > 0);
    assert_eq!(rude.retries, 0);
}

#[test]
fn a_websocket_server_shows_that_it_has_understood() {
    // The example of RFC 6455, section 1.3.
    assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    // Every length around the ends of blocks, with the crates that `load` does without.
    for length in 0..200 {
        let key = "k".repeat(length);
        let hash = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
        assert_eq!(accept_of(&key), base64::engine::general_purpose::STANDARD.encode(hash), "{length}");
    }

    let wrong = UPGRADE.replace("V7Wm", "V7Wn");
    let missing = UPGRADE.replace("upgrade: WebSocket\r\n", "");
    let refused = UPGRADE.replace("101 Switching Protocols", "502 Bad Gateway");
    for (answer, failure) in
        [(wrong, Failure::Malformed), (missing, Failure::Malformed), (refused, Failure::Status(502))]
    {
        let url = server(move |mut stream| {
            read_request(&mut stream);
            let _ = stream.write_all(answer.as_bytes());
        });
        let report = run(&options(&url, Mode::WebSocket));
        assert!(report.requests() > 0);
        assert_eq!(report.failed_with(failure), report.requests(), "{report:?}");
    }
}

/// An HTTP/2 server that answers so many streams, and then sends this GOAWAY: right after the last answer, or instead of the
/// next one.
fn stream_server(served: u32, instead: bool) -> String {
    server(move |mut stream| {
        // Else the kernel would keep a frame back until the client has acknowledged the one before.
        stream.set_nodelay(true).unwrap();
        let mut preface = [0; 24];
        let _ = stream.read_exact(&mut preface);
        assert!(preface.starts_with(b"PRI * HTTP/2.0"));
        let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        let mut answered = 0;
        let mut head = [0; 9];
        while stream.read_exact(&mut head).is_ok() {
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            if stream.read_exact(&mut payload).is_err() {
                return;
            }
            if head[3] != 1 {
                continue;
            }
            let over = answered == served;
            // One write, so that the client cannot see an answer without the GOAWAY that comes with it, and ask again between
            // the two.
            let mut frames = Vec::new();
            if !over {
                let body = b"version 8\n";
                // With a new size of the dynamic table, as the first answer of nginx has it.
                frames.extend_from_slice(&[0, 0, 2, 1, 4, head[5], head[6], head[7], head[8], 0x20, 0x88]);
                frames.extend_from_slice(&[0, 0, 10, 0, 1, head[5], head[6], head[7], head[8]]);
                frames.extend_from_slice(body);
                answered += 1;
            }
            if over || (!instead && answered == served) {
                let last = (served * 2 - 1).to_be_bytes();
                frames.extend_from_slice(&[&[0, 0, 8, 7, 0, 0, 0, 0, 0][..], &last, &[0; 4]].concat());
            }
            let _ = stream.write_all(&frames);
        }
    })
}

#[test]
fn http2_leaves_a_server_that_goes_away() {
    let polite = run(&options(&stream_server(5, false), Mode::Http2));
    assert_good(&polite);
    assert_eq!(polite.answered_by("8"), polite.requests());
    assert!(polite.connections > 2, "{polite:?}");

    // A request that the server has not looked at may be sent again, by whoever does such things.
    let url = stream_server(5, true);
    let strict = run(&options(&url, Mode::Http2));
    assert_eq!(strict.failed_with(Failure::Closed), strict.failed());
    assert!(strict.failed() > 0);
    let retrying = run(&Options { retry_stale: true, ..options(&url, Mode::Http2) });
    assert_good(&retrying);
    assert!(retrying.retries > 0);
}

#[test]
fn a_datagram_that_does_not_come_back_is_lost() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        for number in 0.. {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            if number % 5 != 4 {
                socket.send_to(&[b"version 9 ", &buffer[..length]].concat(), from).unwrap();
            }
        }
    });
    let report = run(&Options { timeout: Duration::from_millis(50), ..options(&url, Mode::Udp) });
    assert!(report.failed() > 0);
    assert_eq!(report.failed_with(Failure::Timeout), report.failed());
    assert_eq!(report.failed(), report.requests() / 5);
    assert_eq!(report.answered_by("9"), report.requests() - report.failed());
}
