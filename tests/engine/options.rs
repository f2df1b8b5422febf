//! Each key of Compose that sets a container apart, seen from inside of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use gitopsd::engine::{ContainerRequest, Engine};
use gitopsd::types::{Blkio, ByteSize, DeviceMapping, LogLimits, Options, Tmpfs};

use crate::containers::Rig;

/// Runs a script with options and gives its output as one text.
fn seen(rig: &Rig, script: &str, options: Options) -> String {
    let mut request = rig.script("shop.1", script);
    request.spec.options = options;
    let (_, log) = rig.run(&request);
    rig.engine.remove(&request.id).unwrap();
    let _ = fs::remove_file(rig.log_file(&request.id));
    log.join("\n")
}

fn strings(all: &[&str]) -> Option<Vec<String>> {
    Some(all.iter().map(ToString::to_string).collect())
}

#[test]
fn groups_and_names() {
    let rig = Rig::new();
    let options = Options {
        group_add: strings(&["logs", "4711"]),
        hostname: Some("front".into()),
        domainname: Some("example.org".into()),
        extra_hosts: Some(vec![("db.internal".into(), "192.0.2.7".parse().unwrap())]),
        dns: Some(vec!["192.0.2.53".parse().unwrap()]),
        dns_search: strings(&["example.org"]),
        dns_opt: strings(&["ndots:2"]),
        ..Options::default()
    };
    let script = "id -G; hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts /proc/sys/kernel/domainname";
    let text = seen(&rig, script, options);
    for line in [
        "0 1002 4711",
        "front\nfront\nnameserver 192.0.2.53\nsearch example.org\noptions ndots:2\n127.0.0.1",
        "192.0.2.7 db.internal",
        "10.98.7.2 front",
        "10.98.7.2 shop",
        "example.org",
    ] {
        assert!(text.contains(line), "`{line}` is missing in:\n{text}");
    }
}

#[test]
fn names_of_a_service_stay_when_those_of_peers_are_renewed() {
    let rig = Rig::new();
    let mut request =
        rig.script("shop.1", "while ! grep -q mail /etc/hosts; do sleep 0.02; done; cat /etc/hosts");
    request.spec.options.extra_hosts = Some(vec![("db.internal".into(), "192.0.2.7".parse().unwrap())]);
    rig.start(&request);
    let hosts = BTreeMap::from([("mail".to_owned(), vec![[10, 98, 0, 77].into()])]);
    rig.engine.write_hosts(&request.id, &hosts).unwrap();
    rig.wait_exit(&request.id);
    rig.wait_log(&request.id, "192.0.2.7 db.internal");
}

#[test]
fn capabilities_added_and_dropped() {
    let rig = Rig::new();
    let script = "grep -E '^Cap(Eff|Bnd|Amb|Inh)' /proc/self/status";
    let of = |add: &[&str], drop: &[&str]| {
        seen(&rig, script, Options { cap_add: strings(add), cap_drop: strings(drop), ..Options::default() })
    };
    let text = of(&["CAP_NET_ADMIN"], &["CAP_CHOWN", "CAP_KILL"]);
    // Bits 0 and 5 gone, bit 12 there.
    assert!(
        text.contains("CapEff:\t00000000800415da") && text.contains("CapBnd:\t00000000800415da"),
        "{text}"
    );
    assert!(
        text.contains("CapAmb:\t0000000000000000") && text.contains("CapInh:\t0000000000000000"),
        "{text}"
    );
    let text = of(&[], &["ALL"]);
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
}

#[test]
fn the_filter_of_system_calls_is_there_unless_taken_away() {
    let rig = Rig::new();
    let script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status
        busybox unshare -U true 2>/dev/null && echo UNSHARED";
    let text = seen(&rig, script, Options::default());
    assert_eq!(text, "NoNewPrivs:\t1\nSeccomp:\t2");
    let text = seen(&rig, script, Options { unconfined: Some(true), ..Options::default() });
    assert!(text.starts_with("NoNewPrivs:\t1\nSeccomp:\t0"), "{text}");
    // What is executed later has it too.
    let request = rig.script("shop.2", "sleep 100");
    rig.start(&request);
    let command = ["grep".into(), "^Seccomp:".into(), "/proc/self/status".into()];
    let output = rig.engine.exec(&request.id, &command, std::time::Duration::from_secs(60)).unwrap();
    assert_eq!(output.output.trim_end(), "Seccomp:\t2");
}

