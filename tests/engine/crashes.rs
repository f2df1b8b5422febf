//! What happens when the agent or a shim dies, and what is believed of what they left.

use std::fs;
use std::time::Duration;

use gitopsd::engine::{ContainerState, Engine};
use gitopsd::types::{InstanceId, VolumeMount, VolumeSource};

use crate::containers::{self, Rig, look_after, wait_for};

#[test]
fn containers_outlive_the_agent_and_a_new_one_finds_them() {
    let rig = Rig::new();
    let mut agent = an_agent(&rig);
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
        let mut agent = an_agent(&rig);
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
fn agent_and_shim_killed_at_once_in_the_middle_of_a_start_hold_up_no_next_start() {
    let rig = Rig::new();
    let id: InstanceId = "shop.1".parse().unwrap();
    let request = containers::script_request(rig.dir.path(), "shop.1", AGENT_SCRIPT);
    let shim = rig.path("run/containers/shop.1/shim.json");
    for delay in [0, 3, 6, 9, 12, 15, 20, 30] {
        let mut agent = an_agent(&rig);
        wait_for("a shim", || shim.exists().then_some(()));
        std::thread::sleep(Duration::from_millis(delay));
        agent.kill().unwrap();
        agent.wait().unwrap();
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(rig.shim_pid(&id)),
            nix::sys::signal::Signal::SIGKILL,
        );
        let begun = std::time::Instant::now();
        rig.start(&request);
        assert!(
            begun.elapsed() < Duration::from_secs(20) * crate::containers::slow(),
            "killed after {delay} ms: {:?}",
            begun.elapsed()
        );
        rig.pid(&id);
        // It may have run already: what has lost its shim is given another by one of the next looks.
        wait_for("one shim", || {
            look_after(&rig.engine);
            let shims = rig.traces().iter().filter(|trace| trace.starts_with("process")).count();
            (shims == 1).then_some(())
        });
        rig.engine.remove(&id).unwrap();
        assert_eq!(rig.traces(), Vec::<String>::new(), "killed after {delay} ms");
    }
}

/// The patience of agents is made short and the copy slow, by `weak`.
#[test]
fn a_first_fill_that_goes_on_is_finished_for_the_next_agent() {
    let rig = Rig::new();
    let prepared = rig.path("layer/var/lib/shop");
    fs::create_dir_all(&prepared).unwrap();
    (0..140).for_each(|number| fs::write(prepared.join(number.to_string()), "seed").unwrap());
    fs::create_dir_all(rig.path("state")).unwrap();
    fs::write(rig.path("state/weak"), "slow hurried").unwrap();
    let begun = std::time::Instant::now();
    let mut agent = an_agent(&rig);
    wait_for("the fill", || rig.path("state/volumes/shop/.data.new").exists().then_some(()));
    agent.kill().unwrap();
    agent.wait().unwrap();
    let id: InstanceId = "shop.1".parse().unwrap();
    let shim = rig.shim_pid(&id);
    rig.start(&containers::script_request(rig.dir.path(), "shop.1", AGENT_SCRIPT));
    assert!(begun.elapsed() > Duration::from_secs(13), "it was not slow: {:?}", begun.elapsed());
    assert_eq!(rig.shim_pid(&id), shim, "it was begun anew");
    assert_eq!(fs::read_dir(rig.path("state/volumes/shop/data")).unwrap().count(), 140);
}

const AGENT_SCRIPT: &str = "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done";

/// Another process with an engine of this rig, which starts `shop.1`: see [`agent_child`].
fn an_agent(rig: &Rig) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crashes::agent_child", "--ignored", "--nocapture"])
        .env("GITOPSD_TEST_DIR", rig.dir.path())
        .env("GITOPSD_TEST_INSTANCE", &rig.instance)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "a child of another test"]
fn agent_child() {
    let Some(dir) = std::env::var_os("GITOPSD_TEST_DIR").map(std::path::PathBuf::from) else { return };
    gitopsd::report::journal::init();
    let engine = containers::engine_at(&dir, &std::env::var("GITOPSD_TEST_INSTANCE").unwrap());
    let mut request = containers::script_request(&dir, "shop.1", AGENT_SCRIPT);
    if dir.join("layer/var/lib/shop").exists() {
        let data = VolumeSource::Named("data".into());
        request.spec.volumes = vec![VolumeMount::new(data, "/var/lib/shop", false)];
    }
    engine.start(&request).unwrap();
    // Another start of it by the same agent.
    if std::env::var_os("GITOPSD_TEST_AGAIN").is_some() {
        engine.remove(&"shop.1".parse().unwrap()).unwrap();
        engine.start(&containers::script_request(&dir, "shop.2", AGENT_SCRIPT)).unwrap();
    }
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
    // It runs on, its output is carried on, and what waits in the pipe is kept.
    let alone = rig.find(&request.id).unwrap();
    assert!(alone.unsupervised && alone.supervisor.is_none(), "{alone:?}");
    assert_eq!(rig.pid(&request.id), pid);
    wait_for("output through a new shim", || {
        look_after(&rig.engine);
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
    // Nobody of ours was its parent: where it is reaped at once, only a newer kernel tells.
    let told = (exit.code, exit.signal);
    assert!(told == (Some(4), None) || (told == (None, None) && !kernel_tells()), "{exit:?}");
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

/// systemd has the lock of a shim that it started open, too, and lets it go only when it has heard of its end.
#[test]
fn a_lock_that_is_let_go_a_moment_later_holds_up_no_successor() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec sleep 1000");
    rig.start(&request);
    let shim = rig.shim_pid(&request.id);
    let supervised = |former: i32| {
        let seen = rig.find(&request.id).unwrap();
        assert!(!seen.unsupervised, "{seen:?}");
        assert!(seen.supervisor.is_some_and(|successor| successor != former), "{seen:?}");
    };
    kill9(shim);
    let lock = fs::File::open(rig.path("run/containers/shop.1/lock")).unwrap();
    wait_for("the lock", || lock.try_lock().ok());
    assert!(rig.find(&request.id).unwrap().unsupervised, "nobody who lives has it");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            lock.unlock().unwrap();
        });
        rig.engine.adopt(&request.id).unwrap();
    });
    supervised(shim);
    // One that somebody holds for longer holds nobody up for longer.
    let shim = rig.shim_pid(&request.id);
    kill9(shim);
    wait_for("the lock again", || lock.try_lock().ok());
    let begun = std::time::Instant::now();
    let error = rig.engine.adopt(&request.id).unwrap_err().to_refusal();
    assert!(error.message.contains("somebody still holds its lock"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5) * containers::slow(), "{:?}", begun.elapsed());
    assert_eq!(rig.find(&request.id).unwrap().supervisor, None);
    lock.unlock().unwrap();
    rig.engine.adopt(&request.id).unwrap();
    supervised(shim);
    // There is nothing to do for one that has its own, or has ended.
    let shim = rig.shim_pid(&request.id);
    rig.engine.adopt(&request.id).unwrap();
    assert_eq!(rig.shim_pid(&request.id), shim);
    rig.engine.remove(&request.id).unwrap();
    rig.engine.adopt(&request.id).unwrap();
    assert_eq!(rig.traces(), Vec::<String>::new());
}

