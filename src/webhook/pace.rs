//! How many bytes may be looked at: so many a second, of all connections together.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// A bucket of bytes that fills by itself.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    burst: u64,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    bytes: u64,
    at: Instant,
}

impl Pace {
    /// Full at first. `rate` is bytes a second.
    pub fn new(rate: u64, burst: u64) -> Self {
        Self { rate: rate.max(1), burst, level: Mutex::new(Level { bytes: burst, at: Instant::now() }) }
    }

    /// Takes bytes out, waiting until there are so many. More than a burst is never there.
    pub async fn take(&self, bytes: u64) {
        while let Some(pause) = self.try_take(bytes.min(self.burst)) {
            tokio::time::sleep(pause).await;
        }
    }

    /// `Some`: how long until there may be so many.
    fn try_take(&self, bytes: u64) -> Option<Duration> {
        let mut level = self.level.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let since = now.saturating_duration_since(level.at);
        let grown =
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_mul(self.rate) / 1_000_000;
        // What has not grown to a byte yet goes on growing.
        if grown > 0 {
            level.bytes = level.bytes.saturating_add(grown).min(self.burst);
            level.at = now;
        }
        match level.bytes.checked_sub(bytes) {
            Some(rest) => {
                level.bytes = rest;
                None
            }
            None => {
                let missing = (bytes - level.bytes).saturating_mul(1_000_000) / self.rate;
                Some(Duration::from_micros(missing.max(1_000)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_is_free_and_the_rest_takes_time() {
        let pace = Pace::new(10_000, 1_000);
        let since = Instant::now();
        assert_eq!(pace.try_take(1_000), None);
        for _ in 0..10 {
            pace.take(200).await;
        }
        // 2,000 bytes at 10,000 a second.
        assert!(since.elapsed() >= Duration::from_millis(190), "{:?}", since.elapsed());
    }
}
