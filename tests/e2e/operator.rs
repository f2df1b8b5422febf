//! What operators ask while something is under way, hangs, or was rewritten.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::line::Line;
use super::load::get;

/// What a verb says on either output.
fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A service file whose `deploy.pre` hangs.
fn hanging(image: &str, port: u16) -> String {
    web(image, port, "")
        .replace("[deploy]", "[deploy]\npre = [\"/bin/sleep\", \"600\"]")
        .replace("20s", "10m")
}

#[track_caller]
fn wait_phase(lab: &Lab, phase: &str) {
    wait_for(&format!("{phase}; {}", lab.agent_log()), || {
        (lab.service("web")["rollout"]["phase"] == phase).then_some(())
    });
}

#[test]
fn sync_waits_for_the_end_of_drain_and_bake() {
    let (lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, "").replace("500ms", "3s"), "web 2");
    let output = lab.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let service = lab.service("web");
    assert_eq!((&service["generation"], &service["rollout"]), (&2.into(), &Value::Null), "{service}");
    assert!(said(&output).contains("waiting: web: generation 2 has traffic and is watched"), "{output:?}");
    assert_eq!(lab.history().pop().unwrap()["result"], "deployed");
    // A version that falls sick in its bake is the end of its commit, too.
    let v3 = lab.image("3", Kind::Decays);
    lab.deploy("web", &web(&v3, port, "").replace("500ms", "20s"), "web 3");
    let output = lab.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(lab.service("web")["generation"], 2);
    assert_eq!(lab.history().pop().unwrap()["result"], "rolled-back");
}

/// A lab that serves, whose registry is reached by a line that can fail.
fn by_a_line() -> (Lab, u16, Line) {
    let mut lab = Lab::new();
    let line = Line::to(lab.registry_port);
    lab.configure(&format!("[registry.\"127.0.0.1:{}\"]\nplain_http = true\n", line.port));
    let port = lab.serve();
    (lab, port, line)
}

/// Pushes a version; its reference by that line.
fn by(line: &Line, lab: &Lab, version: &str) -> String {
    lab.image(version, Kind::Good);
    format!("127.0.0.1:{}/web:{version}", line.port)
}

