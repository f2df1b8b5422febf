//! Names of kernel objects, and the subnet: what the network and the traffic rules have to agree on. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use sha2::{Digest as _, Sha256};

use crate::engine::EngineError;
use crate::types::{InstanceId, Reason};

/// The instance whose names are plain.
const DEFAULT_INSTANCE: &str = "gitopsd";
/// Digits of an interface name's hash: letters first, so that a name never looks like a number.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Every name that is derived from the instance, so that several agents can share a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The agent's instance, as configured.
    pub instance: String,
    /// The bridge that holds the gateway's address; at most 15 bytes (IFNAMSIZ, netdevice(7)).
    pub bridge: String,
    /// How the host's end of every container's interface begins.
    pub veth_prefix: String,
    /// The nftables table.
    pub table: String,
}

impl Names {
    /// Derives all names; the same instance gives the same names for ever.
    pub fn new(instance: &str) -> Self {
        let hash = hash(instance, 8);
        // `gb` and `gd`: rules match containers by `gd…*`, which must not match the bridge.
        let bridge = if instance == DEFAULT_INSTANCE { "gitopsd0".to_owned() } else { format!("gb{hash}") };
        let veth_prefix = format!("gd{}", hash.get(..5).unwrap_or(&hash));
        Self { instance: instance.to_owned(), bridge, veth_prefix, table: table(instance) }
    }

    /// The host's end of the interface of `id`: 15 bytes.
    pub fn veth(&self, id: &InstanceId) -> String {
        format!("{}{}", self.veth_prefix, hash(&id.to_string(), 8))
    }

    /// The label that `ip link` shows on it, and by which leftovers are recognised.
    pub fn alias(&self, id: &InstanceId) -> String {
        format!("gitopsd:{}:{id}", self.instance)
    }

    /// The inverse of [`Self::alias`]; `None` for a label of somebody else.
    pub fn parse_alias(&self, alias: &str) -> Option<InstanceId> {
        alias.strip_prefix("gitopsd:")?.strip_prefix(&self.instance)?.strip_prefix(':')?.parse().ok()
    }
}

/// The first `length` digits of a hash of `text`, five bits each.
fn hash(text: &str, length: usize) -> String {
    let digit = |byte: &u8| char::from(ALPHABET[usize::from(byte & 31)]);
    Sha256::digest(text).iter().take(length).map(digit).collect()
}

/// A name that nft takes unquoted (nft(8), "LEXICAL CONVENTIONS") and that is none of its words: `gitopsd` and names
/// that begin with it stay as they are, all others get it in front.
fn table(instance: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut name: String = instance.chars().map(|c| if plain(c) { c } else { '_' }).take(48).collect();
    if name != instance {
        name = format!("{name}-{}", hash(instance, 8));
    }
    if name.starts_with(DEFAULT_INSTANCE) { name } else { format!("{DEFAULT_INSTANCE}-{name}") }
}

/// The addresses of one instance's containers and services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    first: u32,
    /// Bits of the network part.
    pub prefix: u8,
}

impl Subnet {
    /// Checks `[engine] subnet`: at least four usable addresses, and no bits set outside the network part.
    pub fn new((first, prefix): (Ipv4Addr, u8)) -> Result<Self, EngineError> {
        let subnet = Self { first: first.to_bits(), prefix };
        if !(8..=29).contains(&prefix) || first.to_bits() & !subnet.mask() != 0 {
            return Err(EngineError::plain(
                Reason::Network,
                format!("engine.subnet {first}/{prefix} is no subnet from /8 to /29"),
            ));
        }
        Ok(subnet)
    }

    /// Ones for the network part.
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32u32.saturating_sub(self.prefix.into())).unwrap_or(0)
    }

    /// The host's own address in it: the first one.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first | 1)
    }

    /// Whether `address` belongs to it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.first
    }

    /// Whether a container or service can have `address`: not the network, the gateway or the broadcast address.
    pub fn usable(self, address: Ipv4Addr) -> bool {
        self.contains(address)
            && address != self.gateway()
            && address.to_bits() != self.first
            && address.to_bits() != self.first | !self.mask()
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.first), self.prefix)
    }
}

/// The IPv6 addresses of one instance's containers: each has that of IPv4 as the last part of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet6 {
    first: u128,
}

