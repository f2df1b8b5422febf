//! Frames of HTTP/2 (RFC 9113) as both ends of the tests' connections need them: the program that is swapped and the client beside it.

/// What every HTTP/2 client sends first (section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// `:status: 200` in the static table (RFC 7541, appendix A).
pub const STATUS_200: u8 = 0x88;

/// The largest number of a stream.
pub const LAST: u32 = 0x7fff_ffff;

pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub id: u32,
    pub payload: Vec<u8>,
}

/// Length (24 bits), type, flags, stream (section 4.1). `payload` has fewer than 16 KiB.
pub fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = vec![0, length[0], length[1], kind, flags];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Takes the first whole frame from what came.
pub fn take_frame(read: &mut Vec<u8>) -> Option<Frame> {
    let head: [u8; 9] = read.get(..9)?.try_into().ok()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let payload = read.get(9..9 + length)?.to_vec();
    read.drain(..9 + length);
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & LAST;
    Some(Frame { kind: head[3], flags: head[4], id, payload })
}
