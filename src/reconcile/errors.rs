//! After the switch, and with a part of new connections before it: whether the new generation's connections fail where the old one's did not, by what the kernel has
//! counted. docs/decisions/0022-after-the-switch.md says why it is so slow to judge.

use std::time::Duration;

use super::{later, pending};
use crate::types::{Counters, Deploy, Timestamp};

/// More than this of what was tried has to fail where the service says nothing, in per cent and above the old
/// generation's share: what no working program does. One that closes in an unusual way has up to three resets for each
/// connection, which is 75 of 100.
const DEFAULT_RATE: u8 = 80;

/// Windows in a row that have to be bad.
const WINDOWS: u32 = 3;

/// Longest window; of a short `bake` they are a sixth.
const LONGEST_WINDOW: Duration = Duration::from_secs(5);

/// Shortest window: what is seen in less says nothing.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

/// Fewer failures in a window, and fewer tries of the old generation in its whole life, say nothing.
const ENOUGH: u64 = 20;

/// What was counted of a candidate since it has traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorHistory {
    /// When its container was started.
    pub started_at: Timestamp,
    /// All that the old generation's had counted when the new one got its traffic.
    pub before: Counters,
    /// The end of the last window, and what was counted until then.
    pub last: (Timestamp, Counters),
    /// Bad windows in a row.
    pub bad: u32,
    /// What was counted in the last bad one.
    pub worst: Counters,
}

impl ErrorHistory {
    /// The first look, right after the switch. `old`, `new`: what both generations' containers have counted so far.
    pub fn new(started_at: Timestamp, old: Counters, new: Counters, now: Timestamp) -> Self {
        Self { started_at, before: old, last: (now, new), bad: 0, worst: Counters::default() }
    }

    /// When the window is over.
    pub fn next_look_at(&self, deploy: &Deploy) -> Timestamp {
        later(self.last.0, window(deploy))
    }

    /// Whether the window is over.
    pub fn is_due(&self, deploy: &Deploy, now: Timestamp) -> bool {
        !pending(now, self.next_look_at(deploy), window(deploy))
    }

    /// Takes a look in; one before its time changes nothing.
    pub fn record(&mut self, deploy: &Deploy, now: Timestamp, counted: Counters) {
        if !self.is_due(deploy, now) {
            return;
        }
        let window = counted.since(self.last.1);
        self.last = (now, counted);
        if is_bad(deploy, self.before, window) {
            self.bad = self.bad.saturating_add(1);
            self.worst = window;
        } else {
            self.bad = 0;
        }
    }

    /// Why the candidate is to lose its traffic, if it is.
    pub fn verdict(&self) -> Option<String> {
        let Counters { failed, .. } = self.worst;
        (self.bad >= WINDOWS).then(|| {
            let (new, old) = (share(self.worst), share(self.before));
            format!(
                "{failed} of {} connections were refused, reset or dropped ({new:.0}%, and {old:.0}% of the generation before)",
                self.worst.tried()
            )
        })
    }
}

/// How long connections are counted before a look at them.
fn window(deploy: &Deploy) -> Duration {
    (deploy.bake / 6).min(LONGEST_WINDOW).max(SHORTEST_WINDOW)
}

fn is_bad(deploy: &Deploy, before: Counters, window: Counters) -> bool {
    let limit = f64::from(deploy.max_error_rate.unwrap_or(DEFAULT_RATE));
    let comparable = before.tried() >= ENOUGH && window.failed >= ENOUGH;
    comparable && share(window) - share(before) > limit
}

