//! What a program inside sees: user, rights, limits, names.

use std::fs;

use gitopsd::engine::Engine;
use gitopsd::types::ByteSize;

use crate::containers::Rig;

#[test]
fn a_program_sees_its_own_small_world() {
    let rig = Rig::new();
    let mut request = rig.script(
        "shop.7",
        "echo host=$(hostname) pid=$$ cwd=$(pwd) LOG=$LOG BASE=$BASE
         echo user=$(id -u):$(id -g) groups=$(id -G)
         grep -E '^(Cap|NoNewPrivs)' /proc/self/status
         echo devices: $(ls /dev)
         echo interfaces: $(ls /sys/class/net)
         cat /etc/hosts
         echo files=$(ulimit -n) umask=$(umask)
         echo oops >&2
         exit 7",
    );
    request.image.config.env = vec!["BASE=image".into(), "LOG=image".into()];
    request.image.config.user = "app".into();
    request.image.config.working_dir = "/srv/app".into();
    request.spec.environment.insert("LOG".into(), "info".into());
    request.hosts.insert("db".to_owned(), vec![[10, 98, 0, 9].into()]);
    let (exit, log) = rig.run(&request);
    let text = log.join("\n");
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (Some(7), None, false), "{text}");
    for expected in [
        "host=shop pid=1 cwd=/srv/app LOG=info BASE=image",
        "user=1000:1001 groups=1001 1002",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000800405fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "10.98.0.9 db",
        "10.98.7.2 shop",
        "interfaces: lo",
        "umask=0022",
        "oops",
    ] {
        assert!(log.iter().any(|line| line.contains(expected)), "`{expected}` is missing in:\n{text}");
    }
    let devices = log.iter().find_map(|line| line.strip_prefix("devices: ")).unwrap();
    for device in devices.split(' ') {
        let standard = [
            "console", "core", "fd", "full", "kcore", "mqueue", "null", "ptmx", "pts", "random", "shm",
            "stderr", "stdin", "stdout", "tty", "urandom", "zero",
        ];
        assert!(standard.contains(&device), "/dev/{device} is not a standard device");
    }
    let file = fs::read_to_string(rig.log_file(&request.id)).unwrap();
    let oops = file.lines().find(|line| line.ends_with("oops")).unwrap();
    let fields: Vec<_> = oops.split(' ').collect();
    assert!(fields[0].parse::<gitopsd::types::Timestamp>().is_ok(), "{oops}");
    assert_eq!(fields[1..], ["stderr", "F", "oops"]);
}

#[test]
fn root_inside_is_not_root_outside() {
    let rig = Rig::new();
    let (_, log) = rig.run(&rig.script(
        "shop.1",
        "grep -E '^Cap(Prm|Eff|Inh|Amb)' /proc/self/status
         mknod /disk b 254 0 2>/dev/null && echo MADE A DEVICE
         mount -t tmpfs x /tmp 2>/dev/null && echo MOUNTED
         echo 1 > /proc/sys/kernel/panic && echo WROTE SYSCTL
         echo x > /proc/sysrq-trigger && echo WROTE SYSRQ
         for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo MADE A CGROUP in $d; done
         for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do
           test -e $f && echo 99999999999 > $f && echo WROTE A LIMIT
         done
         test -s /proc/kcore && echo READ KCORE
         ls /proc/acpi 2>/dev/null
         true < /proc/keys && wc -c < /proc/keys
         ls -l /proc/self/fd
         echo done",
    ));
    let text = log.join("\n");
    assert!(
        !log.iter().any(|line| line.contains("MADE") || line.contains("MOUNTED") || line.contains("WROTE")),
        "{text}"
    );
    assert!(!text.contains("READ KCORE"), "{text}");
    assert!(log.contains(&"CapEff:\t00000000800405fb".to_owned()), "{text}");
    assert!(log.contains(&"CapAmb:\t0000000000000000".to_owned()), "{text}");
    assert!(log.contains(&"done".to_owned()), "{text}");
    // Standard descriptors, the directory that `ls` reads, and nothing of the shim's.
    let descriptors = log.iter().filter(|line| line.contains(" -> ")).count();
    assert!(descriptors <= 4, "{text}");
}