/// Whether the kernel keeps the end of a process for whoever holds its pidfd: Linux 6.15.
pub fn kernel_tells() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

/// The keys that version 0.1.0 wrote.
const FIRST_LAUNCH: [&str; 17] = [
    "format",
    "id",
    "layout",
    "address",
    "netns",
    "layers",
    "args",
    "env",
    "user",
    "cwd",
    "stop_signal",
    "volumes",
    "memory",
    "milli_cpus",
    "pids",
    "image",
    "commit",
];

fn edit(path: &std::path::Path, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(value.as_object_mut().unwrap());
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn a_container_of_an_older_version_is_supervised_like_any_other() {
    let rig = Rig::new();
    let script = "trap 'echo bye; exit 4' TERM; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.02; done";
    let request = rig.script("shop.1", script);
    rig.start(&request);
    let pid = rig.pid(&request.id);
    let run = rig.path("run/containers/shop.1");
    kill9(rig.shim_pid(&request.id));
    edit(&run.join("launch.json"), |launch| {
        launch.retain(|key, _| FIRST_LAUNCH.contains(&key.as_str()));
    });
    edit(&run.join("run.json"), |record| {
        record.retain(|key, _| ["init", "started_at", "address"].contains(&key.as_str()));
    });
    let seen = rig.new_agent().observe().unwrap().pop().unwrap();
    assert_eq!((seen.foreign, seen.address), (None, Some(request.address)));
    assert_eq!(rig.pid(&request.id), pid, "untouched");
    let ticks = rig.engine.log_tail(&request.id, 1000).len();
    wait_for("output through a new shim", || {
        look_after(&rig.engine);
        (rig.engine.log_tail(&request.id, 1000).len() > ticks + 3).then_some(())
    });
    let told = rig.engine.exec(&request.id, &["echo".into(), "in".into()], Duration::from_secs(60)).unwrap();
    assert_eq!((told.code, told.output.as_str()), (Some(0), "in\n"));
    rig.engine.stop(&request.id, Duration::from_secs(10)).unwrap();
    assert_eq!(rig.engine.log_tail(&request.id, 1), ["bye"]);
    rig.engine.remove(&request.id).unwrap();
    assert_eq!(rig.traces(), Vec::<String>::new());
}

#[test]
fn a_container_of_a_newer_version_is_left_alone_and_said() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec sleep 1000");
    rig.start(&request);
    let pid = rig.pid(&request.id);
    let run = rig.path("run/containers/shop.1");
    let launch = fs::read(run.join("launch.json")).unwrap();
    kill9(rig.shim_pid(&request.id));
    for (change, says) in [
        (
            serde_json::json!({"format": 2, "netns": {"path": "/new"}}),
            "of format 2, and this version knows 1",
        ),
        (serde_json::json!({"options": {"not_known_yet": true}}), "of a newer version"),
    ] {
        edit(&run.join("launch.json"), |launch| launch.extend(change.as_object().unwrap().clone()));
        let seen = rig.find(&request.id).unwrap();
        let refusal = seen.foreign.unwrap();
        assert_eq!(refusal.reason, gitopsd::types::Reason::StateInvalid);
        assert!(refusal.message.contains(says), "{refusal}");
        assert!(
            matches!(seen.state, ContainerState::Running { pid: now, .. } if now == pid),
            "{:?}",
            seen.state
        );
        let shims = rig.traces().iter().filter(|trace| trace.starts_with("process")).count();
        assert_eq!(shims, 0, "it is not adopted: {:?}", rig.traces());
        fs::write(run.join("launch.json"), &launch).unwrap();
    }
    // The version that knows it is back: all is as before.
    assert_eq!(rig.find(&request.id).unwrap().foreign, None);
    edit(&run.join("launch.json"), |launch| drop(launch.insert("format".into(), 2.into())));
    rig.engine.start(&request).unwrap();
    assert_eq!(rig.pid(&request.id), pid, "it runs, so there is nothing to start");
    kill9(pid);
    let error = rig.engine.start(&request).unwrap_err();
    assert!(error.to_refusal().message.contains("left alone"), "{}", error.to_refusal());
    // Only who says so by name takes it away.
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
