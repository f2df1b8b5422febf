//! The native engine with real containers: what a program inside sees, and what its life and death look like outside.
//! Needs root and the package busybox-static.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[path = "support/containers.rs"]
mod containers;

use std::fs;
use std::time::{Duration, Instant};

use containers::{Rig, wait_for};
use gitopsd::engine::{ContainerState, Engine};
use gitopsd::types::{ByteSize, InstanceId, Reason, VolumeMount, VolumeSource};

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
    request.hosts.insert("db".parse().unwrap(), [10, 98, 0, 9].into());
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
            "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
            "stdin", "stdout", "tty", "urandom", "zero",
        ];
        assert!(standard.contains(&device), "/dev/{device} is not a standard device");
    }
    let file = fs::read_to_string(rig.engine.log_file(&request.id)).unwrap();
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
fn a_signal_is_told() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "echo up; exec sleep 100");
    rig.start(&request);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(rig.pid(&request.id)),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let exit = rig.wait_exit(&request.id);
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (None, Some(9), false));
}

#[test]
fn what_cannot_start_says_why_and_leaves_no_process() {
    let rig = Rig::new();
    let with = |change: &dyn Fn(&mut gitopsd::engine::ContainerRequest)| {
        let mut request = rig.script("shop.1", "true");
        change(&mut request);
        let error = rig.engine.start(&request).unwrap_err();
        assert_eq!(error.reason, Reason::StartFailed, "{}", error.to_refusal());
        let message = error.to_refusal().message;
        let processes: Vec<_> = rig.traces().into_iter().filter(|t| t.starts_with("process")).collect();
        assert!(processes.is_empty(), "{processes:?}");
        assert_eq!(rig.state(&request.id), Some(ContainerState::Remains), "{message}");
        rig.engine.remove(&request.id).unwrap();
        message
    };
    let message = with(&|r| r.spec.command = Some(vec!["/bin/serve".into()]));
    assert!(message.contains("`/bin/serve` is not in the image"), "{message}");
    let message = with(&|r| r.spec.command = Some(vec!["/etc/passwd".into()]));
    assert!(message.contains("may not be executed"), "{message}");
    let message = with(&|r| r.spec.user = Some("nobody".into()));
    assert!(message.contains("user `nobody` is not in the image's /etc/passwd"), "{message}");
    let message = with(&|r| r.spec.volumes = vec![bind("/no/such/place", "/data", false)]);
    assert!(message.contains("bind source /no/such/place cannot be used: it does not exist"), "{message}");
    let message = with(&|r| r.image.layers = vec!["/no/such/layer".into()]);
    assert!(message.contains("layer /no/such/layer is not there"), "{message}");
    let message = with(&|r| r.spec.command = Some(Vec::new()));
    assert!(message.contains("names a command"), "{message}");
    assert_eq!(rig.traces(), Vec::<String>::new());
}

fn bind(source: impl Into<std::path::PathBuf>, target: &str, read_only: bool) -> VolumeMount {
    VolumeMount { source: VolumeSource::Bind(source.into()), target: target.into(), read_only }
}

#[test]
fn volumes_keep_what_is_written_and_read_only_means_it() {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("assets/inner")).unwrap();
    fs::write(rig.path("assets/logo"), "logo").unwrap();
    let mut request = rig.script(
        "shop.1",
        "cat /assets/logo; echo
         touch /assets/x 2>/dev/null && echo WROTE
         touch /assets/inner/x 2>/dev/null && echo WROTE
         echo kept > /data/file; echo there > /file-on-host; cat /deep/er/logo",
    );
    let named =
        VolumeMount { source: VolumeSource::Named("data".into()), target: "/data".into(), read_only: false };
    fs::write(rig.path("one-file"), "").unwrap();
    request.spec.volumes = vec![
        bind(rig.path("assets"), "/deep/er", true),
        named.clone(),
        bind(rig.path("assets"), "/assets", true),
        bind(rig.path("one-file"), "/file-on-host", false),
    ];
    let (exit, log) = rig.run(&request);
    assert_eq!(log, ["logo", "logo"], "{exit}");
    assert_eq!(fs::read_to_string(rig.path("one-file")).unwrap(), "there\n");
    rig.engine.remove(&request.id).unwrap();
    assert_eq!(fs::read_to_string(rig.path("state/volumes/shop/data/file")).unwrap(), "kept\n");

    // The next generation finds the volume again, and its user may write where the image prepared a directory for it.
    std::os::unix::fs::chown(rig.path("layer/tmp"), Some(1000), Some(1001)).unwrap();
    let mut next = rig.script("shop.2", "cat /data/file; touch /tmp/mine && echo mine; id -u");
    let tmp =
        VolumeMount { source: VolumeSource::Named("tmp".into()), target: "/tmp".into(), read_only: false };
    next.spec.volumes = vec![named, tmp];
    next.spec.user = Some("app".into());
    let (_, log) = rig.run(&next);
    assert_eq!(log, ["kept", "mine", "1000"]);
}

