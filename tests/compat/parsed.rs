//! What becomes of each key's text: beside the lines of a service file stands the spec that they mean, written by hand.
//! What a container sees of such a spec is for the comparison with Docker, and for `tests/engine`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use gitopsd::types::{
    Blkio, ByteSize, Declared, HealthCheck, LogLimits, NetworkLink, NetworkMode, Policy, PortMapping, Probe,
    Protocol, RestartPolicy, Tmpfs, VolumeMount, VolumeSource,
};

use crate::containers::script_request;
use crate::scenarios::{Places, SCENARIOS, words};
use crate::{KEYS, OWN, view};

/// Key of Compose, lines that use it, and what they change of a spec that says nothing.
type Meaning = (&'static str, &'static str, fn(&mut Declared));

/// Keys of which there is no scenario, and other ways to write one.
const MEANINGS: &[Meaning] = &[
    (
        "blkio_config",
        "blkio_config = { device_write_bps = [{ path = \"/dev/sda\", rate = \"1k\" }] }",
        |spec| {
            let write_bps = vec![("/dev/sda".into(), 1 << 10)];
            spec.options.blkio = Some(Blkio { write_bps, ..Blkio::default() });
        },
    ),
    ("blkio_config", "blkio_config = { device_read_iops = [{ path = \"/dev/sda\", rate = 7 }] }", |spec| {
        let read_iops = vec![("/dev/sda".into(), 7)];
        spec.options.blkio = Some(Blkio { read_iops, ..Blkio::default() });
    }),
    ("cgroup", "cgroup = \"private\"", |_| {}),
    ("command", "command = \"serve 'all of it'\"", |spec| spec.command = words(&["serve", "all of it"])),
    ("deploy", "deploy = { bake = \"3s\", drain = \"7s\" }", |spec| {
        (spec.deploy.bake, spec.deploy.drain) = (Duration::from_secs(3), Duration::from_secs(7));
    }),
    ("dns_opt", "dns_opt = \"ndots:2\"", |spec| spec.options.dns_opt = words(&["ndots:2"])),
    ("dns_search", "dns_search = [\"a.org\", \"b.org\"]", |spec| {
        spec.options.dns_search = words(&["a.org", "b.org"]);
    }),
    ("entrypoint", "entrypoint = [\"/bin/x\", \"-y\"]", |spec| spec.entrypoint = words(&["/bin/x", "-y"])),
    ("expose", "expose = [\"80-81\", \"53/udp\"]", |spec| {
        spec.options.expose = Some(vec![(80, Protocol::Tcp), (81, Protocol::Tcp), (53, Protocol::Udp)]);
    }),
    ("extra_hosts", "extra_hosts = { db = \"192.0.2.9\" }", |spec| {
        spec.options.extra_hosts = Some(vec![("db".into(), "192.0.2.9".parse().unwrap())]);
    }),
    ("healthcheck", "healthcheck = { tcp = 81 }", |spec| {
        spec.healthcheck = Some(HealthCheck::new(Probe::Tcp { port: 81 }));
    }),
    ("image", "", |_| {}),
    ("ipc", "ipc = \"private\"", |spec| spec.options.host_ipc = Some(false)),
    ("labels", "labels = [\"a=b=c\", \"d\"]", |spec| {
        spec.options.labels = Some(BTreeMap::from([("a".into(), "b=c".into()), ("d".into(), String::new())]));
    }),
    ("labels", "labels = { a = \"b\" }", |spec| {
        spec.options.labels = Some(BTreeMap::from([("a".into(), "b".into())]));
    }),
    (
        "logging",
        "logging = { driver = \"local\", options = { max-size = \"1m\", max-file = \"2\" } }",
        |spec| {
            spec.options.logging = Some(LogLimits { max_size: Some(ByteSize(1 << 20)), max_file: Some(2) });
        },
    ),
    ("memswap_limit", "mem_limit = \"64m\"\nmemswap_limit = -1", |spec| {
        spec.mem_limit = Some(ByteSize(64 << 20));
        spec.options.memswap_limit = Some(-1);
    }),
    ("network_mode", "network_mode = \"none\"", |spec| spec.options.network_mode = Some(NetworkMode::None)),
    ("networks", "networks = { default = { aliases = [\"a\"] } }", |spec| {
        let link = NetworkLink { aliases: vec!["a".into()], ..NetworkLink::default() };
        spec.options.networks = Some(BTreeMap::from([("default".parse().unwrap(), link)]));
    }),
    ("ports", "ports = [\"127.0.0.1:8000-8001:80-81/udp\"]", |spec| {
        let port = |host_port, container_port| PortMapping {
            host_ip: "127.0.0.1".parse().unwrap(),
            host_port,
            container_port,
            protocol: Protocol::Udp,
        };
        spec.ports = vec![port(8000, 80), port(8001, 81)];
    }),
    ("restart", "restart = \"on-failure:3\"", |spec| {
        spec.restart = RestartPolicy::OnFailure(Some(3));
    }),
    ("security_opt", "security_opt = [\"apparmor:unconfined\", \"no-new-privileges\"]", |spec| {
        (spec.options.unconfined, spec.options.without_apparmor) = (Some(false), Some(true));
    }),
    ("stop_grace_period", "stop_grace_period = \"1m30s\"", |spec| {
        spec.stop_grace_period = Duration::from_secs(90);
    }),
    ("stop_signal", "stop_signal = \"USR1\"", |spec| spec.options.stop_signal = Some("USR1".into())),
    ("sysctls", "sysctls = [\"net.core.somaxconn=99\"]", |spec| {
        spec.options.sysctls = Some(BTreeMap::from([("net.core.somaxconn".into(), "99".into())]));
    }),
    ("userns_mode", "userns_mode = \"auto\"", |spec| spec.options.user_namespace = Some(true)),
    (
        "volumes",
        "volumes = [\"data:/data:ro,nocopy\", { type = \"tmpfs\", target = \"/t\", tmpfs = { size = \"1m\" } }]",
        |spec| {
            let source = VolumeSource::Named("data".into());
            spec.volumes = vec![VolumeMount { nocopy: true, ..VolumeMount::new(source, "/data", true) }];
            let options = vec![format!("size={}", 1 << 20)];
            spec.options.tmpfs = Some(vec![Tmpfs { target: "/t".into(), options }]);
        },
    ),
];

