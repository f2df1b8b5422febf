//! `[healthcheck]`: what one file says of it, laid over what another says, and the check that all of them make.

use std::collections::BTreeMap;
use std::ops::Range;

use super::authorities::authorities;
use super::configs::Sources;
use super::section::{Findings, Place};
use crate::types::{
    GrpcProbe, HealthCheck, HttpMethod, HttpProbe, PortMapping, Probe, ProbeTls, Protocol, StatusRange, Times,
};

/// Largest file of authorities, in bytes.
const MAX_CA: usize = 64 << 10;

/// What one file says of a health check. `None` = nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct HealthLayer {
    pub(super) probe: Option<ProbeLayer>,
    pub(super) port: Option<u16>,
    pub(super) method: Option<HttpMethod>,
    pub(super) status: Option<Vec<StatusRange>>,
    pub(super) headers: Option<BTreeMap<String, String>>,
    pub(super) contains: Option<String>,
    pub(super) grpc_service: Option<String>,
    pub(super) tls: Option<bool>,
    pub(super) ca_file: Option<CaFile>,
    pub(super) server_name: Option<String>,
    pub(super) skip_verify: Option<bool>,
    pub(super) times: Times,
    /// Where it is written, and what of it belongs to some probes only.
    pub(super) span: Option<Range<usize>>,
    pub(super) extras: Vec<(&'static str, Range<usize>)>,
}

/// A file of authorities in the config repo.
#[derive(Debug, Clone)]
pub(super) struct CaFile {
    pub(super) path: String,
    pub(super) place: Place,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) enum ProbeLayer {
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
