//! From a history of probes to a verdict.

use std::time::Duration;

use super::later;
use crate::types::{HealthCheck, Probe, Timestamp};

/// Without a health check a service has to accept connections for this long before it counts as healthy.
const STEADY: Duration = Duration::from_secs(1);

/// First pause between two probes of a container that has never passed one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// What the probes have seen of one container since it was started.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeHistory {
    /// When the container was started.
    pub started_at: Timestamp,
    /// Since when every probe has passed.
    pub passing_since: Option<Timestamp>,
    /// Whether any probe has ever passed: it ends the start period.
    pub ever_passed: bool,
    /// Failures in a row that count.
    pub failures: u32,
    /// When the last failure that counts was seen.
    pub counted_at: Option<Timestamp>,
    /// When the last probe ended, and how.
    pub last: Option<(Timestamp, Result<(), String>)>,
}

impl ProbeHistory {
    /// Of a container that has not been probed yet.
    pub fn new(started_at: Timestamp) -> Self {
        Self {
            started_at,
            passing_since: None,
            ever_passed: false,
            failures: 0,
            counted_at: None,
            last: None,
        }
    }

    /// Takes a probe's result in. A failure counts once the start period is over (or a probe has ever passed, as in
    /// Docker's HEALTHCHECK), and at most one an interval: the quick probes of the start must not use up `retries`.
    pub fn record(&mut self, check: &EffectiveCheck, at: Timestamp, result: Result<(), String>) {
        match &result {
            Ok(()) => {
                self.ever_passed = true;
                self.failures = 0;
                self.counted_at = None;
                self.passing_since.get_or_insert(at);
            }
            Err(_) => {
                self.passing_since = None;
                let started = self.ever_passed || at >= later(self.started_at, check.start_period);
                // A tenth of slack: timers of probes are never exact.
                let spaced =
                    self.counted_at.is_none_or(|last| at >= later(last, check.interval.mul_f64(0.9)));
                if started && spaced {
                    self.failures = self.failures.saturating_add(1);
                    self.counted_at = Some(at);
                }
            }
        }
        self.last = Some((at, result));
    }

    /// When the next probe is due: often at first, so that a quick starter is noticed at once, then every interval.
    pub fn next_probe_at(&self, check: &EffectiveCheck) -> Timestamp {
        let Some((last, result)) = &self.last else { return self.started_at };
        let pause = if self.ever_passed && result.is_ok() && !check.needs_steadiness(self, *last) {
            check.interval
        } else if self.ever_passed {
            check.interval.min(Duration::from_millis(250))
        } else {
            let age = Duration::try_from(last.duration_since(self.started_at)).unwrap_or_default();
            // Not `clamp`: an interval below the first pause would make it panic.
            (age / 8).min(check.interval).max(FIRST_PAUSE)
        };
        later(*last, pause)
    }
}

/// The check in force: the declared one, or what stands in for it.
#[derive(Debug, Clone, PartialEq)]
pub struct EffectiveCheck {
    /// All of these have to pass. Empty: that the process runs is all there is to see.
    pub probes: Vec<Probe>,
    /// See [`HealthCheck`].
    pub interval: Duration,
    /// See [`HealthCheck`].
    pub timeout: Duration,
    /// See [`HealthCheck`].
    pub start_period: Duration,
    /// See [`HealthCheck`].
    pub retries: u32,
    /// How long it has to pass in a row before it counts as healthy.
    pub steady: Duration,
}

impl EffectiveCheck {
    /// The check of a spec. Without a declared one: a connection to each published TCP port, for a second.
    pub fn of<I>(spec: &crate::types::ServiceSpec<I>) -> Self {
        match &spec.healthcheck {
            Some(HealthCheck { probe, interval, timeout, start_period, retries }) => Self {
                probes: vec![probe.clone()],
                interval: *interval,
                timeout: *timeout,
                start_period: *start_period,
                retries: *retries,
                steady: Duration::ZERO,
            },
            None => {
                let mut ports: Vec<u16> = spec
                    .ports
                    .iter()
                    .filter(|mapping| mapping.protocol == crate::types::Protocol::Tcp)
                    .map(|mapping| mapping.container_port)
                    .collect();
                ports.sort_unstable();
                ports.dedup();
                Self {
                    probes: ports.into_iter().map(|port| Probe::Tcp { port }).collect(),
                    interval: Duration::from_secs(5),
                    timeout: Duration::from_secs(2),
                    // Nobody said how long it may take to start listening: deploy.timeout is the limit.
                    start_period: spec.deploy.timeout,
                    retries: 3,
                    steady: STEADY,
                }
            }
        }
    }

    fn needs_steadiness(&self, history: &ProbeHistory, now: Timestamp) -> bool {
        history.passing_since.is_some_and(|since| now < later(since, self.steady))
    }
}

/// Whether a container works.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It does.
    Healthy,
    /// It does not.
    Unhealthy(String),
    /// Not known yet.
    Undecided {
        /// What was seen last.
        why: String,
    },
}

/// Judges a running container.
pub fn judge(
    check: &EffectiveCheck,
    history: Option<&ProbeHistory>,
    started_at: Timestamp,
    now: Timestamp,
) -> Verdict {
    if check.probes.is_empty() {
        return if now >= later(started_at, check.steady) {
            Verdict::Healthy
        } else {
            Verdict::Undecided { why: "it runs, and has to do so for a second".to_owned() }
        };
    }
    // A history of an earlier start of the same generation says nothing about this one.
    let Some(history) = history.filter(|history| history.started_at == started_at) else {
        return Verdict::Undecided { why: "not probed yet".to_owned() };
    };
    let last = match &history.last {
        Some((_, Err(why))) => why.clone(),
        _ => "not probed yet".to_owned(),
    };
    if history.failures >= check.retries {
        return Verdict::Unhealthy(last);
    }
    match history.passing_since {
        // Judged by what was probed, not by the clock: the last pass has to be that much later than the first.
        Some(since) => match &history.last {
            Some((at, Ok(()))) if *at >= later(since, check.steady) => Verdict::Healthy,
            _ => Verdict::Undecided { why: "it answers, and has to do so for a second".to_owned() },
        },

        None => Verdict::Undecided { why: last },
    }
}