#[test]
fn a_bind_source_behind_a_link_is_refused() {
    let rig = Rig::new();
    std::os::unix::fs::symlink("/etc", rig.path("innocent")).unwrap();
    let mut request = rig.script("shop.1", "cat /x/passwd");
    request.spec.volumes = vec![bind(rig.path("innocent"), "/x", true)];
    let message = rig.engine.start(&request).unwrap_err().to_refusal().message;
    assert!(message.contains("passes through a symbolic link"), "{message}");
}

#[test]
fn the_writable_layer_lasts_as_long_as_the_container_and_no_longer() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "cat /mark 2>/dev/null || echo fresh; echo again > /mark");
    assert_eq!(rig.run(&request).1, ["fresh"]);
    assert_eq!(rig.run(&request).1, ["fresh", "again"], "a restart keeps what was written");
    rig.engine.remove(&request.id).unwrap();
    fs::remove_file(rig.engine.log_file(&request.id)).unwrap();
    assert_eq!(rig.run(&request).1, ["fresh"]);
    assert!(!rig.path("layer/mark").exists(), "the image's own layer was written to");
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
fn many_layers_fit() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "cat /which /first; ls / | grep -c '^only-'");
    for number in 0..126 {
        let layer = rig.path(&format!("layers/{}{number:03}", "f".repeat(61)));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("only-{number}")), "").unwrap();
        fs::write(layer.join("which"), format!("{number}\n")).unwrap();
        if number == 0 {
            fs::write(layer.join("first"), "first\n").unwrap();
        }
        request.image.layers.push(layer);
    }
    assert_eq!(rig.run(&request).1, ["125", "first", "126"]);
}

#[test]
fn commands_run_inside() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "echo up; exec sleep 1000");
    request.spec.user = Some("app".into());
    request.spec.working_dir = Some("/tmp".into());
    request.spec.environment.insert("LOG".into(), "info".into());
    rig.start(&request);
    rig.wait_log(&request.id, "up");
    let exec = |script: &str, timeout: u64| {
        let command = ["sh", "-c", script].map(str::to_owned);
        rig.engine.exec(&request.id, &command, Duration::from_millis(timeout))
    };
    let done = exec(
        "echo $LOG $(pwd) $(hostname) $(id -u):$(id -G); echo err >&2; ps | grep -c '[s]leep 1000'; exit 3",
        9000,
    )
    .unwrap();
    assert_eq!(done.code, Some(3));
    assert_eq!(done.output, "info /tmp shop 1000:1001 1002\nerr\n1\n");
    let command =
        ["grep", "-E", "^(CapBnd|NoNewPrivs|SigIgn|SigBlk)", "/proc/self/status"].map(str::to_owned);
    let status = rig.engine.exec(&request.id, &command, Duration::from_secs(9)).unwrap();
    let expected =
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nCapBnd:\t00000000800405fb\nNoNewPrivs:\t1\n";
    assert_eq!(status.output, expected);
    let limits = "ulimit -n; umask; cat /proc/self/oom_score_adj; grep -c . /proc/self/environ";
    let first = rig.script("first.1", &format!("{limits}; exec sleep 1000"));
    rig.start(&first);
    let again =
        wait_for("four lines", || Some(rig.engine.log_tail(&first.id, 9)).filter(|lines| lines.len() == 4));
    let command = ["sh", "-c", limits].map(str::to_owned);
    let second = rig.engine.exec(&first.id, &command, Duration::from_secs(9)).unwrap();
    assert_eq!(second.output.lines().collect::<Vec<_>>(), again);
    // In the same cgroups as the first process, so under the same limits.
    let groups = exec("diff /proc/self/cgroup /proc/1/cgroup", 9000).unwrap();
    assert_eq!(groups.code, Some(0), "{}", groups.output);

    assert_eq!(exec("kill -9 $$", 9000).unwrap().code, Some(137));
    let begun = Instant::now();
    let slow = exec("echo begun; sleep 77 & sleep 77", 300).unwrap();
    assert_eq!((slow.code, slow.output.as_str()), (None, "begun\n"));
    assert!(begun.elapsed() < Duration::from_secs(5));
    wait_for("the end of what a timed-out command started", || {
        (exec("ps | grep -c '[s]leep 77'", 9000).unwrap().output == "0\n").then_some(())
    });
    // What a command leaves behind holds its output open; that is no reason to wait for it.
    let begun = Instant::now();
    assert_eq!(exec("sleep 66 & echo left", 9000).unwrap().output, "left\n");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let long = exec("seq 1 100000; echo end", 9000).unwrap().output;
    assert!(long.len() <= 4096 && long.ends_with("99999\n100000\nend\n"));

    let error = rig.engine.exec(&request.id, &["/no/such".into()], Duration::from_secs(9)).unwrap_err();
    assert!(error.to_refusal().message.contains("`/no/such` is not in the image"), "{}", error.to_refusal());
    rig.engine.stop(&request.id, Duration::from_millis(100)).unwrap();
    let error = exec("true", 1000).unwrap_err();
    assert_eq!(error.reason, Reason::Exited);
}

