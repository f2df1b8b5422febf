//! What a host's everyday does to what serves, and what people are told of it.

use std::process::Command;

use super::image::Kind;
use super::lab::{Lab, free_port, names, wait_for, web};
use super::load::get;

/// A lab whose agent serves web 1, with more lines in its service file.
fn serving(more: &str) -> (Lab, u16) {
    let mut lab = Lab::new();
    let port = free_port();
    let v1 = lab.image("1", Kind::Good);
    std::fs::create_dir(lab.path("mounted")).unwrap();
    lab.deploy("web", &web(&v1, port, &more.replace("LAB", lab.path("").to_str().unwrap())), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    (lab, port)
}

#[track_caller]
fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "{args:?}");
}

/// What `ip` says, the same however often it is asked.
fn ip_says(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The interfaces of this lab: its bridge, and those of its containers.
fn links(lab: &Lab) -> (String, Vec<String>) {
    let alias = |name: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/ifalias"));
    let ours = |name: &String| alias(name).is_ok_and(|alias| alias.contains(&format!(":{}:", lab.instance)));
    let pairs: Vec<String> = names("/sys/class/net".as_ref()).into_iter().filter(ours).collect();
    // The names of all are made from the instance alike: `gb…` and `gd…`.
    let prefix = format!("gb{}", &pairs[0][2..6]);
    let bridge = names("/sys/class/net".as_ref()).into_iter().find(|name| name.starts_with(&prefix));
    (bridge.unwrap(), pairs)
}

#[test]
fn a_network_that_somebody_took_away_is_put_right_while_the_container_runs() {
    let (lab, port) = serving("");
    let before = lab.service("web");
    let (bridge, pairs) = links(&lab);
    assert_eq!(pairs.len(), 1, "{pairs:?}");
    let pin = lab.path("run/netns").join(&names(&lab.path("run/netns"))[0]);
    let steps: [&dyn Fn(); 3] =
        [&|| ip(&["link", "delete", &pairs[0]]), &|| ip(&["link", "delete", &bridge]), &|| {
            // The agent, which still looks at the step before, may put it back in between.
            wait_for("the name to be away", || {
                let _ = nix::mount::umount2(&pin, nix::mount::MntFlags::MNT_DETACH);
                std::fs::remove_file(&pin).ok()
            });
            ip(&["link", "delete", &pairs[0]]);
        }];
    for step in steps {
        step();
        lab.run(&["sync"]);
        wait_for(&format!("an answer; {}", lab.agent_log()), || get(port, "/").ok());
    }
    // Nor needs an interface go: with an address of the bridge's go all routes that have it as their source.
    let all = || {
        let ways = [["-4", "route"], ["-6", "route"]]
            .map(|[family, what]| ip_says(&[family, what, "show", "dev", &pairs[0]]));
        (ip_says(&["-o", "address", "show", "dev", &bridge]), ways)
    };
    let whole = all();
    let steps: [&[&str]; 4] = [
        &["address", "flush", "dev", &bridge],
        &["-4", "route", "flush", "dev", &pairs[0]],
        &["-6", "route", "flush", "dev", &pairs[0]],
        &["-6", "address", "flush", "dev", &bridge],
    ];
    for step in steps {
        ip(step);
        lab.run(&["sync"]);
        wait_for(&format!("an answer after {step:?}; {}", lab.agent_log()), || get(port, "/").ok());
        // Beside what the answer needed.
        wait_for(&format!("all as it was after {step:?}, not {:?}", all()), || {
            (all() == whole).then_some(())
        });
    }
    let mends = || {
        let log = std::fs::read_to_string(lab.path("agent.log")).unwrap();
        log.matches("was not whole and was put right").count()
    };
    let rests = || {
        let so_far = mends();
        lab.run(&["sync"]);
        mends() == so_far
    };
    // The last mend may be told of, or be seen to be needed, a moment after the answer.
    wait_for("a look that finds nothing", || rests().then_some(()));
    assert!(rests(), "it is whole: {}", lab.agent_log());
    let after = lab.service("web");
    assert_eq!((&before["generation"], &before["since"]), (&after["generation"], &after["since"]));
    assert_eq!(after["restarts"], 0);
    // A pin is needed for what comes after, too.
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
}

#[test]
fn a_commit_cures_what_cannot_be_started_any_more() {
    let (mut lab, port) = serving("volumes = [\"LAB/mounted:/mounted:ro\"]");
    std::fs::remove_dir(lab.path("mounted")).unwrap();
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
    wait_for(&format!("the trouble; {}", lab.agent_log()), || {
        let service = lab.service("web");
        (service["state"] == "failed" && service["reason"] == "start-failed").then_some(())
    });
    // Also for an agent that finds it so, and has tried for a while.
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    wait_for("more tries", || (lab.service("web")["restarts"].as_u64()? >= 4).then_some(()));
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "no mount");
    lab.wait_serving("web", &v2);
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

#[test]
fn what_serves_and_falls_sick_is_told() {
    let (lab, port) = serving("");
    lab.ok(&["exec", "web", "--", "/bin/rm", "/www/healthz"]);
    let service = wait_for("the verdict", || {
        let service = lab.service("web");
        (service["health"] == "unhealthy").then_some(service)
    });
    assert_eq!((&service["state"], &service["reason"]), (&"running".into(), &"unhealthy".into()));
    assert!(service["message"].as_str().unwrap().contains("GET /healthz"), "{service}");
    assert_eq!(lab.status()["agent"]["state"], "degraded");
    let output = lab.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("GET /healthz"), "{output:?}");
    assert!(lab.ok(&["why", "web"]).contains("GET /healthz"));
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    lab.ok(&["exec", "web", "--", "/bin/touch", "/www/healthz"]);
    wait_for("it to be well", || (lab.status()["agent"]["state"] == "in-sync").then_some(()));
    assert_eq!(lab.service("web")["reason"], serde_json::Value::Null);
    let events = lab.ok(&["events"]);
    for name in ["unhealthy", "recovered"] {
        assert_eq!(events.matches(&format!("\"event\":\"{name}\"")).count(), 1, "{name}: {events}");
    }
}

