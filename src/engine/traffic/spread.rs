//! A part of new connections for a second generation: what a rule draws, as text and as read back (nft(8), "numgen" and
//! "hash" expressions; libnftables-json(5)). Pure.
//!
//! A branch is a rule before the one that it takes from: what is drawn goes there, what is not goes on to the next rule.
//! There is no map in it: before a fix of September 2025 a lookup could miss every element of a set that was being
//! replaced, and a connection that finds no rule is refused. Here the last rule takes whatever is left.

use std::fmt;
use std::net::Ipv4Addr;

use serde_json::Value;

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

    /// Reads a match of a rule back; `None` if it is none of ours.
    pub fn read(matched: &Value) -> Option<Self> {
        let left = matched.get("left")?;
        let share = Share::new(u16::try_from(matched.get("right")?.as_u64()?).ok()?)?;
        let whole = |drawn: &Value| drawn.get("mod").and_then(Value::as_u64) == Some(WHOLE.into());
        if matched.get("op")?.as_str()? != "<" {
            return None;
        }
        if let Some(drawn) = left.get("numgen") {
            let random = drawn.get("mode")?.as_str()? == "random" && whole(drawn);
            return random.then_some(Self { share, by: ShareBy::Connection, seed: 0, six: false });
        }
        let drawn = left.get("jhash").filter(|drawn| whole(drawn))?;
        let payload = drawn.get("expr")?.get("payload")?;
        let six = match (payload.get("protocol")?.as_str()?, payload.get("field")?.as_str()?) {
            ("ip", "saddr") => false,
            ("ip6", "saddr") => true,
            _ => return None,
        };
        let seed = u32::try_from(drawn.get("seed")?.as_u64()?).ok()?;
        Some(Self { share, by: ShareBy::Client, seed, six })
    }
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
    /// Reads a match of a rule back: of how many one is taken; `None` if it is none of ours. The draws of a branch are
    /// from many more.
    pub fn read(matched: &Value) -> Option<Self> {
        let drawn = matched.get("left")?.get("numgen")?;
        let random = drawn.get("mode")?.as_str()? == "random" && matched.get("op")?.as_str()? == "<";
        let left = u32::try_from(drawn.get("mod")?.as_u64()?).ok()?;
        let one = matched.get("right")?.as_u64()? == 1;
        (random && one && (2..=MAX_REPLICAS).contains(&left)).then_some(Self(left))
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
        let of = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        let lane =
            of(r#"{"op": "<", "left": {"numgen": {"mode": "random", "mod": 3, "offset": 0}}, "right": 1}"#);
        assert_eq!((Lane::read(&lane).map(Lane::left), Draw::read(&lane)), (Some(3), None));
        let branch = of(
            r#"{"op": "<", "left": {"numgen": {"mode": "random", "mod": 1000, "offset": 0}}, "right": 1}"#,
        );
        assert!(Lane::read(&branch).is_none() && Draw::read(&branch).is_some());
        for other in ["\"right\": 2", "\"mod\": 1,", "\"mod\": 65,"] {
            let key = other.split(':').next().unwrap();
            let text = lane.to_string();
            let at = text.find(key).unwrap();
            let end = at + text[at..].find([',', '}']).unwrap();
            let changed = format!("{}{}{}", &text[..at], other.trim_end_matches(','), &text[end..]);
            assert!(Lane::read(&of(&changed)).is_none(), "{changed}");
        }
    }

    /// As nft 1.0.6 prints it.
    #[test]
    fn what_is_read_back() {
        let shop: ServiceName = "shop".parse().unwrap();
        let read = |text: &str| Draw::read(&serde_json::from_str(text).unwrap());
        let random =
            r#"{"op": "<", "left": {"numgen": {"mode": "random", "mod": 1000, "offset": 0}}, "right": 100}"#;
        assert_eq!(read(random), Some(Draw::of(&shop, &branch(ShareBy::Connection), false)));
        let seed = seed(&shop, Generation(8));
        let hash = format!(
            r#"{{"op": "<", "left": {{"jhash": {{"mod": 1000, "seed": {seed}, "expr": {{"payload": {{"protocol": "ip6", "field": "saddr"}}}}}}}}, "right": 100}}"#
        );
        let draw = read(&hash).unwrap();
        assert_eq!(draw, Draw::of(&shop, &branch(ShareBy::Client), true));
        assert!(draw.belongs(&shop, Generation(8)) && !draw.belongs(&shop, Generation(9)));
        for (from, to) in
            [("\"<\"", "\">\""), ("random", "inc"), ("1000", "100"), ("right\": 100", "right\": 1000")]
        {
            assert_eq!(read(&random.replace(from, to)), None, "{to}");
        }
        assert_eq!(read(&hash.replace("saddr", "daddr")), None);
    }
}
