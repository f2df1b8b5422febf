//! The containers that are compared: one for each key of Compose that has an effect inside.

use std::collections::BTreeMap;

use gitopsd::engine::ContainerRequest;
use gitopsd::types::{Blkio, ByteSize, DeviceMapping, Tmpfs};

use crate::containers::bind;

/// One container in three spellings.
pub struct Scenario {
    /// Key of Compose; empty = the container that says nothing.
    pub key: &'static str,
    /// Options of `docker run`; `{dir}` is a directory of the test, `{disk}` a block device of the machine.
    pub docker: &'static [&'static str],
    /// The same in a service file.
    pub toml: &'static str,
    /// What gitopsd makes of that (`parsed.rs`), and runs.
    pub here: fn(&mut ContainerRequest, &Places),
    /// Kinds of facts that the key changes, in the container of Docker: that the comparison sees the key at all.
    pub shows: &'static [&'static str],
}

/// Where this machine has what some keys need.
pub struct Places {
    /// With a directory `volume` that holds one file.
    pub dir: std::path::PathBuf,
    /// A block device.
    pub disk: std::path::PathBuf,
}

pub fn words(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(ToString::to_string).collect())
}

/// All of them; the first is the one that all others are compared with.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { key: "", docker: &[], toml: "", here: |_, _| {}, shows: &[] },
    Scenario {
        key: "blkio_config",
        docker: &[
            "--blkio-weight=300",
            "--device-read-bps={disk}:2mb",
            "--device-write-bps={disk}:1mb",
            "--device-read-iops={disk}:100",
            "--device-write-iops={disk}:200",
        ],
        toml: r#"blkio_config = { weight = 300, device_read_bps = [{ path = "{disk}", rate = "2m" }], device_write_bps = [{ path = "{disk}", rate = "1m" }], device_read_iops = [{ path = "{disk}", rate = 100 }], device_write_iops = [{ path = "{disk}", rate = 200 }] }"#,
        here: |request, places| {
            request.spec.options.blkio = Some(Blkio {
                weight: Some(300),
                read_bps: vec![(places.disk.clone(), 2 << 20)],
                write_bps: vec![(places.disk.clone(), 1 << 20)],
                read_iops: vec![(places.disk.clone(), 100)],
                write_iops: vec![(places.disk.clone(), 200)],
            });
        },
        shows: &["cgroup"],
    },
    Scenario {
        key: "cap_add",
        docker: &["--cap-add=NET_ADMIN", "--cap-add=SYS_ADMIN"],
        toml: r#"cap_add = ["NET_ADMIN", "SYS_ADMIN"]"#,
        here: |request, _| request.spec.options.cap_add = words(&["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]),
        shows: &["can", "capabilities"],
    },
    Scenario {
        key: "cap_drop",
        docker: &["--cap-drop=ALL", "--cap-add=CHOWN"],
        toml: "cap_drop = [\"ALL\"]\ncap_add = [\"CHOWN\"]",
        here: |request, _| {
            request.spec.options.cap_drop = words(&["ALL"]);
            request.spec.options.cap_add = words(&["CAP_CHOWN"]);
        },
        shows: &["can", "capabilities"],
    },
    Scenario {
        key: "cpu_shares",
        docker: &["--cpu-shares=512"],
        toml: "cpu_shares = 512",
        here: |request, _| request.spec.options.cpu_shares = Some(512),
        shows: &["cgroup"],
    },
    Scenario {
        key: "cpus",
        docker: &["--cpus=0.5"],
        toml: "cpus = 0.5",
        here: |request, _| request.spec.milli_cpus = Some(500),
        shows: &["cgroup"],
    },
    Scenario {
        key: "cpuset",
        docker: &["--cpuset-cpus=0"],
        toml: r#"cpuset = "0""#,
        here: |request, _| request.spec.options.cpuset = Some("0".into()),
        shows: &["cgroup"],
    },
    Scenario {
        key: "devices",
        docker: &["--device=/dev/zero:/dev/nought:r", "--device={disk}:/dev/disk:rw"],
        toml: r#"devices = ["/dev/zero:/dev/nought:r", "{disk}:/dev/disk:rw"]"#,
        here: |request, places| {
            let device = |source: &std::path::Path, target: &str, access: &str| DeviceMapping {
                source: source.to_owned(),
                target: target.into(),
                access: access.into(),
            };
            request.spec.options.devices = Some(vec![
                device("/dev/zero".as_ref(), "/dev/nought", "r"),
                device(&places.disk, "/dev/disk", "rw"),
            ]);
        },
        shows: &["cgroup", "devices"],
    },
    Scenario {
        key: "dns",
        docker: &["--dns=192.0.2.7", "--dns-search=example.org", "--dns-option=ndots:2"],
        toml: "dns = \"192.0.2.7\"\ndns_search = \"example.org\"\ndns_opt = [\"ndots:2\"]",
        here: |request, _| {
            request.spec.options.dns = Some(vec!["192.0.2.7".parse().unwrap()]);
            request.spec.options.dns_search = words(&["example.org"]);
            request.spec.options.dns_opt = words(&["ndots:2"]);
        },
        shows: &["resolver"],
    },
    Scenario {
        key: "domainname",
        docker: &["--domainname=example.org"],
        toml: r#"domainname = "example.org""#,
        here: |request, _| request.spec.options.domainname = Some("example.org".into()),
        shows: &["names"],
    },
    Scenario {
        key: "environment",
        docker: &["--env=LOG=a b=c", "--env=EMPTY="],
        toml: r#"environment = { LOG = "a b=c", EMPTY = "" }"#,
        here: |request, _| {
            request.spec.environment =
                BTreeMap::from([("LOG".into(), "a b=c".into()), ("EMPTY".into(), String::new())]);
        },
        shows: &["env"],
    },
    Scenario {
        key: "extra_hosts",
        docker: &["--add-host=db:192.0.2.9"],
        toml: r#"extra_hosts = ["db:192.0.2.9"]"#,
        here: |request, _| {
            request.spec.options.extra_hosts = Some(vec![("db".into(), "192.0.2.9".parse().unwrap())]);
        },
        shows: &["hosts"],
    },
    Scenario {
        key: "group_add",
        docker: &["--group-add=logs", "--group-add=44"],
        toml: r#"group_add = ["logs", 44]"#,
        here: |request, _| request.spec.options.group_add = words(&["logs", "44"]),
        shows: &["user"],
    },
    Scenario {
        key: "hostname",
        docker: &["--hostname=front"],
        toml: r#"hostname = "front""#,
        here: |request, _| request.spec.options.hostname = Some("front".into()),
        shows: &["env", "names"],
    },
    Scenario {
        key: "init",
        docker: &["--init"],
        toml: "init = true",
        here: |request, _| request.spec.options.init = Some(true),
        shows: &["mounts", "process"],
    },
    Scenario {
        key: "ipc",
        docker: &["--ipc=host"],
        toml: r#"ipc = "host""#,
        here: |request, _| request.spec.options.host_ipc = Some(true),
        shows: &["mounts", "namespaces"],
    },
    Scenario {
        key: "mem_limit",
        docker: &["--memory=64m"],
        toml: r#"mem_limit = "64m""#,
        here: |request, _| request.spec.mem_limit = Some(ByteSize(64 << 20)),
        shows: &["cgroup"],
    },
    Scenario {
        key: "mem_reservation",
        docker: &["--memory-reservation=16m"],
        toml: r#"mem_reservation = "16m""#,
        here: |request, _| request.spec.options.mem_reservation = Some(ByteSize(16 << 20)),
        shows: &["cgroup"],
    },
    Scenario {
        key: "memswap_limit",
        docker: &["--memory=64m", "--memory-swap=96m"],
        toml: "mem_limit = \"64m\"\nmemswap_limit = \"96m\"",
        here: |request, _| {
            request.spec.mem_limit = Some(ByteSize(64 << 20));
            request.spec.options.memswap_limit = Some(96 << 20);
        },
        shows: &["cgroup"],
    },
    Scenario {
        key: "oom_score_adj",
        docker: &["--oom-score-adj=321"],
        toml: "oom_score_adj = 321",
        here: |request, _| request.spec.options.oom_score_adj = Some(321),
        shows: &["process"],
    },
    Scenario {
        key: "pid",
        docker: &["--pid=host"],
        toml: r#"pid = "host""#,
        here: |request, _| request.spec.options.host_pid = Some(true),
        shows: &["can", "namespaces", "process"],
    },
    Scenario {
        key: "pids_limit",
        docker: &["--pids-limit=77"],
        toml: "pids_limit = 77",
        here: |request, _| request.spec.pids_limit = Some(77),
        shows: &["cgroup"],
    },
    Scenario {
        key: "privileged",
        docker: &["--privileged"],
        toml: "privileged = true",
        here: |request, _| request.spec.options.privileged = Some(true),
        shows: &["can", "capabilities", "cgroup", "devices", "filter", "mounts"],
    },
    Scenario {
        key: "read_only",
        docker: &["--read-only"],
        toml: "read_only = true",
        here: |request, _| request.spec.options.read_only = Some(true),
        shows: &["can", "mounts"],
    },
    Scenario {
        key: "security_opt",
        docker: &["--security-opt=seccomp=unconfined"],
        toml: r#"security_opt = ["seccomp=unconfined"]"#,
        here: |request, _| request.spec.options.unconfined = Some(true),
        shows: &["can", "filter"],
    },
    Scenario {
        key: "shm_size",
        docker: &["--shm-size=8m"],
        toml: r#"shm_size = "8m""#,
        here: |request, _| request.spec.options.shm_size = Some(ByteSize(8 << 20)),
        shows: &["mounts"],
    },
    Scenario {
        key: "sysctls",
        docker: &["--sysctl=net.core.somaxconn=99", "--sysctl=kernel.msgmax=16384"],
        toml: r#"sysctls = { "net.core.somaxconn" = 99, "kernel.msgmax" = 16384 }"#,
        here: |request, _| {
            request.spec.options.sysctls = Some(BTreeMap::from([
                ("net.core.somaxconn".into(), "99".into()),
                ("kernel.msgmax".into(), "16384".into()),
            ]));
        },
        shows: &["sysctl"],
    },
    Scenario {
        key: "tmpfs",
        docker: &["--tmpfs=/run/a:size=2m,mode=0750,uid=1000", "--tmpfs=/run/b"],
        toml: r#"tmpfs = ["/run/a:size=2m,mode=0750,uid=1000", "/run/b"]"#,
        here: |request, _| {
            request.spec.options.tmpfs = Some(vec![
                Tmpfs {
                    target: "/run/a".into(),
                    options: words(&["size=2m", "mode=0750", "uid=1000"]).unwrap(),
                },
                Tmpfs { target: "/run/b".into(), options: Vec::new() },
            ]);
        },
        shows: &["mounts"],
    },
    Scenario {
        key: "ulimits",
        docker: &["--ulimit=nofile=100:200", "--ulimit=core=0:4096", "--ulimit=nproc=500"],
        toml: "ulimits = { nofile = { soft = 100, hard = 200 }, core = { soft = 0, hard = 4096 }, nproc = 500 }",
        here: |request, _| {
            request.spec.options.ulimits = Some(BTreeMap::from([
                ("nofile".into(), (100, 200)),
                ("core".into(), (0, 4096)),
                ("nproc".into(), (500, 500)),
            ]));
        },
        shows: &["limits"],
    },
    Scenario {
        key: "user",
        docker: &["--user=app"],
        toml: r#"user = "app""#,
        here: |request, _| request.spec.user = Some("app".into()),
        shows: &["can", "capabilities", "env", "user"],
    },
    Scenario {
        key: "volumes",
        docker: &["--volume={dir}/volume:/data/rw", "--volume={dir}/volume:/data/ro:ro"],
        toml: r#"volumes = ["{dir}/volume:/data/rw", "{dir}/volume:/data/ro:ro"]"#,
        here: |request, places| {
            let volume = places.dir.join("volume");
            request.spec.volumes = vec![bind(&volume, "/data/rw", false), bind(&volume, "/data/ro", true)];
        },
        shows: &["mounts"],
    },
    Scenario {
        key: "working_dir",
        docker: &["--workdir=/srv/not/there"],
        toml: r#"working_dir = "/srv/not/there""#,
        here: |request, _| request.spec.working_dir = Some("/srv/not/there".into()),
        shows: &["process"],
    },
];
