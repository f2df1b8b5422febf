//! Containers with a user namespace: root inside is nobody outside, and files are as everybody expects them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use gitopsd::engine::native::NativeEngine;
use gitopsd::engine::{ContainerRequest, Engine};
use gitopsd::types::{ByteSize, DeviceMapping, Options, Tmpfs, VolumeMount, VolumeSource};

use crate::containers::{Rig, bind, look_after, wait_for};

const FIRST: u32 = 1_000_000;

fn engine(rig: &Rig) -> NativeEngine {
    rig.new_agent().with_subuids(Some((FIRST, 4 * 65536)))
}

fn request(rig: &Rig, id: &str, script: &str) -> ContainerRequest {
    let mut request = rig.script(id, script);
    request.spec.options.user_namespace = Some(true);
    request
}

fn run(rig: &Rig, request: &ContainerRequest) -> Vec<String> {
    if let Err(error) = engine(rig).start(request) {
        panic!("{}", error.to_refusal());
    }
    rig.wait_exit(&request.id);
    rig.engine.log_tail(&request.id, 1000)
}

#[test]
fn root_inside_is_nobody_outside() {
    let rig = Rig::new();
    fs::create_dir(rig.path("host")).unwrap();
    fs::write(rig.path("host/file"), "of the host").unwrap();
    let mut request = request(
        &rig,
        "shop.1",
        "echo id=$(id -u):$(id -g) groups=$(id -G)
         echo map=$(tr -s ' ' < /proc/self/uid_map)
         grep -E '^Cap(Eff|Bnd)|NoNew|Seccomp:' /proc/self/status
         stat -c '%n %u:%g %a' / /bin/busybox /etc/hosts /tmp /data /host/file /dev/null
         echo new > /data/new; echo new > /new; echo changed > /host/file && echo WROTE
         stat -c '%n %u:%g' /data/new /new
         pwd; echo $(ls /sys/class/net) $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)
         echo by name > /dev/stdout
         for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo MADE $d; done
         echo 1 > /proc/sys/kernel/panic && echo WROTE SYSCTL
         hostname",
    );
    request.spec.working_dir = Some("/srv/app".into());
    let data = VolumeMount::new(VolumeSource::Named("data".into()), "/data", false);
    request.spec.volumes = vec![data, bind(rig.path("host"), "/host", true)];
    let log = run(&rig, &request);
    let text = log.join("\n");
    for line in [
        "id=0:0 groups=0",
        &format!("map= 0 {FIRST} 65536"),
        "CapEff:\t00000000800405fb",
        "CapBnd:\t00000000800405fb",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "/ 0:0 755",
        "/bin/busybox 0:0 755",
        "/etc/hosts 0:0 644",
        "/tmp 0:0 1777",
        "/data 0:0 755",
        "/host/file 0:0 644",
        "/dev/null 65534:65534 666",
        "/data/new 0:0",
        "/new 0:0",
        "/srv/app",
        "lo 0",
        "by name",
        "shop",
    ] {
        assert!(log.iter().any(|found| found == line), "`{line}` is missing in:\n{text}");
    }
    for word in ["WROTE", "MADE"] {
        assert!(!text.contains(word), "{text}");
    }
    // The volume is as without a namespace, for whoever has it next; the writable layer is this container's alone.
    let owner = |path: &str| fs::metadata(rig.path(path)).unwrap().uid();
    assert_eq!(owner("state/volumes/shop/data/new"), 0);
    assert_eq!(owner("state/containers/shop.1/upper/new"), FIRST);
    assert_eq!(owner("layer/bin/busybox"), 0);
    // Started again it finds its files.
    let log = run(&rig, &request);
    assert!(log.iter().any(|line| line == "/new 0:0"), "{log:?}");
    rig.engine.remove(&request.id).unwrap();
    assert_eq!(rig.traces(), Vec::<String>::new());
}

