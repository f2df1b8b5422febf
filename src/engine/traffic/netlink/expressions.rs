//! The expressions of which the kernel's rules consist, as nft(8) makes them too.
//!
//! Source: linux/netfilter/nf_tables.h, "enum nft_…_attributes". `nft --debug=netlink` shows the same of any rule.

use std::net::IpAddr;

use super::message::Attributes;

/// `NFTA_LIST_ELEM`.
pub const LIST_ELEMENT: u16 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;

/// How two values are compared: `NFT_CMP_…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal = 0,
    NotEqual = 1,
    Less = 2,
}

/// What of a packet is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    IncomingName = 6,
    OutgoingName = 7,
    Family = 15,
    Protocol = 16,
}

/// What becomes of a packet: `NF_…` and `NFT_…` of netfilter.h and nf_tables.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    Drop,
    Accept,
    Jump(&'a str),
    Goto(&'a str),
}

impl Verdict<'_> {
    /// As a value: `NFTA_DATA_VERDICT`.
    pub fn data(self) -> Attributes {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3i32, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        let verdict = Attributes::default().number(1, code.cast_unsigned());
        let verdict = match chain {
            Some(chain) => verdict.text(2, chain),
            None => verdict,
        };
        Attributes::default().nest(2, verdict)
    }
}

/// A value: `NFTA_DATA_VALUE`.
pub fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(1, bytes)
}

/// The number of the register that begins at this unit of four bytes; whole ones of sixteen have old numbers.
pub fn register(unit: u32) -> u32 {
    if unit.is_multiple_of(4) { 1 + unit / 4 } else { 8 + unit }
}

/// Where a value is that is compared at once.
pub const FIRST: u32 = 1;

/// A rule, expression by expression.
#[derive(Debug, Default)]
pub struct Expressions(Attributes);

impl Expressions {
    /// All of them: the value of `NFTA_RULE_EXPRESSIONS`.
    pub fn list(self) -> Attributes {
        self.0
    }

    fn push(&mut self, name: &str, data: Attributes) {
        let expression = Attributes::default().text(1, name).nest(2, data);
        self.0 = std::mem::take(&mut self.0).nest(LIST_ELEMENT, expression);
    }

    pub fn meta(&mut self, what: Meta, to: u32) {
        self.push("meta", Attributes::default().number(1, to).number(2, what as u32));
    }

    pub fn compare(&mut self, how: Compare, bytes: &[u8]) {
        let data = Attributes::default().number(1, FIRST).number(2, how as u32);
        self.push("cmp", data.nest(3, value(bytes)));
    }

    /// Bytes of a header. `base`: 1 = network, 2 = transport.
    pub fn payload(&mut self, base: u32, offset: u32, length: u32, to: u32) {
        let data = Attributes::default().number(1, to).number(2, base);
        self.push("payload", data.number(3, offset).number(4, length));
    }

    pub fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let data = Attributes::default().number(1, FIRST).number(2, FIRST).number(3, length);
        self.push("bitwise", data.nest(4, value(mask)).nest(5, value(&vec![0; mask.len()])));
    }

    /// Whether what was loaded is in a set.
    pub fn lookup(&mut self, set: &str, how: Compare) {
        let data = Attributes::default().text(1, set).number(2, FIRST);
        // NFT_LOOKUP_F_INV
        self.push("lookup", if how == Compare::NotEqual { data.number(5, 1) } else { data });
    }

    /// Where a map leads with what was loaded.
    pub fn lead(&mut self, map: &str) {
        self.push("lookup", Attributes::default().text(1, map).number(2, FIRST).number(3, VERDICT));
    }

    /// Adds what was loaded to a set: `NFT_DYNSET_OP_ADD`.
    pub fn add(&mut self, set: &str) {
        self.push("dynset", Attributes::default().text(1, set).number(3, 0).number(4, FIRST));
    }

    /// What conntrack knows. `direction`: 0 = original.
    pub fn conntrack(&mut self, key: u32, direction: Option<u8>) {
        let data = Attributes::default().number(1, FIRST).number(2, key);
        let data = match direction {
            Some(direction) => data.bytes(3, &[direction]),
            None => data,
        };
        self.push("ct", data);
    }

    /// What the routing table says. Result and flags: `NFT_FIB_RESULT_…`, `NFTA_FIB_F_…`.
    pub fn fib(&mut self, result: u32, flags: u32) {
        self.push("fib", Attributes::default().number(1, FIRST).number(2, result).number(3, flags));
    }

    /// A random number below `modulus`, in the order of the network.
    pub fn random(&mut self, modulus: u32) {
        self.push("numgen", Attributes::default().number(1, FIRST).number(2, modulus).number(3, 1));
        self.network_order();
    }

    /// A hash of `length` bytes from the second register on, below `modulus`, in the order of the network.
    pub fn hash(&mut self, length: u32, modulus: u32, seed: u32) {
        let data = Attributes::default().number(1, register(4)).number(2, FIRST).number(3, length);
        self.push("hash", data.number(4, modulus).number(5, seed).number(7, 0));
        self.network_order();
    }

    fn network_order(&mut self) {
        let data = Attributes::default().number(1, FIRST).number(2, FIRST).number(3, 1);
        self.push("byteorder", data.number(4, 4).number(5, 4));
    }

    /// `NFT_NAT_SNAT` or `NFT_NAT_DNAT`.
    pub fn nat(&mut self, is_source: bool, to: IpAddr, port: Option<u16>) {
        match to {
            IpAddr::V4(to) => self.immediate(FIRST, &to.octets()),
            IpAddr::V6(to) => self.immediate(FIRST, &to.octets()),
        }
        // NFPROTO_IPV4 and NFPROTO_IPV6.
        let family = if to.is_ipv4() { 2 } else { 10 };
        let data = Attributes::default().number(1, u32::from(!is_source)).number(2, family).number(3, FIRST);
        let data = match port {
            Some(port) => {
                self.immediate(register(4), &port.to_be_bytes());
                // NF_NAT_RANGE_PROTO_SPECIFIED
                data.number(5, register(4)).number(7, 2)
            }
            None => data,
        };
        self.push("nat", data);
    }

    fn immediate(&mut self, to: u32, bytes: &[u8]) {
        self.push("immediate", Attributes::default().number(1, to).nest(2, value(bytes)));
    }

    pub fn masquerade(&mut self) {
        self.push("masq", Attributes::default());
    }

    /// `NFT_REJECT_…`, and the code of ICMP that goes with it.
    pub fn reject(&mut self, kind: u32, code: u8) {
        self.push("reject", Attributes::default().number(1, kind).bytes(2, &[code]));
    }

    pub fn verdict(&mut self, verdict: Verdict<'_>) {
        self.push("immediate", Attributes::default().number(1, VERDICT).nest(2, verdict.data()));
    }
}
