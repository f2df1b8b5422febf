//! Reads `[healthcheck]`: names as Compose has them, else as Kubernetes and Nomad do.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use toml::de::DeValue;

use super::health::{CaFile, HealthLayer, ProbeLayer};
use super::repo_files::resolve;
use super::section::Section;
use crate::types::{HttpMethod, StatusRange, Times};

/// The keys that say what is asked: a table has one of them at the most.
const PROBES: [&str; 8] = ["http", "https", "tcp", "grpc", "test", "notify", "image", "disable"];

/// Longest text that a body is looked through for.
const MAX_CONTAINS: usize = 1024;

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
            DeValue::Integer(number) if number.radix() == 10 => {
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
