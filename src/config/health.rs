//! `[healthcheck]`: what is asked, and how often. Names as Compose has them, else as Kubernetes and Nomad do.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use toml::de::DeValue;

use super::authorities::authorities;
use super::configs::Sources;
use super::repo_files::resolve;
use super::section::{Findings, Place, Section};
use crate::types::{
    GrpcProbe, HealthCheck, HttpMethod, HttpProbe, PortMapping, Probe, ProbeTls, Protocol, StatusRange, Times,
};

/// The keys that say what is asked: a table has one of them at the most.
const PROBES: [&str; 8] = ["http", "https", "tcp", "grpc", "test", "notify", "image", "disable"];

/// Longest text that a body is looked through for.
const MAX_CONTAINS: usize = 1024;

/// Largest file of authorities, in bytes.
const MAX_CA: usize = 64 << 10;

/// What other tools call these things. Each is refused with the name that it has here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("httpGet", "http = \"/healthz\""),
    ("httpHeaders", "headers = { Host = \"example.org\" }"),
    ("header", "headers = { Host = \"example.org\" }"),
    ("path", "http = \"/healthz\""),
    ("scheme", "https = \"/healthz\""),
    ("tcpSocket", "tcp = 8080"),
    ("exec", "test = [\"CMD\", \"bin/check\"]"),
    ("command", "test = [\"CMD\", \"bin/check\"]"),
    ("body", "contains = \"ok\""),
    ("grpc_use_tls", "tls = true"),
    ("initialDelaySeconds", "start_period = \"30s\""),
    ("periodSeconds", "interval = \"2s\""),
    ("timeoutSeconds", "timeout = \"2s\""),
    ("failureThreshold", "retries = 3"),
    ("failures_before_critical", "retries = 3"),
    ("successThreshold", "success_threshold = 2"),
    ("success_before_passing", "success_threshold = 2"),
    ("min_healthy_time", "it in [deploy]"),
];

/// What one file says of a health check. `None` = nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct HealthLayer {
    probe: Option<ProbeLayer>,
    port: Option<u16>,
    method: Option<HttpMethod>,
    status: Option<Vec<StatusRange>>,
    headers: Option<BTreeMap<String, String>>,
    contains: Option<String>,
    grpc_service: Option<String>,
    tls: Option<bool>,
    ca_file: Option<CaFile>,
    server_name: Option<String>,
    skip_verify: Option<bool>,
    times: Times,
    /// Where it is written, and what of it belongs to some probes only.
    span: Option<Range<usize>>,
    extras: Vec<(&'static str, Range<usize>)>,
}

/// A file of authorities in the config repo.
#[derive(Debug, Clone)]
struct CaFile {
    path: String,
    place: Place,
}

#[derive(Debug, Clone)]
enum ProbeLayer {
    Http(String),
    Https(String),
    Tcp(u16),
    Grpc(u16),
    Test(Vec<String>),
    Notify,
    Image,
    Ports,
}

impl ProbeLayer {
    /// The keys that only some probes have, and what this one does with them.
    fn takes(&self, key: &str) -> bool {
        let tls = matches!(key, "ca_file" | "tls_server_name" | "tls_skip_verify");
        match self {
            Self::Http(_) => matches!(key, "port" | "method" | "status" | "headers" | "contains"),
            Self::Https(_) => tls || matches!(key, "port" | "method" | "status" | "headers" | "contains"),
            Self::Grpc(_) => tls || matches!(key, "grpc_service" | "tls"),
            Self::Tcp(_) | Self::Test(_) | Self::Notify | Self::Image | Self::Ports => false,
        }
    }
}

