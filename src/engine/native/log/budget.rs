//! How much of the processor a shim may use. A container can write faster than a log is worth: then its shim reads more
//! slowly, the pipe fills, and the container waits for itself.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// One part in so many of one processor, in the long run.
const SHARE: u32 = 4;

/// What may be used at once after a quiet time.
const BURST: Duration = Duration::from_secs(1);

/// Time of the processor that is left; it grows with the clock and shrinks with use.
#[derive(Debug)]
pub(in super::super) struct Budget {
    left: Duration,
    debt: Duration,
    seen: Instant,
    used: Duration,
}

impl Budget {
    /// A full one.
    pub fn new() -> Self {
        Self { left: BURST, debt: Duration::ZERO, seen: Instant::now(), used: used() }
    }

    /// Looks at the clock: how long to rest before more is done; `None` = not at all.
    pub fn rest(&mut self) -> Option<Duration> {
        let (now, total) = (Instant::now(), used());
        let (passed, spent) = (now - self.seen, total.saturating_sub(self.used));
        (self.seen, self.used) = (now, total);
        self.account(passed, spent)
    }

    fn account(&mut self, passed: Duration, spent: Duration) -> Option<Duration> {
        let earned = passed / SHARE;
        self.left = (self.left + earned.saturating_sub(self.debt)).min(BURST);
        self.debt = self.debt.saturating_sub(earned) + spent.saturating_sub(self.left);
        self.left = self.left.saturating_sub(spent);
        (!self.debt.is_zero()).then_some(self.debt * SHARE)
    }
}

/// Processor time of this process so far.
fn used() -> Duration {
    let time = |value: TimeVal| {
        let micros = value.tv_usec().unsigned_abs();
        Duration::from_secs(value.tv_sec().unsigned_abs()) + Duration::from_micros(micros)
    };
    // It cannot fail for oneself; if it did there would be no limit, and the log goes on.
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(Duration::ZERO, |usage| time(usage.user_time()) + time(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_is_a_share() {
        let ms = Duration::from_millis;
        let mut budget = Budget::new();
        assert_eq!(budget.account(ms(900), ms(900)), None);
        assert_eq!(budget.account(ms(0), ms(100)), None);
        assert_eq!(budget.account(ms(0), ms(10)), Some(ms(40)));
        assert_eq!(budget.account(ms(20), ms(0)), Some(ms(20)));
        assert_eq!(budget.account(ms(20), ms(0)), None);
        // In the long run: a tenth of a second's work, again and again.
        let mut wall = Duration::ZERO;
        for _ in 0..100 {
            let rest = budget.account(ms(100), ms(100)).unwrap_or_default();
            wall += ms(100) + rest;
            budget.account(rest, ms(0));
        }
        assert!(wall >= ms(39_000), "{wall:?}");
        assert_eq!(budget.account(Duration::from_secs(99), ms(0)), None);
        assert_eq!(budget.left, BURST, "what is saved is bounded");
    }
}
