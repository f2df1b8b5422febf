//! A share of new connections for a new generation, before it gets all of them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Generation, Invalid, PortMapping, ServiceName, serde_through_str};

/// Of so many new connections a [`Share`] is counted.
pub const WHOLE: u16 = 1000;

/// A part of new connections: `10%`, `0.5%`. More than none, less than all, in steps of a tenth of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u16);

impl Share {
    /// `thousandths` of all new connections; `None` for none, all, or more.
    pub fn new(thousandths: u16) -> Option<Self> {
        (1..WHOLE).contains(&thousandths).then_some(Self(thousandths))
    }

    /// How many of [`WHOLE`].
    pub fn thousandths(self) -> u16 {
        self.0
    }
}

impl FromStr for Share {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parse = || {
            let number = text.strip_suffix('%')?;
            let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
            let plain = |digits: &str, most| {
                (1..=most).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
            };
            if !plain(whole, 2) || !plain(tenth, 1) {
                return None;
            }
            let thousandths = whole.parse::<u16>().ok()?.checked_mul(10)?.checked_add(tenth.parse().ok()?)?;
            Self::new(thousandths)
        };
        parse().ok_or_else(|| {
            Invalid::new(format!("`{text}` is not a share: write `10%`, from `0.1%` to `99.9%`"))
        })
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, tenth) => write!(f, "{whole}.{tenth}%"),
        }
    }
}
serde_through_str!(Share);

/// What decides to which side a new connection goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareBy {
    /// Chance, for each connection (UDP: each flow) anew: the share is exact whoever asks, also where all clients come
    /// by one address.
    #[default]
    Connection,
    /// The client's address: all connections of a client go to one side.
    Client,
}

impl ShareBy {
    /// The word in service files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Client => "client",
        }
    }
}

/// `canary`, `canary_time` and `canary_by` of `[deploy]`: what a new generation gets before it gets all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// Its share of new connections.
    pub share: Share,
    /// For how long it has to be well with that.
    pub time: Duration,
    /// Who is among them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by: ShareBy,
}

impl Canary {
    /// `canary_time`, where nothing is said.
    pub const TIME: Duration = Duration::from_secs(300);

    /// A share by connection, for the default time.
    pub fn new(share: Share) -> Self {
        Self { share, time: Self::TIME, by: ShareBy::default() }
    }
}

fn is_default(by: &ShareBy) -> bool {
    *by == ShareBy::default()
}

/// The second generation of a [`super::Route`], and what it gets of new connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Which generation.
    pub generation: Generation,
    /// The address of its container; of several, the first that gets any.
    pub address: Ipv4Addr,
    /// The addresses of its other containers that get new connections too, by their index: each as many as the first. With
    /// [`ShareBy::Client`] there are none.
    pub also: Vec<Ipv4Addr>,
    /// Its share.
    pub share: Share,
    /// Who is among them.
    pub by: ShareBy,
    /// Where the route's ports lead in it, sorted. A port of the route that it has not is the first generation's alone.
    pub ports: Vec<PortMapping>,
}

impl Branch {
    /// The addresses of all of its containers that get new connections.
    pub fn lanes(&self) -> impl Iterator<Item = Ipv4Addr> {
        std::iter::once(self.address).chain(self.also.iter().copied())
    }
}

/// The number by which clients are sorted in a canary of `generation`: the same for as long as it lasts, and another one
/// for the next, so that it does not hit the same people each time. FNV-1a (RFC 9923), 32 bits.
pub fn seed(service: &ServiceName, generation: Generation) -> u32 {
    let bytes = service.as_str().bytes().chain(generation.0.to_be_bytes());
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_one_spelling() {
        for good in ["0.1%", "1%", "10%", "12.5%", "50%", "99.9%"] {
            assert_eq!(good.parse::<Share>().unwrap().to_string(), good);
        }
        assert_eq!("10.0%".parse::<Share>().unwrap(), "10%".parse().unwrap());
        assert_eq!("10%".parse::<Share>().unwrap().thousandths(), 100);
        for bad in [
            "", "%", "0%", "0.0%", "100%", "10", "10 %", "-1%", "+1%", "1e1%", "0.05%", "10.%", ".5%", "999%",
        ] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_canary_sorts_clients_anew() {
        let (web, api): (ServiceName, ServiceName) = ("web".parse().unwrap(), "api".parse().unwrap());
        let seeds = [seed(&web, Generation(1)), seed(&web, Generation(2)), seed(&api, Generation(1))];
        assert!(seeds[0] != seeds[1] && seeds[0] != seeds[2], "{seeds:?}");
        assert_eq!(seeds[0], seed(&web, Generation(1)));
    }
}