/// Reads the table. What else stands in it is refused.
pub(super) fn read(section: &Section<'_, '_>) -> HealthLayer {
    let findings = section.findings;
    let given: Vec<&str> = PROBES.into_iter().filter(|key| section.has(key)).collect();
    for key in PROBES {
        // Known, even where another one is used.
        section.get(key);
    }
    if let [_, second, ..] = given.as_slice() {
        let keys: Vec<String> = PROBES.iter().map(|key| format!("`{key}`")).collect();
        let message = format!("a health check is one of {}", keys.join(", "));
        findings.error(section.key_span(second), message, None);
    }
    let extras = ["port", "method", "status", "headers", "contains", "grpc_service", "tls", "ca_file"];
    let extras = extras.into_iter().chain(["tls_server_name", "tls_skip_verify"]);
    let extras = extras.filter(|key| section.has(key)).map(|key| (key, section.key_span(key))).collect();
    let layer = HealthLayer {
        probe: probe(section),
        port: port_of(section, "port"),
        method: method(section),
        status: status(section),
        headers: headers(section),
        contains: section.string("contains").filter(|text| {
            let fine = (1..=MAX_CONTAINS).contains(&text.len());
            if !fine {
                let message = format!("`contains` takes a text of 1 to {MAX_CONTAINS} bytes");
                findings.error(section.key_span("contains"), message, None);
            }
            fine
        }),
        grpc_service: section.string("grpc_service"),
        tls: section.boolean("tls"),
        ca_file: ca_file(section),
        server_name: section.string("tls_server_name").filter(|name| {
            let fine = rustls::pki_types::ServerName::try_from(name.as_str()).is_ok();
            if !fine {
                let message = format!("`tls_server_name`: `{name}` is not a server's name");
                findings.error(section.key_span("tls_server_name"), message, None);
            }
            fine
        }),
        skip_verify: section.boolean("tls_skip_verify"),
        times: times(section),
        span: Some(section.span.clone()),
        extras,
    };
    section.finish(|key| {
        let known = ELSEWHERE.iter().find(|(name, _)| *name == key);
        known.map(|(_, here)| format!("`{key}` is another tool's word: write {here}"))
    });
    layer
}

fn port_of(section: &Section<'_, '_>, key: &'static str) -> Option<u16> {
    section.integer(key, 1..=65535).and_then(|port| u16::try_from(port).ok())
}

fn probe(section: &Section<'_, '_>) -> Option<ProbeLayer> {
    let findings = section.findings;
    let path = |key: &'static str| {
        section.string(key).filter(|path| {
            let fine = path.starts_with('/')
                && !path.contains(|c: char| c.is_control() || c == ' ')
                && path.parse::<hyper::Uri>().is_ok();
            if !fine {
                let message = format!("`{key}` takes a path that begins with `/`");
                findings.error(section.key_span(key), message, None);
            }
            fine
        })
    };
    let on = |key: &'static str| {
        section.boolean(key).filter(|on| {
            if !on {
                let message = format!("`{key}` is true, or is left out");
                findings.error(section.key_span(key), message, None);
            }
            *on
        })
    };
    let image = || on("image").map(|_| ProbeLayer::Image);
    path("http")
        .map(ProbeLayer::Http)
        .or_else(|| path("https").map(ProbeLayer::Https))
        .or_else(|| port_of(section, "tcp").map(ProbeLayer::Tcp))
        .or_else(|| port_of(section, "grpc").map(ProbeLayer::Grpc))
        .or_else(|| test(section))
        .or_else(|| on("notify").map(|_| ProbeLayer::Notify))
        .or_else(image)
        .or_else(|| section.boolean("disable").filter(|off| *off).map(|_| ProbeLayer::Ports))
}

/// An array with or without Compose's CMD and CMD-SHELL; a string is for the shell. `["NONE"]`: no check of the image's.
fn test(section: &Section<'_, '_>) -> Option<ProbeLayer> {
    let value = section.get("test")?;
    let shell = |text: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()];
    if let Some(text) = value.get_ref().as_str() {
        return Some(ProbeLayer::Test(shell(text)));
    }
    let words: Vec<String> = section.strings("test")?.into_iter().map(|(text, _)| text).collect();
    let words = match words.split_first() {
        Some((first, [])) if first == "NONE" => return Some(ProbeLayer::Ports),
        Some((first, rest)) if first == "CMD" => rest.to_vec(),
        Some((first, rest)) if first == "CMD-SHELL" => shell(&rest.join(" ")),
        _ => words,
    };
    if words.is_empty() {
        section.findings.error(value.span(), "`test` names no command", None);
        return None;
    }
    Some(ProbeLayer::Test(words))
}

fn method(section: &Section<'_, '_>) -> Option<HttpMethod> {
    let text = section.string("method")?;
    let found = HttpMethod::ALL.into_iter().find(|method| method.word() == text);
    if found.is_none() {
        let known = HttpMethod::ALL.map(|method| format!("\"{}\"", method.word())).join(", ");
        section.findings.error(section.key_span("method"), format!("`method` is one of {known}"), None);
    }
    found
}

