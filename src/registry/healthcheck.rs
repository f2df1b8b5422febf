//! The health check that an image brings: `HEALTHCHECK` of a Dockerfile, as its configuration has it.
//!
//! Source: Docker image specification v1.2, `Healthcheck`; times are nanoseconds, and 0 stands for Docker's default.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::types::{HealthCheck, Probe};

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;
/// What is longer is a mistake: 68 years.
const LONGEST: i64 = i64::MAX / 4;

/// Reads `Healthcheck` and `Shell` of a configuration. What is not of their form is as if it was not there: an image
/// does not have to run under Docker.
pub(super) fn read(document: Value, shell: Value) -> Option<HealthCheck> {
    let shell: Vec<String> = serde_json::from_value(shell).unwrap_or_default();
    serde_json::from_value::<Document>(document).ok()?.check(&shell)
}

/// As it stands in the configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Document {
    test: Option<Vec<String>>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

impl Document {
    /// The check. `shell`: the image's own for commands of one string; empty: `/bin/sh -c`. `None`: it has none, or turns
    /// that of its base image off, or says something that is none.
    fn check(self, shell: &[String]) -> Option<HealthCheck> {
        let test = self.test.unwrap_or_default();
        let (kind, words) = test.split_first()?;
        let command = match (kind.as_str(), words) {
            ("CMD", [_, ..]) => words.to_vec(),
            ("CMD-SHELL", [text, ..]) if shell.is_empty() => {
                vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()]
            }
            ("CMD-SHELL", [text, ..]) => [shell, std::slice::from_ref(text)].concat(),
            _ => return None,
        };
        Some(HealthCheck {
            interval: time(self.interval).unwrap_or(INTERVAL),
            timeout: time(self.timeout).unwrap_or(TIMEOUT),
            start_period: time(self.start_period).unwrap_or_default(),
            start_interval: time(self.start_interval),
            retries: u32::try_from(self.retries).ok().filter(|retries| *retries > 0).unwrap_or(RETRIES),
            ..HealthCheck::new(Probe::Test { command })
        })
    }
}

fn time(nanoseconds: i64) -> Option<Duration> {
    let nanoseconds = u64::try_from(nanoseconds.min(LONGEST)).ok()?;
    // Shorter ones would turn in circles; Docker refuses less than a millisecond.
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds).max(Duration::from_millis(10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, shell: &[&str]) -> Option<HealthCheck> {
        let shell: Vec<String> = shell.iter().map(|word| (*word).to_owned()).collect();
        read(serde_json::from_str(text).unwrap(), serde_json::json!(shell))
    }

    fn command(check: Option<HealthCheck>) -> Vec<String> {
        match check.unwrap().probe {
            Probe::Test { command } => command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_dockerfiles_say() {
        let said = check(
            r#"{"Test":["CMD","pg_isready","-q"],"Interval":5000000000,"Timeout":1000000000,
                "StartPeriod":60000000000,"StartInterval":500000000,"Retries":7}"#,
            &[],
        );
        let expected = HealthCheck {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            start_period: Duration::from_secs(60),
            start_interval: Some(Duration::from_millis(500)),
            retries: 7,
            ..HealthCheck::new(Probe::Test { command: vec!["pg_isready".to_owned(), "-q".to_owned()] })
        };
        assert_eq!(said, Some(expected));
        let bare = check(r#"{"Test":["CMD-SHELL","curl -f localhost || exit 1"]}"#, &[]);
        assert_eq!(bare.as_ref().map(|check| (check.interval, check.timeout)), Some((INTERVAL, TIMEOUT)));
        assert_eq!(bare.as_ref().map(|check| (check.start_period, check.retries)), Some((Duration::ZERO, 3)));
        assert_eq!(command(bare), ["/bin/sh", "-c", "curl -f localhost || exit 1"]);
        let own = check(r#"{"Test":["CMD-SHELL","true"]}"#, &["/bin/bash", "-o", "pipefail", "-c"]);
        assert_eq!(command(own), ["/bin/bash", "-o", "pipefail", "-c", "true"]);
    }

    #[test]
    fn what_is_none() {
        for text in [
            "null",
            "{}",
            "7",
            r#"{"Test":"curl"}"#,
            r#"{"Test":null}"#,
            r#"{"Test":[]}"#,
            r#"{"Test":["NONE"]}"#,
            r#"{"Test":["CMD"]}"#,
            r#"{"Test":["CMD-SHELL"]}"#,
            r#"{"Test":["curl"]}"#,
            r#"{"Interval":5000000000}"#,
        ] {
            assert_eq!(check(text, &[]), None, "{text}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_the_defaults() {
        let odd = check(
            r#"{"Test":["CMD","x"],"Interval":-5,"Timeout":1,"Retries":-1,"StartPeriod":9223372036854775807}"#,
            &[],
        );
        let odd = odd.unwrap();
        assert_eq!((odd.interval, odd.timeout, odd.retries), (INTERVAL, Duration::from_millis(10), 3));
        assert!(odd.start_period <= Duration::from_secs(86_400 * 366 * 74));
    }
}