#[test]
fn privileged_means_all() {
    let rig = Rig::new();
    let options = Options { privileged: Some(true), ..Options::default() };
    let text = seen(
        &rig,
        "grep -E '^(CapEff|Seccomp):' /proc/self/status
         mount -t tmpfs x /tmp && echo mounted; test -w /proc/sys/kernel/domainname && echo writable",
        options,
    );
    assert!(text.contains("Seccomp:\t0") && text.contains("mounted") && text.contains("writable"), "{text}");
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    // What this machine's root does not have itself it cannot give.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let own = u64::from_str_radix(own, 16).unwrap() & ((1 << (last + 1)) - 1);
    assert!(text.contains(&format!("CapEff:\t{own:016x}")), "{own:016x} expected:\n{text}");
}

#[test]
fn devices_of_the_host() {
    let rig = Rig::new();
    let device =
        DeviceMapping { source: "/dev/zero".into(), target: "/dev/other/nought".into(), access: "r".into() };
    let options = Options { devices: Some(vec![device]), ..Options::default() };
    let text = seen(
        &rig,
        "stat -c '%t:%T %F' /dev/other/nought; head -c 4 /dev/other/nought | wc -c; stat -c %a /dev/other",
        options,
    );
    assert_eq!(text, "1:5 character special file\n4\n755");
    let missing =
        DeviceMapping { source: "/dev/not-there".into(), target: "/dev/x".into(), access: "r".into() };
    let mut request = rig.script("shop.1", "true");
    request.spec.options.devices = Some(vec![missing]);
    let message = rig.engine.start(&request).unwrap_err().to_refusal().message;
    assert!(message.contains("device /dev/not-there"), "{message}");
}

#[test]
fn kernel_parameters_and_limits_of_processes() {
    let rig = Rig::new();
    let options = Options {
        sysctls: Some(BTreeMap::from([
            ("net.ipv4.ip_local_port_range".into(), "20000 30000".into()),
            ("kernel.msgmax".into(), "16384".into()),
        ])),
        ulimits: Some(BTreeMap::from([
            ("nofile".into(), (100, 200)),
            ("core".into(), (0, 4096)),
            ("nproc".into(), (50, 60)),
        ])),
        oom_score_adj: Some(321),
        ..Options::default()
    };
    let text = seen(
        &rig,
        "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/msgmax /proc/self/oom_score_adj
         grep -E '^Max (open files|processes|core)' /proc/self/limits | tr -s ' '",
        options,
    );
    for line in [
        "20000\t30000\n16384\n321",
        "Max open files 100 200",
        "Max processes 50 60",
        "Max core file size 0 4096",
    ] {
        assert!(text.contains(line), "`{line}` is missing in:\n{text}");
    }
}

#[test]
fn file_systems_in_memory_and_a_root_that_is_only_read() {
    let rig = Rig::new();
    let options = Options {
        shm_size: Some(ByteSize(8 << 20)),
        read_only: Some(true),
        tmpfs: Some(vec![Tmpfs {
            target: "/run/shop".into(),
            options: ["size=2m", "mode=0750", "uid=1000"].map(str::to_owned).into(),
        }]),
        ..Options::default()
    };
    let text = seen(
        &rig,
        "touch /x 2>/dev/null && echo WROTE; touch /run/shop/x && echo fine
         grep -E ' /(dev/shm|run/shop) ' /proc/mounts; stat -c '%a %u' /run/shop
         touch /dev/shm/x && echo shm",
        options,
    );
    assert!(!text.contains("WROTE") && text.contains("fine") && text.contains("750 1000"), "{text}");
    assert!(text.contains("size=8192k") && text.contains("size=2048k") && text.contains("shm"), "{text}");
    let line = text.lines().find(|line| line.contains("/run/shop")).unwrap();
    assert!(["nosuid", "nodev", "noexec"].iter().all(|option| line.contains(option)), "{line}");
}