impl Subnet6 {
    /// Bits of the network part.
    pub const PREFIX: u8 = 64;

    /// The network that `address` is in.
    pub fn new(address: Ipv6Addr) -> Self {
        Self { first: address.to_bits() & !u128::from(u64::MAX) }
    }

    /// One that no other instance has: unique and local (RFC 4193), from a hash of the machine and the instance, so that
    /// it is the same one at every start.
    pub fn of_instance(machine: &str, instance: &str) -> Self {
        let hash = Sha256::digest(format!("{} {instance}", machine.trim()));
        let global = hash.iter().take(5).fold(0xfd_u128, |bits, byte| bits << 8 | u128::from(*byte));
        Self { first: global << 80 }
    }

    /// The IPv6 address of the container that has `address`.
    pub fn of(self, address: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.first | u128::from(address.to_bits()))
    }
}

impl std::fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from_bits(self.first), Self::PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_differ() {
        let id: InstanceId = "shop.7".parse().unwrap();
        for instance in ["gitopsd", "a", "gitopsd-test-4242", &"x".repeat(200)] {
            let names = Names::new(instance);
            assert!(names.bridge.len() <= 15 && names.veth(&id).len() == 15, "{names:?}");
            assert!(!names.bridge.starts_with(&names.veth_prefix));
        }
        assert_eq!(Names::new("gitopsd").bridge, "gitopsd0");
        assert_ne!(Names::new("a").veth(&id), Names::new("b").veth(&id));
        assert_ne!(Names::new("a").veth(&id), Names::new("a").veth(&"shop.8".parse().unwrap()));
    }

    #[test]
    fn aliases_come_back() {
        let names = Names::new("gitopsd");
        let id: InstanceId = "shop.7".parse().unwrap();
        assert_eq!(names.alias(&id), "gitopsd:gitopsd:shop.7");
        assert_eq!(names.parse_alias(&names.alias(&id)), Some(id));
        assert_eq!(names.parse_alias("gitopsd:gitopsd2:shop.7"), None);
        assert_eq!(names.parse_alias("uplink"), None);
    }

    #[test]
    fn table_names_are_safe() {
        assert_eq!(table("gitopsd"), "gitopsd");
        assert_eq!(table("gitopsd-2"), "gitopsd-2");
        assert_eq!(table("tcp"), "gitopsd-tcp");
        for odd in ["a b", "x;delete", "ä", "gitopsd { }"] {
            let name = table(odd);
            assert!(name.starts_with("gitopsd"));
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)), "{name}");
        }
        assert_ne!(table("a b"), table("a_b"));
    }

    #[test]
    fn subnets_are_checked() {
        let subnet = Subnet::new(("10.98.0.0".parse().unwrap(), 16)).unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 98, 0, 1));
        assert!(subnet.usable("10.98.3.4".parse().unwrap()));
        for bad in ["10.98.0.0", "10.98.0.1", "10.98.255.255", "10.99.0.2"] {
            assert!(!subnet.usable(bad.parse().unwrap()), "{bad}");
        }
        assert!(Subnet::new(("10.98.0.1".parse().unwrap(), 16)).is_err());
        assert!(Subnet::new(("0.0.0.0".parse().unwrap(), 0)).is_err());
        assert!(Subnet::new(("10.0.0.0".parse().unwrap(), 30)).is_err());
    }

    #[test]
    fn ipv6_addresses_are_local_and_follow_those_of_ipv4() {
        let subnet = Subnet6::of_instance("d41d8cd98f00b204e9800998ecf8427e\n", "gitopsd");
        assert_eq!(subnet, Subnet6::of_instance("d41d8cd98f00b204e9800998ecf8427e", "gitopsd"));
        assert_ne!(subnet, Subnet6::of_instance("d41d8cd98f00b204e9800998ecf8427e", "two"));
        assert!(subnet.to_string().starts_with("fd") && subnet.to_string().ends_with("::/64"), "{subnet}");
        let fixed = Subnet6::new("fd00:1:2:3::".parse().unwrap());
        assert_eq!(fixed.of([10, 98, 1, 7].into()).to_string(), "fd00:1:2:3::a62:107");
    }
}
