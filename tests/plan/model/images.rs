//! What an image does once it runs: the script of its health.

use std::time::Duration;

use gitopsd::types::{Digest, Timestamp};
use sha2::Digest as _;

/// How containers of one image behave.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    /// Whether the registry knows the tag.
    pub exists: bool,
    /// How long its pull takes.
    pub pull: Duration,
    /// Whether what is pulled is what was named.
    pub intact: bool,
    /// Whether its container can be started.
    pub starts: bool,
    /// Whether `deploy.pre` succeeds in it.
    pub pre_succeeds: bool,
    /// From the start to the first probe that passes; `None` = never.
    pub healthy_after: Option<Duration>,
    /// From the start to the end of health.
    pub sick_after: Option<Duration>,
    /// From the start to the end of a process in it for want of memory.
    pub starves_after: Option<Duration>,
    /// From the start to the end of the process.
    pub exits_after: Option<Duration>,
    /// With code 0.
    pub exits_well: bool,
    /// How long its connections last after it lost its traffic.
    pub lingers: Duration,
    /// How often the tag has been moved to other bytes.
    pub version: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            exists: true,
            pull: Duration::from_secs(3),
            intact: true,
            starts: true,
            pre_succeeds: true,
            healthy_after: Some(Duration::from_secs(1)),
            sick_after: None,
            starves_after: None,
            exits_after: None,
            exits_well: false,
            lingers: Duration::ZERO,
            version: 0,
        }
    }
}

impl Behaviour {
    /// The bytes that `tag` stands for.
    pub fn digest(&self, tag: &str) -> Digest {
        Digest::from_sha256(&sha2::Sha256::digest(format!("{tag}#{}", self.version)).into())
    }

    /// What a probe sees.
    pub fn probe(&self, started_at: Timestamp, now: Timestamp) -> Result<(), String> {
        let age = Duration::try_from(now.duration_since(started_at)).unwrap();
        match (self.healthy_after, self.sick_after) {
            (_, Some(sick)) if age >= sick => Err("GET /healthz: 500".to_owned()),
            (Some(healthy), _) if age >= healthy => Ok(()),
            _ => Err("connection refused".to_owned()),
        }
    }

    /// Whether a container of it goes on serving once it does.
    pub fn keeps_serving(&self) -> bool {
        self.starts && self.healthy_after.is_some() && self.sick_after.is_none() && self.exits_after.is_none()
    }
}
