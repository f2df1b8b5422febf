//! When the same request is worth another try, and how long to wait before it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::PullError;

/// Longest wait that a server can ask for.
const LONGEST: Duration = Duration::from_secs(60);

/// Tries of one request, the first one included.
const TRIES: u32 = 4;

/// Further tries of all requests of one pull together: a registry that is down is not asked by every layer for itself.
const BUDGET: u32 = 20;

/// Progress that makes a further try worth it, however many there were (podman's body_reader.go).
const WORTH_ANOTHER: u64 = 1 << 20;

/// Time after which a former failure no longer counts (podman's body_reader.go).
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Whether an answer of this kind may be another one a moment later.
pub(super) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// What the server asks to wait: seconds, or a date (RFC 9110 section 10.2.3), which needs its own `Date` to be told
/// how far away it is, so that no clock of this host has a say.
pub(super) fn asked_to_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let after = text(RETRY_AFTER)?.trim();
    let wait = match after.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date =
                |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|date| date.timestamp().as_second());
            let wait = date(after)?.saturating_sub(date(text(reqwest::header::DATE)?)?);
            Duration::from_secs(u64::try_from(wait).unwrap_or(0))
        }
    };
    Some(wait.min(LONGEST))
}

/// The pause before a try: doubled each time, and never the same for two hosts.
pub(super) fn pause(attempt: u32, asked: Option<Duration>) -> Duration {
    let base = Duration::from_millis(200u64 << attempt.min(5));
    // Seeded anew in each process (std::hash::RandomState).
    let chance = RandomState::new().build_hasher().finish() % 100;
    let jittered = base.mul_f64(0.5 + chance as f64 / 100.0);
    asked.map_or(jittered, |asked| asked + jittered)
}

/// What the requests of one pull have left together.
#[derive(Debug)]
pub(super) struct Budget(AtomicU32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(BUDGET))
    }
}

impl Budget {
    /// Takes a further try out of it.
    pub fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// Gives one back: it led to something.
    fn give(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a download that broke off is continued.
#[derive(Debug, Default)]
pub(super) struct Resume {
    attempt: u32,
    /// Where and when it broke the last time.
    last: Option<(u64, Instant)>,
    /// When it began.
    begun: Option<Instant>,
    /// How often it broke off.
    broken: u32,
}

impl Resume {
    /// Of a request that is about to begin.
    pub fn begin(now: Instant) -> Self {
        Self { begun: Some(now), ..Self::default() }
    }

    /// It broke off at `offset`: the attempt that is to follow, counted from 0, or `None` if it is given up.
    pub fn broke(&mut self, offset: u64, now: Instant, budget: &Budget) -> Option<u32> {
        self.broken = self.broken.saturating_add(1);
        self.begun.get_or_insert(now);
        let former = self.last.replace((offset, now));
        let progress = former.is_none_or(|(at, when)| {
            offset >= at.saturating_add(WORTH_ANOTHER) || now.saturating_duration_since(when) >= FORGOTTEN
        });
        if progress {
            self.attempt = 0;
            if former.is_some() {
                budget.give();
            }
        }
        if self.attempt + 1 >= TRIES || !budget.take() {
            return None;
        }
        self.attempt += 1;
        Some(self.attempt - 1)
    }

    /// Why it is given up: how often it was tried, for how long, and whether others used up what there was.
    pub fn told(&self, now: Instant) -> String {
        let took = self.begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        let times = if self.broken == 1 { "once".to_owned() } else { format!("{} times", self.broken) };
        let spent = if self.attempt + 1 < TRIES {
            format!(", and all {BUDGET} further tries of this pull are used up")
        } else {
            String::new()
        };
        format!("tried {times} in {:.1} s{spent}", took.as_secs_f64())
    }
}

/// Does one thing again, where another try may do.
pub(super) async fn patiently<T, F>(act: impl Fn() -> F) -> Result<T, PullError>
where
    F: Future<Output = Result<T, PullError>>,
{
    let (mut resume, budget) = (Resume::default(), Budget::default());
    loop {
        let error = match act().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(asked) = error.again else { return Err(error) };
        match resume.broke(0, Instant::now(), &budget) {
            Some(attempt) => tokio::time::sleep(pause(attempt, asked)).await,
            None => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_progress_it_is_given_up() {
        let (mut resume, budget, now) = (Resume::default(), Budget::default(), Instant::now());
        let tries: Vec<_> = (0..5).map(|_| resume.broke(7, now, &budget)).collect();
        assert_eq!(tries, [Some(0), Some(1), Some(2), None, None]);
    }

    #[test]
    fn with_progress_it_goes_on_for_ever() {
        let (mut resume, budget, now) = (Resume::default(), Budget::default(), Instant::now());
        for round in 0..100 {
            assert_eq!(resume.broke(round * WORTH_ANOTHER, now, &budget), Some(0), "{round}");
        }
        // Slowly, and long apart: the same.
        for round in 1..100u32 {
            let then = now + FORGOTTEN * round;
            assert_eq!(resume.broke(100 * WORTH_ANOTHER + u64::from(round), then, &budget), Some(0));
        }
    }

    #[test]
    fn all_layers_share_one_budget() {
        let (budget, now) = (Budget::default(), Instant::now());
        let given = (0..100).filter(|_| Resume::default().broke(0, now, &budget).is_some()).count();
        assert_eq!(given, BUDGET as usize);
    }

    #[test]
    fn giving_up_says_how_often_and_how_long() {
        let (budget, now) = (Budget::default(), Instant::now());
        let mut resume = Resume::begin(now);
        while resume.broke(7, now, &budget).is_some() {}
        assert_eq!(resume.told(now + Duration::from_millis(3240)), "tried 4 times in 3.2 s");
        while budget.take() {}
        let mut late = Resume::begin(now);
        assert_eq!(late.broke(7, now, &budget), None);
        let told = late.told(now + Duration::from_secs(1));
        assert_eq!(told, "tried once in 1.0 s, and all 20 further tries of this pull are used up");
    }

    #[test]
    fn servers_say_how_long() {
        let headers = |after: &str, date: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, after.parse().unwrap());
            headers.insert(reqwest::header::DATE, date.parse().unwrap());
            asked_to_wait(&headers).map(|wait| wait.as_secs())
        };
        let date = "Wed, 21 Oct 2026 07:28:00 GMT";
        assert_eq!(headers("7", date), Some(7));
        assert_eq!(headers("86400", date), Some(60), "not for ever");
        assert_eq!(headers("Wed, 21 Oct 2026 07:28:09 GMT", date), Some(9));
        assert_eq!(headers("Wed, 21 Oct 2026 07:20:00 GMT", date), Some(0), "it is over");
        assert_eq!(headers("soon", date), None);
        assert_eq!(asked_to_wait(&HeaderMap::new()), None);
        let asked = Duration::from_secs(3);
        assert!((0..9).all(|attempt| pause(attempt, Some(asked)) > asked && pause(attempt, None) < LONGEST));
    }
}