#[test]
fn an_interactive_command_has_our_standard_streams_and_its_own_exit_code() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec sleep 1000");
    rig.start(&request);
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "interactive_child", "--ignored", "--nocapture"])
        .env("GITOPSD_TEST_DIR", rig.dir.path())
        .env("GITOPSD_TEST_INSTANCE", &rig.instance)
        .stdin(fs::File::open(rig.path("layer/etc/group")).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("got root:x:0:"), "{text}");
    assert!(text.contains("code 5"), "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("to stderr"));
}

#[test]
#[ignore = "a child of another test"]
fn interactive_child() {
    let dir = std::path::PathBuf::from(std::env::var("GITOPSD_TEST_DIR").unwrap());
    let engine = containers::engine_at(&dir, &std::env::var("GITOPSD_TEST_INSTANCE").unwrap());
    let command = ["sh", "-c", "read line; echo got $line; echo to stderr >&2; exit 5"].map(str::to_owned);
    println!("code {}", engine.exec_interactive(&"shop.1".parse().unwrap(), &command).unwrap());
}

#[test]
fn stop_asks_first_and_then_does_not() {
    let rig = Rig::new();
    let polite =
        rig.script("polite.1", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done");
    rig.start(&polite);
    rig.wait_log(&polite.id, "up");
    rig.engine.stop(&polite.id, Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&polite.id).code, Some(5));
    assert_eq!(rig.engine.log_tail(&polite.id, 1), ["bye"]);

    let mut quit =
        rig.script("quit.1", "trap 'exit 6' QUIT; trap '' TERM; echo up; while :; do sleep 0.05; done");
    quit.image.config.stop_signal = "SIGQUIT".into();
    rig.start(&quit);
    rig.wait_log(&quit.id, "up");
    rig.engine.stop(&quit.id, Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&quit.id).code, Some(6));

    let deaf = rig.script("deaf.1", "trap '' TERM; sleep 1000 & echo up; while :; do sleep 0.05; done");
    rig.start(&deaf);
    rig.wait_log(&deaf.id, "up");
    let begun = Instant::now();
    rig.engine.stop(&deaf.id, Duration::from_millis(300)).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(10));
    let exit = rig.wait_exit(&deaf.id);
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    rig.engine.stop(&deaf.id, Duration::from_secs(1)).unwrap();
    rig.engine.stop(&"never.1".parse().unwrap(), Duration::from_secs(1)).unwrap();
}

#[test]
fn starting_twice_is_starting_once() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec sleep 1000");
    rig.start(&request);
    let pid = rig.pid(&request.id);
    rig.start(&request);
    assert_eq!(rig.pid(&request.id), pid);
    rig.new_agent().start(&request).unwrap();
    assert_eq!(rig.pid(&request.id), pid);
    assert_eq!(rig.find(&request.id).unwrap().address, Some(request.address));
}

