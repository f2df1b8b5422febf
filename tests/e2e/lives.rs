//! How containers end and come back: restart policies, lost supervisors, upgrades, boots, holds.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gitopsd::state::StateDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

/// A container may answer a moment before the record of it is written.
fn record(lab: &Lab, id: &str, name: &str) -> Value {
    let path = lab.path("run/containers").join(id).join(name);
    wait_for(&format!("{id}/{name}"), || serde_json::from_slice(&fs::read(&path).ok()?).ok())
}

/// The container's first process and its supervisor.
fn processes(lab: &Lab, id: &str) -> (i32, i32) {
    let pid = |value: &Value| i32::try_from(value["pid"].as_i64().unwrap()).unwrap();
    (pid(&record(lab, id, "run.json")["init"]), pid(&record(lab, id, "shim.json")))
}

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// No poll wakes the loop in time.
pub fn polled_rarely(lab: &Lab) {
    let text = fs::read_to_string(lab.config()).unwrap();
    fs::write(lab.config(), text.replace("poll = \"2s\"", "poll = \"1h\"")).unwrap();
}

#[test]
fn restart_policies_hold_and_ends_are_told_everywhere() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    let service = |command: &str, restart: &str| {
        format!(
            "image = \"{image}\"\ncommand = [\"/bin/sh\", \"-c\", '{command}']\n{restart}\nstop_grace_period = \"100ms\"\n[deploy]\nbake = \"0s\"\n"
        )
    };
    lab.write("services/job.toml", &service("exit 0", "restart = \"no\""));
    lab.write("services/after.toml", &service("sleep 1000", "depends_on = [\"job\"]"));
    let fails = "test -e /second && exit 3; touch /second; sleep 2; exit 3";
    lab.write("services/frail.toml", &service(fails, "restart = \"on-failure:1\""));
    lab.write(
        "services/once.toml",
        &service("sleep 2; /bin/busybox tail /dev/zero; exit $?", "mem_limit = \"16m\"\nrestart = \"no\""),
    );
    lab.write(
        "services/hungry.toml",
        &service("/bin/busybox tail /dev/zero; sleep 1000", "mem_limit = \"16m\""),
    );
    lab.commit("all kinds");
    lab.start_agent();
    lab.wait_agent();
    let service = |name: &str| lab.service(name);
    wait_for("the job's dependent", || (service("after")["state"] == "running").then_some(()));
    wait_for("the job's end", || (service("job")["last_exit"]["code"] == 0).then_some(()));
    let job = service("job");
    assert_eq!(
        (&job["state"], &job["reason"], &job["health"]),
        (&"stopped".into(), &Value::Null, &"stopped".into())
    );
    let held = |name: &str| {
        wait_for(&format!("the end of {name}"), || Some(service(name)).filter(|it| it["reason"] == "exited"))
    };
    let frail = held("frail");
    assert_eq!((&frail["state"], &frail["last_exit"]["code"]), (&"failed".into(), &3.into()));
    assert_eq!(
        frail["message"],
        "generation 1 exited with code 3, and `restart = \"on-failure:1\"` leaves it so"
    );
    let once = held("once");
    assert_eq!((&once["last_exit"]["code"], &once["last_exit"]["oom_killed"]), (&137.into(), &true.into()));
    wait_for("the hungry one's child", || (service("hungry")["oom_kills"] == 1).then_some(()));
    assert_eq!(service("hungry")["state"], "running");
    let restarted: Vec<_> = lab.history().into_iter().filter(|it| it["result"] == "restarted").collect();
    assert_eq!(restarted.len(), 1, "{restarted:?}");
    assert_eq!((&restarted[0]["service"], &restarted[0]["exit"]["code"]), (&"frail".into(), &3.into()));
    let why = lab.ok(&["why", "once"]);
    assert!(why.contains("it was killed for want of memory, "), "{why}");
    let status = lab.ok(&["status"]);
    assert!(status.contains("job: its container exited with code 0, "), "{status}");
    assert!(status.contains("hungry: the kernel killed 1 process in it for want of memory"), "{status}");
    let events: Vec<Value> =
        lab.ok(&["events"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = |event: &str, service: &str| {
        events.iter().find(|it| it["event"] == event && it["service"] == service).cloned().unwrap_or_default()
    };
    assert_eq!(told("ended", "job")["exit"]["code"], 0);
    assert_eq!(told("ended", "once")["exit"]["oom_killed"], true);
    assert_eq!(told("restarted", "frail")["exit"]["code"], 3);

    // Also over a reboot: what ended stays so and says how; what ran runs again.
    lab.kill_agent();
    lab.cut_power();
    lab.start_agent();
    lab.wait_agent();
    wait_for("the dependent again", || (lab.service("after")["state"] == "running").then_some(()));
    assert_eq!(lab.service("job")["state"], "stopped");
    assert_eq!(lab.service("once")["last_exit"], once["last_exit"]);
    assert_eq!(lab.service("frail")["message"], frail["message"]);
    assert!(!lab.path("run/containers/job.1/run.json").exists());
    // Somebody's word starts it once more.
    lab.ok(&["resume", "frail"]);
    wait_for("its second end", || {
        (lab.service("frail")["last_exit"]["at"] != frail["last_exit"]["at"]).then_some(())
    });
}

#[test]
fn a_killed_supervisor_is_noticed_at_once_and_replaced() {
    let mut lab = Lab::new();
    polled_rarely(&lab);
    let port = lab.serve();
    let (container, shim) = processes(&lab, "web.1");
    let load = Load::begin(port, 50);
    let begun = Instant::now();
    kill9(shim);
    wait_for("another supervisor", || (processes(&lab, "web.1").1 != shim).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    let log = fs::read_to_string(lab.path("agent.log")).unwrap();
    assert!(log.contains("looking: a supervisor ended"), "it was seen by chance: {}", lab.agent_log());
    assert_eq!(processes(&lab, "web.1").0, container, "the container was not touched");
    load.end_without_failure();
    assert_eq!(lab.service("web")["restarts"], 0);
    // It does all that the first one did: how the container ends is known, and nothing of it is left beside the next.
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
    wait_for("the restart", || (lab.service("web")["restarts"] == 1).then_some(()));
    wait_for("it to serve", || get(port, "/").ok());
    let former = container;
    let (container, shim) = wait_for("its successor", || {
        Some(processes(&lab, "web.1")).filter(|(container, _)| *container != former)
    });
    // Both at once: it is started again, and alone.
    kill9(shim);
    kill9(container);
    wait_for("another start", || (lab.service("web")["restarts"] == 2).then_some(()));
    wait_for("it to serve", || get(port, "/").ok());
    let running = lab.traces().into_iter().filter(|trace| trace.starts_with("process ")).count();
    assert_eq!(running, 1, "{:?}", lab.traces());
    assert_eq!(lab.service("web")["last_exit"]["oom_killed"], false);
}

/// systemd may not answer for long, and the disk be on its knees: nobody else waits for that.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn a_supervisor_that_is_long_in_coming_holds_up_nobody_else() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    let (port, other) = (free_port(), free_port());
    lab.write("services/web.toml", &web(&image, port, ""));
    lab.write("services/other.toml", &web(&image, other, ""));
    lab.commit("two services");
    let slow = Duration::from_secs(30);
    lab.start_agent_with(&[("FAILPOINTS", &format!("adopt=sleep({})", slow.as_millis()))]);
    lab.wait_agent();
    lab.sync();
    let (container, shim) = processes(&lab, "web.1");
    let shim_json = lab.path("run/containers/web.1/shim.json");
    let begun = Instant::now();
    kill9(shim);
    // The loop has come round with it, and goes on to.
    wait_for("it to be seen", || lab.agent_log().contains("looking: a supervisor ended").then_some(()));
    lab.ok(&["sync"]);
    assert_eq!(lab.service("web")["state"], "running");
    lab.run(&["exec", "other", "--", "/bin/sh", "-c", "kill -TERM 1"]);
    wait_for("the other one's restart", || (lab.service("other")["restarts"] == 1).then_some(()));
    wait_for("it to serve", || get(other, "/").ok());
    let number = |path| Some(serde_json::from_slice::<Value>(&fs::read(path).ok()?).ok()?["pid"].clone());
    assert_eq!(number(&shim_json), Some(shim.into()), "too late to say anything: {:?}", begun.elapsed());
    assert!(begun.elapsed() < slow);
    wait_for("another supervisor", || number(&shim_json).filter(|pid| *pid != shim));
    assert!(begun.elapsed() >= slow);
    assert_eq!(processes(&lab, "web.1").0, container, "the container was not touched");
    assert_eq!((&lab.service("web")["restarts"], get(port, "/").is_ok()), (&0.into(), true));
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn an_upgrade_touches_no_container() {
    let mut lab = Lab::new();
    let programs = lab.path("bin");
    fs::create_dir(&programs).unwrap();
    let built = lab.program.clone();
    let install = |name: &str| {
        // As a package does: a new file in the place of the old one, which is still executed.
        let (new, place) = (programs.join(name), programs.join("gitopsd"));
        assert!(Command::new("cp").arg(&built).arg(&new).status().unwrap().success());
        fs::rename(&new, &place).unwrap();
        fs::metadata(&place).unwrap().ino()
    };
    let first = install("first");
    lab.program = programs.join("gitopsd");
    let port = lab.serve();
    let before = (processes(&lab, "web.1"), record(&lab, "web.1", "run.json"));
    let load = Load::begin(port, 50);
    for (number, version) in ["9.0.0", "9.0.1", "0.0.1"].into_iter().enumerate() {
        if number % 2 == 0 {
            lab.stop_agent()
        } else {
            lab.kill_agent()
        }
        assert_ne!(install(version), first);
        lab.start_agent_with(&[("GITOPSD_TEST_VERSION", version)]);
        lab.wait_agent();
        lab.sync();
        assert_eq!(lab.status()["agent"]["version"], version);
        assert_eq!((processes(&lab, "web.1"), record(&lab, "web.1", "run.json")), before, "{version}");
        assert_eq!(lab.ok(&["exec", "web", "--", "/bin/hostname"]), "web\n");
    }
    let service = lab.service("web");
    assert_eq!((&service["restarts"], &service["generation"]), (&0.into(), &1.into()));
    load.end_without_failure();
    // The old supervisor ends its container when the new version says so, and says how.
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.sync();
    assert_eq!(lab.history().pop().unwrap()["agent_version"], "0.0.1");
    assert!(lab.traces().iter().all(|trace| !trace.contains("web.1")), "{:?}", lab.traces());
}

#[test]
fn what_a_newer_version_started_is_left_alone_and_said() {
    let (mut lab, port) = Lab::serving();
    let before = processes(&lab, "web.1");
    lab.stop_agent();
    let path = lab.path("run/containers/web.1/launch.json");
    let launch = fs::read(&path).unwrap();
    let mut newer: Value = serde_json::from_slice(&launch).unwrap();
    newer["format"] = 7.into();
    newer["something_new"] = true.into();
    fs::write(&path, newer.to_string()).unwrap();
    lab.start_agent();
    lab.wait_agent();
    wait_for("a word", || (lab.service("web")["reason"] == "state-invalid").then_some(()));
    let message = lab.service("web")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("started by a newer version of gitopsd, and is left alone"), "{message}");
    // A commit changes all others, and nothing of it.
    let v2 = lab.image("2", Kind::Good);
    let other = free_port();
    lab.write("services/web.toml", &web(&v2, port, ""));
    lab.deploy("other", &web(&v2, other, ""), "web 2, and another one");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(
        (get(port, "/").unwrap(), get(other, "/").unwrap()),
        ("version 1\n".into(), "version 2\n".into())
    );
    assert_eq!(processes(&lab, "web.1"), before);
    // The version that understands it goes on.
    fs::write(&path, &launch).unwrap();
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

#[test]
fn after_a_power_cut_services_come_back_in_order_alone_and_trust_no_number() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    // By name they would come in the other order.
    let names = ["a-front", "b-middle", "c-base"];
    for (name, on) in names.iter().zip(["b-middle", "c-base", ""]) {
        let on = if on.is_empty() { String::new() } else { format!("depends_on = [\"{on}\"]") };
        lab.write(&format!("services/{name}.toml"), &web(&image, free_port(), &on));
    }
    lab.commit("three of them");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    wait_for("the outbox", || (lab.status()["outbox"] == 0).then_some(()));
    lab.kill_agent();
    lab.stop_registry();
    fs::rename(lab.path("repo.git"), lab.path("aside.git")).unwrap();
    let former = processes(&lab, "c-base.1");
    let saved: Vec<(std::path::PathBuf, Value)> = ["run.json", "shim.json", "launch.json"]
        .iter()
        .map(|name| (lab.path("run/containers/c-base.1").join(name), record(&lab, "c-base.1", name)))
        .collect();
    // What all others depend on had just been started again, for the twentieth time: it has to pause for a minute. That
    // was before the boot.
    let state = StateDir::open(&lab.path("state")).unwrap();
    let base = "c-base".parse().unwrap();
    let mut remembered = state.load_journal().unwrap().records.remove(&base).unwrap();
    let incumbent = remembered.incumbent.as_mut().unwrap();
    let now = gitopsd::agent::clock::now();
    (incumbent.restarts, incumbent.restarted_at) = (20, Some(now));
    state.save_record(&base, &remembered).unwrap();
    drop(state);
    lab.cut_power();
    // A run directory that outlived the boot, and a number that somebody else has by now.
    let mut stranger = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", stranger.id())).unwrap();
    let start_time: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    let stale = serde_json::json!({
        "pid": stranger.id(), "start_time": start_time, "boot_id": "00000000-0000-0000-0000-000000000000",
    });
    for (path, mut value) in saved {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if path.ends_with("run.json") {
            value["init"] = stale.clone();
        } else if path.ends_with("shim.json") {
            value = stale.clone();
        }
        fs::write(&path, value.to_string()).unwrap();
    }
    lab.start_agent();
    lab.wait_agent();
    for name in names {
        wait_for(&format!("{name}; {}", lab.agent_log()), || {
            (lab.service(name)["health"] == "healthy").then_some(())
        });
    }
    let started: Vec<String> = names
        .iter()
        .map(|name| record(&lab, &format!("{name}.1"), "run.json")["started_at"].as_str().unwrap().to_owned())
        .collect();
    assert!(started[2] < started[1] && started[1] < started[0], "{started:?}");
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger's process was ended");
    assert_ne!(processes(&lab, "c-base.1").0, former.0);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(lab.status()["repo"]["reason"], "git-unreachable");
}

/// One that would take five seconds and has one is cut short, one that takes twelve and has a minute is not: each by its
/// own word, and neither by Compose's ten seconds.
#[test]
fn a_stop_takes_as_long_as_the_service_says() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    // Of their own: services that write to one directory are changed one after the other.
    let folder = lab.path("out");
    let out = |name: &str| folder.join(name);
    let service = |name: &str, takes: u32, grace: &str| {
        fs::create_dir_all(out(name)).unwrap();
        let ends = format!("trap \"sleep {takes}; echo done > /out/end; exit 0\" TERM");
        format!(
            "image = \"{image}\"\ncommand = [\"/bin/sh\", \"-c\", '{ends}; while :; do sleep 0.1; done']\n\
             volumes = [\"{}:/out\"]\nstop_grace_period = \"{grace}\"\n[deploy]\ndrain = \"0s\"\nbake = \"0s\"\n",
            out(name).display()
        )
    };
    let all = [("hasty", 5, "1s"), ("patient", 12, "1m")];
    for (name, takes, grace) in all {
        lab.write(&format!("services/{name}.toml"), &service(name, takes, grace));
    }
    lab.commit("both");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let first = all.map(|(name, ..)| processes(&lab, &format!("{name}.1")).0);
    for (name, _, grace) in all {
        let other = service(name, 0, grace).replace("while :", "while true");
        lab.write(&format!("services/{name}.toml"), &other);
    }
    lab.commit("others in their place");
    for pid in first {
        wait_for("its end", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    }
    assert!(!out("hasty").join("end").exists(), "it had one second");
    assert!(out("patient").join("end").exists(), "it had a minute: {}", lab.agent_log());
}

#[test]
fn a_hold_gives_up_a_candidate_without_traffic() {
    let (lab, port) = Lab::serving();
    let load = Load::begin(port, 50);
    let v2 = lab.image("2", Kind::Good);
    let slow = web(&v2, port, "").replace("[deploy]", "[deploy]\npre = [\"/bin/sleep\", \"100\"]");
    lab.deploy("web", &slow, "web 2, slowly");
    wait_for("pre", || (lab.service("web")["rollout"]["phase"] == "preparing").then_some(()));
    let said = lab.ok(&["hold", "web", "--reason", "an incident"]);
    assert!(said.contains("generation 2, which has no traffic yet, is given up"), "{said}");
    let service = wait_for("the end of it", || Some(lab.service("web")).filter(|it| it["rollout"].is_null()));
    assert_eq!(
        (&service["state"], &service["generation"], &service["reason"]),
        (&"held".into(), &1.into(), &"held".into())
    );
    let last = lab.wait_receipt("failed");
    assert_eq!(last["reason"], "held");
    // What has traffic already stays.
    lab.deploy("web", &web(&v2, port, "").replace("bake = \"500ms\"", "bake = \"15s\""), "web 2");
    lab.ok(&["resume", "web"]);
    wait_for("the bake", || (lab.service("web")["rollout"]["phase"] == "baking").then_some(()));
    let said = lab.ok(&["hold", "web", "--reason", "an incident"]);
    assert!(said.contains(" has traffic, and stays unless"), "{said}");
    wait_for("the end of it", || (lab.service("web")["state"] == "held").then_some(()));
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    load.end_without_failure();
}