#[test]
fn commands_and_the_stop_are_as_without() {
    let rig = Rig::new();
    let mut one = request(&rig, "shop.1", "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done");
    one.spec.user = Some("app".into());
    let mut two = one.clone();
    two.id = "shop.2".parse().unwrap();
    let engine = engine(&rig);
    for request in [&one, &two] {
        engine.start(request).unwrap();
        rig.wait_log(&request.id, "up");
    }
    let command = ["sh", "-c", "id -u; id -G; hostname; cat /proc/self/uid_map; ls /sys/class/net; exit 3"]
        .map(str::to_owned);
    let done = engine.exec(&one.id, &command, Duration::from_secs(60)).unwrap();
    let words: Vec<&str> = done.output.split_whitespace().collect();
    assert_eq!(words, ["1000", "1001", "1002", "shop", "0", &FIRST.to_string(), "65536", "lo"]);
    assert_eq!(done.code, Some(3));
    let script = "cat /proc/self/uid_map /proc/self/status; echo 1 > /proc/sys/kernel/panic && echo WROTE
                  for f in /proc/self/ns/user /proc/1/ns/user; do busybox readlink $f; done; id -u; touch /of-a-command; stat -c %u /of-a-command";
    let mut root = request(&rig, "root.1", "echo up; exec sleep 1000");
    root.spec.user = Some("root".into());
    engine.start(&root).unwrap();
    let command = ["sh", "-c", script].map(str::to_owned);
    let seen = engine.exec(&root.id, &command, Duration::from_secs(60)).unwrap().output;
    for line in [
        "CapEff:\t00000000800405fb",
        "CapBnd:\t00000000800405fb",
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000800405fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(seen.lines().any(|found| found == line), "`{line}` is missing in {seen}");
    }
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[lines.len() - 2..], ["0", "0"], "{seen}");
    assert_eq!(lines[lines.len() - 4], lines[lines.len() - 3], "not in the same user namespace: {seen}");
    assert!(!seen.contains("WROTE") && lines[0].contains(&(FIRST + 2 * 65536).to_string()), "{seen}");
    engine.remove(&root.id).unwrap();
    // On the host they are others, and not the same ones.
    let user = |id| fs::metadata(format!("/proc/{}", rig.pid(id))).unwrap().uid();
    assert_eq!([user(&one.id), user(&two.id)], [FIRST + 1000, FIRST + 65536 + 1000]);
    engine.stop(&one.id, Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&one.id).code, Some(6));
    // A shim that dies is replaced here, too.
    let shim = rig.shim_pid(&two.id);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("another shim", || {
        look_after(&engine);
        (rig.shim_pid(&two.id) != shim).then_some(())
    });
    engine.stop(&two.id, Duration::from_secs(20)).unwrap();
    for id in [&one.id, &two.id] {
        engine.remove(id).unwrap();
    }
    assert_eq!(rig.traces(), Vec::<String>::new());
}

#[test]
fn other_keys_go_with_it() {
    let rig = Rig::new();
    let words = |words: &[&str]| Some(words.iter().map(ToString::to_string).collect());
    let mut request = request(
        &rig,
        "shop.1",
        "touch /x 2>/dev/null && echo WROTE; touch /run/a/x && stat -c '%u:%g %a' /run/a
         grep -cE ' /dev/shm .*size=8192k' /proc/mounts
         cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_local_port_range /proc/self/oom_score_adj
         stat -c %t:%T /dev/nought; head -c 1 /dev/nought | wc -c
         id -u; id -G; ulimit -c; grep CapBnd /proc/self/status
         cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname
         for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do
           test -e $f && echo memory $(cat $f)
         done
         test -s /proc/kcore && echo READ; (echo x > /proc/sys/vm/drop_caches) 2>/dev/null && echo WROTE
         kill -TERM $$",
    );
    request.spec.user = Some("app".into());
    request.spec.mem_limit = Some(ByteSize(64 << 20));
    request.spec.options = Options {
        user_namespace: Some(true),
        read_only: Some(true),
        init: Some(true),
        tmpfs: Some(vec![Tmpfs {
            target: "/run/a".into(),
            options: words(&["uid=1000", "mode=0750"]).unwrap(),
        }]),
        shm_size: Some(ByteSize(8 << 20)),
        sysctls: Some(BTreeMap::from([
            ("kernel.msgmax".into(), "16384".into()),
            ("net.ipv4.ip_local_port_range".into(), "20000 30000".into()),
        ])),
        devices: Some(vec![DeviceMapping {
            source: "/dev/zero".into(),
            target: "/dev/nought".into(),
            access: "r".into(),
        }]),
        ulimits: Some(BTreeMap::from([("core".into(), (0, 0))])),
        group_add: words(&["44"]),
        hostname: Some("front".into()),
        domainname: Some("example.org".into()),
        cap_drop: words(&["ALL"]),
        oom_score_adj: Some(321),
        ..Options::default()
    };
    let log = run(&rig, &request);
    assert_eq!(
        log,
        [
            "1000:0 750",
            "1",
            "16384",
            "20000\t30000",
            "321",
            "1:5",
            "1",
            "1000",
            "1001 44 1002",
            "0",
            "CapBnd:\t0000000000000000",
            "front",
            "example.org",
            "memory 67108864",
        ]
    );
    assert_eq!(rig.wait_exit(&request.id).code, Some(143));
}

