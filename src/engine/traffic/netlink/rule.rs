//! One rule: its text in the language of nft(8), and the kernel's expressions for it. Pure.
//!
//! Only what our own rules say is understood; each match does what nft does for the same words.

use std::net::IpAddr;

use super::Words;
use super::expressions::{Compare, Expressions, FIRST, Meta, Verdict, register};

/// Numbers of protocols (/etc/protocols), and of families: `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NFT_CT_STATE`, `NFT_CT_STATUS`, `NFT_CT_DST_IP`.
const STATE: u32 = 0;
const STATUS: u32 = 2;
const DESTINATION: u32 = 20;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;

/// A rule under way.
#[derive(Default)]
struct Rule {
    made: Expressions,
    /// What the packet was asked already.
    family: Option<u8>,
    protocol: Option<u8>,
}

/// Compiles what stands behind `add rule inet TABLE CHAIN`; gives the comment too.
pub fn compile(words: &mut Words<'_>) -> Option<(Expressions, Option<String>)> {
    let mut rule = Rule::default();
    let mut comment = None;
    while let Some(word) = words.next() {
        match word {
            "comment" => comment = Some(words.next()?.to_owned()),
            _ => rule.statement(word, words)?,
        }
    }
    Some((rule.made, comment))
}

impl Rule {
    fn statement(&mut self, word: &str, words: &mut Words<'_>) -> Option<()> {
        match word {
            "iifname" => self.interface(Meta::IncomingName, words)?,
            "oifname" => self.interface(Meta::OutgoingName, words)?,
            "ip" | "ip6" => self.fields(word, words)?,
            "meta" => match words.next()? {
                "nfproto" => self.of_family(if words.next()? == "ipv6" { IPV6 } else { IPV4 }),
                "l4proto" if words.peek() == Some(".") => self.concat(vec![Field::Protocol], words)?,
                "l4proto" => self.of_protocol(protocol(words.next()?)?),
                _ => return None,
            },
            "tcp" if words.peek() == Some("flags") => {
                words.expect("flags")?;
                let set = flags(words.next()?)?;
                words.expect("/")?;
                let mask = flags(words.next()?)?;
                self.of_protocol(TCP);
                self.made.payload(2, 13, 1, FIRST);
                self.made.mask(&[mask]);
                self.made.compare(Compare::Equal, &[set]);
            }
            "tcp" if words.peek() == Some("sequence") => {
                words.expect("sequence")?;
                self.of_protocol(TCP);
                self.made.payload(2, 4, 4, FIRST);
                self.made.compare(Compare::Equal, &words.next()?.parse::<u32>().ok()?.to_be_bytes());
            }
            "tcp" | "udp" => {
                words.expect("dport")?;
                self.of_protocol(protocol(word)?);
                self.made.payload(2, 2, 2, FIRST);
                self.made.compare(Compare::Equal, &words.next()?.parse::<u16>().ok()?.to_be_bytes());
            }
            "icmpv6" => {
                words.expect("type")?;
                words.expect("nd-redirect")?;
                self.of_family(IPV6);
                self.of_protocol(ICMP6);
                self.made.payload(2, 0, 1, FIRST);
                self.made.compare(Compare::Equal, &[137]);
            }
            "fib" => self.routing(words)?,
            "ct" => self.conntrack(words)?,
            "numgen" => {
                words.expect("random")?;
                words.expect("mod")?;
                self.made.random(words.next()?.parse().ok()?);
                self.below(words)?;
            }
            "jhash" => {
                let family = words.next()?;
                let field = Field::address(family, words.next()?)?;
                words.expect("mod")?;
                let modulus = words.next()?.parse().ok()?;
                // Without one the kernel takes another one for each rule, and clients would move at every change.
                words.expect("seed")?;
                let seed = u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
                self.of_family(field.family()?);
                self.load(field, register(4));
                self.made.hash(field.units() * 4, modulus, seed);
                self.below(words)?;
            }
            "dnat" | "snat" => {
                words.next().filter(|family| matches!(*family, "ip" | "ip6"))?;
                words.expect("to")?;
                let (to, port) = target(words.next()?)?;
                self.made.nat(word == "snat", to, port);
            }
            "masquerade" => self.made.masquerade(),
            "reject" if words.peek() == Some("with") => {
                ["with", "tcp", "reset"].into_iter().try_for_each(|word| words.expect(word))?;
                self.of_protocol(TCP);
                self.made.reject(1, 0);
            }
            // "Port unreachable", of the packet's family where the rule knows it.
            "reject" => match self.family {
                Some(IPV4) => self.made.reject(0, 3),
                Some(_) => self.made.reject(0, 4),
                None => self.made.reject(2, 1),
            },
            "add" => {
                let set = words.next()?.strip_prefix('@')?;
                ["{", "meta", "l4proto"].into_iter().try_for_each(|word| words.expect(word))?;
                self.load_all(vec![Field::Protocol], words)?;
                words.expect("}")?;
                self.made.add(set);
            }
            "drop" => self.made.verdict(Verdict::Drop),
            "accept" => self.made.verdict(Verdict::Accept),
            "jump" => self.made.verdict(Verdict::Jump(words.next()?)),
            "goto" => self.made.verdict(Verdict::Goto(words.next()?)),
            _ => return None,
        }
        Some(())
    }

