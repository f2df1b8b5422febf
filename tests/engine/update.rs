//! Limits of a running container, changed in place.

use std::fs;

use gitopsd::engine::Engine;
use gitopsd::types::{ByteSize, ContainerState, InstanceId, Options, Reason};

use crate::containers::Rig;

/// What the container sees of its limits, one `name=value` a line.
const LOOK: &str = "for f in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes \
      memory/memory.soft_limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares cpuset/cpuset.cpus pids/pids.max \
      memory.max memory.swap.max memory.low memory.high cpu.max cpu.weight cpuset.cpus pids.max; do
    test -e /sys/fs/cgroup/$f && echo ${f##*/}=$(cat /sys/fs/cgroup/$f)
  done; true";

fn seen(engine: &dyn Engine, id: &InstanceId) -> String {
    let command = ["sh", "-c", LOOK].map(str::to_owned);
    let output = engine.exec(id, &command, std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(output.code, Some(0), "{}", output.output);
    output.output
}

fn is_v2() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap()
}

fn changed_and_taken_back(engine_of: impl Fn(&Rig) -> gitopsd::engine::native::NativeEngine) {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "exec sleep 1000");
    let engine = engine_of(&rig);
    engine.start(&request).unwrap();
    let (pid, before) = (rig.pid(&request.id), seen(&engine, &request.id));
    let first = request.spec.clone();

    request.spec.mem_limit = Some(ByteSize(48 << 20));
    request.spec.milli_cpus = Some(500);
    request.spec.pids_limit = Some(20);
    request.spec.stop_grace_period = std::time::Duration::from_secs(3);
    request.spec.options = Options {
        memswap_limit: Some(64 << 20),
        mem_reservation: Some(ByteSize(16 << 20)),
        cpuset: Some("0".into()),
        cpu_shares: Some(512),
        ..Options::default()
    };
    engine.update(&request.id, &request.spec).unwrap();
    let now = seen(&engine, &request.id);
    let (v1, v2): (&[&str], &[&str]) = (
        &[
            "memory.limit_in_bytes=50331648",
            "memory.soft_limit_in_bytes=16777216",
            "cpu.cfs_quota_us=50000",
            "cpu.shares=512",
            "cpuset.cpus=0",
            "pids.max=20",
        ],
        &[
            "memory.max=50331648",
            "memory.low=16777216",
            "memory.high=max",
            "cpu.max=50000 100000",
            "cpuset.cpus=0",
            "pids.max=20",
        ],
    );
    for line in if is_v2() { v2 } else { v1 } {
        assert!(now.lines().any(|found| found == *line), "{line} is missing in:\n{now}");
    }
    assert_eq!(rig.pid(&request.id), pid, "it is the same process");
    // What outlives the agent says so too: a shim that takes over, and `systemctl stop`, go by it.
    let launch = fs::read_to_string(rig.path("run/containers/shop.1/launch.json")).unwrap();
    assert!(launch.contains("\"memory\":50331648") && launch.contains("\"secs\":3"), "{launch}");

    // A new agent makes them wider, narrower, and takes them away.
    let engine = engine_of(&rig);
    for size in [96 << 20, 24 << 20, 200 << 20] {
        request.spec.options.memswap_limit = None;
        request.spec.mem_limit = Some(ByteSize(size));
        engine.update(&request.id, &request.spec).unwrap();
        assert!(seen(&engine, &request.id).contains(&format!("={size}\n")), "{size}");
    }
    engine.update(&request.id, &first).unwrap();
    // On v2 a group that has named processors names all of them then, where it named none before.
    let but_names = |text: &str| {
        let kept = text.lines().filter(|line| !is_v2() || !line.starts_with("cpuset.cpus="));
        kept.map(str::to_owned).collect::<Vec<_>>()
    };
    let now = seen(&engine, &request.id);
    assert_eq!(but_names(&now), but_names(&before), "as it was");
    assert!(!now.contains("cpuset.cpus=0\n"), "{now}");
    assert_eq!(rig.pid(&request.id), pid);
    engine.remove(&request.id).unwrap();
    // What does not run has nothing to change.
    engine.update(&request.id, &request.spec).unwrap();
}

