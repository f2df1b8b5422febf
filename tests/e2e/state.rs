//! A state directory that cannot be written: what runs is kept running, and people hear of it.

use std::path::Path;
use std::process::Command;

use super::image::Kind;
use super::lab::{Lab, wait_for, web};
use super::load::get;

#[track_caller]
fn mount(args: &[&str]) {
    assert!(Command::new("mount").args(args).status().unwrap().success(), "mount {args:?}");
}

/// A mount that goes with the test.
struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let flags = nix::mount::MntFlags::MNT_DETACH;
        nix::mount::umount2(&self.0, flags).unwrap();
    }
}

fn end_container(lab: &Lab) {
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
}

/// Waits for the start after the present one; gives the status then.
#[track_caller]
fn wait_restarted(lab: &Lab, port: u16, times: u64) {
    wait_for(&format!("restart {times}; {}", lab.agent_log()), || {
        let restarts = lab.service("web")["restarts"].as_u64();
        (restarts == Some(times) && get(port, "/").is_ok()).then_some(())
    });
}

#[track_caller]
fn told(lab: &Lab, reason: &str) {
    let status = lab.status();
    assert_eq!(status["agent"]["state"], "degraded", "{status}");
    assert_eq!(status["agent"]["reason"], reason, "{status}");
    assert!(lab.ok(&["status"]).contains("state: cannot be written"), "{}", lab.ok(&["status"]));
    let output = lab.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.contains(&format!("({reason})")), "{output}");
    let log = std::fs::read_to_string(lab.path("agent.log")).unwrap();
    assert!(log.contains("state cannot be written"), "{log}");
}

#[test]
fn a_read_only_state_directory_stops_no_restart_and_is_told() {
    let (mut lab, port) = Lab::serving();
    lab.ok(&["exec", "web", "--", "/bin/sh", "-c", "echo mine > /kept"]);
    let state = lab.path("state").to_str().unwrap().to_owned();
    mount(&["--bind", &state, &state]);
    let read_only = Mount(state.clone().into());
    mount(&["-o", "remount,bind,ro", &state]);
    for times in 1..=2 {
        end_container(&lab);
        wait_restarted(&lab, port, times);
    }
    assert_eq!(
        lab.ok(&["exec", "web", "--", "/bin/cat", "/kept"]),
        "mine\n",
        "what it wrote before is there"
    );
    // What it writes is in memory, and as much as it has room there: the rest of /run is the host's.
    let flood = "/bin/busybox dd if=/dev/zero of=/flood bs=1M count=200";
    let flood = lab.run(&["exec", "web", "--", "/bin/sh", "-c", flood]);
    let said = String::from_utf8_lossy(&flood.stderr).into_owned();
    assert!(!flood.status.success() && said.contains("No space left"), "{said}");
    let used = Command::new("du").arg("-sxk").arg(lab.path("run")).output().unwrap();
    let used = String::from_utf8(used.stdout).unwrap();
    let kib: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 16 << 10, "{used}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    told(&lab, "storage-io");
    // Also by an agent that finds it so.
    lab.kill_agent();
    let once = lab.run(&["run", "--once"]);
    assert_eq!(once.status.code(), Some(1), "{once:?}");
    lab.start_agent();
    lab.wait_agent();
    end_container(&lab);
    wait_restarted(&lab, port, 1);
    told(&lab, "storage-io");
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "not now");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    // It mends by itself.
    drop(read_only);
    lab.wait_serving("web", &v2);
    lab.sync();
    assert_eq!(lab.status()["agent"]["reason"], serde_json::Value::Null);
    let results: Vec<_> = lab.history().into_iter().map(|receipt| receipt["result"].clone()).collect();
    assert_eq!(results, ["deployed", "restarted", "deployed"], "what was not written then is written now");
}

/// Fills a file system to its last byte.
fn fill(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
    }
    path
}

#[test]
fn a_full_state_directory_stops_no_restart_and_is_told() {
    let mut lab = Lab::new();
    let state = lab.path("state");
    std::fs::create_dir(&state).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=64m", "none", state.to_str().unwrap()]);
    let small = Mount(state.clone());
    let port = lab.serve();
    wait_for("the outbox", || (lab.status()["outbox"] == 0).then_some(()));
    let mut fillers = vec![fill(&state)];
    // The reserve lasts for a while; what comes into its place is filled too.
    for times in 1..=3 {
        end_container(&lab);
        wait_restarted(&lab, port, times);
        let aside = state.join(format!("filler-{times}"));
        std::fs::rename(fillers.last().unwrap(), &aside).unwrap();
        fillers.pop();
        fillers.extend([aside, fill(&state)]);
    }
    wait_for(&format!("word of it; {}", lab.agent_log()), || {
        (lab.status()["agent"]["reason"] == "disk-space").then_some(())
    });
    told(&lab, "disk-space");
    for filler in fillers {
        std::fs::remove_file(filler).unwrap();
    }
    wait_for("the end of it", || (lab.status()["agent"]["state"] == "in-sync").then_some(()));
    assert!(lab.ok(&["events"]).contains("\"event\":\"state-mended\""));
    lab.kill_agent();
    lab.ok(&["teardown", "--yes"]);
    drop(small);
}

/// The steps of docs/recovery.md for records that are damaged, and for state that is lost.
#[test]
fn what_is_lost_is_made_anew_from_git_and_the_registry() {
    let (mut lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.sync();
    let everything: [fn(&Lab); 2] = [
        |lab| {
            std::fs::create_dir(lab.path("aside")).unwrap();
            for name in super::lab::names(&lab.path("state/services")) {
                let from = lab.path("state/services").join(&name);
                std::fs::rename(from, lab.path("aside").join(name)).unwrap();
            }
        },
        |lab| std::fs::remove_dir_all(lab.path("state")).unwrap(),
    ];
    for lose in everything {
        lab.stop_agent();
        lose(&lab);
        lab.start_agent();
        lab.wait_agent();
        lab.wait_serving("web", &v2);
        lab.sync();
        let service = lab.service("web");
        assert_eq!((&service["generation"], &service["health"]), (&1.into(), &"healthy".into()), "{service}");
        assert_eq!(get(port, "/").unwrap(), "version 2\n");
    }
}
