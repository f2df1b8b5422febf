//! HTTP/2 (RFC 9113) as far as the client beside it speaks it: requests without a body, answers in one HEADERS and one
//! DATA frame. Header blocks of requests are not read (the one client sends one request), those of answers use the
//! static table alone (RFC 7541, appendix A).

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::App;
use super::ending::Ending;
use super::http1::{is_pause, linger};

/// What every HTTP/2 client sends first (section 3.4), and how much of it looks like a head of HTTP/1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in the static table.
const STATUS_200: u8 = 0x88;
/// The largest number of a stream: all that have been begun are answered.
const ALL: u32 = 0x7fff_ffff;
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
                    let mut payload = ALL.to_be_bytes().to_vec();
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

struct Frame {
    kind: u8,
    flags: u8,
    id: u32,
    payload: Vec<u8>,
}

/// Length (24 bits), type, flags, stream (section 4.1). `payload` has fewer than 16 KiB.
fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = vec![0, length[0], length[1], kind, flags];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn take_frame(read: &mut Vec<u8>) -> Option<Frame> {
    let head: [u8; 9] = read.get(..9)?.try_into().ok()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let payload = read.get(9..9 + length)?.to_vec();
    read.drain(..9 + length);
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & ALL;
    Some(Frame { kind: head[3], flags: head[4], id, payload })
}
