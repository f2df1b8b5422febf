//! How slow is too slow.

use std::time::Duration;

/// Bytes a second below which a connection counts as broken: another one may have a better way.
pub(super) const SLOWEST: u64 = 1024;

/// Time over which that is measured.
const WINDOW: Duration = Duration::from_secs(30);

/// How fast bytes come, while somebody waits for them: a slow disk is no slow network.
#[derive(Default)]
pub(super) struct Rate {
    waited: Duration,
    bytes: u64,
}

impl Rate {
    /// Whether so many more bytes, after so long, are enough.
    pub fn is_fair(&mut self, bytes: u64, waited: Duration) -> bool {
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < WINDOW {
            return true;
        }
        let fair = self.bytes >= SLOWEST * self.waited.as_secs();
        *self = Self::default();
        fair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_no_connection() {
        let mut rate = Rate::default();
        assert!(rate.is_fair(0, Duration::from_secs(29)), "not yet");
        assert!(!rate.is_fair(100, Duration::from_secs(2)));
        assert!(rate.is_fair(1 << 20, Duration::from_secs(59)), "a new window");
    }
}