fn limited(rig: &Rig) -> ContainerRequest {
    let mut request = rig.script(
        "shop.1",
        "for f in memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes cpu/cpu.shares \
                  cpuset/cpuset.cpus blkio/blkio.throttle.write_bps_device memory.swap.max memory.low cpu.weight \
                  cpuset.cpus io.max; do
           test -e /sys/fs/cgroup/$f && echo ${f##*/}=$(cat /sys/fs/cgroup/$f)
         done; nproc",
    );
    request.spec.mem_limit = Some(ByteSize(48 << 20));
    request.spec.options = Options {
        memswap_limit: Some(64 << 20),
        mem_reservation: Some(ByteSize(16 << 20)),
        cpuset: Some("0".into()),
        cpu_shares: Some(512),
        ..Options::default()
    };
    request
}

#[test]
fn limits_of_memory_and_processors() {
    let rig = Rig::new();
    let (_, log) = rig.run(&limited(&rig));
    let text = log.join("\n");
    let either =
        |v1: &str, v2: &str| assert!(text.contains(v1) || text.contains(v2), "{v1} or {v2}:\n{text}");
    if fs::exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").unwrap()
        || fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap()
    {
        either("memory.memsw.limit_in_bytes=67108864", "memory.swap.max=16777216");
    }
    either("memory.soft_limit_in_bytes=16777216", "memory.low=16777216");
    either("cpu.shares=512", "cpu.weight=");
    either("cpuset.cpus=0\n", "cpuset.cpus=0\n");
    assert_eq!(log.last().unwrap(), "1");
}

/// All of its memory and no swap: not the same as a limit of swap that is not given.
#[test]
fn a_container_without_swap() {
    let rig = Rig::new();
    let mut request = limited(&rig);
    request.spec.options.memswap_limit = Some(48 << 20);
    let (_, log) = rig.run(&request);
    let line = log.iter().find(|line| line.starts_with("memory.memsw") || line.starts_with("memory.swap"));
    let none = ["memory.memsw.limit_in_bytes=50331648", "memory.swap.max=0"];
    assert!(line.is_none_or(|line| none.contains(&line.as_str())), "{log:?}");
    assert!(
        line.is_some() || fs::read_dir("/sys/fs/cgroup/memory").is_ok(),
        "cgroup v2 counts swap: {log:?}"
    );
}

#[test]
fn limits_of_disks() {
    let rig = Rig::new();
    let disk = crate::containers::disk();
    let number = fs::metadata(&disk).unwrap().rdev();
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let kinds = ["read_bps_device", "write_bps_device", "read_iops_device", "write_iops_device"];
    let v1 = kinds.map(|kind| format!("/sys/fs/cgroup/blkio/blkio.throttle.{kind}"));
    let mut request = rig.script(
        "shop.1",
        &format!("for f in {} /sys/fs/cgroup/io.max; do test -e $f && cat $f; done; true", v1.join(" ")),
    );
    request.spec.options.blkio = Some(Blkio {
        weight: None,
        read_bps: vec![(disk.clone(), 2 << 20)],
        write_bps: vec![(disk.clone(), 1 << 20)],
        read_iops: vec![(disk.clone(), 100)],
        write_iops: vec![(disk, 200)],
    });
    let (_, log) = rig.run(&request);
    let v1 = [2 << 20, 1 << 20, 100, 200].map(|rate| format!("{number} {rate}"));
    let v2 = [format!("{number} rbps=2097152 wbps=1048576 riops=100 wiops=200")];
    assert!(log == v1 || log == v2, "{log:?}");
}

#[test]
fn an_entrypoint_of_the_service_sets_the_images_command_aside() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "");
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    request.image.config.entrypoint = words(&["echo", "of the image"]);
    request.image.config.cmd = words(&["its command"]);
    request.spec.command = None;
    assert_eq!(rig.run(&request).1, ["of the image its command"]);
    request.id = "shop.2".parse().unwrap();
    request.spec.entrypoint = Some(words(&["echo", "of the service"]));
    assert_eq!(rig.run(&request).1.last().unwrap(), "of the service");
    request.id = "shop.3".parse().unwrap();
    request.spec.command = Some(words(&["and its command"]));
    assert_eq!(rig.run(&request).1.last().unwrap(), "of the service and its command");
}

