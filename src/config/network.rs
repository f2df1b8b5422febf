//! `network_mode` and `networks` of a service, `[networks]` of the repo, and what of a service does not go with them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::de::DeValue;

use super::diagnostic::did_you_mean;
use super::layer::Layer;
use super::options::host_name;
use super::section::{Findings, Section, Value};
use crate::types::{
    Declared, NetworkLink, NetworkMode, NetworkName, Options, Refusal, ServiceName, Strategy,
};

/// What the repo says of a network.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Definition {
    internal: bool,
    ipv4_only: bool,
}

/// Every network that the repo defines.
pub(super) type Definitions = BTreeMap<NetworkName, Definition>;

/// Reads `network_mode`.
pub(super) fn mode(section: &Section<'_, '_>) -> Option<NetworkMode> {
    section.parsed("network_mode")
}

/// Reads `networks` of a service: an array of names, or a table of names and what the service is called there.
pub(super) fn networks(section: &Section<'_, '_>) -> Option<BTreeMap<NetworkName, NetworkLink>> {
    let value = section.get("networks")?;
    let findings = section.findings;
    let mut found = BTreeMap::new();
    match value.get_ref() {
        DeValue::Table(_) => {
            for (name, span, value) in section.table("networks")?.entries() {
                if let Some(name) = network_name(findings, name, &span) {
                    found.insert(name, link(findings, value));
                }
            }
        }
        _ => {
            for (name, span) in section.strings("networks")? {
                if let Some(name) = network_name(findings, &name, &span) {
                    found.insert(name, NetworkLink::default());
                }
            }
        }
    }
    if section.has("network_mode") {
        let message = "`networks` and `network_mode` exclude each other";
        findings.error(section.key_span("networks"), message, None);
    }
    Some(found)
}

fn network_name(findings: &Findings<'_>, text: &str, span: &Range<usize>) -> Option<NetworkName> {
    text.parse().map_err(|error| findings.error(span.clone(), format!("`networks`: {error}"), None)).ok()
}

fn link(findings: &Findings<'_>, value: Value<'_, '_>) -> NetworkLink {
    let Some(table) = value.get_ref().as_table() else {
        findings.error(value.span(), "`networks`: a network takes a table, as { aliases = [\"db\"] }", None);
        return NetworkLink::default();
    };
    let section = Section::new(findings, "[networks]", table, value.span());
    let mut aliases = Vec::new();
    for (text, span) in section.strings("aliases").unwrap_or_default() {
        match host_name(&text) {
            Ok(name) => aliases.push(name),
            Err(error) => findings.error(span, format!("`aliases`: {error}"), None),
        }
    }
    for key in ["ipv4_address", "ipv6_address", "link_local_ips", "mac_address"] {
        section.unsupported(key, "a service is found by its names; its address is the host's to give");
    }
    for key in ["driver_opts", "gw_priority", "interface_name", "priority"] {
        section.unsupported(key, "a container has one interface, whatever networks it is on");
    }
    section.finish(|_| None);
    NetworkLink { aliases, ..NetworkLink::default() }
}

/// Reads `[networks]` of the repo's own file.
pub(super) fn definitions(section: &Section<'_, '_>) -> Definitions {
    let mut found = Definitions::new();
    let Some(table) = section.table("networks") else { return found };
    for (name, span, value) in table.entries() {
        let name = network_name(section.findings, name, &span);
        let Some(body) = value.get_ref().as_table() else {
            let message = "`networks`: a network takes a table, as { internal = true }";
            section.findings.error(value.span(), message, None);
            continue;
        };
        let body = Section::new(section.findings, "[networks]", body, value.span());
        let definition = Definition {
            internal: body.boolean("internal") == Some(true),
            ipv4_only: body.boolean("enable_ipv6") == Some(false),
        };
        if body.string("driver").is_some_and(|driver| driver != "bridge") {
            let message = "`driver` is \"bridge\": networks are of this host alone";
            section.findings.error(body.key_span("driver"), message, None);
        }
        body.unsupported("ipam", "addresses are of the host's engine.subnet");
        body.unsupported("external", "a network is defined by the repo");
        for key in ["driver_opts", "enable_ipv4", "name", "attachable", "labels"] {
            body.unsupported(key, "a network has `internal` and `enable_ipv6`");
        }
        body.finish(|_| None);
        found.extend(name.map(|name| (name, definition)));
    }
    found
}

/// One layer's word on the network, over another's: a mode takes networks away, and networks a mode.
pub(super) fn under(low: &Options, high: &Options) -> Options {
    let mut both = low.under(high);
    match (&high.network_mode, &high.networks) {
        (Some(_), None) => both.networks = None,
        (None, Some(_)) => both.network_mode = None,
        _ => {}
    }
    both
}