#[test]
fn containers_outlive_the_agent_and_a_new_one_finds_them() {
    let rig = Rig::new();
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent_child", "--ignored", "--nocapture"])
        .env("GITOPSD_TEST_DIR", rig.dir.path())
        .env("GITOPSD_TEST_INSTANCE", &rig.instance)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let id: InstanceId = "shop.1".parse().unwrap();
    rig.wait_log(&id, "tick 3");
    agent.kill().unwrap();
    agent.wait().unwrap();
    let seen = rig.engine.log_tail(&id, 1000).len();
    let pid = rig.pid(&id);
    wait_for("more output after the agent's death", || {
        (rig.engine.log_tail(&id, 1000).len() > seen + 3).then_some(())
    });
    assert_eq!(rig.pid(&id), pid);
    rig.engine.stop(&id, Duration::from_secs(10)).unwrap();
    assert_eq!(rig.wait_exit(&id).code, Some(9));
}

#[test]
fn an_agent_killed_in_the_middle_of_a_start_is_followed_by_one_that_finishes_it() {
    let rig = Rig::new();
    let id: InstanceId = "shop.1".parse().unwrap();
    let request = containers::script_request(rig.dir.path(), "shop.1", AGENT_SCRIPT);
    for delay in [5, 15, 25, 30, 35, 40, 45, 50, 60] {
        let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent_child", "--ignored", "--nocapture"])
            .env("GITOPSD_TEST_DIR", rig.dir.path())
            .env("GITOPSD_TEST_INSTANCE", &rig.instance)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        agent.kill().unwrap();
        agent.wait().unwrap();
        rig.start(&request);
        let pid = rig.pid(&id);
        rig.start(&request);
        assert_eq!(rig.pid(&id), pid);
        let shims = rig.traces().iter().filter(|trace| trace.starts_with("process")).count();
        assert_eq!(shims, 1, "killed after {delay} ms: {:?}", rig.traces());
        rig.engine.remove(&id).unwrap();
        assert_eq!(rig.traces(), Vec::<String>::new(), "killed after {delay} ms");
    }
}

#[test]
fn names_of_peers_can_be_renewed() {
    let rig = Rig::new();
    let request = rig.script(
        "shop.1",
        "while ! grep -q '10.98.0.77 mail' /etc/hosts; do sleep 0.02; done; cat /etc/hosts",
    );
    rig.start(&request);
    let hosts = std::collections::BTreeMap::from([("mail".parse().unwrap(), [10, 98, 0, 77].into())]);
    rig.engine.write_hosts(&request.id, &hosts).unwrap();
    assert_eq!(rig.wait_exit(&request.id).code, Some(0));
    let log = rig.engine.log_tail(&request.id, 99);
    assert_eq!(log.last().unwrap(), "10.98.7.2 shop");
    rig.engine.write_hosts(&"never.1".parse().unwrap(), &hosts).unwrap();
}

const AGENT_SCRIPT: &str = "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done";

