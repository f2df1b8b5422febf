//! HTTP/1.1 as far as the clients beside it speak it: requests without a body, one after the other on a connection.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::ending::Ending;
use super::{App, LOOK, http2, websocket};

/// A request longer than this is none of ours.
const MAX_REQUEST: usize = 16 * 1024;
/// How long the client may take to close after it was told that the connection is over.
const LINGER: Duration = Duration::from_secs(2);

/// What became of a connection.
pub enum After {
    /// It is over.
    Closed,
    /// It speaks HTTP/2 from its first byte on; these were read.
    Http2(TcpStream, Vec<u8>),
    /// It was upgraded.
    WebSocket(TcpStream),
}

/// Answers requests until one side has had enough.
pub fn serve(app: &App, mut stream: TcpStream) -> io::Result<After> {
    let mut read = Vec::new();
    let mut served = false;
    loop {
        let Some(end) = next_request(app, &mut stream, &mut read, served)? else { return Ok(After::Closed) };
        if read.starts_with(http2::PREFACE_HEAD) {
            return Ok(After::Http2(stream, read));
        }
        let head: Vec<u8> = read.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        if let Some(key) = header(&head, "sec-websocket-key") {
            stream.write_all(websocket::accept(key).as_bytes())?;
            return Ok(After::WebSocket(stream));
        }
        let body = app.answer();
        // HTTP/1.0 knows no connections that are kept.
        let old = head.split("\r\n").next().is_some_and(|line| line.ends_with("HTTP/1.0"));
        let wanted =
            old || header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        // Asked after the work: whoever is told later learns it with the next answer.
        let close = wanted || !matches!(app.ending(), Ending::NotYet);
        let connection = if close { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes())?;
        served = true;
        if close {
            return linger(stream).map(|()| After::Closed);
        }
    }
}

/// Reads until a whole head is there, and gives its length; `None` when the connection is over.
fn next_request(
    app: &App,
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
    served: bool,
) -> io::Result<Option<usize>> {
    let mut quiet_since = Instant::now();
    loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(Some(at + 4));
        }
        if read.len() > MAX_REQUEST {
            return Ok(None);
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(length) => {
                read.extend_from_slice(chunk.get(..length).unwrap_or_default());
                quiet_since = Instant::now();
            }
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error),
        }
        let idle = read.is_empty();
        match app.ending() {
            Ending::Shutdown(_) if idle && served => return Ok(None),
            // What has not sent anything yet counts as idle only after a while (net/http: five seconds).
            Ending::Shutdown(since) if idle && since.elapsed() > Duration::from_secs(5) => return Ok(None),
            Ending::Polite(since) if idle && quiet_since.max(since).elapsed() > app.silence => {
                return Ok(None);
            }
            _ => {}
        }
    }
}

/// Nothing came within [`LOOK`].
pub fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Says that nothing more comes, and waits for the client to go: closed at once, bytes that it has already sent would
/// have the kernel reset the connection, and the answer might be lost (RFC 9112, section 9.6).
pub fn linger(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let begun = Instant::now();
    let mut chunk = [0; 4096];
    stream.set_read_timeout(Some(LOOK))?;
    while begun.elapsed() < LINGER {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if is_pause(&error) => {}
            Err(_) => break,
        }
    }
    Ok(())
}

/// The value of a header line.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