/// In per cent of what was tried.
fn share(counters: Counters) -> f64 {
    match counters.tried() {
        0 => 0.0,
        // Far from 2^53: these are connections of seconds, or of a container's life.
        tried => 100.0 * counters.failed as f64 / tried as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Timestamp {
        later(Timestamp::UNIX_EPOCH, Duration::from_secs(seconds))
    }

    fn counters(opened: u64, failed: u64) -> Counters {
        Counters { opened, failed }
    }

    /// A candidate of which each window of five seconds brought this.
    fn seen(deploy: &Deploy, before: Counters, windows: &[(u64, u64)]) -> Option<String> {
        let mut total = counters(7, 3);
        let mut history = ErrorHistory::new(at(0), before, total, at(0));
        for (number, (opened, failed)) in windows.iter().enumerate() {
            total = counters(total.opened + opened, total.failed + failed);
            history.record(deploy, at(5 * (number as u64 + 1)), total);
            if let Some(why) = history.verdict() {
                return Some(why);
            }
        }
        None
    }

    #[test]
    fn what_refuses_everybody_loses_its_traffic_and_says_the_numbers() {
        let deploy = Deploy::default();
        let why = seen(&deploy, counters(1000, 0), &[(5, 200), (5, 200), (10, 190)]);
        let text =
            "190 of 200 connections were refused, reset or dropped (95%, and 0% of the generation before)";
        assert_eq!(why.as_deref(), Some(text));
    }

    #[test]
    fn a_clock_that_is_set_back_stops_no_counting() {
        let mut history = ErrorHistory::new(at(100_000), counters(1000, 0), counters(0, 0), at(100_000));
        for (number, seconds) in [100_005, 100_010, 3, 8].into_iter().enumerate() {
            history.record(&Deploy::default(), at(seconds), counters(0, 200 * (number as u64 + 1)));
        }
        assert_eq!((history.last.0, history.verdict().is_some()), (at(8), true));
    }

    #[test]
    fn noise_is_none() {
        let deploy = Deploy::default();
        for (before, windows, why) in [
            (counters(1000, 0), vec![(0, 200), (0, 200)], "two windows are not enough"),
            (
                counters(1000, 0),
                vec![(0, 200), (0, 200), (100, 0), (0, 200), (0, 200)],
                "they are not in a row",
            ),
            (counters(1000, 0), vec![(0, 19); 12], "a handful"),
            (counters(19, 0), vec![(0, 200); 12], "nothing to compare with"),
            (counters(100, 300), vec![(0, 200); 12], "the old one was like that"),
            // TLS and HTTP servers that close before their client does.
            (counters(1000, 0), vec![(100, 100); 12], "one reset a connection"),
            (counters(1000, 0), vec![(100, 300); 12], "three resets a connection"),
            (counters(1000, 0), vec![(5, 60_000), (100, 2), (100, 2)], "somebody looked for open ports"),
        ] {
            assert_eq!(seen(&deploy, before, &windows), None, "{why}");
        }
    }

    #[test]
    fn who_knows_the_program_says_less_or_nothing() {
        let strict = Deploy { max_error_rate: Some(5), ..Deploy::default() };
        assert!(seen(&strict, counters(1000, 0), &[(280, 20); 3]).is_some());
        assert!(seen(&strict, counters(1000, 40), &[(480, 30); 12]).is_none(), "two per cent more");
        let off = Deploy { max_error_rate: Some(100), ..Deploy::default() };
        assert!(seen(&off, counters(1000, 0), &[(0, 1000); 12]).is_none());
    }

    #[test]
    fn windows_fit_into_the_bake() {
        let of = |bake| {
            let deploy = Deploy { bake: Duration::from_secs(bake), ..Deploy::default() };
            ErrorHistory::new(at(0), counters(0, 0), counters(0, 0), at(100)).next_look_at(&deploy)
        };
        assert_eq!((of(0), of(12), of(60), of(3600)), (at(101), at(102), at(105), at(105)));
    }

    proptest! {
        /// Whatever happens: no verdict while the new generation is no worse than the old one, or not looked at.
        #[test]
        fn what_is_no_worse_is_left_alone(
            (opened, failed) in (0..10_000u64, 0..10_000u64),
            windows in prop::collection::vec((0..1000u64, 0..1000u64), 0..20),
            rate in prop::option::of(1..=100u8),
        ) {
            let before = counters(opened, failed);
            let limit = share(before) + f64::from(rate.unwrap_or(DEFAULT_RATE));
            let deploy = Deploy { max_error_rate: rate, ..Deploy::default() };
            let fine: Vec<_> =
                windows.into_iter().filter(|(opened, failed)| share(counters(*opened, *failed)) <= limit).collect();
            prop_assert_eq!(seen(&deploy, before, &fine), None);
        }

        /// Counters that go back (they are 32 bits on some machines), and clocks that do, harm nobody.
        #[test]
        fn judging_never_panics(looks in prop::collection::vec((0..100u64, any::<u64>(), any::<u64>()), 0..20)) {
            let mut history = ErrorHistory::new(at(50), counters(u64::MAX, u64::MAX), counters(9, 9), at(50));
            for (seconds, opened, failed) in looks {
                history.record(&Deploy::default(), at(seconds), counters(opened, failed));
                let _ = history.verdict();
            }
        }
    }
}
