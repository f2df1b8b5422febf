//! A part of new connections for a second generation: what a rule draws, as text and as read back (nft(8), "numgen" and
//! "hash" expressions). Pure.
//!
//! A branch is a rule before the one that it takes from: what is drawn goes there, what is not goes on to the next rule.
//! There is no map in it: before a fix of September 2025 a lookup could miss every element of a set that was being
//! replaced, and a connection that finds no rule is refused. Here the last rule takes whatever is left.

use std::fmt;
use std::net::Ipv4Addr;

use crate::types::{Branch, Generation, MAX_REPLICAS, Route, ServiceName, Share, ShareBy, WHOLE, seed};

/// What a new connection has to draw to take a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// How many of a thousand do.
    pub share: Share,
    /// By what.
    pub by: ShareBy,
    /// How clients are sorted; 0 by connection.
    pub seed: u32,
    /// Whether it is about IPv6 packets: their addresses have another place.
    pub six: bool,
}

impl Draw {
    /// That of a branch of `service`.
    pub fn of(service: &ServiceName, branch: &Branch, six: bool) -> Self {
        Self::new(service, branch.generation, branch.share, branch.by, six)
    }

    fn new(service: &ServiceName, generation: Generation, share: Share, by: ShareBy, six: bool) -> Self {
        let seed = match by {
            ShareBy::Connection => 0,
            ShareBy::Client => seed(service, generation),
        };
        // By connection there is nothing to read from the packet.
        Self { share, by, seed, six: six && by == ShareBy::Client }
    }

    /// Whether it is what a branch of `service` to `generation` draws.
    pub fn belongs(self, service: &ServiceName, generation: Generation) -> bool {
        self == Self::new(service, generation, self.share, self.by, self.six)
    }

    /// Reads back what a rule draws by a random number `below` this of `modulus`; `None` if it is none of ours.
    pub fn by_connection(modulus: u32, below: u32) -> Option<Self> {
        Some(Self { share: part(modulus, below)?, by: ShareBy::Connection, seed: 0, six: false })
    }

    /// The same by a hash of the client's address.
    pub fn by_client(six: bool, modulus: u32, seed: u32, below: u32) -> Option<Self> {
        Some(Self { share: part(modulus, below)?, by: ShareBy::Client, seed, six })
    }
}

fn part(modulus: u32, below: u32) -> Option<Share> {
    let share = Share::new(u16::try_from(below).ok()?)?;
    (modulus == u32::from(WHOLE)).then_some(share)
}

impl fmt::Display for Draw {
    /// As a rule has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = self.share.thousandths();
        match self.by {
            ShareBy::Connection => write!(f, "numgen random mod {WHOLE} < {below}"),
            ShareBy::Client => {
                let ip = if self.six { "ip6" } else { "ip" };
                write!(f, "jhash {ip} saddr mod {WHOLE} seed {:#x} < {below}", self.seed)
            }
        }
    }
}

/// The place of one of several containers of a generation: of so many that are left, itself included, it takes one. The
/// last one takes whatever is left, and has no draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane(u32);

impl Lane {
    /// Reads back what a rule draws by a random number `below` this of `modulus`: of how many one is taken; `None` if it is
    /// none of ours. The draws of a branch are from many more.
    pub fn by_connection(modulus: u32, below: u32) -> Option<Self> {
        (below == 1 && (2..=MAX_REPLICAS).contains(&modulus)).then_some(Self(modulus))
    }

    /// Of how many it takes one.
    pub fn left(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Lane {
    /// As a rule has it, with a blank after it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 | 1 => Ok(()),
            left => write!(f, "numgen random mod {left} < 1 "),
        }
    }
}

/// The containers of a route's generation, in the order of their rules, with what each draws.
pub fn lanes(route: &Route) -> impl Iterator<Item = (Ipv4Addr, Lane)> {
    let all = u32::try_from(route.also.len()).unwrap_or(u32::MAX).saturating_add(1);
    route.lanes().zip((1..=all).rev()).map(|(address, left)| (address, Lane(left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(by: ShareBy) -> Branch {
        Branch {
            generation: Generation(8),
            address: std::net::Ipv4Addr::new(10, 98, 1, 8),
            share: "10%".parse().unwrap(),
            by,
            ports: Vec::new(),
        }
    }

    #[test]
    fn what_is_drawn() {
        let shop: ServiceName = "shop".parse().unwrap();
        let text = |by, six| Draw::of(&shop, &branch(by), six).to_string();
        assert_eq!(text(ShareBy::Connection, false), "numgen random mod 1000 < 100");
        assert_eq!(text(ShareBy::Connection, true), "numgen random mod 1000 < 100");
        let seed = seed(&shop, Generation(8));
        assert_eq!(text(ShareBy::Client, false), format!("jhash ip saddr mod 1000 seed {seed:#x} < 100"));
        assert_eq!(text(ShareBy::Client, true), format!("jhash ip6 saddr mod 1000 seed {seed:#x} < 100"));
    }

    #[test]
    fn a_lane_is_no_branch() {
        assert_eq!((Lane::by_connection(3, 1).map(Lane::left), Draw::by_connection(3, 1)), (Some(3), None));
        assert!(Lane::by_connection(1000, 1).is_none() && Draw::by_connection(1000, 1).is_some());
        for (modulus, below) in [(3, 2), (1, 1), (MAX_REPLICAS + 1, 1), (3, 0)] {
            assert!(Lane::by_connection(modulus, below).is_none(), "{below} of {modulus}");
        }
    }

    #[test]
    fn what_is_read_back() {
        let shop: ServiceName = "shop".parse().unwrap();
        let random = Draw::by_connection(1000, 100);
        assert_eq!(random, Some(Draw::of(&shop, &branch(ShareBy::Connection), false)));
        let draw = Draw::by_client(true, 1000, seed(&shop, Generation(8)), 100).unwrap();
        assert_eq!(draw, Draw::of(&shop, &branch(ShareBy::Client), true));
        assert!(draw.belongs(&shop, Generation(8)) && !draw.belongs(&shop, Generation(9)));
        for (modulus, below) in [(100, 10), (1000, 1000), (1000, 0), (1000, 1 << 16 | 100)] {
            assert_eq!(Draw::by_connection(modulus, below), None, "{below} of {modulus}");
        }
    }
}
