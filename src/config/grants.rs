//! What a service asks of its host, held against the host's own policy.

use crate::types::{DEFAULT_CAPABILITIES, Declared, ImageRef, Policy, Reason, Refusal, VolumeSource};

/// A policy that allows all: what a repo asks for is for its hosts to decide.
pub(super) fn everything() -> Policy {
    let all = || vec!["*".to_owned()];
    Policy {
        host_mounts: all(),
        privileged: true,
        host_namespaces: true,
        unconfined: true,
        capabilities: all(),
        devices: all(),
        ..Policy::default()
    }
}

/// The rule of the host's policy that a spec breaks.
pub(super) fn violation(spec: &Declared, policy: &Policy) -> Option<Refusal> {
    let refuse = |message: String| Some(Refusal::new(Reason::Policy, message));
    let fits = |patterns: &[String], text: &str| {
        patterns.iter().any(|pattern| glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(text)))
    };
    let image = match &spec.image {
        ImageRef::Registry(image) => format!("{}/{}", image.registry, image.repository),
        ImageRef::Archive(url) => url.to_string(),
    };
    // An archive is an image from elsewhere, whatever it stands in for.
    let refused = std::iter::once(&image)
        .chain(&spec.fallback)
        .find(|name| !policy.registries.is_empty() && !fits(&policy.registries, name));
    if let Some(name) = refused {
        return refuse(format!("policy.registries does not allow {name}"));
    }
    if policy.require_digest && !matches!(&spec.image, ImageRef::Registry(image) if image.digest.is_some()) {
        return refuse(format!("policy.require_digest: {} names no digest", spec.image));
    }
    for volume in &spec.volumes {
        if let VolumeSource::Bind(path) = &volume.source
            && !fits(&policy.host_mounts, &path.to_string_lossy())
        {
            return refuse(format!("policy.host_mounts does not allow {}", path.display()));
        }
    }
    let options = &spec.options;
    for (asked, granted, rule, key) in [
        (options.privileged, policy.privileged, "privileged", "privileged"),
        (options.host_pid, policy.host_namespaces, "host_namespaces", "pid = \"host\""),
        (options.host_ipc, policy.host_namespaces, "host_namespaces", "ipc = \"host\""),
        (options.unconfined, policy.unconfined, "unconfined", "security_opt = [\"seccomp=unconfined\"]"),
    ] {
        if asked == Some(true) && !granted {
            return refuse(format!("policy.{rule} does not allow {key}"));
        }
    }
    for capability in options.cap_add.iter().flatten() {
        if !DEFAULT_CAPABILITIES.contains(&capability.as_str()) && !fits(&policy.capabilities, capability) {
            return refuse(format!("policy.capabilities does not allow {capability}"));
        }
    }
    for device in options.devices.iter().flatten() {
        if !fits(&policy.devices, &device.source.to_string_lossy()) {
            return refuse(format!("policy.devices does not allow {}", device.source.display()));
        }
    }
    // Below 0 the host's own processes would be killed before it.
    if options.oom_score_adj.is_some_and(|adj| adj < 0) && !policy.privileged {
        return refuse("policy.privileged does not allow an oom_score_adj below 0".to_owned());
    }
    None
}
