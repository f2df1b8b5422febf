//! One WebSocket (RFC 6455): a text frame goes out, and comes back with the server's version before it.

use std::io::Write as _;

use super::client::{Answer, Broken, Connection, Failure, Target, version_in};
use super::websocket_key::accept_of;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// 16 bytes, which ought to be random: a proxy that answered from a cache would be found out (section 4.1).
const KEY: &str = "bG9hZCBnZW5lcmF0b3IgIQ==";
/// Clients mask what they send, so that it looks like nothing that a proxy knows (section 10.3); which number is all the same
/// here.
const MASK: [u8; 4] = [0x5a, 0xa5, 0x0f, 0xf0];

/// A connection that has been upgraded.
pub struct WebSocket {
    connection: Connection,
    read: Vec<u8>,
    sent: u64,
}

impl WebSocket {
    /// Asks for the upgrade.
    pub fn open(mut connection: Connection, target: &Target) -> Result<Self, Failure> {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {KEY}\r\n\r\n",
            target.path(),
            target.host()
        );
        connection.stream().write_all(request.as_bytes()).map_err(|error| Failure::transfer(&error))?;
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if connection.read_more(&mut read)? == 0 {
                return Err(Failure::Closed);
            }
        };
        let head: Vec<u8> = read.drain(..end).collect();
        is_upgrade(&String::from_utf8_lossy(&head))?;
        Ok(Self { connection, read, sent: 0 })
    }

    /// Whether something has come that nobody asked for: a close frame, an end.
    pub fn is_closed(&self) -> bool {
        !self.read.is_empty() || self.connection.is_closed()
    }

    /// Sends one message and waits for its echo.
    pub fn ask(&mut self) -> Result<Answer, Broken> {
        self.sent += 1;
        let message = format!("message {}", self.sent);
        let broken = |failure| Broken { failure, stale: false };
        let sent = self.connection.stream().write_all(&frame(TEXT, message.as_bytes()));
        sent.map_err(|error| broken(Failure::transfer(&error)))?;
        loop {
            while let Some((opcode, payload)) = take_frame(&mut self.read).map_err(broken)? {
                match opcode {
                    TEXT => {
                        let text = String::from_utf8_lossy(&payload);
                        if !text.ends_with(&message) {
                            return Err(broken(Failure::Malformed));
                        }
                        return Ok(Answer { version: version_in(&text), close: false });
                    }
                    PING => {
                        let pong = self.connection.stream().write_all(&frame(PONG, &payload));
                        pong.map_err(|error| broken(Failure::transfer(&error)))?;
                    }
                    // It has not looked at the message (section 5.5.1), and says so: to be sent again elsewhere.
                    CLOSE => {
                        let _ = self.connection.stream().write_all(&frame(CLOSE, &payload));
                        return Err(Broken { failure: Failure::GoingAway, stale: true });
                    }
                    _ => {}
                }
            }
            if self.connection.read_more(&mut self.read).map_err(broken)? == 0 {
                return Err(broken(Failure::Closed));
            }
        }
    }
}

/// Whether the server has understood what was asked for (section 4.2.2).
fn is_upgrade(head: &str) -> Result<(), Failure> {
    let (first, lines) = head.split_once("\r\n").ok_or(Failure::Malformed)?;
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    match status {
        Some(101) => {}
        Some(other) => return Err(Failure::Status(other)),
        None => return Err(Failure::Malformed),
    }
    let fields = || lines.split("\r\n").filter_map(|line| line.split_once(':'));
    let has = |name: &str, is: &dyn Fn(&str) -> bool| {
        fields().any(|(found, value)| found.eq_ignore_ascii_case(name) && is(value.trim()))
    };
    let good = has("upgrade", &|value| value.eq_ignore_ascii_case("websocket"))
        && has("connection", &|value| {
            value.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
        })
        && has("sec-websocket-accept", &|value| value == accept_of(KEY));
    if good { Ok(()) } else { Err(Failure::Malformed) }
}

/// A whole masked frame; `payload` has fewer than 126 bytes.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode, 0x80 | u8::try_from(payload.len()).unwrap_or(125)];
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Takes the first whole frame of a server.
fn take_frame(read: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, Failure> {
    let (Some(first), Some(second)) = (read.first().copied(), read.get(1).copied()) else { return Ok(None) };
    let (length, at) = match second {
        126 => match read.get(2..4) {
            Some(bytes) => (usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), 4),
            None => return Ok(None),
        },
        short if short < 126 => (usize::from(short), 2),
        _ => return Err(Failure::Malformed),
    };
    let Some(payload) = read.get(at..at + length).map(<[u8]>::to_vec) else { return Ok(None) };
    read.drain(..at + length);
    Ok(Some((first & 0x0f, payload)))
}