#[test]
#[ignore = "a child of another test"]
fn agent_child() {
    let dir = std::path::PathBuf::from(std::env::var("GITOPSD_TEST_DIR").unwrap());
    let engine = containers::engine_at(&dir, &std::env::var("GITOPSD_TEST_INSTANCE").unwrap());
    engine.start(&containers::script_request(&dir, "shop.1", AGENT_SCRIPT)).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_dead_shim_is_replaced_and_an_unseen_end_is_unknown() {
    let rig = Rig::new();
    let script = "trap 'exit 4' TERM; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.02; done";
    let request = rig.script("shop.1", script);
    rig.start(&request);
    let pid = rig.pid(&request.id);
    let shim = rig.shim_pid(&request.id);
    kill9(shim);
    let seen = rig.engine.log_tail(&request.id, 1000).len();
    // Looking is enough: it runs on, its output is carried on, and what waits in the pipe is kept.
    assert_eq!(rig.pid(&request.id), pid);
    wait_for("output through a new shim", || {
        (rig.engine.log_tail(&request.id, 1000).len() > seen + 3).then_some(())
    });
    assert_ne!(rig.shim_pid(&request.id), shim);
    // What the dead shim had read and not yet written is lost; what waited in the pipe is not, and nothing comes twice.
    let log = rig.engine.log_tail(&request.id, 1000);
    let ticks: Vec<usize> =
        log.iter().map(|line| line.strip_prefix("tick ").unwrap().parse().unwrap()).collect();
    assert!(ticks.is_sorted_by(|a, b| a < b), "{ticks:?}");
    assert!(ticks.last().unwrap() - ticks.len() <= 2, "{ticks:?}");
    rig.engine.stop(&request.id, Duration::from_secs(10)).unwrap();
    let exit = rig.wait_exit(&request.id);
    assert_eq!((exit.code, exit.signal), (None, None), "nobody was its parent");
    rig.engine.remove(&request.id).unwrap();
    assert_eq!(rig.traces(), Vec::<String>::new());

    // Shim and container gone at once, with nobody looking.
    let request = rig.script("shop.2", "exec sleep 1000");
    rig.start(&request);
    let pid = rig.pid(&request.id);
    kill9(rig.shim_pid(&request.id));
    kill9(pid);
    let exit = rig.wait_exit(&request.id);
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (None, None, false));
    assert_eq!(rig.wait_exit(&request.id), exit, "the answer stays the same");
    rig.engine.remove(&request.id).unwrap();
    assert_eq!(rig.traces(), Vec::<String>::new());
}

fn kill9(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("a killed process to go", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        stat.is_none_or(|stat| stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn a_flood_of_output_grows_nothing() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec yes \"$(head -c 200 /dev/zero | tr '\\0' x)\"");
    rig.start(&request);
    let shim = rig.shim_pid(&request.id);
    let older = rig.engine.log_file(&request.id).with_extension("log.2");
    wait_for("two rotations", || older.exists().then_some(()));
    let status = fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    let resident: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .map(|kb| kb.parse().unwrap())
        .unwrap();
    assert!(resident < 32 << 10, "the shim has grown to {resident} kB");
    rig.engine.remove(&request.id).unwrap();
    let logs: u64 = fs::read_dir(rig.path("state/logs/shop"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(logs <= 30 << 20, "{logs}");
    // The last line may have been cut short by the end.
    let tail = rig.engine.log_tail(&request.id, 5);
    assert!(tail[..4].iter().all(|line| line.len() == 200), "{tail:?}");
}

#[test]
fn half_a_start_is_seen_and_can_be_removed() {
    let rig = Rig::new();
    let id: InstanceId = "shop.3".parse().unwrap();
    fs::create_dir_all(rig.path("state/containers/shop.3/upper/etc")).unwrap();
    assert_eq!(rig.state(&id), Some(ContainerState::Remains));
    rig.engine.remove(&id).unwrap();
    assert_eq!(rig.state(&id), None);
    fs::create_dir_all(rig.path("run/containers/shop.3")).unwrap();
    fs::write(rig.path("run/containers/shop.3/run.json"), "{\"init\":").unwrap();
    assert_eq!(rig.state(&id), Some(ContainerState::Remains));
    rig.engine.remove(&id).unwrap();
    rig.engine.remove(&id).unwrap();
    assert_eq!(rig.traces(), Vec::<String>::new());
    // A start over such debris works too.
    fs::create_dir_all(rig.path("state/containers/shop.3/rootfs")).unwrap();
    fs::create_dir_all(rig.path("run/containers/shop.3/oci/shop.3")).unwrap();
    assert_eq!(rig.run(&rig.script("shop.3", "echo hello")).1, ["hello"]);
}

#[test]
fn a_shim_killed_in_the_middle_of_a_start_leaves_nothing_behind() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec sleep 1000");
    for delay in [1, 4, 8, 12, 16, 20, 25, 30] {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Either answer is right: it was killed in the middle, or after all was done.
                let _ = rig.engine.start(&request);
            });
            std::thread::sleep(Duration::from_millis(delay));
            if fs::exists(rig.path("run/containers/shop.1/shim.json")).unwrap() {
                let pid = rig.shim_pid(&request.id);
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        });
        rig.engine.remove(&request.id).unwrap();
        assert_eq!(rig.traces(), Vec::<String>::new(), "killed after {delay} ms");
    }
}