    fn of_family(&mut self, family: u8) {
        if self.family != Some(family) {
            self.made.meta(Meta::Family, FIRST);
            self.made.compare(Compare::Equal, &[family]);
            self.family = Some(family);
        }
    }

    fn of_protocol(&mut self, protocol: u8) {
        if self.protocol != Some(protocol) {
            self.made.meta(Meta::Protocol, FIRST);
            self.made.compare(Compare::Equal, &[protocol]);
            self.protocol = Some(protocol);
        }
    }

    /// A name as it is in the kernel, 16 bytes with zeros; of `name*` only what stands before.
    fn interface(&mut self, which: Meta, words: &mut Words<'_>) -> Option<()> {
        let how = words.comparison();
        let name = words.next()?;
        self.made.meta(which, FIRST);
        match name.strip_suffix('*') {
            Some(prefix) => self.made.compare(how, prefix.as_bytes()),
            None => {
                let mut whole = name.as_bytes().to_vec();
                whole.resize(16, 0);
                self.made.compare(how, whole.get(..16)?);
            }
        }
        Some(())
    }

    /// `ip daddr …`: one field or several, then what they are held against.
    fn fields(&mut self, family: &str, words: &mut Words<'_>) -> Option<()> {
        let field = Field::address(family, words.next()?)?;
        self.of_family(field.family()?);
        if words.peek().is_some_and(|word| word == "." || word == "vmap" || word.starts_with('@')) {
            return self.concat(vec![field], words);
        }
        let how = words.comparison();
        let (address, prefix) = network(words.next()?)?;
        let bytes = octets(address);
        // Whole bytes need no mask: only those are loaded.
        let whole = usize::from(prefix / 8);
        if prefix > 0 && prefix.is_multiple_of(8) {
            self.load_part(field, FIRST, u32::try_from(whole).ok()?);
            self.made.compare(how, bytes.get(..whole)?);
        } else {
            self.load(field, FIRST);
            self.made.mask(&mask(bytes.len(), prefix));
            self.made.compare(how, &bytes);
        }
        Some(())
    }

    fn concat(&mut self, fields: Vec<Field>, words: &mut Words<'_>) -> Option<()> {
        self.load_all(fields, words)?;
        if words.peek() == Some("vmap") {
            words.next();
            self.made.lead(words.next()?.strip_prefix('@')?);
        } else {
            let how = words.comparison();
            self.made.lookup(words.next()?.strip_prefix('@')?, how);
        }
        Some(())
    }

    /// Loads one field and those that stand behind it.
    fn load_all(&mut self, mut fields: Vec<Field>, words: &mut Words<'_>) -> Option<()> {
        while words.peek() == Some(".") {
            words.next();
            fields.push(match (words.next()?, words.next()?) {
                ("meta", "l4proto") => Field::Protocol,
                ("th", "dport") => Field::Port { source: false },
                ("th", "sport") => Field::Port { source: true },
                (family, which) => Field::address(family, which)?,
            });
        }
        let mut unit = 0;
        for field in fields {
            self.load(field, register(unit));
            unit += field.units();
        }
        Some(())
    }

    fn load(&mut self, field: Field, to: u32) {
        let length = match field {
            Field::Port { .. } => 2,
            field => field.units() * 4,
        };
        self.load_part(field, to, length);
    }

    fn load_part(&mut self, field: Field, to: u32, length: u32) {
        match field {
            Field::Address { offset, .. } => self.made.payload(1, offset, length, to),
            Field::Protocol => self.made.meta(Meta::Protocol, to),
            Field::Port { source } => self.made.payload(2, if source { 0 } else { 2 }, length, to),
        }
    }

    /// `fib daddr type local`, `fib saddr . iif oif missing`.
    fn routing(&mut self, words: &mut Words<'_>) -> Option<()> {
        match words.next()? {
            // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR; RTN_LOCAL.
            "daddr" => {
                words.expect("type")?;
                words.expect("local")?;
                self.made.fib(3, 2);
                self.made.compare(Compare::Equal, &2u32.to_ne_bytes());
            }
            // NFT_FIB_RESULT_OIF of NFTA_FIB_F_SADDR, _IIF and _PRESENT.
            "saddr" => {
                [".", "iif", "oif", "missing"].into_iter().try_for_each(|word| words.expect(word))?;
                self.made.fib(1, 1 | 8 | 32);
                self.made.compare(Compare::Equal, &0u32.to_ne_bytes());
            }
            _ => return None,
        }
        Some(())
    }

