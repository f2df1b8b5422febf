//! Whether a container that ended is started again.

use std::fmt;
use std::str::FromStr;

use super::{Exit, Invalid};

/// `restart` of a service, in the words of the Compose Specification. What each means where git decides what runs:
/// docs/decisions/0015-restart.md.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It is started again however it ended.
    #[default]
    Always,
    /// The same: what is stopped here is taken out of the repo.
    UnlessStopped,
    /// It is started again unless it ended with code 0; so often in a row at most, where a number is given.
    OnFailure(Option<u32>),
    /// It stays ended.
    No,
}

impl RestartPolicy {
    /// Whether it is the one in force where nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a container that ended so is started again; `starts` are those in a row after the first.
    pub fn restarts(self, exit: &Exit, starts: u32) -> bool {
        match self {
            Self::Always | Self::UnlessStopped => true,
            // An end that nobody saw may have been a failure.
            Self::OnFailure(most) => exit.code != Some(0) && most.is_none_or(|most| starts < most),
            Self::No => false,
        }
    }

    /// Whether ending with code 0 is what it is for.
    pub fn may_end(self) -> bool {
        matches!(self, Self::OnFailure(_) | Self::No)
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.pad("always"),
            Self::UnlessStopped => f.pad("unless-stopped"),
            Self::OnFailure(None) => f.pad("on-failure"),
            Self::OnFailure(Some(most)) => write!(f, "on-failure:{most}"),
            Self::No => f.pad("no"),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let most = |number: &str| number.parse().ok().filter(|most: &u32| (1..=10_000).contains(most));
        Ok(match (text, text.strip_prefix("on-failure:").map(most)) {
            ("always", _) => Self::Always,
            ("unless-stopped", _) => Self::UnlessStopped,
            ("on-failure", _) => Self::OnFailure(None),
            (_, Some(Some(most))) => Self::OnFailure(Some(most)),
            ("no", _) => Self::No,
            _ => {
                return Err(Invalid::new(format!(
                    "`{text}` is none of `no`, `always`, `on-failure`, `on-failure:N` and `unless-stopped`"
                )));
            }
        })
    }
}

impl serde::Serialize for RestartPolicy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for RestartPolicy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    #[test]
    fn words_parse_back_and_others_are_refused() {
        for text in ["no", "always", "on-failure", "on-failure:3", "unless-stopped"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for bad in ["", "never", "on-failure:", "on-failure:0", "on-failure:-1", "on-failure:x", "false"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn who_is_started_again() {
        let end = |code, signal| Exit { code, signal, oom_killed: false, at: Timestamp::UNIX_EPOCH };
        let (well, ill, killed, unseen) =
            (end(Some(0), None), end(Some(3), None), end(None, Some(9)), end(None, None));
        for (policy, on) in [
            ("no", [false; 4]),
            ("always", [true; 4]),
            ("unless-stopped", [true; 4]),
            ("on-failure", [false, true, true, true]),
        ] {
            let policy: RestartPolicy = policy.parse().unwrap();
            let said = [&well, &ill, &killed, &unseen].map(|exit| policy.restarts(exit, 1_000_000));
            assert_eq!(said, on, "{policy}");
        }
        let twice = RestartPolicy::OnFailure(Some(2));
        assert_eq!([0, 1, 2, 3].map(|starts| twice.restarts(&ill, starts)), [true, true, false, false]);
    }
}