/// Keys that name files of the repo, secrets of the host, or other services, which have tests of their own: `tests/config`.
const ELSEWHERE: [&str; 4] = ["configs", "depends_on", "env_file", "secrets"];

/// A host that allows all.
fn everything() -> Policy {
    let all = || vec!["*".to_owned()];
    Policy {
        privileged: true,
        host_namespaces: true,
        unconfined: true,
        capabilities: all(),
        devices: all(),
        host_mounts: all(),
        ..Policy::default()
    }
}

fn parsed(lines: &str) -> Declared {
    let found = view(lines, &everything());
    let Some(Ok(spec)) = found.services.into_values().next() else {
        panic!("{lines}: {:?}", found.diagnostics)
    };
    spec
}

/// Without a Docker, and without a container: two keys that are taken for each other are seen here.
#[test]
fn the_text_of_every_key_means_what_was_said() {
    let places = Places { dir: "/srv/test".into(), disk: "/dev/sda".into() };
    for scenario in SCENARIOS {
        let lines = scenario.toml.replace("{dir}", "/srv/test").replace("{disk}", "/dev/sda");
        let mut request = script_request(Path::new("/srv/test"), "a.1", "true");
        (scenario.here)(&mut request, &places);
        let mut spec = parsed(&lines).with_image(request.spec.image.clone());
        spec.command.clone_from(&request.spec.command);
        assert_eq!(spec, request.spec, "{}: {lines}", scenario.key);
    }
    let nothing = parsed("");
    for (key, lines, meaning) in MEANINGS {
        let mut spec = nothing.clone();
        meaning(&mut spec);
        assert_eq!(parsed(lines), spec, "{key}: {lines}");
    }
    let shown = SCENARIOS.iter().map(|scenario| scenario.key).chain(MEANINGS.iter().map(|(key, ..)| *key));
    let shown: BTreeSet<&str> = shown.chain(ELSEWHERE).chain(OWN).collect();
    let missing: Vec<_> = KEYS.iter().map(|(key, ..)| *key).filter(|key| !shown.contains(key)).collect();
    assert_eq!(missing, [""; 0], "nothing says what these mean");
}
