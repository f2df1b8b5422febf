//! How to tell that a container works: the question, how often it is asked, and how many answers make a verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Invalid, serde_through_str};

/// How to tell that a container works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// The question asked.
    pub probe: Probe,
    /// From one attempt to the next.
    pub interval: Duration,
    /// How long an attempt may take.
    pub timeout: Duration,
    /// How long after the start failures do not count.
    pub start_period: Duration,
    /// From one attempt to the next until the first one passes; `None`: often at first, then less so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<Duration>,
    /// This many failures in a row mean unhealthy; at least 1.
    pub retries: u32,
    /// This many passes in a row mean healthy; at least 1.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub success_threshold: u32,
}

fn once() -> u32 {
    1
}

fn is_once(number: &u32) -> bool {
    *number == 1
}

impl HealthCheck {
    /// A check with the default times that `docs/config.md` states.
    pub fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            start_period: Duration::from_secs(10),
            start_interval: None,
            retries: 3,
            success_threshold: 1,
        }
    }
}

/// One way of asking a container whether it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// An HTTP request gets the answer that is expected.
    Http(HttpProbe),
    /// A TCP connection to `port` of the container is accepted.
    Tcp {
        /// Port in the container.
        port: u16,
    },
    /// The command, run inside the container, ends with 0.
    Test {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// The container answers `SERVING` to `grpc.health.v1.Health/Check`.
    Grpc(GrpcProbe),
    /// The program has said `READY=1` to its `NOTIFY_SOCKET`. Source: sd_notify(3).
    Notify,
    /// The image's own check, with other times; where it has none, as if nothing was declared.
    Image(Times),
    /// A TCP connection to each published port is accepted, whatever check the image has.
    Ports,
}

impl Probe {
    /// A GET of `path` with no more said.
    pub fn http(path: impl Into<String>, port: u16) -> Self {
        Self::Http(HttpProbe {
            path: path.into(),
            port,
            method: HttpMethod::Get,
            status: Vec::new(),
            headers: BTreeMap::new(),
            contains: None,
            tls: None,
        })
    }

    /// Whether the container's address has to be reached for it.
    pub fn needs_network(&self) -> bool {
        match self {
            Self::Http(_) | Self::Tcp { .. } | Self::Grpc(_) => true,
            Self::Test { .. } | Self::Notify | Self::Image(_) | Self::Ports => false,
        }
    }
}

/// What is sent over HTTP/1.1, and what has to come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Port in the container.
    pub port: u16,
    /// The request's method.
    #[serde(default, skip_serializing_if = "HttpMethod::is_get")]
    pub method: HttpMethod,
    /// The answers that are well; empty: 200 to 399.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<StatusRange>,
    /// Sent with the request, over what is sent by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// What the first 64 KiB of the answer's body have to contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// Over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ProbeTls>,
}

/// Whom a gRPC health check asks, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcProbe {
    /// Port in the container.
    pub port: u16,
    /// The service's name in the question; empty: the server as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ProbeTls>,
}

/// How the certificate of what is asked over TLS is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeTls {
    /// The name it has to be for; `None`: the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Authorities to trust, in PEM; `None`: those of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Whether any certificate will do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_verify: bool,
}

/// Times that a service lays over those of its image's check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// See [`HealthCheck`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// See [`HealthCheck`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// See [`HealthCheck`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Duration>,
    /// See [`HealthCheck`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<Duration>,
    /// See [`HealthCheck`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// See [`HealthCheck`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<u32>,
}

impl Times {
    /// `check`, with what is said here in place of its own.
    pub fn over(&self, check: HealthCheck) -> HealthCheck {
        HealthCheck {
            interval: self.interval.unwrap_or(check.interval),
            timeout: self.timeout.unwrap_or(check.timeout),
            start_period: self.start_period.unwrap_or(check.start_period),
            start_interval: self.start_interval.or(check.start_interval),
            retries: self.retries.unwrap_or(check.retries),
            success_threshold: self.success_threshold.unwrap_or(check.success_threshold),
            probe: check.probe,
        }
    }
}

