//! Names of services and hosts, and the number that tells two generations of a service apart.

use std::fmt;
use std::str::FromStr;

use super::{Invalid, Job, serde_through_str};

/// Longest name: it has to fit a file name, a cgroup and a DNS label (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 63;

/// Lower-case letters, digits, `-` and `_`, beginning with a letter or a digit. No dot: `InstanceId` needs it.
pub(super) fn validate(kind: &str, text: &str, extra: &[char]) -> Result<String, Invalid> {
    let first_ok = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let rest_ok = text
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_' || extra.contains(&c));
    if text.is_empty() || text.len() > MAX_NAME || !first_ok || !rest_ok {
        return Err(Invalid::new(format!(
            "`{text}` is not a {kind} name: it takes 1 to {MAX_NAME} of a-z, 0-9, - and _, beginning with a letter or a digit"
        )));
    }
    Ok(text.to_owned())
}

/// The name of a service: the stem of its file in `services/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

impl FromStr for ServiceName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        validate("service", text, &[]).map(Self)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
serde_through_str!(ServiceName);

/// The name a host goes by in the config repo and in receipts; dots are fine, as in a fully qualified name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl FromStr for HostName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let name = validate("host", text, &['.'])?;
        // The name becomes the last part of refs/notes/gitopsd/<host>: git refuses these (git-check-ref-format(1)).
        if name.contains("..") || name.ends_with('.') || name.ends_with(".lock") {
            return Err(Invalid::new(format!(
                "`{text}` is not a host name: no `..`, no `.` or `.lock` at the end"
            )));
        }
        Ok(Self(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl HostName {
    /// A name that is known to be one.
    pub(crate) fn from_static(name: &'static str) -> Self {
        Self(name.to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
serde_through_str!(HostName);

/// The number of a service's spec on this host: 1, 2, 3 … A number is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// How a generation is shown: two neighbours never share a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// Odd generations.
    Blue,
    /// Even generations.
    Green,
}

impl Generation {
    /// The number that comes after this one; the last one stays, as it may come from a damaged file.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Blue for odd numbers, green for even ones.
    pub fn color(self) -> Color {
        if self.0 % 2 == 1 { Color::Blue } else { Color::Green }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Blue => "blue",
            Self::Green => "green",
        })
    }
}

/// One of the containers of a generation: 1, 2, 3 …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ReplicaIndex(u32);

impl ReplicaIndex {
    /// The one that every generation has, and whose name says no number.
    pub const FIRST: Self = Self(1);

    /// The last that there can be.
    pub const LAST: Self = Self(u32::MAX);

    /// `None` for 0: they are counted from 1, as `replicas` are.
    pub fn new(number: u32) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Whether it is the one that every generation has.
    pub fn is_first(&self) -> bool {
        *self == Self::FIRST
    }
}

impl Default for ReplicaIndex {
    fn default() -> Self {
        Self::FIRST
    }
}

impl FromStr for ReplicaIndex {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let number = text.parse().ok().and_then(Self::new);
        number.ok_or_else(|| Invalid::new(format!("`{text}` is not an index: they are counted from 1")))
    }
}

impl fmt::Display for ReplicaIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One container of one generation of one service, or a one-shot of it: the name of every kernel object and directory
/// made for it, as `shop.7`, from the second on `shop.7-2`, and `shop.7-pre`. Not `shop.7.2`: so the second attempt at the
/// unit of `shop.7` is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    /// The service.
    pub service: ServiceName,
    /// Which of its generations.
    pub generation: Generation,
    /// Which of that one's containers.
    pub index: ReplicaIndex,
    /// The one-shot, which is of the whole generation; `None` = the service itself.
    pub job: Option<Job>,
}

impl InstanceId {
    /// Names the first container of generation `generation` of `service`.
    pub fn new(service: &ServiceName, generation: Generation) -> Self {
        Self::replica(service, generation, ReplicaIndex::FIRST)
    }

    /// Names one of the containers of a generation.
    pub fn replica(service: &ServiceName, generation: Generation, index: ReplicaIndex) -> Self {
        Self { service: service.clone(), generation, index, job: None }
    }

    /// Names a one-shot of generation `generation` of `service`.
    pub fn of_job(service: &ServiceName, generation: Generation, job: Job) -> Self {
        Self { job: Some(job), ..Self::new(service, generation) }
    }

    /// The name without the service: `7`, `7-2`, `7-pre`.
    pub fn number(&self) -> String {
        match (self.job, self.index) {
            (Some(job), _) => format!("{}-{}", self.generation, job.word()),
            (None, ReplicaIndex::FIRST) => self.generation.to_string(),
            (None, index) => format!("{}-{index}", self.generation),
        }
    }

    /// The inverse of [`Self::number`], which has one spelling: `07` must not name the same thing as `7`.
    fn of_number(service: &ServiceName, number: &str) -> Option<Self> {
        let (generation, rest) = match number.split_once('-') {
            Some((generation, rest)) => (generation, Some(rest)),
            None => (number, None),
        };
        let generation = Generation(generation.parse().ok()?);
        let job = rest.and_then(|rest| Job::ALL.into_iter().find(|job| job.word() == rest));
        let id = match (rest, job) {
            (None, _) => Self::new(service, generation),
            (_, Some(job)) => Self::of_job(service, generation, job),
            (Some(index), None) => {
                Self::replica(service, generation, ReplicaIndex::new(index.parse().ok()?)?)
            }
        };
        (id.number() == number).then_some(id)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.number())
    }
}

impl FromStr for InstanceId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parse = || {
            let (service, number) = text.rsplit_once('.')?;
            Self::of_number(&service.parse().ok()?, number)
        };
        parse().ok_or_else(|| {
            Invalid::new(format!(
                "`{text}` is not an instance: expected SERVICE.GENERATION or SERVICE.GENERATION-INDEX"
            ))
        })
    }
}
serde_through_str!(InstanceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_names_are_strict() {
        for good in ["shop", "shop-2", "0x", "a_b"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "Shop", "-a", "a.b", "a/b", "..", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn instances_have_one_spelling() {
        let id: InstanceId = "shop.7".parse().unwrap();
        assert_eq!((id.to_string().as_str(), id.index), ("shop.7", ReplicaIndex::FIRST));
        for job in Job::ALL {
            let id = InstanceId::of_job(&id.service, id.generation, job);
            assert_eq!(id.to_string().parse::<InstanceId>().unwrap(), id);
        }
        let id: InstanceId = "shop.7-12".parse().unwrap();
        assert_eq!(
            (id.generation, id.index.number(), id.to_string().as_str()),
            (Generation(7), 12, "shop.7-12")
        );
        let bad = ["shop", "shop.07", "shop.", ".7", "shop.-1", "shop.7.8x", "shop.7.2", "shop.7-"];
        let bad = bad.into_iter().chain(["shop.7-x", "shop.7-pre-pre", "shop.7-2-pre", "shop.7-pre-2"]);
        for bad in bad.chain(["shop.7-0", "shop.7-1", "shop.7-02", "shop.7-2-3", "shop.+7", "shop.7-+2"]) {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn neighbours_differ_in_colour() {
        assert_eq!(Generation(7).color(), Color::Blue);
        assert_eq!(Generation(8).color(), Color::Green);
    }
}