#[test]
fn a_disk_that_is_not_there_is_told() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "true");
    let blkio = Blkio { write_bps: vec![("/dev/no-disk".into(), 1 << 20)], ..Blkio::default() };
    request.spec.options.blkio = Some(blkio);
    let message = rig.engine.start(&request).unwrap_err().to_refusal().message;
    assert!(message.contains("limits of disks") && message.contains("/dev/no-disk"), "{message}");
}

#[test]
fn a_first_process_reaps_and_passes_signals_on() {
    let rig = Rig::new();
    let mut request = rig.script(
        "shop.1",
        "trap 'echo told; exit 3' TERM; echo me=$$
         (sleep 0.05 &) ; sleep 0.3; ps -o stat,comm | grep -c '^Z' ; echo up; while :; do sleep 0.02; done",
    );
    request.spec.options.init = Some(true);
    rig.start(&request);
    rig.wait_log(&request.id, "up");
    rig.engine.stop(&request.id, std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&request.id).code, Some(3));
    let log = rig.engine.log_tail(&request.id, 99);
    assert_ne!(log[0], "me=1");
    assert_eq!(log[1..], ["0", "up", "told"]);
    // Real-time signals too: one from inside, one that asks it to end, and one that the program ends by.
    let mut request = rig.script(
        "shop.3",
        "trap 'echo passed on; p=1' 36; trap 'echo told; exit 3' 37; kill -36 1
         while [ -z \"$p\" ]; do sleep 0.02; done; echo up; while :; do sleep 0.02; done",
    );
    request.spec.options.init = Some(true);
    request.spec.options.stop_signal = Some("SIGRTMIN+3".into());
    rig.start(&request);
    rig.wait_log(&request.id, "up");
    rig.engine.stop(&request.id, std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&request.id).code, Some(3));
    assert_eq!(rig.engine.log_tail(&request.id, 99), ["passed on", "up", "told"]);
    let mut request = rig.script("shop.4", "kill -38 $$");
    request.spec.options.init = Some(true);
    assert_eq!(rig.run(&request).0.code, Some(128 + 38));
    // A program that is not there is told all the same.
    let mut request = rig.script("shop.2", "");
    request.spec.options.init = Some(true);
    request.spec.command = Some(vec!["not-there".into()]);
    let message = rig.engine.start(&request).unwrap_err().to_refusal().message;
    assert!(message.contains("`not-there` is not in the image"), "{message}");
}

#[test]
fn the_stop_signal_of_the_service() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "trap 'exit 5' USR1; echo up; while :; do sleep 0.02; done");
    request.spec.options.stop_signal = Some("SIGUSR1".into());
    rig.start(&request);
    rig.wait_log(&request.id, "up");
    rig.engine.stop(&request.id, std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&request.id).code, Some(5));
}

#[test]
fn the_hosts_processes_and_ipc() {
    let rig = Rig::new();
    let script = "readlink /proc/self/ns/ipc; echo pid=$$";
    let options = Options { host_pid: Some(true), host_ipc: Some(true), ..Options::default() };
    let text = seen(&rig, &script.replace("readlink", "busybox readlink"), options);
    let own = fs::read_link("/proc/self/ns/ipc").unwrap();
    assert!(text.contains(&*own.to_string_lossy()) && !text.ends_with("pid=1"), "{text}");
}

#[test]
fn logs_are_kept_as_long_as_was_said() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "i=0; while test $i -lt 4000; do i=$((i+1)); echo $i 0123456789012345678901234567890123456789012345678901234567890123456789; done");
    request.spec.options.logging = Some(LogLimits { max_size: Some(ByteSize(64 << 10)), max_file: Some(2) });
    let (_, log) = rig.run(&request);
    assert!(log.last().unwrap().starts_with("4000 "));
    let path = rig.log_file(&request.id);
    let size = |name: &str| fs::metadata(format!("{}{name}", path.display())).map(|found| found.len());
    assert!(size("").unwrap() <= 128 << 10 && size(".1").unwrap() <= 128 << 10);
    assert!(size(".2").is_err(), "a third file is there");
}
