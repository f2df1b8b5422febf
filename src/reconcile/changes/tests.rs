//! Each key of a service, with the decision about it.

use std::collections::BTreeSet;

use super::*;
use crate::types::{
    Blkio, ConfigFile, DeviceMapping, HealthCheck, LogLimits, NetworkMode, PinnedImage, Probe, RestartPolicy,
    SecretFile, Tmpfs, VolumeMount, VolumeSource,
};

fn image(tag: &str, digit: &str) -> PinnedImage {
    PinnedImage {
        reference: format!("registry.local/shop:{tag}").parse().unwrap(),
        digest: format!("sha256:{}", digit.repeat(64)).parse().unwrap(),
    }
}

fn spec() -> Spec {
    let mut spec = Spec::new(image("1", "a"));
    spec.ports.push(port(80));
    spec
}

fn port(number: u16) -> PortMapping {
    let (host_ip, protocol) = ([0, 0, 0, 0].into(), Protocol::Tcp);
    PortMapping { host_ip, host_port: number, container_port: number, protocol }
}

fn nightly(time: &str) -> crate::types::Schedule {
    crate::types::Schedule { calendar: time.parse().unwrap(), persistent: true, timeout: None }
}

type Row = (&'static str, How, fn(&mut Spec));

/// Every key of a service, with a change of it.
const TABLE: &[Row] = &[
    ("image", How::NewGeneration, |s| s.image = image("2", "b")),
    ("fallback", How::Settings, |s| s.fallback.push("s3://b/k".into())),
    ("entrypoint", How::NewGeneration, |s| s.entrypoint = Some(vec!["x".into()])),
    ("command", How::NewGeneration, |s| s.command = Some(vec!["x".into()])),
    ("environment", How::NewGeneration, |s| drop(s.environment.insert("A".into(), "b".into()))),
    ("user", How::NewGeneration, |s| s.user = Some("1".into())),
    ("working_dir", How::NewGeneration, |s| s.working_dir = Some("/x".into())),
    ("ports", How::Ports, |s| s.ports[0].host_port = 81),
    ("volumes", How::NewGeneration, |s| {
        s.volumes.push(VolumeMount::new(VolumeSource::Named("d".into()), "/d", false));
    }),
    ("configs", How::NewGeneration, |s| {
        let content = s.image.digest.clone();
        s.configs.push(ConfigFile {
            target: "/c".into(),
            content,
            size: 1,
            uid: None,
            gid: None,
            mode: 0o444,
        });
    }),
    ("secrets", How::NewGeneration, |s| {
        s.secrets.push(SecretFile {
            source: "s".into(),
            target: "/run/secrets/s".into(),
            content: None,
            uid: None,
            gid: None,
            mode: 0o444,
        });
    }),
    ("depends_on", How::Settings, |s| {
        s.depends_on.push(crate::types::Dependency::started("db".parse().unwrap()))
    }),
    ("schedule", How::NewGeneration, |s| s.schedule = Some(nightly("03:00"))),
    ("restart", How::Settings, |s| s.restart = RestartPolicy::No),
    ("stop_grace_period", How::Supervisor, |s| s.stop_grace_period *= 2),
    ("mem_limit", How::Limits, |s| s.mem_limit = Some(crate::types::ByteSize(1 << 30))),
    ("cpus", How::Limits, |s| s.milli_cpus = Some(1500)),
    ("pids_limit", How::Limits, |s| s.pids_limit = Some(9)),
    ("group_add", How::NewGeneration, |s| s.options.group_add = Some(vec!["1".into()])),
    ("hostname", How::NewGeneration, |s| s.options.hostname = Some("h".into())),
    ("domainname", How::NewGeneration, |s| s.options.domainname = Some("d".into())),
    ("extra_hosts", How::NewGeneration, |s| {
        s.options.extra_hosts = Some(vec![("a".into(), [1, 1, 1, 1].into())]);
    }),
    ("dns", How::NewGeneration, |s| s.options.dns = Some(vec![[1, 1, 1, 1].into()])),
    ("dns_search", How::NewGeneration, |s| s.options.dns_search = Some(vec!["x".into()])),
    ("dns_opt", How::NewGeneration, |s| s.options.dns_opt = Some(vec!["x".into()])),
    ("cap_add", How::NewGeneration, |s| s.options.cap_add = Some(vec!["ALL".into()])),
    ("cap_drop", How::NewGeneration, |s| s.options.cap_drop = Some(vec!["ALL".into()])),
    ("security_opt", How::NewGeneration, |s| s.options.unconfined = Some(true)),
    ("security_opt", How::NewGeneration, |s| s.options.without_apparmor = Some(true)),
    ("privileged", How::NewGeneration, |s| s.options.privileged = Some(true)),
    ("devices", How::NewGeneration, |s| {
        let (source, target) = ("/dev/null".into(), "/dev/x".into());
        s.options.devices = Some(vec![DeviceMapping { source, target, access: "r".into() }]);
    }),
    ("sysctls", How::NewGeneration, |s| s.options.sysctls = Some([("a".into(), "1".into())].into())),
    ("ulimits", How::NewGeneration, |s| s.options.ulimits = Some([("core".into(), (0, 0))].into())),
    ("oom_score_adj", How::NewGeneration, |s| s.options.oom_score_adj = Some(1)),
    ("shm_size", How::NewGeneration, |s| s.options.shm_size = Some(crate::types::ByteSize(1))),
    ("tmpfs", How::NewGeneration, |s| {
        s.options.tmpfs = Some(vec![Tmpfs { target: "/t".into(), options: vec![] }]);
    }),
    ("read_only", How::NewGeneration, |s| s.options.read_only = Some(true)),
    ("init", How::NewGeneration, |s| s.options.init = Some(true)),
    ("stop_signal", How::NewGeneration, |s| s.options.stop_signal = Some("QUIT".into())),
    ("logging", How::NewGeneration, |s| s.options.logging = Some(LogLimits::default())),
    ("memswap_limit", How::Limits, |s| s.options.memswap_limit = Some(-1)),
    ("mem_reservation", How::Limits, |s| s.options.mem_reservation = Some(crate::types::ByteSize(1))),
    ("cpuset", How::Limits, |s| s.options.cpuset = Some("0".into())),
    ("cpu_shares", How::Limits, |s| s.options.cpu_shares = Some(2)),
    ("blkio_config", How::Limits, |s| s.options.blkio = Some(Blkio::default())),
    ("labels", How::Settings, |s| s.options.labels = Some([("a".into(), "b".into())].into())),
    ("pid", How::NewGeneration, |s| s.options.host_pid = Some(true)),
    ("ipc", How::NewGeneration, |s| s.options.host_ipc = Some(true)),
    ("network_mode", How::NewGeneration, |s| s.options.network_mode = Some(NetworkMode::None)),
    ("networks", How::NewGeneration, |s| s.options.networks = Some([].into())),
    ("userns_mode", How::NewGeneration, |s| s.options.user_namespace = Some(true)),
    ("expose", How::Settings, |s| s.options.expose = Some(vec![(1, Protocol::Tcp)])),
    ("healthcheck", How::Settings, |s| s.healthcheck = Some(HealthCheck::new(Probe::Tcp { port: 1 }))),
    ("deploy", How::Settings, |s| s.deploy.bake *= 2),
    ("replicas", How::Replicas, |s| s.deploy.replicas = 3),
];

#[test]
fn every_key_is_decided() {
    assert_eq!(between(&spec(), &spec()), []);
    for (key, how, change) in TABLE {
        let mut after = spec();
        change(&mut after);
        let found = between(&spec(), &after);
        let found: Vec<_> = found.iter().map(|difference| (difference.key, difference.how)).collect();
        assert_eq!(found, [(*key, *how)]);
    }
    // What is in the table above is in this one: whoever adds a key there names it here.
    let source = include_str!("../changes.rs");
    let keys = source.split("t.add(\"").chain(source.split("t.tell(\"")).skip(1);
    let named: BTreeSet<_> = TABLE.iter().map(|(key, ..)| *key).collect();
    for key in keys.filter_map(|rest| rest.split('"').next()).filter(|key| !key.contains(['\n', ' '])) {
        assert!(named.contains(key), "{key} is not in the table of this test");
    }
}

#[test]
fn another_time_is_no_other_container_and_another_word_of_the_program_is() {
    let (mut before, mut after) = (spec(), spec());
    before.schedule = Some(nightly("03:00"));
    after.schedule = Some(nightly("04:00"));
    assert_eq!(between(&before, &after)[0].how, How::Settings);
    // What the program is told when it starts.
    before = spec();
    before.healthcheck = Some(HealthCheck::new(Probe::Tcp { port: 80 }));
    after = before.clone();
    after.healthcheck = Some(HealthCheck::new(Probe::Notify));
    assert_eq!(between(&before, &after)[0].how, How::NewGeneration);
}

#[test]
fn the_same_bytes_are_the_same_container() {
    let mut after = spec();
    after.image = image("1.0", "a");
    assert_eq!(between(&spec(), &after)[0].how, How::Settings);
    // A tag that was moved, and looked up again for another commit.
    after.image = image("1", "c");
    assert_eq!(between(&spec(), &after)[0].how, How::NewGeneration);
}

#[test]
fn a_port_that_nobody_has_asked_is_proved_first() {
    let mut after = spec();
    after.ports.push(port(81));
    assert_eq!(between(&spec(), &after)[0].how, How::NewGeneration);
    // With a check of its own that it has passed, ports are no more than rules.
    let mut before = spec();
    before.healthcheck = Some(HealthCheck::new(Probe::Tcp { port: 80 }));
    after.healthcheck.clone_from(&before.healthcheck);
    assert_eq!(between(&before, &after)[0].how, How::Ports);
    // One that goes takes nothing with it.
    assert_eq!(between(&after, &before)[0].how, How::Ports);
}

#[test]
fn a_line_says_what_and_how() {
    let mut after = spec();
    (after.mem_limit, after.milli_cpus) = (Some(crate::types::ByteSize(512 << 20)), Some(1500));
    assert_eq!(summary(&between(&spec(), &after)), "live: mem_limit none -> 512m, cpus none -> 1.5");
    after.environment.insert("PASSWORD".into(), "secret".into());
    let text = summary(&between(&spec(), &after));
    assert_eq!(text, "new generation: environment; with it: mem_limit none -> 512m, cpus none -> 1.5");
}