/// Fills in what the repo says of a spec's networks, and finds what does not go with its network.
pub(super) fn settle(spec: &mut Declared, layer: &Layer, known: &Definitions, findings: &Findings<'_>) {
    let span = layer.network_span.clone().unwrap_or(0..0);
    let mode = spec.network_mode().clone();
    match &mode {
        NetworkMode::Bridge => {
            spec.options.network_mode = None;
            links(spec, known, findings, &span);
        }
        NetworkMode::None | NetworkMode::Host | NetworkMode::Service(_) => {
            misfits(spec, &mode, layer, findings, &span);
        }
    }
}

fn links(spec: &mut Declared, known: &Definitions, findings: &Findings<'_>, span: &Range<usize>) {
    let default = NetworkName::default_one();
    let mut links = spec.options.networks.take().unwrap_or_default();
    if links.is_empty() {
        links.insert(default.clone(), NetworkLink::default());
    }
    for (name, link) in &mut links {
        match known.get(name) {
            Some(definition) => {
                (link.internal, link.ipv4_only) = (definition.internal, definition.ipv4_only);
            }
            None if *name == default => {}
            None => {
                let names: Vec<&str> = known.keys().map(NetworkName::as_str).collect();
                let hint = did_you_mean(name.as_str(), &names)
                    .or_else(|| Some(format!("define it in gitopsd.toml: [networks.{name}]")));
                findings.error(span.clone(), format!("`networks`: {name} is not defined"), hint);
            }
        }
    }
    if !spec.ports.is_empty() && links.values().all(|link| link.internal) {
        let message = "`ports`: every network of the service is internal: only this host itself reaches them";
        findings.warn(span.clone(), message, None);
    }
    // The common case is spelled one way.
    let plain = BTreeMap::from([(default, NetworkLink::default())]);
    spec.options.networks = Some(links).filter(|links| *links != plain);
}

/// What would be the host's or another service's, or would lead nowhere.
fn misfits(spec: &Declared, mode: &NetworkMode, layer: &Layer, findings: &Findings<'_>, span: &Range<usize>) {
    if !spec.ports.is_empty() {
        let (what, hint) = match mode {
            NetworkMode::Host => ("its ports are the host's already", "leave `ports` out".to_owned()),
            NetworkMode::Service(name) => {
                ("its ports are those of the other service", format!("publish them in services/{name}.toml"))
            }
            _ => ("nobody can reach it", "leave `ports` out".to_owned()),
        };
        let message = format!("`ports` do not go with network_mode = \"{mode}\": {what}");
        findings.error(
            layer.port_spans.first().cloned().unwrap_or_else(|| span.clone()),
            message,
            Some(hint),
        );
    }
    let asks = spec.healthcheck.as_ref().is_some_and(|check| check.probe.needs_network());
    if mode.is_shared() && asks && spec.deploy.strategy == Some(Strategy::BlueGreen) {
        let message = format!(
            "`deploy.strategy` = \"blue-green\" does not go with network_mode = \"{mode}\": its \
             `healthcheck` could not tell which of two generations answers"
        );
        findings.error(
            span.clone(),
            message,
            Some(
                "set strategy = \"recreate\", the default there, or ask by a command inside: `test`"
                    .to_owned(),
            ),
        );
    }
    let options = &spec.options;
    let of_network = options.sysctls.iter().flatten().find(|(name, _)| name.starts_with("net."));
    if let (true, Some((name, _))) = (mode.is_shared(), of_network) {
        let message = format!(
            "`sysctls`: {name} does not go with network_mode = \"{mode}\": it is not this service's own"
        );
        findings.error(span.clone(), message, None);
    }
    if *mode == NetworkMode::None && asks {
        let hint = Some("ask by a command inside: `test`".to_owned());
        findings.error(span.clone(), "`healthcheck`: nobody outside reaches network_mode = \"none\"", hint);
    }
}

/// Why a service cannot share the network of another one of its host. `specs`: those that can be acted on; `here`: all
/// that are for the host; `known`: all of the repo.
pub(super) fn joins(
    name: &ServiceName,
    spec: &Declared,
    specs: &BTreeMap<ServiceName, Declared>,
    here: &BTreeMap<ServiceName, Result<Declared, Refusal>>,
    known: &BTreeSet<&str>,
) -> Option<(String, Option<String>)> {
    let host = spec.joins()?;
    let say = |message: String| Some((format!("`network_mode`: {message}"), None));
    if host == name {
        return say(format!("{name} cannot share its own network"));
    }
    if !known.contains(host.as_str()) {
        let names: Vec<&str> = known.iter().copied().collect();
        let (message, _) = say(format!("there is no services/{host}.toml"))?;
        return Some((message, did_you_mean(host.as_str(), &names)));
    }
    if !here.contains_key(host) {
        return say(format!("{host} is not for this host, and networks are of one host"));
    }
    if specs.get(host).is_some_and(|spec| spec.deploy.replicas > 1) {
        return say(format!(
            "{host} has several containers (`deploy.replicas`), each with a network of its own"
        ));
    }
    match specs.get(host).map(Declared::network_mode) {
        Some(NetworkMode::Bridge) | None => None,
        Some(mode) => {
            say(format!("{host} has no network of its own to share: it has network_mode = \"{mode}\""))
        }
    }
}
