//! One-shots of a service, and when those that come round are due.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Calendar;

/// What a container is for that runs to its end beside, or in the place of, the service's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// `deploy.pre`: before a generation starts.
    Pre,
    /// `deploy.post`: once a generation is the incumbent.
    Post,
    /// A run of a scheduled service.
    Run,
}

impl Job {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pre, Self::Post, Self::Run];

    /// The word in names of containers.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
            Self::Run => "run",
        }
    }
}

impl fmt::Display for Job {
    /// As a service file calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pre => "deploy.pre",
            Self::Post => "deploy.post",
            Self::Run => "its run",
        })
    }
}

/// When a service runs that does not run all the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The times.
    pub calendar: Calendar,
    /// Whether a run that was missed, as the host was off, is made up for once.
    pub persistent: bool,
    /// How long a run may take; `None` = as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}