/// One status or range, as number or text, or an array of them.
fn status(section: &Section<'_, '_>) -> Option<Vec<StatusRange>> {
    let value = section.get("status")?;
    let items: Vec<_> = match value.get_ref() {
        DeValue::Array(array) => array.iter().collect(),
        _ => vec![value],
    };
    let mut ranges = Vec::new();
    for item in items {
        let range = match item.get_ref() {
            DeValue::String(text) => text.parse::<StatusRange>().map_err(|error| error.to_string()),
            DeValue::Integer(number) => {
                number.as_str().parse::<StatusRange>().map_err(|error| error.to_string())
            }
            _ => Err("it takes numbers and texts".to_owned()),
        };
        match range {
            Ok(range) => ranges.push(range),
            Err(error) => {
                let hint = Some("status = [200, \"300-399\", \"4xx\"]".to_owned());
                section.findings.error(item.span(), format!("`status`: {error}"), hint);
            }
        }
    }
    if ranges.is_empty() && value.get_ref().as_array().is_some_and(|array| array.is_empty()) {
        section.findings.error(value.span(), "`status` names none", None);
    }
    Some(ranges)
}

fn headers(section: &Section<'_, '_>) -> Option<BTreeMap<String, String>> {
    let table = section.table("headers")?;
    let mut headers = BTreeMap::new();
    for (name, span, value) in table.entries() {
        let text = value.get_ref().as_str();
        let fine = HeaderName::from_bytes(name.as_bytes()).is_ok()
            && text.is_some_and(|text| HeaderValue::from_str(text).is_ok());
        // What says how the message itself is carried is ours alone.
        let framing = ["connection", "content-length", "transfer-encoding", "upgrade", "te"];
        if framing.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            table.findings.error(span, format!("`headers`: {name} cannot be chosen"), None);
        } else if let (true, Some(text)) = (fine, text) {
            headers.insert(name.to_owned(), text.to_owned());
        } else {
            let message = format!("`headers`: `{name}` and its value cannot be sent as a header");
            table.findings.error(span, message, None);
        }
    }
    Some(headers)
}

fn ca_file(section: &Section<'_, '_>) -> Option<CaFile> {
    let value = section.get("ca_file")?;
    let (findings, text) = (section.findings, section.string("ca_file")?);
    resolve(findings.source.file, &text)
        .map_err(|error| findings.error(value.span(), format!("`ca_file`: {error}"), None))
        .ok()
        .map(|path| CaFile { path, place: findings.place(value) })
}

fn times(section: &Section<'_, '_>) -> Times {
    let positive = |key: &'static str| {
        section.duration(key).filter(|duration| {
            let fine = *duration >= Duration::from_millis(10);
            if !fine {
                section.findings.error(section.key_span(key), format!("`{key}` is at least 10ms"), None);
            }
            fine
        })
    };
    let count = |key| section.integer(key, 1..=1000).and_then(|number| u32::try_from(number).ok());
    Times {
        interval: positive("interval"),
        timeout: positive("timeout"),
        start_period: section.duration("start_period"),
        start_interval: positive("start_interval"),
        retries: count("retries"),
        success_threshold: count("success_threshold"),
    }
}

impl HealthLayer {
    /// This layer, with `over` on top of it. Another probe brings its own details; the times stay.
    pub fn under(&self, over: &Self) -> Self {
        let (low, high) = (self, over);
        let (lows, highs) = (&low.times, &high.times);
        let times = Times {
            interval: highs.interval.or(lows.interval),
            timeout: highs.timeout.or(lows.timeout),
            start_period: highs.start_period.or(lows.start_period),
            start_interval: highs.start_interval.or(lows.start_interval),
            retries: highs.retries.or(lows.retries),
            success_threshold: highs.success_threshold.or(lows.success_threshold),
        };
        let span = high.span.clone().or_else(|| low.span.clone());
        if high.probe.is_some() {
            // A port stood alone before there was more to say: it may still come from below.
            return Self { times, span, port: high.port.or(low.port), ..high.clone() };
        }
        Self {
            probe: low.probe.clone(),
            port: high.port.or(low.port),
            method: high.method.or(low.method),
            status: high.status.clone().or_else(|| low.status.clone()),
            headers: high.headers.clone().or_else(|| low.headers.clone()),
            contains: high.contains.clone().or_else(|| low.contains.clone()),
            grpc_service: high.grpc_service.clone().or_else(|| low.grpc_service.clone()),
            tls: high.tls.or(low.tls),
            ca_file: high.ca_file.clone().or_else(|| low.ca_file.clone()),
            server_name: high.server_name.clone().or_else(|| low.server_name.clone()),
            skip_verify: high.skip_verify.or(low.skip_verify),
            times,
            span,
            extras: low.extras.iter().chain(&high.extras).cloned().collect(),
        }
    }

