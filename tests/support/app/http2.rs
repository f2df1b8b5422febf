//! HTTP/2 (RFC 9113) as far as the client beside it speaks it: requests without a body, answers in one HEADERS and one
//! DATA frame. Header blocks of requests are not read (the one client sends one request), those of answers use the
//! static table alone (RFC 7541, appendix A).

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::App;
use super::ending::Ending;
use super::http1::{is_pause, linger};
use super::http2_frame::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, LAST, PING, PREFACE, SETTINGS, STATUS_200,
    frame, take_frame,
};

/// How much of what a client sends first looks like a head of HTTP/1.
pub const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// How long net/http goes on taking streams after it has said that it is going away.
const GO_AWAY: Duration = Duration::from_secs(1);

/// Answers streams until one side has had enough.
pub fn serve(app: &App, mut stream: TcpStream, mut read: Vec<u8>) -> io::Result<()> {
    while read.len() < PREFACE.len() {
        if !more(&mut stream, &mut read)? {
            return Ok(());
        }
    }
    read.drain(..PREFACE.len());
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut last = Instant::now();
    let mut told = false;
    loop {
        while let Some(Frame { kind, flags, id, payload }) = take_frame(&mut read) {
            match kind {
                SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
                PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload))?,
                HEADERS => {
                    let body = app.answer();
                    let mut answer = frame(HEADERS, END_HEADERS, id, &[STATUS_200]);
                    answer.extend(frame(DATA, END_STREAM, id, body.as_bytes()));
                    stream.write_all(&answer)?;
                    last = Instant::now();
                }
                GOAWAY => return linger(stream),
                _ => {}
            }
        }
        let over = match app.ending() {
            Ending::NotYet => false,
            Ending::Polite(since) | Ending::Shutdown(since) => {
                if !std::mem::replace(&mut told, true) {
                    // All that have been begun are answered.
                    let mut payload = LAST.to_be_bytes().to_vec();
                    payload.extend_from_slice(&[0; 4]);
                    stream.write_all(&frame(GOAWAY, 0, 0, &payload))?;
                }
                let wait = match app.ending() {
                    Ending::Shutdown(_) => GO_AWAY,
                    _ => app.silence,
                };
                since.max(last).elapsed() > wait
            }
        };
        if over {
            return linger(stream);
        }
        if !more(&mut stream, &mut read)? {
            return Ok(());
        }
    }
}

/// Reads what is there or comes in a moment; false at the end.
fn more(stream: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 4096];
    match stream.read(&mut chunk) {
        Ok(0) => Ok(false),
        Ok(length) => {
            read.extend_from_slice(chunk.get(..length).unwrap_or_default());
            Ok(true)
        }
        Err(error) if is_pause(&error) => Ok(true),
        Err(error) => Err(error),
    }
}
