//! The expressions of a rule, as they are read back: the other way round from `expressions`.
//!
//! Only what they say is kept: values that the kernel adds of its own, and the two numbers that a register has, make no
//! difference. So what is read can be held against what would be written.
//!
//! Source: linux/netfilter/nf_tables.h, "enum nft_…_attributes".

use super::message::Given;

/// Where a value is, in units of four bytes; `NFT_REG_VERDICT` is no such place.
pub type Place = u32;

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// What is known of a packet: `NFT_META_…`.
    Meta { key: u32, to: Place },
    /// Bytes of a header. Bases: 1 = network, 2 = transport.
    Payload { base: u32, offset: u32, length: u32, to: Place },
    /// `NFT_CMP_…`
    Compare { how: u32, from: Place, value: Vec<u8> },
    /// Between two values, or not.
    Range { is_inverted: bool, from: Place, low: Vec<u8>, high: Vec<u8> },
    /// `(from & mask) ^ xor`
    Bits { from: Place, to: Place, mask: Vec<u8>, xor: Vec<u8> },
    /// Whether it is in a set; with `is_map`, where a map leads with it.
    Lookup { set: String, from: Place, is_map: bool, is_inverted: bool },
    /// A value.
    Value { to: Place, value: Vec<u8> },
    /// What becomes of the packet.
    Verdict { code: u32, chain: Option<String> },
    /// `NFT_NAT_SNAT` or `NFT_NAT_DNAT`, to what these places hold.
    Nat { is_source: bool, family: u32, address: Option<Place>, port: Option<Place> },
    /// To the host itself.
    Redirect,
    /// From the address of the interface.
    Masquerade,
    /// A number below `modulus`: `NFT_NG_…`
    Number { to: Place, modulus: u32, kind: u32, offset: u32 },
    /// A hash below `modulus`: `NFT_HASH_…`
    Hash { from: Place, to: Place, length: u32, modulus: u32, seed: u32, kind: u32, offset: u32 },
    /// To the order of the network, or of the host.
    Order { from: Place, to: Place, operation: u32, length: u32, size: u32 },
    /// What conntrack knows: `NFT_CT_…`
    Conntrack { key: u32, direction: Option<u8>, to: Place },
    /// What the routing table says.
    Fib { result: u32, flags: u32, to: Place },
    /// `NFT_REJECT_…`
    Reject { kind: u32, code: u8 },
    /// An extension of iptables: a match, or a target.
    Extension { is_target: bool, name: String, data: Vec<u8> },
    /// Any other, by its name: none of ours.
    Other(String),
}

/// Reads an element of `NFTA_RULE_EXPRESSIONS`.
pub fn expression(element: Given<'_>) -> Expression {
    let name = element.text(1).unwrap_or_default();
    known(&name, element.inside(2)).unwrap_or(Expression::Other(name))
}

/// A verdict, as the value of an element of a map too: its code, and the chain it leads into.
pub fn verdict(data: Given<'_>) -> Option<(u32, Option<String>)> {
    let verdict = data.inside(2);
    Some((verdict.number(1)?, verdict.text(2)))
}

/// `NFTA_DATA_VALUE`
pub fn value(data: Given<'_>) -> Option<Vec<u8>> {
    data.get(1).map(<[u8]>::to_vec)
}

fn known(name: &str, data: Given<'_>) -> Option<Expression> {
    let number = |kind| data.number(kind);
    let or_none = |kind| data.number(kind).unwrap_or(0);
    let place = |kind| place(data.number(kind)?);
    let bytes = |kind| value(data.inside(kind));
    Some(match name {
        "meta" => Expression::Meta { key: number(2)?, to: place(1)? },
        "payload" => {
            Expression::Payload { base: number(2)?, offset: number(3)?, length: number(4)?, to: place(1)? }
        }
        "cmp" => Expression::Compare { how: number(2)?, from: place(1)?, value: bytes(3)? },
        "range" => Expression::Range {
            is_inverted: number(2)? != 0,
            from: place(1)?,
            low: bytes(3)?,
            high: bytes(4)?,
        },
        // NFT_BITWISE_MASK_XOR, the only one that older kernels have, and so one that they do not name.
        "bitwise" if or_none(6) == 0 => {
            Expression::Bits { from: place(1)?, to: place(2)?, mask: bytes(4)?, xor: bytes(5)? }
        }
        "lookup" => Expression::Lookup {
            set: data.text(1)?,
            from: place(2)?,
            is_map: data.get(3).is_some(),
            is_inverted: or_none(5) & 1 != 0,
        },
        "immediate" => match verdict(data.inside(2)) {
            Some((code, chain)) => Expression::Verdict { code, chain },
            None => Expression::Value { to: place(1)?, value: bytes(2)? },
        },
        "nat" => Expression::Nat {
            is_source: number(1)? == 0,
            family: number(2)?,
            address: place(3),
            port: place(5),
        },
        "redir" => Expression::Redirect,
        "masq" if or_none(1) == 0 && data.get(2).is_none() => Expression::Masquerade,
        "numgen" => {
            Expression::Number { to: place(1)?, modulus: number(2)?, kind: number(3)?, offset: or_none(4) }
        }
        "hash" => Expression::Hash {
            from: place(1)?,
            to: place(2)?,
            length: number(3)?,
            modulus: number(4)?,
            seed: or_none(5),
            kind: or_none(7),
            offset: or_none(6),
        },
        "byteorder" => Expression::Order {
            from: place(1)?,
            to: place(2)?,
            operation: number(3)?,
            length: number(4)?,
            size: number(5)?,
        },
        "ct" => Expression::Conntrack {
            key: number(2)?,
            direction: data.get(3).and_then(|direction| direction.first().copied()),
            to: place(1)?,
        },
        "fib" => Expression::Fib { result: number(2)?, flags: number(3)?, to: place(1)? },
        "reject" => Expression::Reject {
            kind: number(1)?,
            code: data.get(2).and_then(|code| code.first().copied()).unwrap_or(0),
        },
        "target" | "match" => Expression::Extension {
            is_target: name == "target",
            name: data.text(1)?,
            data: data.get(3).unwrap_or_default().to_vec(),
        },
        _ => return None,
    })
}

/// Registers of sixteen bytes have the numbers 1 to 4, those of four bytes 8 and more.
fn place(register: u32) -> Option<Place> {
    match register {
        1..=4 => Some((register - 1) * 4),
        8.. => Some(register - 8),
        _ => None,
    }
}