#[test]
fn how_a_container_ended_and_how_often_is_told() {
    let (lab, _port) = serving("");
    for times in 1..=2 {
        lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
        wait_for("the restart", || (lab.service("web")["restarts"] == times).then_some(()));
        wait_for("it to run", || (lab.service("web")["health"] == "healthy").then_some(()));
    }
    let receipt = lab.wait_receipt("restarted");
    let message = receipt["message"].as_str().unwrap();
    assert!(message.contains("exited with code 0 and was started again"), "{message}");
    let events = lab.ok(&["events"]);
    assert_eq!(events.matches("exited with code 0 and is started again").count(), 2, "{events}");
    assert!(lab.ok(&["status"]).contains("started again 2 times"), "{}", lab.ok(&["status"]));
}

#[test]
fn what_was_wanted_is_read_anew_when_it_is_damaged_and_no_older_commit_is_deployed() {
    let (mut lab, port) = serving("");
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    lab.sync();
    for file in [vec!["desired.json"], vec!["desired.json", "desired.previous.json"]] {
        lab.kill_agent();
        for name in file {
            std::fs::write(lab.path("state").join(name), b"{\"format\":1,\"le").unwrap();
        }
        let (repo, aside) = (lab.path("repo.git"), lab.path("aside.git"));
        std::fs::rename(&repo, &aside).unwrap();
        lab.start_agent();
        lab.wait_agent();
        wait_for("the look", || (lab.status()["repo"]["reason"] == "git-unreachable").then_some(()));
        let service = lab.service("web");
        assert_eq!((&service["generation"], &service["state"]), (&2.into(), &"running".into()), "{service}");
        std::fs::rename(&aside, &repo).unwrap();
        lab.sync();
        assert_eq!(lab.service("web")["generation"], 2);
        assert!(lab.ok(&["events"]).contains("\"event\":\"state-trouble\""));
    }
    assert_eq!(lab.history().len(), 2, "{:?}", lab.history());
}

#[test]
fn logs_follow_the_service_and_not_one_generation() {
    let (lab, port) = serving("");
    let mut child = lab
        .command(&["logs", "web", "-f", "-n", "1"])
        .stdout(std::fs::File::create(lab.path("followed")).unwrap())
        .spawn()
        .unwrap();
    let followed = || std::fs::read_to_string(lab.path("followed")).unwrap();
    wait_for("what was there", || followed().contains("serving").then_some(()));
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    wait_for("a line of the new generation", || (followed().lines().count() > 1).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(followed(), "serving\nserving\n");
}
