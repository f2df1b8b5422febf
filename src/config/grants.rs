//! What a service asks of its host, held against the host's own policy.

use crate::types::{
    DEFAULT_CAPABILITIES, Declared, ImageRef, NetworkMode, Policy, Reason, Refusal, VolumeSource,
};

/// A policy that allows all: what a repo asks for is for its hosts to decide.
pub(super) fn everything() -> Policy {
    let all = || vec!["*".to_owned()];
    Policy {
        registries: all(),
        host_mounts: all(),
        privileged: true,
        host_namespaces: true,
        host_network: true,
        unconfined: true,
        capabilities: all(),
        devices: all(),
        ..Policy::default()
    }
}

/// Whether a pattern of `policy.registries` allows a name. A `*` takes slashes too, but none of the part before the
/// path: what is written for hosts is not matched by a path.
fn allows(rule: &str, name: &str) -> bool {
    let parts = |text: &str| -> (String, bool) {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
        (format!("{scheme}:{host}"), path.is_some())
    };
    let matches = |rule: &str, text: &str| glob::Pattern::new(rule).is_ok_and(|rule| rule.matches(text));
    let ((hosts, has_path), (host, _)) = (parts(rule), parts(name));
    matches(rule, name) && (!has_path || matches(&hosts, &host))
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
    for name in std::iter::once(&image).chain(&spec.fallback) {
        // Root reads it, and a container shows what is in it: backups are archives too.
        if policy.registries.is_empty() && name.starts_with("file://") {
            return refuse(format!(
                "policy.registries does not name {name}: files of this host are for it to allow"
            ));
        }
        if !policy.registries.is_empty() && !policy.registries.iter().any(|rule| allows(rule, name)) {
            return refuse(format!("policy.registries does not allow {name}"));
        }
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
    let host_network = Some(*spec.network_mode() == NetworkMode::Host);
    for (asked, granted, rule, key) in [
        (options.privileged, policy.privileged, "privileged", "privileged"),
        (options.host_pid, policy.host_namespaces, "host_namespaces", "pid = \"host\""),
        (options.host_ipc, policy.host_namespaces, "host_namespaces", "ipc = \"host\""),
        (host_network, policy.host_network, "host_network", "network_mode = \"host\""),
        (options.unconfined, policy.unconfined, "unconfined", "security_opt = [\"seccomp=unconfined\"]"),
        (
            options.without_apparmor,
            policy.unconfined,
            "unconfined",
            "security_opt = [\"apparmor=unconfined\"]",
        ),
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

#[cfg(test)]
mod tests {
    use super::allows;

    #[test]
    fn a_pattern_for_hosts_is_not_matched_by_a_path() {
        for (rule, name, fine) in [
            ("*", "evil.org/any:1", true),
            ("registry.local:5000/*", "registry.local:5000/team/shop", true),
            ("s3://images/*", "s3://images/team/app.tar", true),
            ("https://*.example.org/*", "https://cdn.example.org/a/b.tar", true),
            ("https://*.example.org/*", "https://evil.org/x.example.org/b.tar", false),
            ("*.example.org/*", "evil.org/x.example.org/app", false),
            ("*.example.org/*", "r.example.org/app", true),
            ("s3://rel-*/*", "s3://rel-1/x.tar", true),
            ("s3://rel-*/app/*", "s3://rel-1/app/x.tar", true),
            ("s3://*", "s3://any/x.tar", true),
            ("file:///srv/images/*", "file:///srv/images/a.tar", true),
            ("file:///srv/images/*", "file:///srv/other/a.tar", false),
        ] {
            assert_eq!(allows(rule, name), fine, "{rule} {name}");
        }
    }
}
