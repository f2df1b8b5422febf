//! From a history of probes to a verdict.

use std::time::Duration;

use super::{later, pending};
use crate::types::{HealthCheck, Probe, ServiceSpec, Timestamp, format_duration};

/// Without a health check a service has to accept connections for this long before it counts as healthy.
const STEADY: Duration = Duration::from_secs(1);

/// First pause between two probes of a container that has never passed one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// From one probe to the next where a verdict hangs on it.
const SOON: Duration = Duration::from_millis(250);

/// What the probes have seen of one container since it was started.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeHistory {
    /// When the container was started.
    pub started_at: Timestamp,
    /// Since when every probe has passed.
    pub passing_since: Option<Timestamp>,
    /// Whether any probe has ever passed: it ends the start period.
    pub ever_passed: bool,
    /// Passes in a row.
    pub passes: u32,
    /// Failures in a row that count.
    pub failures: u32,
    /// The failure that made it unhealthy, until as many passes in a row as the check asks for.
    pub sick: Option<String>,
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
            passes: 0,
            failures: 0,
            sick: None,
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
                self.passes = self.passes.saturating_add(1);
                self.failures = 0;
                self.counted_at = None;
                // Not later than now, where the clock was set back.
                self.passing_since = Some(self.passing_since.map_or(at, |since| since.min(at)));
                if self.passes >= check.success_threshold {
                    self.sick = None;
                }
            }
            Err(why) => {
                self.passing_since = None;
                self.passes = 0;
                let started = self.ever_passed || at >= later(self.started_at, check.start_period);
                // A tenth of slack: timers of probes are never exact.
                let space = check.interval.mul_f64(0.9);
                let spaced = self.counted_at.is_none_or(|last| !pending(at, later(last, space), space));
                if started && spaced {
                    self.failures = self.failures.saturating_add(1);
                    self.counted_at = Some(at);
                }
                if self.failures >= check.retries {
                    self.sick = Some(why.clone());
                }
            }
        }
        self.last = Some((at, result));
    }

    /// When the next probe is due: often at first, so that a quick starter is noticed at once, then every interval.
    pub fn next_probe_at(&self, check: &EffectiveCheck) -> Timestamp {
        let Some((last, result)) = &self.last else { return self.started_at };
        let pause = match (self.ever_passed, result.is_ok()) {
            (true, true) if self.passes < check.success_threshold => check.interval.min(SOON),
            (true, true) => self.steadying(check, *last),
            (true, false) => check.interval.min(SOON),
            (false, _) => check.start_interval.map_or_else(
                || {
                    let age = Duration::try_from(last.duration_since(self.started_at)).unwrap_or_default();
                    // Not `clamp`: an interval below the first pause would make it panic.
                    (age / 8).min(check.interval).max(FIRST_PAUSE)
                },
                |pause| pause.max(FIRST_PAUSE),
            ),
        };
        later(*last, pause)
    }

    /// The pause after a pass: an interval, or what is left of the time that it has to pass in a row.
    fn steadying(&self, check: &EffectiveCheck, last: Timestamp) -> Duration {
        let over = self.passing_since.map(|since| later(since, check.steady)).filter(|over| *over > last);
        let Some(over) = over else { return check.interval };
        let left = Duration::try_from(over.duration_since(last)).unwrap_or_default();
        let often = if check.steady <= STEADY { SOON } else { check.interval };
        left.min(check.interval).min(often).max(FIRST_PAUSE)
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
    /// See [`HealthCheck`].
    pub start_interval: Option<Duration>,
    /// See [`HealthCheck`].
    pub success_threshold: u32,
    /// How long it has to pass in a row before it counts as healthy.
    pub steady: Duration,
}

impl EffectiveCheck {
    /// The check of a spec. `image`: the check that its image has. Without any: a connection to each published TCP
    /// port, for a second.
    pub fn of<I>(spec: &ServiceSpec<I>, image: Option<&HealthCheck>) -> Self {
        let steady = spec.deploy.min_healthy_time;
        let check = match (spec.healthcheck.as_ref().map(|check| (check, &check.probe)), image) {
            (Some((_, Probe::Ports)) | None, None) | (Some((_, Probe::Ports)), Some(_)) => {
                return Self::ports(spec);
            }
            (Some((_, Probe::Image(_))), None) => return Self::ports(spec),
            (Some((_, Probe::Image(times))), Some(image)) => times.over(image.clone()),
            (Some((check, _)), _) => check.clone(),
            (None, Some(image)) => image.clone(),
        };
        let HealthCheck {
            probe,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
            success_threshold,
        } = check;
        Self {
            probes: vec![probe],
            interval,
            timeout,
            start_period,
            start_interval,
            retries: retries.max(1),
            success_threshold: success_threshold.max(1),
            steady,
        }
    }

