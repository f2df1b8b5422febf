//! The keys of a service, as they are read from one table: see `layer` for what becomes of them.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::DeValue;

use super::canary;
use super::compose;
use super::configs;
use super::depends;
use super::health_read;
use super::layer::{DeployLayer, Layer};
use super::memory;
use super::options;
use super::port;
use super::replicas;
use super::secrets;
use super::section::{Findings, Section, Value};
use super::times;
use super::volume;
use super::words;
use crate::types::{Digest, DrainSignal, PortMapping, Strategy, fill_fallback};

/// Keys of the Compose Specification that this version does not know what to do with.
const COMPOSE: &[&str] = &[
    "annotations",
    "attach",
    "build",
    "cgroup_parent",
    "container_name",
    "credential_spec",
    "device_cgroup_rules",
    "extends",
    "external_links",
    "gpus",
    "isolation",
    "links",
    "mac_address",
    "mem_swappiness",
    "oom_kill_disable",
    "platform",
    "profiles",
    "pull_policy",
    "runtime",
    "scale",
    "stdin_open",
    "storage_opt",
    "tty",
    "uts",
    "volumes_from",
    "replicas",
    "parallelism",
    "update_config",
];

/// Every key of a service that is read, and every one of Compose's that is refused by name.
pub fn keys() -> (Vec<&'static str>, &'static [&'static str]) {
    let findings = Findings::new("", "");
    let table = toml::de::DeTable::new();
    let section = Section::new(&findings, "", &table, 0..0);
    read(&section);
    (section.known(), COMPOSE)
}

/// Reads the service keys of a table. What else stands in it is refused.
pub(super) fn read(section: &Section<'_, '_>) -> Layer {
    let findings = section.findings;
    let layer = Layer {
        hosts: section.strings("hosts"),
        image: section.parsed("image"),
        fallback: section.strings("fallback").map(|all| fallback(findings, all)),
        entrypoint: command(section, "entrypoint"),
        command: command(section, "command"),
        environment: environment(section),
        user: section.string("user"),
        working_dir: working_dir(section),
        ports: None,
        volumes: None,
        memory: None,
        env_files: configs::env_files(section),
        configs: configs::configs(section),
        secrets: secrets::secrets(section),
        depends_on: depends::depends_on(section),
        restart: section.parsed("restart"),
        schedule: times::schedule(section),
        stop_grace_period: section.duration("stop_grace_period"),
        mem_limit: memory::limit(section),
        memory_place: memory::place(section),
        milli_cpus: milli_cpus(section),
        pids_limit: section
            .integer("pids_limit", 1..=4_194_304)
            .and_then(|number| u32::try_from(number).ok()),
        options: options::read(section),
        healthcheck: section.table("healthcheck").map(|table| health_read::read(&table)).unwrap_or_default(),
        deploy: section.table("deploy").map(|table| deploy(&table)).unwrap_or_default(),
        names_image: section.has("image"),
        port_spans: Vec::new(),
        network_span: network_span(section),
    };
    options::fixed(section);
    let (ports, port_spans) = ports(section);
    let (volumes, memory) = volume::volumes(section).unzip();
    let layer = Layer { ports, port_spans, volumes, memory, ..layer };
    section.finish(|key| {
        let hint = match key {
            "replicas" | "scale" => ": write `replicas` in [deploy]",
            "parallelism" | "update_config" => ": write `parallelism` in [deploy]",
            _ => "",
        };
        COMPOSE.contains(&key).then(|| format!("`{key}` of Compose is not supported by this version{hint}"))
    });
    layer
}

fn fallback(findings: &Findings<'_>, all: Vec<(String, Range<usize>)>) -> Vec<String> {
    for (text, span) in &all {
        // What an image puts in is checked once it is known.
        let digest = Digest::from_sha256(&[0; 32]);
        if let Err(why) = fill_fallback(text, Some("tag"), Some(&digest)) {
            findings.error(span.clone(), format!("`fallback`: {why}"), None);
        }
    }
    all.into_iter().map(|(text, _)| text).collect()
}

fn network_span(section: &Section<'_, '_>) -> Option<Range<usize>> {
    let key = ["network_mode", "networks"].into_iter().find(|key| section.has(key))?;
    Some(section.key_span(key))
}

/// An array, or one string that is split into words.
fn command(section: &Section<'_, '_>, key: &'static str) -> Option<Vec<String>> {
    let value = section.get(key)?;
    let words: Vec<String> = match value.get_ref().as_str() {
        Some(text) => match words::split(text) {
            Some(words) => words,
            None => {
                section.findings.error(value.span(), format!("`{key}`: a quote is not closed"), None);
                return None;
            }
        },
        None => section.strings(key)?.into_iter().map(|(text, _)| text).collect(),
    };
    if words.iter().any(|word| word.contains('\0')) {
        section.findings.error(value.span(), format!("`{key}` must not hold a NUL"), None);
        return None;
    }
    Some(words)
}

/// A table, or an array of `NAME=value`.
fn environment(section: &Section<'_, '_>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let Some(value) = section.get("environment") else { return variables };
    let mut insert = |name: &str, text: String, span: Range<usize>| {
        if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
            section.findings.error(
                span,
                format!("`environment`: `{name}` is not a name of a variable"),
                None,
            );
        } else {
            variables.insert(name.to_owned(), text);
        }
    };
    match value.get_ref() {
        DeValue::Table(_) => {
            let Some(table) = section.table("environment") else { return variables };
            for (name, span, value) in table.entries() {
                match scalar(value) {
                    Some(text) => insert(name, text, span),
                    None => {
                        let kind = value.get_ref().type_str();
                        table.findings.error(
                            value.span(),
                            format!("`environment`: `{name}` takes a text, not a {kind}"),
                            None,
                        );
                    }
                }
            }
        }
        _ => {
            for (text, span) in section.strings("environment").unwrap_or_default() {
                match text.split_once('=') {
                    Some((name, value)) => insert(name, value.to_owned(), span),
                    None => {
                        let message = format!("`environment`: `{text}` has no value");
                        section.findings.error(
                            span,
                            message,
                            Some("write NAME=value: nothing is taken from the host".to_owned()),
                        );
                    }
                }
            }
        }
    }
    variables
}

