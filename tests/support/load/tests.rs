//! The load generator against real sockets: servers that are good, rude, slow, broken, absent.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::load::client::{Failure, Target};
use super::load::report::Report;
use super::load::{Mode, Options, run};

/// Serves each connection with `serve` on its own thread until the test's process ends.
pub fn server(serve: impl Fn(TcpStream) + Send + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    url
}

/// Reads one request; false at the end of the connection.
pub fn read_request(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => return false,
        }
    }
    true
}

fn answer(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    // A client that hung up is no trouble of the server's.
    let _ = stream.write_all(text.as_bytes());
}

pub fn options(url: &str, mode: Mode) -> Options {
    Options {
        target: Target::parse(url).unwrap(),
        rate: 200,
        workers: 2,
        mode,
        duration: Duration::from_millis(500),
        until_file: None,
        retry_stale: false,
        max_age: None,
        timeout: Duration::from_secs(2),
    }
}

/// Requests were made and none failed. How many is not asserted: a busy machine makes fewer.
#[track_caller]
pub fn assert_good(report: &Report) {
    assert!(report.requests() > 10, "{report:?}");
    assert_eq!(report.failed(), 0, "{report:?}");
}

/// `count` is all of the requests, and there were some.
#[track_caller]
fn assert_all(report: &Report, count: u64) {
    assert!(count > 0, "{report:?}");
    assert_eq!(count, report.requests(), "{report:?}");
}

/// A server that closes a kept connection without a word after `served` answers, as soon as the next request is there.
fn rude_server(served: usize) -> String {
    server(move |mut stream| {
        for _ in 0..served {
            if !read_request(&mut stream) {
                return;
            }
            answer(&mut stream, "200 OK", "", "version 1");
        }
        read_request(&mut stream);
    })
}

#[test]
fn counts_requests_versions_and_connections() {
    let url = server(|mut stream| {
        while read_request(&mut stream) {
            answer(&mut stream, "200 OK", "", "<p>version 1.2.3\n</p>");
        }
    });
    let report = run(&options(&url, Mode::New));
    assert_good(&report);
    assert_eq!(report.answered_by("1.2.3"), report.requests());
    assert_eq!(report.connections, report.requests());

    let report = run(&options(&url, Mode::KeepAlive));
    assert_good(&report);
    assert_eq!(report.connections, 2);
}

#[test]
fn honours_connection_close() {
    let url = server(|mut stream| {
        for _ in 0..4 {
            if !read_request(&mut stream) {
                return;
            }
            answer(&mut stream, "200 OK", "", "version 1");
        }
        read_request(&mut stream);
        answer(&mut stream, "200 OK", "Connection: close\r\n", "version 1");
    });
    let report = run(&options(&url, Mode::KeepAlive));
    assert_good(&report);
    assert_eq!(report.retries, 0);
    let full = report.requests() / 5;
    assert!((full..=full + 2).contains(&report.connections), "{report:?}");
}

#[test]
fn a_stale_connection_is_a_failure_unless_retry_is_asked_for() {
    let url = rude_server(9);
    let strict: Report = run(&options(&url, Mode::KeepAlive));
    let each_tenth = strict.requests() / 10;
    assert!((each_tenth.saturating_sub(2)..=each_tenth).contains(&strict.failed()), "{strict:?}");
    assert!(strict.failed() > 0);
    assert_eq!(strict.failed_with(Failure::Closed) + strict.failed_with(Failure::Reset), strict.failed());

    let retrying = run(&Options { retry_stale: true, ..options(&url, Mode::KeepAlive) });
    assert_good(&retrying);
    assert!(retrying.retries > 0);
}

#[test]
fn a_fresh_connection_that_dies_is_never_retried() {
    let url = rude_server(0);
    let report = run(&Options { retry_stale: true, ..options(&url, Mode::KeepAlive) });
    assert_all(&report, report.failed());
    assert_eq!(report.retries, 0);
}

#[test]
fn names_every_kind_of_failure() {
    let status = server(|mut stream| {
        read_request(&mut stream);
        answer(&mut stream, "503 Service Unavailable", "", "version 1");
    });
    let report = run(&options(&status, Mode::New));
    assert_all(&report, report.failed_with(Failure::Status(503)));

    let short = server(|mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nversion 1");
    });
    let report = run(&options(&short, Mode::New));
    assert_all(&report, report.failed_with(Failure::Closed));

    let not_http = server(|mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"hello\r\n\r\n");
    });
    let report = run(&options(&not_http, Mode::New));
    assert_all(&report, report.failed_with(Failure::Malformed));

    let silent = server(|mut stream| {
        read_request(&mut stream);
        read_request(&mut stream);
    });
    let quick = Options { timeout: Duration::from_millis(50), ..options(&silent, Mode::New) };
    let report = run(&quick);
    assert_all(&report, report.failed_with(Failure::Timeout));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let report = run(&options(&nobody, Mode::New));
    assert_all(&report, report.failed_with(Failure::ConnectRefused));
}

#[test]
fn sees_a_gap() {
    let born = Instant::now();
    let url = server(move |mut stream| {
        read_request(&mut stream);
        let age = born.elapsed();
        // Between 200 and 400 ms of its life nothing is answered.
        if age > Duration::from_millis(200) && age < Duration::from_millis(400) {
            return;
        }
        answer(&mut stream, "200 OK", "", "version 1");
    });
    let report = run(&Options { duration: Duration::from_millis(1500), ..options(&url, Mode::New) });
    assert!(report.failed() > 0);
    let gap = report.longest_gap();
    assert!(gap > Duration::from_millis(150), "{gap:?}");
    assert!(gap < Duration::from_millis(1000), "{gap:?}");
}

/// What a load against a good server sees that is told to stop after this time, by a file.
fn until_the_file_appears(after: Duration, options: Options) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("stop");
    let until_file = Some(file.clone());
    let long = Options { duration: Duration::from_secs(60), until_file, ..options };
    let running = std::thread::spawn(move || run(&long));
    std::thread::sleep(after);
    std::fs::write(&file, "").unwrap();
    running.join().unwrap()
}

fn good_server() -> String {
    server(|mut stream| {
        read_request(&mut stream);
        answer(&mut stream, "200 OK", "", "version 1");
    })
}

#[test]
fn ends_when_the_file_appears() {
    let began = Instant::now();
    let report = until_the_file_appears(Duration::from_millis(200), options(&good_server(), Mode::New));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(report.requests() > 10);
    assert_eq!(report.failed(), 0);
}

#[test]
fn what_comes_after_the_stop_is_no_gap() {
    // Every worker waits for two seconds after its request, and somebody asks each 100 ms.
    let many = Options { rate: 10, workers: 20, ..options(&good_server(), Mode::New) };
    let report = until_the_file_appears(Duration::from_millis(1500), many);
    assert_good(&report);
    assert!(report.longest_gap() < Duration::from_secs(1), "{:?}", report.longest_gap());
}

#[test]
fn refuses_bad_options() {
    for words in [
        &["--url"][..],
        &["--rate", "x"],
        &["--mode", "old", "--url", "http://127.0.0.1/"],
        &["--rate", "5"],
        &["--url", "https://127.0.0.1/"],
        &["--url", "http://127.0.0.1/", "--seconds", "0"],
        &["--url", "http://127.0.0.1/", "--rate", "0"],
        &["--what"],
    ] {
        assert!(super::parse(words.iter().map(|word| (*word).to_owned())).is_err(), "{words:?}");
    }
}