    /// The files of the repo that it names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.ca_file.iter().map(|file| file.path.as_str())
    }

    /// The check that all layers together make. `Err`: it is wrong, which is a finding.
    pub fn into_check(
        self,
        findings: &Findings<'_>,
        sources: &Sources<'_>,
        ports: &[PortMapping],
    ) -> Result<Option<HealthCheck>, ()> {
        let span = self.span.clone().unwrap_or(0..0);
        let Some(layer) = self.probe.clone() else {
            if let Some((key, _)) = self.extras.first() {
                let message =
                    format!("`{key}` says how to ask, and nothing says what: `http`, `https` or `grpc`");
                findings.error(span, message, None);
            }
            // Times alone are those of the image's own check.
            let times = (self.times != Times::default()).then_some(Probe::Image(self.times));
            return Ok(times.map(HealthCheck::new));
        };
        if let Some((key, _)) = self.extras.iter().find(|(key, _)| !layer.takes(key) && *key != "port") {
            let message = format!("`{key}` does not go with this kind of check");
            findings.error(span, message, None);
            return Err(());
        }
        let tls = self.tls(findings, sources, &layer)?;
        let http = |path: String, port| {
            Probe::Http(HttpProbe {
                path,
                port,
                method: self.method.unwrap_or_default(),
                status: self.status.clone().unwrap_or_default(),
                headers: self.headers.clone().unwrap_or_default(),
                contains: self.contains.clone(),
                tls: tls.clone(),
            })
        };
        let probe = match layer {
            ProbeLayer::Http(path) => http(path, self.port_for("http", findings, ports, span)?),
            ProbeLayer::Https(path) => http(path, self.port_for("https", findings, ports, span)?),
            ProbeLayer::Tcp(port) => Probe::Tcp { port },
            ProbeLayer::Grpc(port) => {
                let service = self.grpc_service.clone().unwrap_or_default();
                Probe::Grpc(GrpcProbe { port, service, tls: tls.clone() })
            }
            ProbeLayer::Test(command) => Probe::Test { command },
            ProbeLayer::Notify => Probe::Notify,
            ProbeLayer::Image => return Ok(Some(HealthCheck::new(Probe::Image(self.times)))),
            ProbeLayer::Ports => return Ok(Some(HealthCheck::new(Probe::Ports))),
        };
        Ok(Some(self.times.over(HealthCheck::new(probe))))
    }

    fn port_for(
        &self,
        key: &str,
        findings: &Findings<'_>,
        ports: &[PortMapping],
        span: Range<usize>,
    ) -> Result<u16, ()> {
        if let Some(port) = self.port {
            return Ok(port);
        }
        let tcp = ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let mut exposed: Vec<u16> = tcp.map(|port| port.container_port).collect();
        exposed.sort_unstable();
        exposed.dedup();
        match exposed.as_slice() {
            [port] => Ok(*port),
            _ => {
                let message = format!("`{key}` needs a `port`: {} TCP ports are published", exposed.len());
                findings.error(span, message, Some("port = 8080".to_owned()));
                Err(())
            }
        }
    }

    fn tls(
        &self,
        findings: &Findings<'_>,
        sources: &Sources<'_>,
        layer: &ProbeLayer,
    ) -> Result<Option<ProbeTls>, ()> {
        let span = || self.span.clone().unwrap_or(0..0);
        let said = self.ca_file.is_some() || self.server_name.is_some() || self.skip_verify.is_some();
        let on = match layer {
            ProbeLayer::Https(_) => true,
            ProbeLayer::Grpc(_) => self.tls.unwrap_or(said),
            _ => false,
        };
        if !on {
            if said {
                findings.error(span(), "the keys about TLS do not go with `tls = false`", None);
                return Err(());
            }
            return Ok(None);
        }
        let skip_verify = self.skip_verify.unwrap_or(false);
        if skip_verify && (self.ca_file.is_some() || self.server_name.is_some()) {
            let message =
                "`tls_skip_verify` takes any certificate: `ca_file` and `tls_server_name` would say nothing";
            findings.error(span(), message, None);
            return Err(());
        }
        let ca = match &self.ca_file {
            None => None,
            Some(file) => Some(authorities_of(findings, sources, file).ok_or(())?),
        };
        Ok(Some(ProbeTls { server_name: self.server_name.clone(), ca, skip_verify }))
    }
}

/// The text of a file of authorities, looked at as the probe will.
fn authorities_of(findings: &Findings<'_>, sources: &Sources<'_>, file: &CaFile) -> Option<String> {
    let wrong =
        |what: &str| findings.error_of(&file.place, &format!("`ca_file`: {} {what}", file.path), None);
    let bytes = sources.bytes(findings, "ca_file", &file.path, &file.place)?;
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_CA);
    let Some(text) = text else {
        wrong("is larger than 64 KiB, or no text");
        return None;
    };
    match authorities(text) {
        Ok(_) => Some(text.to_owned()),
        Err(why) => {
            wrong(&format!("cannot be used: {why}"));
            None
        }
    }
}