#[test]
fn signals_are_as_a_program_expects_them() {
    let rig = Rig::new();
    // With SIGPIPE ignored, `yes` would report an error instead of ending silently.
    let (exit, log) = rig.run(
        &rig.script("shop.1", "yes 2>&1 | head -n 2; grep -E '^Sig(Ign|Blk)' /proc/self/status; exit 0"),
    );
    assert_eq!(log, ["y", "y", "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"]);
    assert_eq!(exit.code, Some(0));
}

#[test]
fn limits_hold() {
    let rig = Rig::new();
    let mut request = rig.script(
        "shop.1",
        "for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max \
                  /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max \
                  /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max; do
           test -e $f && echo ${f##*/}=$(cat $f)
         done
         i=0; while test $i -lt 60; do sleep 30 & i=$((i+1)); done 2>/dev/null
         echo not reached",
    );
    request.spec.mem_limit = Some(ByteSize(48 << 20));
    request.spec.milli_cpus = Some(500);
    request.spec.pids_limit = Some(20);
    let (exit, log) = rig.run(&request);
    let text = log.join("\n");
    assert!(text.contains("=50331648"), "{text}");
    assert!(text.contains("pids.max=20"), "{text}");
    assert!(text.contains("cpu.cfs_quota_us=50000") || text.contains("cpu.max=50000 100000"), "{text}");
    assert!(!text.contains("not reached"), "60 processes were allowed: {text}");
    assert_ne!(exit.code, Some(0));
}

#[test]
fn want_of_memory_is_told() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "exec tail /dev/zero");
    request.spec.mem_limit = Some(ByteSize(24 << 20));
    let (exit, _) = rig.run(&request);
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    assert_eq!(exit.to_string(), "was killed for want of memory");
}

#[test]
fn odd_images_start() {
    let rig = Rig::new();
    // A link that leads nowhere, one that leads out, and no /etc/hosts at all: the generated files are there.
    std::os::unix::fs::symlink("../run/nowhere/resolv.conf", rig.path("layer/etc/resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/etc/name", rig.path("layer/etc/hostname")).unwrap();
    fs::write(rig.path("layer/etc/name"), "image\n").unwrap();
    let mut request =
        rig.script("shop.1", "cat /etc/hostname; test -f /etc/resolv.conf && grep -c shop /etc/hosts");
    assert_eq!(rig.run(&request).1, ["shop", "1"]);
    // The working directory and the user's number are nowhere in the image; the image has no PATH.
    request = rig.script("shop.2", "pwd; id -u; echo $PATH");
    request.spec.working_dir = Some("/not/there".into());
    request.spec.user = Some("4711".into());
    assert_eq!(
        rig.run(&request).1,
        ["/not/there", "4711", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    );
    // /dev/stdout opened by name, by a user who is not root.
    request = rig.script("shop.3", "echo by name > /dev/stdout; echo by name too > /dev/stderr");
    request.spec.user = Some("app".into());
    assert_eq!(rig.run(&request).1, ["by name", "by name too"]);
}

#[test]
fn names_of_peers_can_be_renewed() {
    let rig = Rig::new();
    let request = rig.script(
        "shop.1",
        "while ! grep -q '10.98.0.77 mail' /etc/hosts; do sleep 0.02; done; cat /etc/hosts",
    );
    rig.start(&request);
    let hosts = gitopsd::engine::Hosts::from([("mail".to_owned(), vec![[10, 98, 0, 77].into()])]);
    rig.engine.write_hosts(&request.id, &hosts).unwrap();
    assert_eq!(rig.wait_exit(&request.id).code, Some(0));
    let log = rig.engine.log_tail(&request.id, 99);
    assert_eq!(log.last().unwrap(), "10.98.7.2 shop");
    rig.engine.write_hosts(&"never.1".parse().unwrap(), &hosts).unwrap();
}
