//! What an image does once it runs: the script of its health.

use std::time::Duration;

use gitopsd::reconcile::later;
use gitopsd::types::{Counters, Digest, HealthCheck, Probe, Timestamp};
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
    /// Whether one-shots succeed in it.
    pub pre_succeeds: bool,
    /// How long they take.
    pub job: Duration,
    /// From the start to the first probe that passes; `None` = never.
    pub healthy_after: Option<Duration>,
    /// From the start to the end of health.
    pub sick_after: Option<Duration>,
    /// From the start on its clients are refused, or dropped, though its health check passes.
    pub refuses_after: Option<Duration>,
    /// From the start to the first process that is killed for want of memory.
    pub oom_after: Option<Duration>,
    /// Whether it has a health check of its own.
    pub checks_itself: bool,
    /// From the start to the end of the process.
    pub exits_after: Option<Duration>,
    /// With code 0.
    pub exits_well: bool,
    /// How long its connections last after it lost its traffic.
    pub lingers: Duration,
    /// Whether its running containers take other limits.
    pub takes_limits: bool,
    /// Bytes of memory that it uses; `None` = nobody counts.
    pub uses: Option<u64>,
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
            job: Duration::from_millis(500),
            healthy_after: Some(Duration::from_secs(1)),
            sick_after: None,
            refuses_after: None,
            oom_after: None,
            checks_itself: false,
            exits_after: None,
            exits_well: false,
            lingers: Duration::ZERO,
            takes_limits: true,
            uses: None,
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

    /// What the kernel has counted of a container's connections: some hundred a second once it runs.
    pub fn counters(&self, started_at: Timestamp, now: Timestamp) -> Counters {
        let age = Duration::try_from(now.duration_since(started_at)).unwrap_or_default();
        let bad = self.refuses_after.map_or(Duration::ZERO, |after| age.saturating_sub(after));
        let count = |time: Duration| time.as_millis() as u64 / 8;
        Counters { opened: count(age - bad), failed: count(bad) }
    }

    /// Whether a process of it was killed for want of memory.
    pub fn oom_kills(&self, started_at: Timestamp, now: Timestamp) -> u64 {
        u64::from(self.oom_after.is_some_and(|after| now >= later(started_at, after)))
    }

    /// The health check that it brings.
    pub fn own_check(&self) -> Option<HealthCheck> {
        let probe = Probe::Test { command: vec!["check".to_owned()] };
        self.checks_itself.then(|| HealthCheck {
            interval: Duration::from_secs(5),
            start_period: Duration::ZERO,
            ..HealthCheck::new(probe)
        })
    }

    /// Whether a container of it goes on serving once it does.
    pub fn keeps_serving(&self) -> bool {
        self.starts && self.healthy_after.is_some() && self.sick_after.is_none() && self.exits_after.is_none()
    }
}
