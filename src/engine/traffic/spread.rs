//! A part of new connections for a second generation: what a rule draws, as text and as read back (nft(8), "numgen" and
//! "hash" expressions). Pure.
//!
//! A branch is a rule before the one that it takes from: what is drawn goes there, what is not goes on to the next rule.
//! Where it leads to several containers it is a rule for each, and each draws anew from what the ones before it have left.
//! There is no map in it: before a fix of September 2025 a lookup could miss every element of a set that was being
//! replaced, and a connection that finds no rule is refused. Here the last rule takes whatever is left.

use std::fmt;
use std::net::Ipv4Addr;

use crate::types::{Branch, MAX_REPLICAS, Route, ServiceName, Share, ShareBy, WHOLE, seed};

/// What a new connection has to draw to take a branch, by one of its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// A random number.
    Connection {
        /// The share of the whole branch.
        share: Share,
        /// From how many it is drawn. Never less than [`WHOLE`]: no [`Lane`] draws from as many.
        modulus: u32,
    },
    /// A hash of the client's address. The same client draws the same again, so there is one container only.
    Client {
        /// The share of the branch.
        share: Share,
        /// How clients are sorted.
        seed: u32,
        /// Whether it is about IPv6 packets: their addresses have another place.
        six: bool,
    },
}

impl Draw {
    /// The draw of one of `all` containers that share a branch evenly, `left` of them not yet drawn for, itself included.
    ///
    /// It is as if `1000 * all` connections came: each container takes `share` of them, so the first draws from all, and the
    /// others from what is left: `share` for each, and whatever is not the branch's.
    fn random(share: Share, all: u32, left: u32) -> Self {
        let taken = u32::from(share.thousandths());
        let others = u32::from(WHOLE).saturating_sub(taken).saturating_mul(all);
        Self::Connection { share, modulus: others.saturating_add(taken.saturating_mul(left)) }
    }

    /// Reads back what a rule draws by a random number `below` this of `modulus`; `None` if it is none of ours.
    pub fn by_connection(modulus: u32, below: u32) -> Option<Self> {
        let whole = u32::from(WHOLE);
        let is_ours = (whole..=whole * MAX_REPLICAS).contains(&modulus);
        let share = Share::new(u16::try_from(below).ok()?)?;
        is_ours.then_some(Self::Connection { share, modulus })
    }

    /// The same by a hash of the client's address.
    pub fn by_client(six: bool, modulus: u32, seed: u32, below: u32) -> Option<Self> {
        let share = Share::new(u16::try_from(below).ok()?)?;
        (modulus == u32::from(WHOLE)).then_some(Self::Client { share, seed, six })
    }

    /// The same for packets of one family.
    pub fn of_family(self, six: bool) -> Self {
        match self {
            // There is nothing to read from the packet.
            Self::Connection { .. } => self,
            Self::Client { share, seed, .. } => Self::Client { share, seed, six },
        }
    }

    /// The share of the whole branch, and by what.
    pub fn share(self) -> (Share, ShareBy) {
        match self {
            Self::Connection { share, .. } => (share, ShareBy::Connection),
            Self::Client { share, .. } => (share, ShareBy::Client),
        }
    }

    /// From how many it is drawn: less with each container of a branch.
    pub fn modulus(self) -> u32 {
        match self {
            Self::Connection { modulus, .. } => modulus,
            Self::Client { .. } => WHOLE.into(),
        }
    }
}

impl fmt::Display for Draw {
    /// As a rule has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection { share, modulus } => {
                write!(f, "numgen random mod {modulus} < {}", share.thousandths())
            }
            Self::Client { share, seed, six } => {
                let ip = if *six { "ip6" } else { "ip" };
                write!(f, "jhash {ip} saddr mod {WHOLE} seed {seed:#x} < {}", share.thousandths())
            }
        }
    }
}

