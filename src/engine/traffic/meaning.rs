//! What a rule says about packets that it sends elsewhere: for which addresses and ports it does, and where to. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::decode::{Expression, Place};
use super::spread::{Draw, Lane};
use crate::types::Protocol;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NFT_META_NFPROTO`, `NFT_META_L4PROTO`.
const FAMILY: u32 = 15;
const PROTOCOL: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `NFT_CMP_EQ`, `NFT_CMP_LT`.
const EQUAL: u32 = 0;
const LESS: u32 = 2;
/// `NFT_CMP_LTE`, `NFT_CMP_GTE`
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
/// `NFT_NG_RANDOM`
const RANDOM: u32 = 1;

/// Ports of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    One(u16),
    /// From, to.
    Range(u16, u16),
    /// Those in a set of its table.
    Set(String),
}

/// What a rule says, as far as it is understood here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meaning {
    family: Option<u8>,
    /// Number of the protocol.
    protocol: Option<u8>,
    /// What packets are sent to.
    pub to: Option<IpAddr>,
    pub ports: Option<Ports>,
    /// What is drawn for a branch before it is done.
    pub draw: Option<Draw>,
    /// What is drawn among the containers of a generation before it is done.
    pub lane: Option<Lane>,
    /// The new destination's address, and its port.
    pub target: Option<(IpAddr, Option<u16>)>,
    /// Whether the destination becomes another one, be it one that is understood or not.
    pub is_redirect: bool,
    /// Whether it says more than that.
    pub is_strange: bool,
}

/// What a register holds.
#[derive(Debug, Clone)]
enum Loaded {
    Meta(u32),
    Payload { base: u32, offset: u32, length: u32 },
    Random { modulus: u32 },
    Hash { is_six: bool, modulus: u32, seed: u32 },
    Value(Vec<u8>),
}

/// A rule under way.
struct Reading {
    meaning: Meaning,
    registers: BTreeMap<Place, Loaded>,
    /// Of the table.
    family: Option<u8>,
}

impl Meaning {
    /// Reads a rule of a table of this family (`NFPROTO_…`).
    pub fn of(family: u8, rule: &[Expression]) -> Self {
        let family = [IPV4, IPV6].into_iter().find(|known| *known == family);
        let mut reading = Reading { meaning: Self::default(), registers: BTreeMap::new(), family };
        for expression in rule {
            if reading.take(expression).is_none() {
                reading.meaning.is_strange = true;
            }
        }
        reading.meaning
    }

    /// Of which protocol the port is: `Ok(None)` = of any; an error for one that is neither TCP nor UDP.
    pub fn protocol(&self) -> Result<Option<Protocol>, u8> {
        match self.protocol {
            None => Ok(None),
            Some(6) => Ok(Some(Protocol::Tcp)),
            Some(17) => Ok(Some(Protocol::Udp)),
            Some(other) => Err(other),
        }
    }
}

impl Reading {
    /// `None`: this is more than is understood.
    fn take(&mut self, expression: &Expression) -> Option<()> {
        match expression {
            Expression::Meta { key, to } => self.load(*to, Loaded::Meta(*key)),
            &Expression::Payload { base, offset, length, to } => {
                self.load(to, Loaded::Payload { base, offset, length })
            }
            Expression::Value { to, value } => self.load(*to, Loaded::Value(value.clone())),
            &Expression::Number { to, modulus, kind: RANDOM, offset: 0 } => {
                self.load(to, Loaded::Random { modulus })
            }
            &Expression::Hash { from, to, length, modulus, seed, kind: 0, offset: 0 } => {
                let Some(&Loaded::Payload { base: NETWORK, offset, length: there }) =
                    self.registers.get(&from)
                else {
                    return self.forget(to);
                };
                let is_six = match (offset, length, there, self.family()) {
                    (12, 4, 4, Some(IPV4)) => false,
                    (8, 16, 16, Some(IPV6)) => true,
                    _ => return self.forget(to),
                };
                self.load(to, Loaded::Hash { is_six, modulus, seed })
            }
            // What was drawn stays what it is in another order of bytes.
            Expression::Order { from, to, .. } => match self.registers.get(from).cloned() {
                Some(drawn @ (Loaded::Random { .. } | Loaded::Hash { .. })) => self.load(*to, drawn),
                _ => self.forget(*to),
            },
            Expression::Number { to, .. } | Expression::Hash { to, .. } | Expression::Bits { to, .. } => {
                self.forget(*to)
            }
            Expression::Compare { how, from, value } => self.compare(*how, *from, value),
            Expression::Range { is_inverted: false, from, low, high } => {
                self.ports(*from)?;
                self.meaning.ports = Some(Ports::Range(number(low)?, number(high)?));
                Some(())
            }
            Expression::Lookup { set, from, is_map: false, is_inverted: false } => {
                self.ports(*from)?;
                self.meaning.ports = Some(Ports::Set(set.clone()));
                Some(())
            }
            Expression::Nat { is_source: false, address, port, .. } => {
                self.meaning.is_redirect = true;
                let held = |place: &Place| match self.registers.get(place) {
                    Some(Loaded::Value(value)) => Some(value.as_slice()),
                    _ => None,
                };
                let to = self::address(held(address.as_ref()?)?)?;
                let port = match port {
                    Some(place) => Some(number(held(place)?)?),
                    None => None,
                };
                self.meaning.target = Some((to, port));
                Some(())
            }
            Expression::Redirect => {
                self.meaning.is_redirect = true;
                None
            }
            Expression::Extension { is_target: true, name, .. } => {
                self.meaning.is_redirect |= matches!(name.as_str(), "DNAT" | "REDIRECT");
                None
            }
            Expression::Extension { is_target: false, name, data } => {
                self.extension(name, data);
                None
            }
            _ => None,
        }
    }

    fn load(&mut self, to: Place, what: Loaded) -> Option<()> {
        self.registers.insert(to, what);
        Some(())
    }

    fn forget(&mut self, to: Place) -> Option<()> {
        self.registers.remove(&to);
        None
    }

    /// The family of the packets that come so far.
    fn family(&self) -> Option<u8> {
        self.meaning.family.or(self.family)
    }

    /// Takes care that a place holds a destination's port.
    fn ports(&self, from: Place) -> Option<()> {
        let Loaded::Payload { base: TRANSPORT, offset: 2, length: 2 } = self.registers.get(&from)? else {
            return None;
        };
        Some(())
    }

    fn compare(&mut self, how: u32, from: Place, value: &[u8]) -> Option<()> {
        let loaded = self.registers.get(&from)?.clone();
        match (how, loaded) {
            (EQUAL, Loaded::Meta(FAMILY)) => self.meaning.family = Some(*value.first()?),
            (EQUAL, Loaded::Meta(PROTOCOL)) => self.meaning.protocol = Some(*value.first()?),
            (EQUAL, Loaded::Payload { base, offset, length }) => {
                // nft joins fields that stand beside each other into one.
                let field = |at: u32, long: u32| {
                    let from = usize::try_from(at.checked_sub(offset)?).ok()?;
                    value.get(from..from.checked_add(long as usize)?)
                };
                let (what, long) = match (base, self.family()) {
                    (NETWORK, Some(IPV4)) if (offset, length) == (9, 1) => {
                        self.meaning.protocol = Some(*value.first()?);
                        return Some(());
                    }
                    (NETWORK, Some(IPV4)) => (field(16, 4), 4),
                    (NETWORK, Some(IPV6)) => (field(24, 16), 16),
                    (TRANSPORT, _) => (field(2, 2), 2),
                    _ => return None,
                };
                match base {
                    NETWORK => self.meaning.to = Some(address(what?)?),
                    _ => self.meaning.ports = Some(Ports::One(number(what?)?)),
                }
                return (length == long).then_some(());
            }
            // nft says a range by its two ends.
            (AT_LEAST | AT_MOST, Loaded::Payload { base: TRANSPORT, offset: 2, length: 2 }) => {
                let (first, last) = match self.meaning.ports {
                    Some(Ports::Range(first, last)) => (first, last),
                    _ => (0, u16::MAX),
                };
                let end = number(value)?;
                let ends = if how == AT_LEAST { (end, last) } else { (first, end) };
                self.meaning.ports = Some(Ports::Range(ends.0, ends.1));
            }
            (LESS, Loaded::Random { modulus }) => {
                // A lane draws from few, a branch from many.
                match Lane::by_connection(modulus, below(value)?) {
                    Some(lane) => self.meaning.lane = Some(lane),
                    None => self.meaning.draw = Some(Draw::by_connection(modulus, below(value)?)?),
                }
            }
            (LESS, Loaded::Hash { is_six, modulus, seed }) => {
                self.meaning.draw = Some(Draw::by_client(is_six, modulus, seed, below(value)?)?);
            }
            _ => return None,
        }
        Some(())
    }

    /// iptables' own matches, where it does not say them in nftables' words: `struct xt_tcp` and `struct xt_udp` of
    /// linux/netfilter/xt_tcpudp.h.
    fn extension(&mut self, name: &str, data: &[u8]) -> Option<()> {
        // Source from, to; destination from, to.
        let half = |at: usize| Some(u16::from_ne_bytes(*data.get(at..)?.first_chunk()?));
        let (protocol, inverted) = match name {
            "tcp" => (6, *data.get(11)?),
            "udp" => (17, *data.get(8)?),
            _ => return None,
        };
        self.meaning.protocol = Some(protocol);
        if inverted & 2 == 0 && (half(4)?, half(6)?) != (0, u16::MAX) {
            self.meaning.ports = Some(Ports::Range(half(4)?, half(6)?));
        }
        Some(())
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(|it| IpAddr::V4(Ipv4Addr::from(it)));
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(|it| IpAddr::V6(Ipv6Addr::from(it)))).ok()
}

fn number(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.first_chunk()?))
}

fn below(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}