#[test]
fn sync_waits_through_pauses_and_shortens_them() {
    let (lab, port, line) = by_a_line();
    line.cut();
    let v2 = by(&line, &lab, "2");
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    // Until its pauses are long.
    wait_for("several tries", || {
        let at = lab.service("web")["retry_at"].as_str()?.parse::<gitopsd::types::Timestamp>().ok()?;
        let left = at.duration_since(gitopsd::agent::clock::now()).as_secs();
        (left > 10).then_some(())
    });
    let mut waiting = lab.command(&["sync", "--wait"]).spawn().unwrap();
    // It is tried at once, and in vain; that is not the end.
    wait_for("a try", || (lab.service("web")["doing"].is_string()).then_some(()));
    wait_for("the next pause", || (lab.service("web")["retry_at"].is_string()).then_some(()));
    assert!(waiting.try_wait().unwrap().is_none(), "it waits for the end");
    line.pass();
    let begun = Instant::now();
    lab.ok(&["resume", "web"]);
    assert!(waiting.wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(25), "it took {:?}", begun.elapsed());
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

#[test]
fn a_deploy_pre_that_hangs_holds_up_no_rollback_and_no_newer_commit() {
    let (lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &hanging(&v2, port), "a migration that hangs");
    wait_phase(&lab, "preparing");
    let service = wait_for("it to run", || {
        let service = lab.service("web");
        service["doing"].as_str().is_some_and(|doing| doing.contains("running deploy.pre")).then_some(service)
    });
    assert!(service["doing"].as_str().unwrap().contains("`/bin/sleep 600`"), "{service}");
    assert!(service["rollout"]["times_out_at"].is_string(), "{service}");
    assert!(lab.ok(&["status"]).contains("gives up in 10m"), "{}", lab.ok(&["status"]));
    let output = lab.run(&["sync", "--wait", "--timeout", "1s"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).contains("not over after 1s:\nweb: running deploy.pre"), "{output:?}");
    let begun = Instant::now();
    lab.ok(&["rollback", "web"]);
    wait_for(&format!("the end of it; {}", lab.agent_log()), || {
        (lab.service("web")["rollout"] == Value::Null).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(120), "it took {:?}", begun.elapsed());
    let service = lab.service("web");
    assert_eq!((&service["state"], &service["reason"]), (&"held".into(), &"operator-rollback".into()));
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    // The same again, and this time a newer commit comes.
    lab.ok(&["resume", "web"]);
    wait_phase(&lab, "preparing");
    let v3 = lab.image("3", Kind::Good);
    let begun = Instant::now();
    lab.deploy("web", &web(&v3, port, ""), "without it");
    lab.wait_serving("web", &v3);
    assert!(begun.elapsed() < Duration::from_secs(120), "it took {:?}", begun.elapsed());
    let events = lab.ok(&["events"]);
    assert!(events.contains("superseded"), "{events}");
}

/// The copy is made slow by `weak`, and stands still as its shim does.
#[test]
fn a_first_fill_that_hangs_holds_up_no_rollback_and_no_newer_commit() {
    let (lab, port) = Lab::serving();
    std::fs::write(lab.path("state/weak"), "slow").unwrap();
    let hangs = |generation: u32| {
        wait_for(&format!("the fill; {}", lab.agent_log()), || {
            let shim = std::fs::read(lab.path(&format!("run/containers/web.{generation}/shim.json"))).ok()?;
            let shim: Value = serde_json::from_slice(&shim).ok()?;
            let filling = lab.path("state/volumes/web/.data.new").exists();
            let pid = nix::unistd::Pid::from_raw(i32::try_from(shim["pid"].as_i64()?).ok()?);
            filling.then(|| nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap())
        });
        assert_eq!(lab.service("web")["doing"], format!("starting generation {generation}"));
    };
    let v2 = lab.image("2", Kind::Seeded);
    lab.deploy("web", &web(&v2, port, "volumes = [\"data:/data\"]").replace("20s", "10m"), "a volume");
    hangs(2);
    let begun = Instant::now();
    lab.ok(&["rollback", "web"]);
    wait_for(&format!("the end of it; {}", lab.agent_log()), || {
        (lab.service("web")["rollout"] == Value::Null).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(25), "it took {:?}", begun.elapsed());
    let service = lab.service("web");
    assert_eq!((&service["state"], &service["reason"]), (&"held".into(), &"operator-rollback".into()));
    assert_eq!(lab.history().pop().unwrap()["reason"], "operator-rollback");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    assert!(!lab.path("run/containers/web.2").exists() && !lab.path("state/volumes/web/data").exists());
    // The same again, and this time a newer commit comes.
    std::fs::remove_dir_all(lab.path("state/volumes/web")).unwrap();
    lab.ok(&["resume", "web"]);
    hangs(3);
    let v3 = lab.image("3", Kind::Good);
    let begun = Instant::now();
    lab.deploy("web", &web(&v3, port, ""), "without it");
    lab.wait_serving("web", &v3);
    assert!(begun.elapsed() < Duration::from_secs(50), "it took {:?}", begun.elapsed());
    let events = lab.ok(&["events"]);
    assert!(events.contains("superseded") && !events.contains("its shim died"), "{events}");
}

#[test]
fn a_pull_that_a_newer_commit_makes_idle_is_cut_short() {
    let (lab, port, line) = by_a_line();
    line.hang();
    let (v2, v3) = (by(&line, &lab, "2"), by(&line, &lab, "3"));
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    let doing = |what: &str| {
        let doing = lab.service("web")["doing"].as_str().map(str::to_owned);
        doing.is_some_and(|doing| doing.starts_with("pulling") && doing.contains(what)).then_some(())
    };
    wait_for("the pull of 2", || doing("web:2"));
    lab.deploy("web", &web(&v3, port, ""), "web 3");
    let begun = Instant::now();
    wait_for(&format!("the pull of 3; {}", lab.agent_log()), || doing("web:3"));
    assert!(begun.elapsed() < Duration::from_secs(25), "it took {:?}", begun.elapsed());
    line.pass();
    lab.wait_serving("web", &v3);
    let superseded = lab.history().into_iter().find(|receipt| receipt["reason"] == "superseded");
    assert!(superseded.is_some(), "{:?}", lab.history());
}

#[test]
fn a_hold_after_a_rollback_does_not_bring_the_bad_version_back() {
    let (lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.sync();
    lab.ok(&["rollback", "web"]);
    wait_for("the rollback", || (get(port, "/").ok()? == "version 1\n").then_some(()));
    lab.ok(&["hold", "web", "--for", "1s", "--reason", "looking"]);
    // Its time is up, and the rollback's hold is what is left of it.
    wait_for("the end of the hold", || (lab.service("web")["reason"] == "operator-rollback").then_some(()));
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    let v3 = lab.image("3", Kind::Good);
    lab.deploy("web", &web(&v3, port, ""), "web 3");
    lab.wait_serving("web", &v3);
}

#[test]
fn a_socket_that_somebody_removed_is_made_anew_and_its_want_is_told() {
    let (lab, _port) = Lab::serving();
    let socket = lab.path("run/control.sock");
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(lab.run(&["status"]).status.code(), Some(0), "it was made anew meanwhile");
    assert!(socket.exists());
    // An agent that cannot make it anew is still not one that is not running.
    lab.signal_agent(Signal::SIGSTOP);
    std::fs::remove_file(&socket).unwrap();
    let output = lab.run(&["status"]);
    lab.signal_agent(Signal::SIGCONT);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(said(&output).contains("the agent is running (pid "), "{output:?}");
    assert!(said(&output).contains("control.sock is not there"), "{output:?}");
    wait_for("the socket", || lab.run(&["status"]).status.success().then_some(()));
}

#[test]
fn a_rewritten_history_is_believed_when_an_operator_names_its_head() {
    let (lab, port) = Lab::serving();
    let work = lab.path("work");
    let v2 = lab.image("2", Kind::Good);
    lab.write("services/web.toml", &web(&v2, port, ""));
    lab.git(&work, &["add", "-A"]);
    lab.git(&work, &["commit", "-q", "--amend", "-m", "another history"]);
    lab.git(&work, &["push", "-q", "--force", "origin", "HEAD:main"]);
    let head = lab.git(&work, &["rev-parse", "HEAD"]);
    wait_for("the refusal", || (lab.status()["repo"]["reason"] == "not-fast-forward").then_some(()));
    // The message has what the way out needs.
    assert!(lab.status()["repo"]["message"].as_str().unwrap().contains(&head), "{}", lab.status());
    assert!(lab.ok(&["status"]).contains("gitopsd sync --accept"), "{}", lab.ok(&["status"]));
    let other = "0123456789012345678901234567890123456789";
    let output = lab.run(&["sync", "--accept", other]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    assert!(lab.ok(&["sync", "--accept", &head]).contains(&head[..10]));
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert!(lab.ok(&["events"]).contains("its history was rewritten"), "{}", lab.ok(&["events"]));
    // From here on it is followed like any other.
    lab.deploy("web", &web(&lab.reference("1"), port, ""), "web 1 again");
    lab.wait_serving("web", &lab.reference("1"));
}

#[test]
fn verbs_say_what_is_wrong_with_their_words() {
    let (lab, _port) = Lab::serving();
    let code = |args: &[&str]| lab.run(args).status.code();
    assert_eq!(code(&["exec", "web", "--", "no-such-program"]), Some(127));
    assert_eq!(code(&["exec", "web", "--", "/www/index.html"]), Some(126));
    assert_eq!(code(&["exec", "web", "--", "/bin/sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["--json", "exec", "web", "--", "/bin/ls"]), Some(64));
    let line: Value = serde_json::from_str(lab.ok(&["logs", "web", "-n", "1", "--json"]).trim()).unwrap();
    assert_eq!((&line["text"], &line["stream"]), (&"serving".into(), &"stdout".into()), "{line}");
    assert_eq!((&line["service"], &line["generation"]), (&"web".into(), &1.into()), "{line}");
    for verb in ["history", "logs", "why", "status"] {
        let output = lab.run(&[verb, "wbe"]);
        assert_eq!(output.status.code(), Some(1), "{verb}: {output:?}");
        assert!(said(&output).contains("did you mean `web`?"), "{verb}: {output:?}");
    }
    lab.ok(&["hold", "web", "--for", "2h", "--reason", "looking"]);
    lab.run(&["sync", "--wait"]);
    let status = lab.ok(&["status"]);
    assert!(status.contains("`gitopsd resume web`") && status.contains("ends in 2h"), "{status}");
}

#[test]
fn after_a_boot_what_is_depended_on_comes_first() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    // By name the other one would come first.
    lab.write("services/zdb.toml", &web(&image, free_port(), ""));
    lab.write("services/app.toml", &web(&image, free_port(), "depends_on = [\"zdb\"]"));
    lab.commit("two");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.kill_agent();
    lab.cut_power();
    let before = lab.ok(&["events"]).lines().count();
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let events = lab.ok(&["events"]);
    let restarted: Vec<String> = events
        .lines()
        .skip(before)
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["event"] == "restarted")
        .map(|event| event["service"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(restarted, ["zdb", "app"]);
}

/// Nothing of it ever served: what is known of it is the hold or the failure alone.
#[test]
fn a_first_version_that_was_held_or_failed_is_tried_again_by_resume() {
    let mut lab = Lab::new();
    lab.start_agent();
    lab.wait_agent();
    let (image, port) = (lab.image("1", Kind::Good), free_port());
    lab.deploy("web", &hanging(&image, port), "web 1");
    wait_phase(&lab, "preparing");
    lab.ok(&["hold", "web", "--reason", "not yet"]);
    let state = |wanted: &str| (lab.service("web")["state"] == wanted).then_some(());
    wait_for("the hold", || (lab.service("web")["rollout"].is_null()).then(|| state("held")).flatten());
    lab.deploy("web", &web(&image, port, ""), "web 1 without `pre`");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    state("held").expect("held as long as nobody says otherwise");
    assert!(lab.ok(&["resume", "web"]).contains("web follows the repo"));
    lab.wait_serving("web", &image);

    let other = free_port();
    let fails = web(
        &image,
        other,
        "command = [\"/bin/sh\", \"-c\", \"test -e /data/ok && exec httpd -f -p 8080 -h /www\"]",
    );
    let data = lab.path("data");
    std::fs::create_dir(&data).unwrap();
    let mount = format!("volumes = [\"{}:/data\"]\n[healthcheck]", data.display());
    lab.deploy("api", &fails.replacen("[healthcheck]", &mount, 1), "api 1");
    let failed = || lab.history().into_iter().any(|it| it["service"] == "api" && it["result"] == "failed");
    wait_for(&format!("the failure; {}", lab.agent_log()), || failed().then_some(()));
    assert!(said(&lab.run(&["rollback", "api"])).contains("no previous generation"), "{}", lab.agent_log());
    std::fs::write(data.join("ok"), "").unwrap();
    lab.ok(&["resume", "api"]);
    lab.wait_serving("api", &image);
}

/// What the agent refuses to take off the host is not announced as taken off.
#[test]
fn plan_says_that_too_many_are_not_removed() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    for name in ["one", "two", "three"] {
        lab.write(&format!("services/{name}.toml"), &web(&image, free_port(), ""));
    }
    lab.commit("three services");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    for name in ["one", "two"] {
        std::fs::remove_file(lab.path("work/services").join(format!("{name}.toml"))).unwrap();
    }
    let commit = lab.commit("two of them go");
    let planned = said(&lab.run(&["plan"]));
    let why = format!("not now: commit {} would take 2 of 3 services off this host", &commit[..10]);
    assert_eq!(planned.matches(&why).count(), 2, "{planned}");
    assert!(planned.contains("2 of 3 services would change, 2 of them not now"), "{planned}");
    let work = lab.path("work");
    let planned = said(&lab.run(&["plan", work.to_str().unwrap()]));
    assert_eq!(planned.matches("not now: this folder would take 2 of 3 services").count(), 2, "{planned}");
}
