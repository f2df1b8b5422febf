//! D-Bus messages as bytes: the few types that one call to systemd needs, and what of a reply is of interest. Pure.
//!
//! Source: D-Bus Specification 0.43, "Type System" and "Message Protocol".

/// No reply of systemd that we ask for is longer; the specification allows 128 MiB.
pub(super) const MAX_MESSAGE: usize = 1 << 20;
/// Bytes of a message that are always there, up to and with the length of its header fields.
pub(super) const FIXED: usize = 16;

/// Message types and header fields. Source: "Message Protocol", tables of message types and header fields.
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;
const UNIX_FDS: u8 = 9;

/// A value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `as`
    Texts(Vec<String>),
    /// `au`
    Numbers(Vec<u32>),
    /// `h`: which of the message's descriptors.
    Descriptor(u32),
    /// `aay`
    Blobs(Vec<Vec<u8>>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
    /// `a(sasb)` with one entry: a program, its arguments with its name first, and that failing is failing.
    Command(Vec<String>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::Number(_) => "t",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::Numbers(_) => "au",
            Self::Descriptor(_) => "h",
            Self::Blobs(_) => "aay",
            Self::Pairs(_) => "a(ss)",
            Self::Command(_) => "a(sasb)",
        }
    }
}

/// Bytes of a body or a header, aligned as they are written.
#[derive(Debug, Default)]
pub(in super::super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    /// A string or an object path.
    pub fn text(&mut self, text: &str) {
        self.number(length(text.len()));
        self.0.extend(text.bytes());
        self.0.push(0);
    }

    /// A truth value.
    pub fn boolean(&mut self, value: bool) {
        self.number(u32::from(value));
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.bytes());
        self.0.push(0);
    }

    /// An array; its length leaves out the padding before the first element.
    pub fn array<T>(
        &mut self,
        alignment: usize,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.number(0);
        let at = self.0.len() - 4;
        self.align(alignment);
        let begin = self.0.len();
        for item in items {
            self.align(alignment);
            write(self, item);
        }
        let written = length(self.0.len() - begin).to_le_bytes();
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&written);
        }
    }

    /// `(sv)`: a property.
    pub fn property(&mut self, name: &str, value: &Value) {
        self.align(8);
        self.text(name);
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.number(u32::from(*value)),
            Value::Descriptor(value) => self.number(*value),
            Value::Number(value) => {
                self.align(8);
                self.0.extend(value.to_le_bytes());
            }
            Value::Numbers(numbers) => self.array(4, numbers, |w, number| w.number(*number)),
            Value::Text(text) => self.text(text),
            Value::Texts(texts) => self.array(4, texts, |w, text| w.text(text)),
            Value::Blobs(blobs) => {
                self.array(4, blobs, |w, blob| w.array(1, blob, |w, byte| w.0.push(*byte)));
            }
            Value::Pairs(pairs) => self.array(8, pairs, |w, (one, other)| {
                w.text(one);
                w.text(other);
            }),
            Value::Command(args) => self.array(8, [args], |w, args| {
                w.text(args.first().map(String::as_str).unwrap_or_default());
                w.array(4, args, |w, arg| w.text(arg));
                w.number(0);
            }),
        }
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A method call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// Who is asked.
    pub destination: &'a str,
    /// Which object of it.
    pub path: &'a str,
    /// Which of its interfaces.
    pub interface: &'a str,
    /// What it is to do.
    pub member: &'a str,
    /// Types of the body.
    pub signature: &'a str,
}

/// The whole message. `descriptors` is how many go along.
pub(super) fn encode(call: &Call<'_>, serial: u32, body: Writer, descriptors: u32) -> Vec<u8> {
    let mut out = Writer::default();
    // Little-endian, a call that expects a reply, version 1 of the protocol.
    out.0.extend([b'l', METHOD_CALL, 0, 1]);
    out.number(length(body.0.len()));
    out.number(serial);
    let texts = [
        (PATH, "o", call.path),
        (INTERFACE, "s", call.interface),
        (MEMBER, "s", call.member),
        (DESTINATION, "s", call.destination),
        (SIGNATURE, "g", call.signature),
    ];
    let texts = texts.into_iter().map(|(code, kind, text)| (code, kind, Some(text)));
    let fields = texts.chain((descriptors > 0).then_some((UNIX_FDS, "u", None)));
    out.array(8, fields, |w, (code, kind, text)| {
        w.0.push(code);
        w.signature(kind);
        match (kind, text) {
            ("g", Some(text)) => w.signature(text),
            (_, Some(text)) => w.text(text),
            (_, None) => w.number(descriptors),
        }
    });
    out.align(8);
    out.0.extend(body.0);
    out.0
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The call was done.
    Done,
    /// It was refused.
    Refused {
        /// Name of the error.
        name: String,
        /// For people.
        message: String,
    },
}

/// Bytes that are no message of D-Bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what came over the bus is no D-Bus message")]
pub(super) struct Garbled;

/// Length of the message that begins with these [`FIXED`] bytes; `None` if they begin none, or one that is too long.
pub(super) fn total(fixed: &[u8; FIXED]) -> Option<usize> {
    let reader = Reader { bytes: fixed, at: 0, big: is_big(fixed)? };
    let number = |at| usize::try_from(Reader { at, ..reader }.number()?).ok();
    let header = FIXED.checked_add(number(12)?)?.checked_next_multiple_of(8)?;
    header.checked_add(number(4)?).filter(|total| *total <= MAX_MESSAGE)
}

fn is_big(bytes: &[u8]) -> Option<bool> {
    match bytes.first()? {
        b'l' => Some(false),
        b'B' => Some(true),
        _ => None,
    }
}