/// The containers of a branch of `service` in the order of their rules, with what each draws. By client it is the first
/// alone, whatever else the branch names.
pub fn drawn(service: &ServiceName, branch: &Branch) -> Vec<(Ipv4Addr, Draw)> {
    let share = branch.share;
    match branch.by {
        ShareBy::Connection => {
            let all = counted(&branch.also);
            let draws = (1..=all).rev().map(|left| Draw::random(share, all, left));
            branch.lanes().zip(draws).collect()
        }
        ShareBy::Client => {
            let seed = seed(service, branch.generation);
            vec![(branch.address, Draw::Client { share, seed, six: false })]
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
    let draws = (1..=counted(&route.also)).rev().map(Lane);
    route.lanes().zip(draws)
}

/// How many containers there are with these beside the first.
fn counted(also: &[Ipv4Addr]) -> u32 {
    u32::try_from(also.len()).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    fn branch(by: ShareBy, share: Share, also: u32) -> Branch {
        let address = |last: u32| Ipv4Addr::from_bits(Ipv4Addr::new(10, 98, 1, 8).to_bits() + last);
        Branch {
            generation: Generation(8),
            address: address(0),
            also: (1..=also).map(address).collect(),
            share,
            by,
            ports: Vec::new(),
        }
    }

    fn shop() -> ServiceName {
        "shop".parse().unwrap()
    }

    fn texts(branch: &Branch, six: bool) -> Vec<String> {
        drawn(&shop(), branch).into_iter().map(|(_, draw)| draw.of_family(six).to_string()).collect()
    }

    #[test]
    fn what_is_drawn() {
        let tenth = "10%".parse().unwrap();
        let text = |by, six| texts(&branch(by, tenth, 0), six);
        assert_eq!(text(ShareBy::Connection, false), ["numgen random mod 1000 < 100"]);
        assert_eq!(text(ShareBy::Connection, true), ["numgen random mod 1000 < 100"]);
        let seed = seed(&shop(), Generation(8));
        assert_eq!(text(ShareBy::Client, false), [format!("jhash ip saddr mod 1000 seed {seed:#x} < 100")]);
        assert_eq!(text(ShareBy::Client, true), [format!("jhash ip6 saddr mod 1000 seed {seed:#x} < 100")]);
    }

    #[test]
    fn several_containers_draw_one_after_the_other() {
        let three = branch(ShareBy::Connection, "60%".parse().unwrap(), 2);
        assert_eq!(
            texts(&three, false),
            ["numgen random mod 3000 < 600", "numgen random mod 2400 < 600", "numgen random mod 1800 < 600"]
        );
        assert!(drawn(&shop(), &three).into_iter().map(|(address, _)| address).eq(three.lanes()));
        // A client would draw the same again.
        let clients = drawn(&shop(), &Branch { by: ShareBy::Client, ..three.clone() });
        assert_eq!(clients.iter().map(|(address, _)| *address).collect::<Vec<_>>(), [three.address]);
    }

    /// Whatever the share, and however many there are: of `1000 * all` connections each container takes `share`, to the last
    /// one, and no draw is like one among replicas.
    #[test]
    fn every_container_has_its_even_part() {
        for share in (1..WHOLE).filter_map(Share::new) {
            let part = u32::from(share.thousandths());
            for all in 1..=MAX_REPLICAS {
                let mut left = u32::from(WHOLE) * all;
                let draws = drawn(&shop(), &branch(ShareBy::Connection, share, all - 1));
                assert_eq!(draws.len(), all as usize);
                for (_, draw) in draws {
                    let modulus = draw.modulus();
                    let taken = left * part;
                    assert_eq!((taken % modulus, taken / modulus), (0, part), "{draw} of {left}");
                    left -= part;
                    assert_eq!(Draw::by_connection(modulus, part), Some(draw));
                    assert_eq!(Lane::by_connection(modulus, part), None, "{draw}");
                }
                assert_eq!(left, (u32::from(WHOLE) - part) * all);
            }
        }
    }

    #[test]
    fn a_lane_is_no_branch() {
        for modulus in 2..=MAX_REPLICAS {
            assert_eq!(Lane::by_connection(modulus, 1).map(Lane::left), Some(modulus));
            assert_eq!(Draw::by_connection(modulus, 1), None);
        }
        for (modulus, below) in [(3, 2), (1, 1), (MAX_REPLICAS + 1, 1), (3, 0)] {
            assert!(Lane::by_connection(modulus, below).is_none(), "{below} of {modulus}");
        }
    }

    #[test]
    fn what_is_read_back() {
        let tenth: Share = "10%".parse().unwrap();
        let made = |by| drawn(&shop(), &branch(by, tenth, 0)).first().map(|(_, draw)| *draw);
        assert_eq!(Draw::by_connection(1000, 100), made(ShareBy::Connection));
        let client = Draw::by_client(true, 1000, seed(&shop(), Generation(8)), 100);
        assert_eq!(client, made(ShareBy::Client).map(|draw| draw.of_family(true)));
        assert_eq!(client.map(Draw::share), Some((tenth, ShareBy::Client)));
        for (modulus, below) in
            [(100, 10), (999, 10), (64_001, 10), (1000, 1000), (1000, 0), (1000, 1 << 16 | 100)]
        {
            assert_eq!(Draw::by_connection(modulus, below), None, "{below} of {modulus}");
        }
        assert_eq!(Draw::by_client(false, 2000, 0, 100), None);
    }
}