    fn ports<I>(spec: &ServiceSpec<I>) -> Self {
        let tcp = spec.ports.iter().filter(|mapping| mapping.protocol == crate::types::Protocol::Tcp);
        let mut ports: Vec<u16> = tcp.map(|mapping| mapping.container_port).collect();
        ports.sort_unstable();
        ports.dedup();
        Self {
            probes: ports.into_iter().map(|port| Probe::Tcp { port }).collect(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            // Nobody said how long it may take to start listening: deploy.timeout is the limit.
            start_period: spec.deploy.timeout,
            start_interval: None,
            retries: 3,
            success_threshold: 1,
            steady: STEADY.max(spec.deploy.min_healthy_time),
        }
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
            Verdict::Undecided { why: format!("it runs, and has to do so for {}", in_words(check.steady)) }
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
    // Told by what made it so: what failed since, before it has recovered, may be something else.
    if let Some(why) = &history.sick {
        return Verdict::Unhealthy(why.clone());
    }
    let Some(since) = history.passing_since else { return Verdict::Undecided { why: last } };
    if history.passes < check.success_threshold {
        let why = format!("it has passed {} of {} times in a row", history.passes, check.success_threshold);
        return Verdict::Undecided { why };
    }
    // Judged by what was probed, not by the clock: the last pass has to be that much later than the first.
    match &history.last {
        Some((at, Ok(()))) if *at >= later(since, check.steady) => Verdict::Healthy,
        _ => {
            Verdict::Undecided { why: format!("it answers, and has to do so for {}", in_words(check.steady)) }
        }
    }
}

fn in_words(time: Duration) -> String {
    if time == STEADY { "a second".to_owned() } else { format_duration(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_changes_no_verdict_for_long() {
        let spec = ServiceSpec::new("registry.local/shop:1".to_owned());
        let check = EffectiveCheck {
            probes: vec![Probe::Tcp { port: 80 }],
            steady: Duration::from_secs(2),
            ..EffectiveCheck::of(&spec, None)
        };
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap_or_default();
        let started_at = at(-100);
        let mut history = ProbeHistory::new(started_at);
        let judged = |history: &ProbeHistory, now| judge(&check, Some(history), started_at, now);
        for seconds in [1000, 1005] {
            history.record(&check, at(seconds), Ok(()));
        }
        assert_eq!(judged(&history, at(1005)), Verdict::Healthy);
        // Set back by a quarter of an hour.
        history.record(&check, at(100), Ok(()));
        history.record(&check, at(105), Ok(()));
        assert_eq!(judged(&history, at(105)), Verdict::Healthy);
        // And again, after the first failure.
        history.record(&check, at(110), Err("no".to_owned()));
        for seconds in [10, 15] {
            history.record(&check, at(seconds), Err("no".to_owned()));
        }
        assert_eq!(judged(&history, at(15)), Verdict::Unhealthy("no".to_owned()));
    }

    #[test]
    fn one_that_was_sick_is_well_again_after_as_many_passes_in_a_row_as_the_check_asks_for() {
        let spec = ServiceSpec::new("registry.local/shop:1".to_owned());
        let check = EffectiveCheck {
            probes: vec![Probe::Tcp { port: 80 }],
            retries: 2,
            success_threshold: 3,
            steady: Duration::ZERO,
            ..EffectiveCheck::of(&spec, None)
        };
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap_or_default();
        let mut history = ProbeHistory::new(at(0));
        let mut seconds = 0;
        let mut seen = String::new();
        for probe in "+++--++-+++".chars() {
            seconds += 5;
            let result = if probe == '+' { Ok(()) } else { Err("no".to_owned()) };
            history.record(&check, at(seconds), result);
            seen.push(match judge(&check, Some(&history), at(0), at(seconds)) {
                Verdict::Healthy => 'w',
                Verdict::Unhealthy(_) => 's',
                Verdict::Undecided { .. } => '?',
            });
        }
        // Two passes are not enough, nor are two more after a failure between them.
        assert_eq!(seen, "??w?ssssssw");
    }
}