    fn conntrack(&mut self, words: &mut Words<'_>) -> Option<()> {
        match words.next()? {
            "state" => {
                // NF_CT_STATE_INVALID_BIT and NF_CT_STATE_BIT() of the kernel's nf_conntrack_common.h.
                let bit = |state| match state {
                    "invalid" => Some(1u32),
                    "established" => Some(2),
                    "related" => Some(4),
                    "new" => Some(8),
                    _ => None,
                };
                let bits = words.next()?.split(',').map(bit).sum::<Option<u32>>()?;
                self.made.conntrack(STATE, None);
                self.made.mask(&bits.to_ne_bytes());
                self.made.compare(Compare::NotEqual, &0u32.to_ne_bytes());
            }
            "status" => {
                words.expect("&")?;
                words.expect("dnat")?;
                let how = words.comparison();
                words.expect("dnat")?;
                self.made.conntrack(STATUS, None);
                self.made.mask(&DST_NAT.to_ne_bytes());
                self.made.compare(how, &DST_NAT.to_ne_bytes());
            }
            "original" => {
                words.expect("ip")?;
                words.expect("daddr")?;
                let how = words.comparison();
                let (address, prefix) = network(words.next()?).filter(|(address, _)| address.is_ipv4())?;
                self.made.conntrack(DESTINATION, Some(0));
                let bytes = octets(address);
                match prefix > 0 && prefix.is_multiple_of(8) {
                    true => self.made.compare(how, bytes.get(..usize::from(prefix / 8))?),
                    false => {
                        self.made.mask(&mask(bytes.len(), prefix));
                        self.made.compare(how, &bytes);
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// `< 10`
    fn below(&mut self, words: &mut Words<'_>) -> Option<()> {
        words.expect("<")?;
        self.made.compare(Compare::Less, &words.next()?.parse::<u32>().ok()?.to_be_bytes());
        Some(())
    }
}

/// A part of a packet, as maps and sets have it in their keys: in whole units of four bytes.
#[derive(Debug, Clone, Copy)]
enum Field {
    Address { offset: u32, six: bool },
    Protocol,
    Port { source: bool },
}

impl Field {
    fn address(family: &str, which: &str) -> Option<Self> {
        let (offset, six) = match (family, which) {
            ("ip", "saddr") => (12, false),
            ("ip", "daddr") => (16, false),
            ("ip6", "saddr") => (8, true),
            ("ip6", "daddr") => (24, true),
            _ => return None,
        };
        Some(Self::Address { offset, six })
    }

    fn family(self) -> Option<u8> {
        match self {
            Self::Address { six, .. } => Some(if six { IPV6 } else { IPV4 }),
            Self::Protocol | Self::Port { .. } => None,
        }
    }

    fn units(self) -> u32 {
        if matches!(self, Self::Address { six: true, .. }) { 4 } else { 1 }
    }
}

/// Flags of TCP (RFC 9293, 3.1), as `rst,ack`.
fn flags(words: &str) -> Option<u8> {
    let flag = |word| match word {
        "fin" => Some(0x01),
        "syn" => Some(0x02),
        "rst" => Some(0x04),
        "ack" => Some(0x10),
        _ => None,
    };
    words.split(',').map(flag).try_fold(0, |all, flag| Some(all | flag?))
}

/// The number of a protocol.
pub fn protocol(word: &str) -> Option<u8> {
    match word {
        "tcp" => Some(TCP),
        "udp" => Some(UDP),
        _ => None,
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An address, or a network as `address/prefix`.
fn network(word: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = word.split_once('/').map_or((word, None), |(one, two)| (one, Some(two)));
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(longest), |prefix| prefix.parse().ok())?;
    (prefix <= longest).then_some((address, prefix))
}

fn mask(length: usize, prefix: u8) -> Vec<u8> {
    let ones = |place: usize| usize::from(prefix).saturating_sub(place * 8).min(8);
    (0..length).map(|place| (0xff00u16 >> ones(place)) as u8).collect()
}

/// `address`, `address:port` or `[address]:port`.
fn target(word: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = word.parse() {
        return Some((address, None));
    }
    let (address, port) = word.rsplit_once(':')?;
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    Some((address.parse().ok()?, Some(port.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        assert_eq!(mask(4, 17), [255, 255, 128, 0]);
        assert_eq!(mask(4, 32), [255; 4]);
        assert_eq!(mask(4, 0), [0; 4]);
    }

    #[test]
    fn targets() {
        let four: IpAddr = "10.0.0.1".parse().unwrap();
        let six: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(target("10.0.0.1:80"), Some((four, Some(80))));
        assert_eq!(target("[fd00::1]:80"), Some((six, Some(80))));
        assert_eq!(target("fd00::1"), Some((six, None)));
        assert_eq!(target("10.0.0.1:"), None);
    }
}
