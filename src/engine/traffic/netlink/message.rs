//! Bytes of netlink messages: attributes, and the batch that nftables takes as one transaction.
//!
//! Source: netlink(7); linux/netfilter/nfnetlink.h, "struct nfgenmsg" and "nfnetlink batch".

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
const INET: u8 = 1;
/// `NLM_F_REQUEST`, `NLM_F_ACK` of linux/netlink.h.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Of struct nlmsghdr, and of struct nfgenmsg behind it.
pub const HEADER: usize = 16;
pub const GENERIC: usize = 4;

/// Attributes one behind the other, each padded to four bytes.
#[derive(Debug, Default, Clone)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Bytes as they are. One that is longer than an attribute can be is refused by the kernel.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A text with its end.
    pub fn text(self, kind: u16, text: &str) -> Self {
        self.bytes(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// A number, in the order of the network as nftables wants all of them.
    pub fn number(self, kind: u16, number: u32) -> Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    /// Attributes inside of one.
    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Attributes that are read. What makes no sense any more is their end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given<'a>(&'a [u8]);

impl<'a> Given<'a> {
    /// Those of a message about nftables, behind its headers; with the kind of the message (`NFT_MSG_…`) and its family.
    pub fn of(message: &'a [u8]) -> Option<(u16, u8, Self)> {
        let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
        let family = *message.get(HEADER)?;
        (kind >> 8 == SUBSYSTEM).then_some((kind & 0xff, family, Self(message.get(HEADER + GENERIC..)?)))
    }

    /// Kinds, without their flags, and values.
    pub fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(*left.first_chunk()?));
            let kind = u16::from_ne_bytes(*left.get(2..)?.first_chunk()?) & 0x3fff;
            let value = left.get(4..length)?;
            left = left.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// The first of a kind.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.all().find(|(other, _)| *other == kind).map(|(_, value)| value)
    }

    /// Those inside of one; none where there is no such.
    pub fn inside(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }

    /// Each of those inside of all of a kind: a list.
    pub fn list(self, kind: u16) -> impl Iterator<Item = Self> {
        self.all().filter(move |(other, _)| *other == kind).map(|(_, value)| Self(value))
    }

    /// A number, in the order of the network.
    pub fn number(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(*self.get(kind)?.first_chunk()?))
    }

    /// A long one.
    pub fn long(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(*self.get(kind)?.first_chunk()?))
    }

    /// A text, without its end.
    pub fn text(self, kind: u16) -> Option<String> {
        let text = self.get(kind)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// One question about nftables. `number`: that of the messages of its answer.
pub fn question(kind: u16, flags: u16, number: u32, family: u8, filter: &Attributes) -> Vec<u8> {
    let mut asked = Batch { bytes: Vec::new(), last: 0, messages: number };
    asked.put(SUBSYSTEM << 8 | kind, REQUEST | flags, [family, 0], 0, &filter.0);
    asked.bytes
}

/// What is done as one transaction, message by message.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the header of the last message begins.
    last: usize,
    messages: u32,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), last: 0, messages: 0 };
        batch.put(BATCH_BEGIN, REQUEST, [0, 0], SUBSYSTEM, &[]);
        batch
    }

    /// One more change of a table of family inet. `kind`: an `NFT_MSG_…`.
    pub fn add(&mut self, kind: u16, flags: u16, attributes: &Attributes) {
        self.last = self.bytes.len();
        self.messages = self.messages.saturating_add(1);
        self.put(SUBSYSTEM << 8 | kind, REQUEST | flags, [INET, 0], 0, &attributes.0);
    }

    /// How many changes there are. They are numbered from 1, and so are the answers to them.
    pub fn len(&self) -> u32 {
        self.messages
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The bytes to send. The last change asks for an answer, so that there is one when all is well, too.
    pub fn finish(mut self) -> Vec<u8> {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let asked = flags.first_chunk::<2>().map_or(0, |flags| u16::from_ne_bytes(*flags)) | ACK;
            flags.copy_from_slice(&asked.to_ne_bytes());
        }
        self.messages = self.messages.saturating_add(1);
        self.put(BATCH_END, REQUEST, [0, 0], SUBSYSTEM, &[]);
        self.bytes
    }

    fn put(&mut self, kind: u16, flags: u16, [family, version]: [u8; 2], resource: u16, attributes: &[u8]) {
        let length = HEADER.saturating_add(GENERIC).saturating_add(attributes.len());
        self.bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.messages.to_ne_bytes());
        // The port: the kernel fills it in.
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, version]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let inner = Attributes::default().text(1, "ab").number(2, 7);
        let outer = Attributes::default().nest(3, inner);
        let mut wanted = Vec::new();
        for (length, kind) in [(20u16, 3 | NESTED), (7, 1)] {
            wanted.extend(length.to_ne_bytes());
            wanted.extend(kind.to_ne_bytes());
        }
        wanted.extend(*b"ab\0\0");
        wanted.extend(8u16.to_ne_bytes());
        wanted.extend(2u16.to_ne_bytes());
        wanted.extend([0, 0, 0, 7]);
        assert_eq!(outer.0, wanted);
    }

    #[test]
    fn what_was_written_is_read() {
        let inner = Attributes::default().text(1, "ab").number(2, 7).bytes(3, &8u64.to_be_bytes());
        let mut batch = Batch::new();
        batch.add(6, 0, &Attributes::default().number(1, 5).nest(2, inner.clone()).nest(2, inner));
        let bytes = batch.finish();
        // Behind the batch's begin.
        let (kind, family, given) = Given::of(&bytes[20..]).unwrap();
        assert_eq!((kind, family, given.number(1), given.list(2).count()), (6, INET, Some(5), 2));
        let inner = given.inside(2);
        assert_eq!(
            (inner.text(1).as_deref(), inner.number(2), inner.long(3)),
            (Some("ab"), Some(7), Some(8))
        );
        assert_eq!((inner.get(4), given.inside(9).get(1)), (None, None));
        assert!(Given::of(&bytes).is_none());
        // Whatever comes, cut short or not, is read without a panic.
        for end in 20..bytes.len() {
            if let Some((_, _, given)) = Given::of(&bytes[20..end]) {
                assert!(
                    given.all().count() <= 3 && given.inside(2).number(2).is_none_or(|number| number == 7)
                );
            }
        }
    }

    #[test]
    fn only_the_last_change_asks_for_an_answer() {
        let mut batch = Batch::new();
        batch.add(0, 0, &Attributes::default());
        batch.add(3, 0, &Attributes::default());
        assert_eq!(batch.len(), 2);
        let bytes = batch.finish();
        let flags: Vec<u16> = bytes.chunks(20).map(|m| u16::from_ne_bytes([m[6], m[7]])).collect();
        assert_eq!(flags, [REQUEST, REQUEST, REQUEST | ACK, REQUEST]);
        let numbers: Vec<u8> = bytes.chunks(20).map(|message| message[8]).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
    }
}