/// Numbers and booleans become the text that they are written as.
fn scalar(value: Value<'_, '_>) -> Option<String> {
    Some(match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) | DeValue::Table(_) => return None,
    })
}

fn working_dir(section: &Section<'_, '_>) -> Option<String> {
    let text = section.string("working_dir")?;
    if port::absolute(&text).is_none() {
        let span = section.get("working_dir").map_or_else(|| section.span.clone(), |value| value.span());
        section.findings.error(span, "`working_dir` takes an absolute path without `..`", None);
        return None;
    }
    Some(text)
}

fn ports(section: &Section<'_, '_>) -> (Option<Vec<PortMapping>>, Vec<Range<usize>>) {
    let Some(items) = section.strings("ports") else { return (None, Vec::new()) };
    let (mut ports, mut spans): (Vec<PortMapping>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
    for (text, span) in items {
        match port::port(&text) {
            Ok(range) => {
                for port in range {
                    if ports.iter().any(|known| known.clashes(&port)) {
                        let message = format!(
                            "`ports`: {}/{} of the host is published twice",
                            port.host_port, port.protocol
                        );
                        section.findings.error(span.clone(), message, None);
                    }
                    ports.push(port);
                    spans.push(span.clone());
                }
            }
            Err(error) => section.findings.error(span, format!("`ports`: {error}"), None),
        }
    }
    (Some(ports), spans)
}

fn milli_cpus(section: &Section<'_, '_>) -> Option<u32> {
    let (number, span) = section.number("cpus")?;
    if !(0.01..=4096.0).contains(&number) {
        section.findings.error(span, "`cpus` takes a number of processors from 0.01", None);
        return None;
    }
    // In range, as was checked: at most 4,096,000.
    Some((number * 1000.0).round() as u32)
}

fn deploy(section: &Section<'_, '_>) -> DeployLayer {
    let strategy = section.get("strategy").and_then(|value| match value.get_ref().as_str() {
        Some("blue-green") => Some(Strategy::BlueGreen),
        Some("recreate") => Some(Strategy::Recreate),
        _ => {
            section.findings.error(value.span(), "`strategy` is \"blue-green\" or \"recreate\"", None);
            None
        }
    });
    let layer = DeployLayer {
        strategy,
        drain: section.duration("drain"),
        bake: section.duration("bake"),
        timeout: section.duration("timeout"),
        pre: command(section, "pre"),
        post: command(section, "post"),
        reversible: section.boolean("reversible"),
        window: times::windows(section),
        min_healthy_time: section.duration("min_healthy_time"),
        max_error_rate: max_error_rate(section),
        span: Some(section.span.clone()),
        drain_signal: section.get("drain_signal").and_then(|value| match value.get_ref().as_str() {
            Some("early") => Some(DrainSignal::Early),
            Some("late") => Some(DrainSignal::Late),
            _ => {
                section.findings.error(value.span(), "`drain_signal` is \"early\" or \"late\"", None);
                None
            }
        }),
        canary: canary::read(section),
        replicas: replicas::read(section),
    };
    compose::finish(section);
    layer
}

/// A share in per cent.
fn max_error_rate(section: &Section<'_, '_>) -> Option<u8> {
    let value = section.get("max_error_rate")?;
    let text = section.string("max_error_rate")?;
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<u8>().ok());
    let number = number.filter(|number| (1..=100).contains(number));
    if number.is_none() {
        let hint = Some("max_error_rate = \"5%\"".to_owned());
        section.findings.error(value.span(), "`max_error_rate` takes a share from 1% to 100%", hint);
    }
    number
}
