//! Traps of making containers that other tests do not stand in: `tests/compat/traps.rs` lists all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use gitopsd::engine::Engine as _;
use gitopsd::types::{InstanceId, Options, Reason};

use crate::containers::Rig;

/// Hard limit of open files of a process, as the kernel has it.
fn open_files(pid: i32) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Where nobody may raise a limit (an agent in a container, a machine of a CI), containers get what there is, and the agent
/// says so once.
#[test]
fn an_agent_that_may_raise_no_limit_gives_what_it_has() {
    let rig = Rig::new();
    let said = rig.path("said");
    let mut agent = Command::new("prlimit")
        .args(["--nofile=3000:3000", "setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "crashes::agent_child", "--ignored", "--nocapture"])
        .env("GITOPSD_TEST_DIR", rig.dir.path())
        .env("GITOPSD_TEST_INSTANCE", &rig.instance)
        .env("GITOPSD_TEST_AGAIN", "yes")
        .env_remove("JOURNAL_STREAM")
        .stdout(Stdio::null())
        .stderr(fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let id: InstanceId = "shop.2".parse().unwrap();
    rig.wait_log(&id, "tick 3");
    let (shim, container) = (open_files(rig.shim_pid(&id)), open_files(rig.pid(&id)));
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(container, shim.min(1 << 20), "as many as its shim");
    // A unit has the limits that systemd gives it.
    let launch = fs::read_to_string(rig.path("run/containers/shop.2/launch.json")).unwrap();
    let launch: serde_json::Value = serde_json::from_str(&launch).unwrap();
    assert!(!launch["unit"].is_null() || shim == 3000, "{shim}");
    let said = fs::read_to_string(said).unwrap();
    let times = said.matches(&format!("may have {shim} files open and not 1048576")).count();
    assert_eq!(times, usize::from(shim < 1 << 20), "of two containers: {said}");
}

/// The kernel says no more than that it is not permitted.
#[test]
fn a_limit_that_cannot_be_given_is_refused_by_name() {
    let rig = Rig::new();
    let most: i64 = fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse().unwrap();
    let mut request = rig.script("shop.1", "true");
    for (hard, said) in [(most + 1, (most + 1).to_string()), (-1, "no limit".to_owned())] {
        let ulimits = BTreeMap::from([("nofile".to_owned(), (100, hard))]);
        request.spec.options = Options { ulimits: Some(ulimits), ..Options::default() };
        let refusal = rig.engine.start(&request).unwrap_err().to_refusal();
        assert_eq!(refusal.reason, Reason::StartFailed);
        assert!(refusal.message.contains(&format!("`ulimits.nofile`: {said} is more than")), "{refusal}");
        assert!(rig.engine.log_tail(&request.id, 9).is_empty(), "something was executed");
    }
}

fn namespace(pid: i32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap()
}

/// What is masked and only read goes by path, so whoever shares a mount namespace could exchange it.
#[test]
fn no_two_containers_share_a_mount_namespace() {
    let rig = Rig::new();
    let mut seen = BTreeSet::from([fs::read_link("/proc/self/ns/mnt").unwrap()]);
    let before = seen.len();
    for (name, shared) in [("one.1", false), ("one.2", false), ("two.1", true)] {
        let mut request = rig.script(name, "echo up; exec sleep 1000");
        request.spec.options =
            Options { host_pid: Some(shared), host_ipc: Some(shared), ..Options::default() };
        rig.start(&request);
        rig.wait_log(&request.id, "up");
        seen.extend([namespace(rig.pid(&request.id)), namespace(rig.shim_pid(&request.id))]);
    }
    assert_eq!(
        seen.len(),
        before + 6,
        "three containers, and where each of their roots is mounted: {seen:?}"
    );
}

/// A service manager that ends the agent's group or session ends no shim.
#[test]
fn a_shim_is_in_no_group_and_no_session_of_the_agents() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done");
    rig.start(&request);
    rig.wait_log(&request.id, "up");
    let shim = rig.shim_pid(&request.id);
    let number = |pid: &str, field: usize| -> i32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(field).unwrap().parse().unwrap()
    };
    // After the state: parent, process group, session. Source: proc_pid_stat(5).
    for field in [1, 2, 3] {
        let ours = if field == 1 { std::process::id().cast_signed() } else { number("self", field) };
        assert_ne!(number(&shim.to_string(), field), ours, "field {field}");
    }
    let groups = |pid: &str| -> BTreeMap<String, String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let entries = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        // Those by which a service manager tells services apart.
        let named = entries.filter(|(names, _)| names.is_empty() || names.starts_with("name="));
        named.map(|(names, path)| (names.to_owned(), path.to_owned())).collect()
    };
    let (ours, its) = (groups("self"), groups(&shim.to_string()));
    assert!(!its.is_empty());
    for (names, path) in &its {
        assert_ne!(ours.get(names), Some(path), "hierarchy `{names}`: {its:?}");
    }
    rig.engine.stop(&request.id, Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&request.id).code, Some(5));
}

/// An agent that was started with signals ignored and blocked, and a descriptor left open, hands none of it on.
#[test]
fn nothing_of_what_the_agent_was_started_with_arrives() {
    let rig = Rig::new();
    let secret = rig.path("secret");
    fs::write(&secret, "of the host").unwrap();
    let mut agent = Command::new("sh");
    let script = format!("trap '' PIPE INT USR1; umask 077; exec 9<{}; exec \"$@\"", secret.display());
    agent
        .args(["-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traps::looking_child", "--ignored", "--nocapture"])
        .env("GITOPSD_TEST_DIR", rig.dir.path())
        .env("GITOPSD_TEST_INSTANCE", &rig.instance)
        .env("TOKEN", "verysecret")
        .stdout(Stdio::null())
        .process_group(0);
    let mut agent = agent.spawn().unwrap();
    let id: InstanceId = "shop.1".parse().unwrap();
    rig.wait_log(&id, "done");
    agent.kill().unwrap();
    agent.wait().unwrap();
    let log = rig.engine.log_tail(&id, 99);
    assert_eq!(
        log,
        ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "0022", "0", "0", "1", "2", "done"],
        "signals, umask, the agent's environment, descriptors"
    );
}

const LOOK: &str = "grep -E '^Sig(Ign|Blk)' /proc/self/status; umask; env | grep -c TOKEN; ls /proc/$$/fd; \
                    echo done; exec sleep 1000";

#[test]
#[ignore = "a child of another test"]
fn looking_child() {
    let Some(dir) = std::env::var_os("GITOPSD_TEST_DIR").map(PathBuf::from) else { return };
    let engine = crate::containers::engine_at(&dir, &std::env::var("GITOPSD_TEST_INSTANCE").unwrap());
    engine.start(&crate::containers::script_request(&dir, "shop.1", LOOK)).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
