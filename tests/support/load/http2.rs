//! One HTTP/2 connection (RFC 9113, without TLS and by prior knowledge), one request at a time on it.

use std::io::Write as _;

use super::client::{Answer, Broken, Connection, Failure, Target, version_in};
use super::http2_frame::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, LAST, PING, PREFACE, SETTINGS, STATUS_200,
    frame, take_frame,
};

const RST_STREAM: u8 = 3;
/// `:method GET`, `:scheme http`, `:path /` in the static table (RFC 7541, appendix A), then `:authority`, whose value
/// follows as it is.
const REQUEST: [u8; 4] = [0x82, 0x86, 0x84, 0x01];

/// A connection that was opened for this.
pub struct Http2 {
    connection: Connection,
    read: Vec<u8>,
    /// The next request's stream: odd ones are a client's.
    next: u32,
    /// Set by GOAWAY: streams above it are not answered, and no more are to be begun.
    last: Option<u32>,
}

impl Http2 {
    /// Sends what comes first.
    pub fn open(mut connection: Connection) -> Result<Self, Failure> {
        let mut first = PREFACE.to_vec();
        first.extend(frame(SETTINGS, 0, 0, &[]));
        connection.stream().write_all(&first).map_err(|error| Failure::transfer(&error))?;
        Ok(Self { connection, read: Vec::new(), next: 1, last: None })
    }

    /// Whether no new request may go out on it: it is over, or the server has said that it is going.
    pub fn is_closed(&mut self) -> bool {
        // What has come meanwhile.
        while self.connection.is_closed() {
            match self.connection.read_more(&mut self.read) {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            }
        }
        while let Some(frame) = take_frame(&mut self.read) {
            if self.note(&frame).is_err() {
                return true;
            }
        }
        self.last.is_some() || self.next >= LAST
    }

    /// Sends one request and reads the whole answer.
    pub fn get(&mut self, target: &Target) -> Result<Answer, Broken> {
        let id = self.next;
        self.next += 2;
        let mut block = REQUEST.to_vec();
        let authority = target.host().as_bytes();
        block.push(u8::try_from(authority.len() & 0x7f).unwrap_or(0));
        block.extend_from_slice(authority);
        let request = frame(HEADERS, END_STREAM | END_HEADERS, id, &block);
        let sent = self.connection.stream().write_all(&request);
        // The first request's stream is as fresh as the connection.
        let reused = id > 1;
        let broken = |failure| Broken { failure, stale: reused };
        sent.map_err(|error| broken(Failure::transfer(&error)))?;
        let mut body = Vec::new();
        let mut answered = false;
        loop {
            while let Some(frame) = take_frame(&mut self.read) {
                self.note(&frame).map_err(&broken)?;
                if self.last.is_some_and(|last| id > last) {
                    // Not looked at: to be sent again elsewhere (section 6.8).
                    return Err(Broken { failure: Failure::Closed, stale: true });
                }
                if frame.id != id {
                    continue;
                }
                match frame.kind {
                    HEADERS if first_field(&frame.payload) != Some(STATUS_200) => {
                        return Err(Broken { failure: Failure::Malformed, stale: false });
                    }
                    HEADERS => answered = true,
                    DATA => body.extend_from_slice(&frame.payload),
                    RST_STREAM => return Err(Broken { failure: Failure::Reset, stale: false }),
                    _ => {}
                }
                if frame.flags & END_STREAM != 0 && (frame.kind == DATA || frame.kind == HEADERS) {
                    let version = version_in(&String::from_utf8_lossy(&body));
                    return Ok(Answer { version, close: self.last.is_some() });
                }
            }
            match self.connection.read_more(&mut self.read) {
                Ok(0) => return Err(Broken { failure: Failure::Closed, stale: reused && !answered }),
                Ok(_) => {}
                Err(failure) => {
                    let quiet_end = matches!(failure, Failure::Reset | Failure::Closed);
                    return Err(Broken { failure, stale: reused && !answered && quiet_end });
                }
            }
        }
    }

    /// What concerns the connection as a whole.
    fn note(&mut self, head: &Frame) -> Result<(), Failure> {
        let answer = match head.kind {
            SETTINGS if head.flags & ACK == 0 => frame(SETTINGS, ACK, 0, &[]),
            PING if head.flags & ACK == 0 => frame(PING, ACK, 0, &head.payload),
            GOAWAY => {
                let bytes = head.payload.get(..4).and_then(|bytes| bytes.try_into().ok());
                self.last = Some(bytes.map_or(0, u32::from_be_bytes) & LAST);
                return Ok(());
            }
            _ => return Ok(()),
        };
        self.connection.stream().write_all(&answer).map_err(|error| Failure::transfer(&error))
    }
}

/// The first byte of a header block that is no new size of the dynamic table (RFC 7541, section 6.3), of which there may be some
/// at the very beginning; those of 31 and more are not read here.
fn first_field(block: &[u8]) -> Option<u8> {
    block.iter().copied().find(|byte| byte & 0xe0 != 0x20)
}