/// The methods that a question may have: none changes anything by its definition, but POST, which some servers take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    /// GET.
    #[default]
    Get,
    /// HEAD: no body comes back.
    Head,
    /// OPTIONS.
    Options,
    /// POST, with an empty body.
    Post,
}

impl HttpMethod {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Get, Self::Head, Self::Options, Self::Post];

    /// As it is sent.
    pub fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Post => "POST",
        }
    }

    fn is_get(&self) -> bool {
        *self == Self::Get
    }
}

/// Status codes from `first` to `last`: `200`, `200-299`, `2xx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl StatusRange {
    /// Whether `status` is one of them.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = Invalid;

    /// Source: RFC 9110 section 15: three digits, from 100 to 599.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let code = |text: &str| -> Option<u16> {
            let plain = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|code| plain && (100..=599).contains(code))
        };
        let range = match (text.split_once('-'), text.strip_suffix("xx")) {
            (Some((first, last)), _) => code(first.trim()).zip(code(last.trim())),
            (None, Some(hundred)) => code(&format!("{hundred}00")).map(|first| (first, first + 99)),
            (None, None) => code(text).map(|code| (code, code)),
        };
        match range {
            Some((first, last)) if first <= last => Ok(Self { first, last }),
            _ => Err(Invalid::new(format!("`{text}` is not a status as 200, 200-299 or 2xx"))),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

serde_through_str!(StatusRange);

/// What a program has said to its `NOTIFY_SOCKET`. Source: sd_notify(3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notified {
    /// `READY=1`.
    #[serde(default)]
    pub ready: bool,
    /// `STOPPING=1`, or `WATCHDOG=trigger`: it says that it does not work any more.
    #[serde(default)]
    pub stopping: bool,
    /// The last `STATUS=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// What the kernel has counted of a container's TCP connections since its network was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Opened, both ways.
    pub opened: u64,
    /// Refused, reset or dropped by it.
    pub failed: u64,
}

impl Counters {
    /// What was counted since `earlier`. A counter that went back began anew.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            opened: self.opened.saturating_sub(earlier.opened),
            failed: self.failed.saturating_sub(earlier.failed),
        }
    }

    /// All that was tried.
    pub fn tried(self) -> u64 {
        self.opened.saturating_add(self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_ranges() {
        for (text, shown) in
            [("200", "200"), ("200-299", "200-299"), ("2xx", "200-299"), ("404 - 404", "404")]
        {
            assert_eq!(text.parse::<StatusRange>().unwrap().to_string(), shown, "{text}");
        }
        for bad in ["", "20", "2000", "099", "600", "6xx", "xx", "300-200", "+20", "2x", "200-", "٢٠٠"] {
            assert!(bad.parse::<StatusRange>().is_err(), "{bad}");
        }
        let range: StatusRange = "2xx".parse().unwrap();
        assert!(range.contains(200) && range.contains(299) && !range.contains(300) && !range.contains(199));
    }

    /// Records hold checks: what an older version wrote is read, and is written as that version would write it.
    #[test]
    fn checks_of_older_versions_are_read_and_written_as_they_are() {
        for probe in [
            r#"{"http":{"path":"/healthz","port":8080}}"#,
            r#"{"tcp":{"port":5432}}"#,
            r#"{"test":{"command":["pg_isready"]}}"#,
        ] {
            let text = format!(
                r#"{{"probe":{probe},"interval":{{"secs":2,"nanos":0}},"timeout":{{"secs":2,"nanos":0}},"start_period":{{"secs":10,"nanos":0}},"retries":3}}"#
            );
            let check: HealthCheck = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&check).unwrap(), text);
            assert_eq!(check, HealthCheck::new(check.probe.clone()));
        }
    }

    #[test]
    fn times_lie_over_those_of_the_image() {
        let own = HealthCheck { retries: 5, ..HealthCheck::new(Probe::Notify) };
        let times = Times { interval: Some(Duration::from_secs(9)), ..Times::default() };
        let both = times.over(own);
        assert_eq!((both.interval, both.retries, both.probe), (Duration::from_secs(9), 5, Probe::Notify));
    }
}