/// What a message says about the call with this serial; `Ok(None)` for one that is not about it (a signal).
///
/// # Errors
/// The bytes are no message.
pub(super) fn decode(message: &[u8], serial: u32) -> Result<Option<Reply>, Garbled> {
    let mut reader = Reader { bytes: message, at: 0, big: is_big(message).ok_or(Garbled)? };
    let kind = *message.get(1).ok_or(Garbled)?;
    reader.at = 12;
    let fields = usize::try_from(reader.number().ok_or(Garbled)?).map_err(|_| Garbled)?;
    let end = reader.at.checked_add(fields).filter(|end| *end <= message.len()).ok_or(Garbled)?;
    let (mut about, mut name, mut signature) = (None, None, None);
    while reader.at < end {
        let (code, value) = reader.field().ok_or(Garbled)?;
        match (code, value) {
            (REPLY_SERIAL, Field::Number(number)) => about = Some(number),
            (ERROR_NAME, Field::Text(text)) => name = Some(text),
            (SIGNATURE, Field::Text(text)) => signature = Some(text),
            _ => {}
        }
    }
    if about != Some(serial) {
        return Ok(None);
    }
    match kind {
        METHOD_RETURN => Ok(Some(Reply::Done)),
        ERROR => {
            reader.align(8);
            let said = signature.filter(|types| types.starts_with('s')).and_then(|_| reader.text());
            let name = name.unwrap_or_default().to_owned();
            Ok(Some(Reply::Refused { name, message: said.unwrap_or_default().to_owned() }))
        }
        _ => Ok(None),
    }
}

enum Field<'a> {
    Number(u32),
    Text(&'a str),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().ok()?;
        Some(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        self.ended(length)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = *self.take(1)?.first()?;
        self.ended(length.into())
    }

    fn ended(&mut self, length: usize) -> Option<&'a str> {
        let text = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(text).ok()
    }

    /// `(yv)`: a header field. The specification knows no others than these types there.
    fn field(&mut self) -> Option<(u8, Field<'a>)> {
        self.align(8);
        let code = *self.take(1)?.first()?;
        let value = match self.signature()? {
            "u" => Field::Number(self.number()?),
            "s" | "o" => Field::Text(self.text()?),
            "g" => Field::Text(self.signature()?),
            _ => return None,
        };
        Some((code, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What dbus-daemon and libdbus would read: by a second, independent look at the bytes (D-Bus Specification).
    #[test]
    fn a_call_has_the_bytes_of_the_specification() {
        let mut body = Writer::default();
        body.text("a.service");
        body.array(8, [("Delegate", Value::Bool(true))], |w, (name, value)| w.property(name, &value));
        let call = Call {
            destination: "org.x",
            path: "/x",
            interface: "org.x.Y",
            member: "Go",
            signature: "sa(sv)",
        };
        let bytes = encode(&call, 7, body, 2);
        assert_eq!(bytes[..4], *b"l\x01\x00\x01");
        assert_eq!(bytes[8..12], 7u32.to_le_bytes());
        let fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        assert_eq!(total(&fixed), Some(bytes.len()));
        let expected_body =
            b"\x09\0\0\0a.service\0\0\0\x14\0\0\0\0\0\0\0\x08\0\0\0Delegate\0\x01b\0\x01\0\0\0";
        let body_length = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        assert_eq!(&bytes[bytes.len() - body_length..], &expected_body[..]);
        assert_eq!((bytes.len() - body_length) % 8, 0);
        // PATH, object path, 2 bytes.
        assert_eq!(bytes[16..28], *b"\x01\x01o\0\x02\0\0\0/x\0\0");
        // Our own reader agrees: it is about no reply.
        assert_eq!(decode(&bytes, 7), Ok(None));
    }

    fn reply(kind: u8, fields: &[u8], body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'l', kind, 1, 1];
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(99u32.to_le_bytes());
        bytes.extend((fields.len() as u32).to_le_bytes());
        bytes.extend(fields);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(body);
        bytes
    }

    const ABOUT_7: &[u8] = b"\x05\x01u\0\x07\0\0\0";

    #[test]
    fn replies_are_told_from_refusals_and_from_other_news() {
        assert_eq!(decode(&reply(2, ABOUT_7, b""), 7), Ok(Some(Reply::Done)));
        assert_eq!(decode(&reply(2, ABOUT_7, b""), 8), Ok(None));
        assert_eq!(decode(&reply(4, b"", b""), 7), Ok(None), "a signal");
        let fields = [ABOUT_7, b"\x04\x01s\0\x04\0\0\0a.No\0\0\0\0\x08\x01g\0\x01s\0"].concat();
        let refused = Reply::Refused { name: "a.No".into(), message: "never".into() };
        assert_eq!(decode(&reply(3, &fields, b"\x05\0\0\0never\0"), 7), Ok(Some(refused)));
    }

    #[test]
    fn garbage_is_refused_and_never_read_past_its_end() {
        let whole = reply(2, &[ABOUT_7, b"\x01\x01o\0\x02\0\0\0/x\0"].concat(), b"");
        for cut in 0..whole.len() - 5 {
            assert_eq!(decode(&whole[..cut], 7), Err(Garbled), "cut to {cut}");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let _ = decode(&bytes, 7);
                let fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
                assert!(total(&fixed).is_none_or(|total| total <= MAX_MESSAGE));
            }
        }
        assert_eq!(total(b"l\x01\0\x01\xff\xff\xff\xff\x01\0\0\0\xff\xff\xff\xff"), None);
    }
}
