//! WebSocket (RFC 6455): every text frame comes back with the version before it.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::App;
use super::ending::Ending;
use super::http1::{is_pause, linger};
use super::websocket_key::accept_of;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// "Going away": the server is about to end (section 7.4.1).
const GOING_AWAY: u16 = 1001;
/// A frame longer than this is none of ours.
const MAX_FRAME: usize = 64 * 1024;
/// How long the other side may take to answer a close frame.
const PATIENCE: Duration = Duration::from_secs(2);

/// The answer to a request for an upgrade. Clients and proxies check by what it makes of the key that the server has understood it.
pub fn accept(key: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        accept_of(key)
    )
}

/// Echoes until one side closes.
pub fn serve(app: &App, mut stream: TcpStream) -> io::Result<()> {
    let mut read = Vec::new();
    let mut closing: Option<Instant> = None;
    loop {
        while let Some((opcode, payload)) = take_frame(&mut read)? {
            match opcode {
                // After a close frame no more data is sent (section 5.5.1): the client asks again elsewhere.
                TEXT if closing.is_none() => {
                    let mut answer = app.answer().into_bytes();
                    answer.extend_from_slice(&payload);
                    stream.write_all(&frame(TEXT, &answer))?;
                }
                PING => stream.write_all(&frame(PONG, &payload))?,
                CLOSE => {
                    if closing.is_none() {
                        stream.write_all(&frame(CLOSE, &payload))?;
                    }
                    return linger(stream);
                }
                _ => {}
            }
        }
        match (closing, app.ending()) {
            (None, Ending::Polite(_)) => {
                stream.write_all(&frame(CLOSE, &GOING_AWAY.to_be_bytes()))?;
                closing = Some(Instant::now());
            }
            (Some(since), _) if since.elapsed() > PATIENCE => return Ok(()),
            _ => {}
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => read.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A whole frame from a server, which masks nothing. `payload` has fewer than 64 KiB.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => bytes.push(short),
        _ => {
            bytes.push(126);
            bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Takes the first whole frame from what a client sent.
fn take_frame(read: &mut Vec<u8>) -> io::Result<Option<(u8, Vec<u8>)>> {
    let bad = || io::Error::other("not a frame of ours");
    let (Some(first), Some(second)) = (read.first().copied(), read.get(1).copied()) else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(bad());
    }
    let (length, mut at) = match second & 0x7f {
        127 => return Err(bad()),
        126 => match read.get(2..4) {
            Some(bytes) => (usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), 4),
            None => return Ok(None),
        },
        short => (usize::from(short), 2),
    };
    if length > MAX_FRAME {
        return Err(bad());
    }
    let Some(mask) = read.get(at..at + 4).map(<[u8]>::to_vec) else { return Ok(None) };
    at += 4;
    let Some(masked) = read.get(at..at + length) else { return Ok(None) };
    let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    read.drain(..at + length);
    Ok(Some((first & 0x0f, payload)))
}