#[test]
fn what_cannot_be_had_is_told() {
    let rig = Rig::new();
    let one = request(&rig, "shop.1", "true");
    let message = rig.engine.start(&one).unwrap_err().to_refusal().message;
    assert!(message.contains("`engine.subuids`"), "{message}");
    // A file system that knows no other numbers, in the place of NFS.
    let place = rig.path("ram");
    fs::create_dir(&place).unwrap();
    let none: Option<&str> = None;
    nix::mount::mount(Some("ram"), &place, Some("ramfs"), nix::mount::MsFlags::empty(), none).unwrap();
    let mut two = request(&rig, "shop.2", "true");
    two.spec.volumes = vec![bind(&place, "/data", false)];
    let result = engine(&rig).start(&two);
    nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let message = result.unwrap_err().to_refusal().message;
    assert!(message.contains("mounted at /data") && message.contains("idmapped mounts"), "{message}");
    assert!(!rig.traces().iter().any(|trace| trace.starts_with("process")), "{:?}", rig.traces());
}

/// A disk that has turned read-only: what was written before is there, what is written now is not kept.
#[test]
fn a_user_namespace_on_a_disk_that_is_only_read() {
    let rig = Rig::new();
    let script = "cat /kept; id -u; echo more >> /kept && cat /kept; stat -c '%n %u:%g %a' / /kept; touch /new && echo wrote";
    let mut one = request(&rig, "shop.1", "echo before > /kept");
    run(&rig, &one);
    one.spec.command = Some(vec!["sh".into(), "-c".into(), script.into()]);
    let state = rig.path("state");
    // Of all of it but the log, which has a file system of its own on most hosts that have this happen.
    let containers = ReadOnly::make(state.join("containers"));
    let log = run(&rig, &one);
    let wanted = ["before", "0", "before", "more", "/ 0:0 755", "/kept 0:0 644", "wrote"];
    assert!(log.ends_with(&wanted.map(str::to_owned)), "{log:?}");
    let seen = || fs::read_to_string(state.join("containers/shop.1/upper/kept")).unwrap();
    assert_eq!(seen(), "before\n");
    drop(containers);
    assert!(!state.join("containers/shop.1/upper/new").exists());
    let log = run(&rig, &one);
    assert!(log.ends_with(&wanted.map(str::to_owned)), "{log:?}");
    assert_eq!(seen(), "before\nmore\n");
    rig.engine.remove(&one.id).unwrap();
    assert_eq!(rig.traces(), Vec::<String>::new());
}

/// A directory that nobody can write to, root included, as long as this value is there.
struct ReadOnly(std::path::PathBuf);

impl ReadOnly {
    fn make(path: std::path::PathBuf) -> Self {
        use nix::mount::{MsFlags, mount};
        let none: Option<&str> = None;
        let only_read = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(Some(&path), &path, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, &path, none, only_read, none).unwrap();
        Self(path)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// The first of the places that are covered for such a container holds the state itself, behind a link.
#[test]
fn a_state_directory_behind_a_link_is_not_covered() {
    let rig = Rig::new();
    let real = tempfile::tempdir_in("/mnt").unwrap();
    fs::remove_dir_all(rig.path("state")).unwrap();
    std::os::unix::fs::symlink(real.path(), rig.path("state")).unwrap();
    let mut one = request(&rig, "shop.1", "echo kept > /data/kept; echo up > /up; cat /up");
    let data = VolumeMount::new(VolumeSource::Named("data".into()), "/data", false);
    one.spec.volumes = vec![data];
    for _ in 0..2 {
        let log = run(&rig, &one);
        assert_eq!(log.last().map(String::as_str), Some("up"), "{log:?}");
    }
    assert_eq!(fs::read_to_string(real.path().join("volumes/shop/data/kept")).unwrap(), "kept\n");
    let owner = fs::metadata(real.path().join("containers/shop.1/upper/up")).unwrap().uid();
    assert_eq!(owner, FIRST);
    rig.engine.remove(&one.id).unwrap();
    assert_eq!(rig.traces(), Vec::<String>::new());
}
