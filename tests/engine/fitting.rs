//! What a service's keys change in the container, seen from inside.

use std::collections::BTreeMap;

use gitopsd::engine::Engine;
use gitopsd::types::{ByteSize, Container, Tmpfs, Ulimit};

use crate::containers::Rig;

fn texts(all: &[&str]) -> Option<Vec<String>> {
    Some(all.iter().map(|text| (*text).to_owned()).collect())
}

#[test]
fn names_rights_and_limits() {
    let rig = Rig::new();
    let mut request = rig.script(
        "shop.7",
        "echo host=$(hostname) file=$(cat /etc/hostname)
         cat /etc/hosts /etc/resolv.conf
         echo groups=$(id -G)
         grep CapBnd /proc/self/status
         echo files=$(ulimit -n) hard=$(ulimit -Hn) core=$(ulimit -c)
         echo score=$(cat /proc/self/oom_score_adj)
         echo keepalive=$(cat /proc/sys/net/ipv4/tcp_keepalive_time) msgmax=$(cat /proc/sys/kernel/msgmax)
         echo cpus=$(grep Cpus_allowed_list /proc/self/status | tr -d '\\t')
         for f in /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu.weight \
                  /sys/fs/cgroup/memory/memory.soft_limit_in_bytes /sys/fs/cgroup/memory.low; do
           test -e $f && echo ${f##*/}=$(cat $f)
         done
         echo done",
    );
    request.spec.mem_limit = Some(ByteSize(64 << 20));
    request.spec.container = Container {
        hostname: Some("shop.example.org".into()),
        extra_hosts: Some(BTreeMap::from([("ledger".to_owned(), [10, 9, 8, 7].into())])),
        dns: Some(vec![[10, 9, 8, 53].into()]),
        dns_search: texts(&["example.org"]),
        dns_opt: texts(&["ndots:2"]),
        group_add: texts(&["4711", "app"]),
        cap_add: texts(&["CAP_NET_ADMIN"]),
        cap_drop: texts(&["ALL"]),
        sysctls: Some(BTreeMap::from([
            ("net.ipv4.tcp_keepalive_time".to_owned(), "77".to_owned()),
            ("kernel.msgmax".to_owned(), "9000".to_owned()),
        ])),
        ulimits: Some(BTreeMap::from([
            ("nofile".to_owned(), Ulimit { soft: Some(100), hard: Some(200) }),
            ("core".to_owned(), Ulimit { soft: Some(0), hard: Some(0) }),
        ])),
        mem_reservation: Some(ByteSize(32 << 20)),
        cpuset: Some("0".into()),
        cpu_shares: Some(512),
        oom_score_adj: Some(500),
        ..Container::default()
    };
    let (_, log) = rig.run(&request);
    let text = log.join("\n");
    for expected in [
        "host=shop.example.org file=shop.example.org",
        "10.9.8.7 ledger",
        "10.98.7.2 shop shop.example.org",
        "nameserver 10.9.8.53",
        "search example.org",
        "options ndots:2",
        // NET_ADMIN is the twelfth bit, and nothing else is left.
        "CapBnd:\t0000000000001000",
        "files=100 hard=200 core=0",
        "score=500",
        "keepalive=77 msgmax=9000",
        "cpus=Cpus_allowed_list:0",
        "done",
    ] {
        assert!(log.iter().any(|line| line.contains(expected)), "`{expected}` is missing in:\n{text}");
    }
    let groups = log.iter().find_map(|line| line.strip_prefix("groups=")).unwrap();
    let groups: Vec<&str> = groups.split(' ').collect();
    assert!(groups.contains(&"4711") && groups.contains(&"1001"), "{groups:?}");
    assert!(text.contains("cpu.shares=512") || text.contains("cpu.weight=20"), "{text}");
    assert!(
        text.contains("memory.soft_limit_in_bytes=33554432") || text.contains("memory.low=33554432"),
        "{text}"
    );
}

#[test]
fn a_root_that_is_only_read_and_directories_in_memory() {
    let rig = Rig::new();
    let mut request = rig.script(
        "shop.1",
        "touch /file 2>/dev/null && echo WROTE
         echo x > /run/app/file && echo kept
         echo '#!/bin/sh' > /run/app/run; chmod 755 /run/app/run; /run/app/run 2>/dev/null && echo EXECUTED
         grep -E ' (/run/app|/scratch|/dev/shm) ' /proc/self/mountinfo
         stat -c 'mode %a' /run/app /scratch
         head -c 2000000 /dev/zero > /run/app/big 2>/dev/null || echo full
         echo '#!/bin/sh' > /scratch/run; chmod 755 /scratch/run; /scratch/run && echo executed",
    );
    let tmpfs = |target: &str, size, mode, exec| Tmpfs { target: target.into(), size, mode, exec };
    request.spec.container = Container {
        read_only: Some(true),
        shm_size: Some(ByteSize(3 << 20)),
        tmpfs: Some(vec![
            tmpfs("/run/app", Some(ByteSize(1 << 20)), Some(0o750), false),
            tmpfs("/scratch", None, None, true),
        ]),
        ..Container::default()
    };
    let (_, log) = rig.run(&request);
    let text = log.join("\n");
    for expected in ["kept", "full", "executed", "mode 750", "mode 1777", "size=1024k", "size=3072k"] {
        assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
    }
    assert!(!text.contains("WROTE") && !text.contains("EXECUTED"), "{text}");
}

#[test]
fn the_signal_that_is_named_ends_it() {
    let rig = Rig::new();
    let mut request =
        rig.script("shop.1", "trap 'echo interrupted; exit 3' INT; while :; do sleep 0.05; done");
    request.spec.container.stop_signal = Some("SIGINT".into());
    rig.engine.start(&request).unwrap();
    // The trap is set once the shell sleeps.
    std::thread::sleep(std::time::Duration::from_millis(300));
    rig.engine.stop(&request.id, std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(rig.engine.log_tail(&request.id, 5), ["interrupted"]);
}

#[test]
fn a_group_that_the_image_does_not_have_is_told() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "true");
    request.spec.container.group_add = texts(&["nosuch"]);
    let error = rig.engine.start(&request).unwrap_err();
    assert!(error.to_string().contains("group `nosuch` is not in the image's /etc/group"), "{error}");
}
