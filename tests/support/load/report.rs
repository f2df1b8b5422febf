//! What a run of the load generator found, for people and as JSON. It owns the counting, not the requests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::client::Failure;

/// Failed requests whose moments are told.
const SHOWN: usize = 100;

/// The counts of one worker, or of all of them added up.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Requests with a good answer: microseconds from the start of the run, and of the request itself.
    successes: Vec<(u64, u32)>,
    /// Failed requests, by kind.
    failures: BTreeMap<Failure, u64>,
    /// When a failed request began and ended, after the start of the run.
    pub failed_at: Vec<(Duration, Duration, Failure)>,
    /// Good answers, by the version in the body.
    versions: BTreeMap<String, u64>,
    /// Connections that were opened.
    pub connections: u64,
    /// Requests that were sent again on a new connection after a stale one.
    pub retries: u64,
    /// How far the generator itself was behind its schedule, at worst.
    pub behind: Duration,
    /// How long the run took.
    pub elapsed: Duration,
}

impl Report {
    /// Counts a good answer that came `at` after the start of the run.
    pub fn success(&mut self, at: Duration, took: Duration, version: String) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.successes.push((u64::try_from(at.as_micros()).unwrap_or(u64::MAX), micros));
        *self.versions.entry(version).or_default() += 1;
    }

    /// Counts a failed request.
    pub fn failure(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    /// The same, with the moments when the request began and ended.
    pub fn failure_at(&mut self, failure: Failure, (began, ended): (Duration, Duration)) {
        self.failure(failure);
        self.failed_at.push((began, ended, failure));
    }

    /// Adds another worker's counts.
    pub fn merge(&mut self, other: Self) {
        self.successes.extend(other.successes);
        self.failed_at.extend(other.failed_at);
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        for (version, count) in other.versions {
            *self.versions.entry(version).or_default() += count;
        }
        self.connections += other.connections;
        self.retries += other.retries;
        self.behind = self.behind.max(other.behind);
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    /// How many requests were made.
    pub fn requests(&self) -> u64 {
        u64::try_from(self.successes.len()).unwrap_or(u64::MAX).saturating_add(self.failed())
    }

    /// How many of them failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// How many failed in one way.
    #[cfg_attr(not(test), allow(dead_code, reason = "for tests that run the load in their own process"))]
    pub fn failed_with(&self, failure: Failure) -> u64 {
        self.failures.get(&failure).copied().unwrap_or_default()
    }

    /// How many were answered by a version.
    #[cfg_attr(not(test), allow(dead_code, reason = "for tests that run the load in their own process"))]
    pub fn answered_by(&self, version: &str) -> u64 {
        self.versions.get(version).copied().unwrap_or_default()
    }

    /// The latency that `percent` of the good answers did not exceed (nearest rank).
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted: Vec<u32> = self.successes.iter().map(|(_, took)| *took).collect();
        sorted.sort_unstable();
        let rank = sorted.len().saturating_mul(percent).div_ceil(100).max(1);
        Duration::from_micros(sorted.get(rank - 1).copied().unwrap_or_default().into())
    }

    /// The longest time without a good answer, the start and the end of the run included.
    pub fn longest_gap(&self) -> Duration {
        let mut moments: Vec<u64> = self.successes.iter().map(|(at, _)| *at).collect();
        moments.push(0);
        moments.push(u64::try_from(self.elapsed.as_micros()).unwrap_or(u64::MAX));
        moments.sort_unstable();
        let gaps = moments.iter().zip(moments.iter().skip(1)).map(|(a, b)| b - a);
        Duration::from_micros(gaps.max().unwrap_or_default())
    }

    /// When the first failed requests began, in milliseconds after the start of the run.
    fn first_failures(&self) -> Vec<u128> {
        let mut all: Vec<u128> = self.failed_at.iter().map(|(began, ..)| began.as_millis()).collect();
        all.sort_unstable();
        all.truncate(SHOWN);
        all
    }

    /// One JSON object on one line; times in milliseconds.
    pub fn to_json(&self) -> String {
        let failures = self.failures.iter().map(|(kind, count)| (kind.name(), *count));
        let versions = self.versions.iter().map(|(version, count)| (version.clone(), *count));
        format!(
            "{{\"requests\":{},\"failed\":{},\"failures\":{},\"versions\":{},\"connections\":{},\"retries\":{},\
             \"failed_at_ms\":{:?},\"p50_ms\":{:.3},\"p99_ms\":{:.3},\"max_ms\":{:.3},\"longest_gap_ms\":{:.3},\"behind_ms\":{:.3},\
             \"seconds\":{:.3}}}",
            self.requests(),
            self.failed(),
            json_counts(failures),
            json_counts(versions),
            self.connections,
            self.retries,
            self.first_failures(),
            millis(self.percentile(50)),
            millis(self.percentile(99)),
            millis(self.percentile(100)),
            millis(self.longest_gap()),
            millis(self.behind),
            self.elapsed.as_secs_f64(),
        )
    }

    /// A few lines for people.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{} requests in {:.1} s over {} connections, {} failed\n",
            self.requests(),
            self.elapsed.as_secs_f64(),
            self.connections,
            self.failed()
        );
        for (kind, count) in &self.failures {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  failed: {count} {}", kind.name());
        }
        for (version, count) in &self.versions {
            let version = if version.is_empty() { "(no version)" } else { version };
            let _ = writeln!(text, "  answered by {version}: {count}");
        }
        let _ = writeln!(
            text,
            "  latency p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; longest gap {:.1} ms; retries {}",
            millis(self.percentile(50)),
            millis(self.percentile(99)),
            millis(self.percentile(100)),
            millis(self.longest_gap()),
            self.retries
        );
        text
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn json_counts(counts: impl Iterator<Item = (String, u64)>) -> String {
    let members: Vec<String> =
        counts.map(|(name, count)| format!("{}:{count}", json_string(&name))).collect();
    format!("{{{}}}", members.join(","))
}