#[test]
fn every_limit_of_a_running_container_can_be_changed_and_taken_back() {
    changed_and_taken_back(Rig::new_agent);
}

#[test]
fn runtimes_of_the_host_make_no_difference() {
    for runtime in ["crun", "runc"] {
        changed_and_taken_back(|rig| rig.new_agent().with_runtime(Some(runtime.to_owned())));
    }
}

#[test]
fn a_limit_below_what_is_used_is_refused_and_kills_nothing() {
    let rig = Rig::new();
    // The shell itself holds the text.
    let mut request = rig.script(
        "shop.1",
        "x=$(head -c 30000000 /dev/zero | tr '\\0' a); echo ready; while :; do sleep 1; done",
    );
    request.spec.mem_limit = Some(ByteSize(400 << 20));
    request.spec.pids_limit = Some(77);
    rig.start(&request);
    rig.wait_log(&request.id, "ready");
    let (pid, before) = (rig.pid(&request.id), seen(&rig.engine, &request.id));
    let used = rig.engine.memory(&request.id).unwrap();
    assert!(used > 28_000_000, "{used}");
    request.spec.mem_limit = Some(ByteSize(8 << 20));
    request.spec.options.memswap_limit = Some(8 << 20);
    request.spec.pids_limit = Some(33);
    let refusal = rig.engine.update(&request.id, &request.spec).unwrap_err().to_refusal();
    assert_eq!(refusal.reason, Reason::Memory, "{refusal}");
    assert!(refusal.message.contains("8.0 MiB"), "{refusal}");
    assert!(matches!(rig.state(&request.id), Some(ContainerState::Running { .. })));
    assert_eq!((rig.pid(&request.id), seen(&rig.engine, &request.id)), (pid, before), "nothing has changed");
    // What fits is taken.
    request.spec.mem_limit = Some(ByteSize(128 << 20));
    request.spec.options.memswap_limit = None;
    rig.engine.update(&request.id, &request.spec).unwrap();
    assert!(seen(&rig.engine, &request.id).contains("=134217728"));
    assert_eq!(rig.pid(&request.id), pid);
}

/// What no runtime would start again with is not taken by a running one either; cgroup v2 would, as no swap.
#[test]
fn a_limit_of_swap_below_that_of_memory_is_refused_live_and_at_the_start() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "exec sleep 1000");
    request.spec.mem_limit = Some(ByteSize(64 << 20));
    request.spec.options.memswap_limit = Some(128 << 20);
    rig.start(&request);
    let (pid, before) = (rig.pid(&request.id), seen(&rig.engine, &request.id));
    let record = || fs::read_to_string(rig.path("run/containers/shop.1/launch.json")).unwrap();
    let recorded = record();
    for (memory, what) in [
        (Some(256 << 20), "`memswap_limit` (128.0 MiB) is less than `mem_limit` (256.0 MiB)"),
        (None, "`memswap_limit` needs a `mem_limit`"),
    ] {
        request.spec.mem_limit = memory.map(ByteSize);
        let refusal = rig.engine.update(&request.id, &request.spec).unwrap_err().to_refusal();
        assert!(refusal.message.contains(what), "{refusal}");
        assert_eq!((rig.pid(&request.id), seen(&rig.engine, &request.id)), (pid, before.clone()));
        assert_eq!(record(), recorded, "nothing is tried");
        let other = gitopsd::engine::ContainerRequest { id: "shop.2".parse().unwrap(), ..request.clone() };
        let refusal = rig.engine.start(&other).unwrap_err().to_refusal();
        assert!(refusal.message.contains(what), "{refusal}");
        rig.engine.remove(&other.id).unwrap();
    }
    // No limit at all of either is no contradiction.
    request.spec.options.memswap_limit = Some(-1);
    rig.engine.update(&request.id, &request.spec).unwrap();
    rig.engine.remove(&request.id).unwrap();
    rig.start(&request);
}

#[test]
fn processors_that_are_not_there_are_refused_by_name() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "exec sleep 1000");
    rig.start(&request);
    request.spec.options.cpuset = Some("4000".into());
    let refusal = rig.engine.update(&request.id, &request.spec).unwrap_err().to_refusal();
    assert!(refusal.message.contains("4000 to") && refusal.message.contains("cpuset.cpus"), "{refusal}");
}