#[test]
fn a_record_with_a_reused_pid_is_not_believed() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec sleep 1000");
    rig.start(&request);
    let record = rig.path("run/containers/shop.1/run.json");
    let genuine = fs::read_to_string(&record).unwrap();
    rig.engine.remove(&request.id).unwrap();

    let mut victim = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&genuine).unwrap();
    value["init"]["pid"] = victim.id().into();
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    fs::write(&record, value.to_string()).unwrap();
    assert!(matches!(rig.state(&request.id), Some(ContainerState::Exited(_))));
    rig.engine.stop(&request.id, Duration::ZERO).unwrap();
    rig.engine.remove(&request.id).unwrap();
    assert!(victim.try_wait().unwrap().is_none(), "a stranger's process was killed");

    // The same pid and start time from before a reboot.
    let stat = fs::read_to_string(format!("/proc/{}/stat", victim.id())).unwrap();
    let start_time: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    value["init"]["start_time"] = start_time.into();
    value["init"]["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    fs::write(&record, value.to_string()).unwrap();
    assert_eq!(rig.state(&request.id), Some(ContainerState::Remains));
    rig.engine.remove(&request.id).unwrap();
    assert!(victim.try_wait().unwrap().is_none(), "a stranger's process was killed");
    victim.kill().unwrap();
    victim.wait().unwrap();
}

#[test]
fn two_agents_on_one_machine_do_not_see_each_other() {
    let (one, two) = (Rig::new(), Rig::new());
    let (first, second) = (
        one.script("shop.1", "echo one; exec sleep 1000"),
        two.script("shop.1", "echo two; exec sleep 1000"),
    );
    one.start(&first);
    two.start(&second);
    one.wait_log(&first.id, "one");
    two.wait_log(&second.id, "two");
    assert_eq!(one.engine.observe().unwrap().len(), 1);
    one.engine.remove(&first.id).unwrap();
    assert_eq!(one.traces(), Vec::<String>::new());
    assert!(matches!(two.state(&second.id), Some(ContainerState::Running { .. })));
}

#[test]
fn twenty_lives_leave_nothing() {
    let rig = Rig::new();
    for generation in 1..=20 {
        let request = rig.script(&format!("shop.{generation}"), "echo up; exec sleep 1000");
        rig.start(&request);
        rig.wait_log(&request.id, "up");
        if generation % 2 == 0 {
            rig.engine.stop(&request.id, Duration::ZERO).unwrap();
        }
        rig.engine.remove(&request.id).unwrap();
    }
    assert_eq!(rig.traces(), Vec::<String>::new());
    assert_eq!(rig.engine.observe().unwrap(), []);
    assert_eq!(rig.engine.log_tail(&"shop.20".parse().unwrap(), 1), ["up"], "logs are kept");
}

#[test]
fn a_one_shot_takes_the_place_of_the_command_and_keeps_the_entrypoint() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "echo service");
    request.image.config.entrypoint =
        vec!["sh".into(), "-c".into(), "echo entry \"$@\"; exit 2".into(), "x".into()];
    request.one_shot = Some(vec!["migrate".into(), "up".into()]);
    let (exit, log) = rig.run(&request);
    assert_eq!((exit.code, log), (Some(2), vec!["entry migrate up".to_owned()]));
}

#[test]
fn the_program_on_disk_is_out_of_reach() {
    use std::os::fd::AsRawFd as _;
    let rig = Rig::new();
    // A program file that nobody else executes, as a running one cannot be written to in any case.
    let program = rig.path("gitopsd");
    containers::copy_program(env!("CARGO_BIN_EXE_gitopsd"), &program);
    let engine = containers::engine_with(rig.dir.path(), &rig.instance, &program);
    let request = rig.script("shop.1", "exec sleep 1000");
    engine.start(&request).unwrap();
    let held = fs::File::open(format!("/proc/{}/exe", rig.shim_pid(&request.id))).unwrap();
    engine.remove(&request.id).unwrap();
    let again = format!("/proc/self/fd/{}", held.as_raw_fd());
    wait_for("the end of the program", || {
        let error = fs::OpenOptions::new().write(true).open(&again).unwrap_err();
        (error.raw_os_error() == Some(nix::libc::EROFS)).then_some(())
    });
    // The file itself is as writable as ever: the mount was the shim's own.
    fs::OpenOptions::new().write(true).open(&program).unwrap();
}
