//! The strings and numbers of the ssh protocol.
//!
//! Source: RFC 4251, section 5.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What is left to be read of some bytes.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.0.split_at_checked(count).ok_or("it is cut off")?;
        self.0 = rest;
        Ok(head)
    }

    /// A byte.
    pub fn byte(&mut self) -> Result<u8, String> {
        Ok(self.bytes(1)?.first().copied().unwrap_or_default())
    }

    /// uint32.
    pub fn u32(&mut self) -> Result<u32, String> {
        Ok(self.bytes(4)?.iter().fold(0, |sum, byte| (sum << 8) | u32::from(*byte)))
    }

    /// uint64.
    pub fn u64(&mut self) -> Result<u64, String> {
        Ok(self.bytes(8)?.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
    }

    /// string.
    pub fn string(&mut self) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.u32()?).map_err(|_| "it is cut off")?;
        self.bytes(length)
    }

    /// A string that is text.
    pub fn text(&mut self) -> Result<&'a str, String> {
        std::str::from_utf8(self.string()?).map_err(|_| "a name in it is not text".to_owned())
    }

    /// mpint, without the zero that keeps it positive.
    pub fn number(&mut self) -> Result<&'a [u8], String> {
        let bytes = self.string()?;
        if bytes.first().is_some_and(|first| first & 0x80 != 0) {
            return Err("a number in it is negative".to_owned());
        }
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes.get(zeros..).ok_or_else(|| "it is cut off".to_owned())
    }

    /// Fails where something is left.
    pub fn end(self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err("more follows than belongs to it".to_owned()) }
    }
}

/// A string, written.
pub fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing here is longer than a file of keys may be.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(bytes);
}

/// base64 with its padding, as ssh writes it.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|error| format!("its base64 is broken: {error}"))
}