/// A JSON string; a version comes from a server, so that everything but plain characters is escaped.
fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                json.push('\\');
                json.push(character);
            }
            control if control.is_control() => {
                let _ = write!(json, "\\u{:04x}", u32::from(control));
            }
            plain => json.push(plain),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank_and_gaps_include_the_ends() {
        let mut report = Report { elapsed: Duration::from_millis(1000), ..Report::default() };
        for i in 1..=100u64 {
            report.success(Duration::from_millis(i * 5), Duration::from_micros(101 - i), "1".to_owned());
        }
        assert_eq!(report.percentile(50), Duration::from_micros(50));
        assert_eq!(report.percentile(99), Duration::from_micros(99));
        assert_eq!(report.percentile(100), Duration::from_micros(100));
        assert_eq!(report.longest_gap(), Duration::from_millis(500));
    }

    #[test]
    fn nothing_at_all_is_one_long_gap() {
        let report = Report { elapsed: Duration::from_secs(2), ..Report::default() };
        assert_eq!(report.longest_gap(), Duration::from_secs(2));
        assert_eq!(report.percentile(99), Duration::ZERO);
    }

    #[test]
    fn json_is_json() {
        let mut report = Report::default();
        report.success(Duration::ZERO, Duration::from_micros(1500), "a\"b\\\u{1}".to_owned());
        report.failure(Failure::Status(502));
        report.failure(Failure::ConnectRefused);
        let parsed: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(parsed["requests"], 3);
        assert_eq!(parsed["failed"], 2);
        assert_eq!(parsed["failures"]["status-502"], 1);
        assert_eq!(parsed["failures"]["connect-refused"], 1);
        assert_eq!(parsed["versions"]["a\"b\\\u{1}"], 1);
        assert_eq!(parsed["p50_ms"], 1.5);
    }
}
