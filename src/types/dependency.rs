//! What a service needs of another one before it starts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Invalid, ServiceName};

/// How far the other one has to be. The words of the Compose Specification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It runs, or has done what it is for.
    #[default]
    ServiceStarted,
    /// It runs and is healthy.
    ServiceHealthy,
    /// It has ended with code 0.
    ServiceCompletedSuccessfully,
}

impl FromStr for Condition {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Ok(match text {
            "service_started" => Self::ServiceStarted,
            "service_healthy" => Self::ServiceHealthy,
            "service_completed_successfully" => Self::ServiceCompletedSuccessfully,
            _ => {
                return Err(Invalid::new(format!(
                    "`{text}` is none of `service_started`, `service_healthy` and `service_completed_successfully`"
                )));
            }
        })
    }
}

impl fmt::Display for Condition {
    /// What is missed where it is not so.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ServiceStarted => "running",
            Self::ServiceHealthy => "healthy",
            Self::ServiceCompletedSuccessfully => "through with code 0",
        })
    }
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Which service.
    pub service: ServiceName,
    /// How far it has to be.
    pub condition: Condition,
    /// Whether there is no going on without it.
    pub required: bool,
}

impl Dependency {
    /// What the short syntax says: it has to run.
    pub fn started(service: ServiceName) -> Self {
        Self { service, condition: Condition::default(), required: true }
    }
}

/// The long form, as records have it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    service: ServiceName,
    condition: Condition,
    required: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Either {
    Short(ServiceName),
    Long(Long),
}

impl Serialize for Dependency {
    /// The short form stays a name alone, as older versions wrote it.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::started(self.service.clone()) {
            return self.service.serialize(serializer);
        }
        let Self { service, condition, required } = self.clone();
        Long { service, condition, required }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Dependency {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Either::deserialize(deserializer)? {
            Either::Short(service) => Self::started(service),
            Either::Long(Long { service, condition, required }) => Self { service, condition, required },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_is_written_as_it_always_was() {
        let short = Dependency::started("db".parse().unwrap());
        assert_eq!(serde_json::to_string(&short).unwrap(), "\"db\"");
        let long = Dependency { condition: Condition::ServiceHealthy, required: false, ..short.clone() };
        for dependency in [short, long] {
            let text = serde_json::to_string(&dependency).unwrap();
            assert_eq!(serde_json::from_str::<Dependency>(&text).unwrap(), dependency, "{text}");
        }
    }
}
