//! When this host looks at the repo by itself: at its own place within the interval, so that a fleet that was started at
//! once, as after a power cut, does not ask the server at once, now or later.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::types::{HostName, Timestamp};

/// The times of one host: those whose distance from 1970 leaves the same rest, divided by the interval.
#[derive(Debug, Clone, Copy)]
pub struct Poll {
    /// In milliseconds.
    interval: i64,
    /// This host's rest, in milliseconds.
    place: i64,
}

impl Poll {
    /// The place follows from the names alone: the same after every start.
    pub fn new(instance: &str, host: &HostName, interval: Duration) -> Self {
        let interval = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX / 4).max(1);
        let hash =
            Sha256::new().chain_update(instance).chain_update([0]).chain_update(host.as_str()).finalize();
        let number = hash.iter().take(4).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let place = (u128::from(number) * u128::from(interval.unsigned_abs())) >> 32;
        Self { interval, place: i64::try_from(place).unwrap_or(0) }
    }

    /// The next time after a look at `now`. One that would come at once, a tenth of the interval at the most, is left out.
    pub fn after(&self, now: Timestamp) -> Timestamp {
        let from = now.as_millisecond().saturating_add(self.interval / 10);
        let into = from.saturating_sub(self.place).rem_euclid(self.interval);
        let next = from.saturating_sub(into).saturating_add(self.interval);
        Timestamp::from_millisecond(next).unwrap_or(Timestamp::MAX)
    }

    /// No later than this is the next time, at `now`.
    pub fn latest(&self, now: Timestamp) -> Timestamp {
        let latest = now.as_millisecond().saturating_add(self.interval).saturating_add(self.interval / 10);
        Timestamp::from_millisecond(latest.saturating_add(1)).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn poll(instance: &str, host: &str) -> Poll {
        Poll::new(instance, &host.parse().unwrap(), INTERVAL)
    }

    fn time(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    #[test]
    fn a_host_keeps_its_place() {
        let (a, b) = (poll("gitopsd", "web-1"), poll("gitopsd", "web-1"));
        let mut now = time(1_770_000_000_123);
        for _ in 0..100 {
            let next = a.after(now);
            assert_eq!(next, b.after(now));
            let gap = next.as_millisecond() - now.as_millisecond();
            assert!((3_000..=33_000).contains(&gap), "{gap}");
            assert!(next <= a.latest(now));
            // Looks that something else has caused move nothing.
            assert_eq!(next.as_millisecond().rem_euclid(30_000), a.place);
            now = time(next.as_millisecond() + 17);
        }
        assert_ne!(a.place, poll("other", "web-1").place);
    }

    #[test]
    fn a_fleet_is_spread_over_the_interval() {
        let now = time(1_770_000_000_000);
        let mut tenths = [0; 11];
        for n in 0..1_000 {
            let gap = poll("gitopsd", &format!("web-{n}")).after(now).as_millisecond() - now.as_millisecond();
            tenths[usize::try_from((gap - 3_001) / 3_000).unwrap()] += 1;
        }
        assert!(tenths[..10].iter().all(|count| (60..=140).contains(count)), "{tenths:?}");
    }
}
