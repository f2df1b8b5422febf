//! The agent as a service: what systemd hears, what the journal gets, signals, `run --once`.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::get;

#[test]
fn systemd_hears_ready_status_watchdog_and_stopping() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    lab.deploy("web", &web(&image, free_port(), ""), "web 1");
    let path = lab.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "900000")];
    lab.start_agent_with(&environment);
    let mut heard = Vec::new();
    let hear = |what: &str, heard: &mut Vec<String>| {
        wait_for(what, || {
            let mut buffer = [0; 4096];
            if let Ok(count) = socket.recv(&mut buffer) {
                heard.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
            }
            heard.iter().any(|message| message.contains(what)).then_some(())
        });
    };
    hear("READY=1", &mut heard);
    hear("STATUS=in-sync", &mut heard);
    // Fed by the loop's turns: a settled host turns often enough for its watchdog.
    heard.clear();
    for _ in 0..3 {
        hear("WATCHDOG=1", &mut heard);
        heard.clear();
    }
    lab.signal_agent(nix::sys::signal::Signal::SIGTERM);
    hear("STOPPING=1", &mut heard);
    wait_for("its end", || lab.agent_ended().then_some(()));
}

#[test]
fn once_settles_and_says_how_it_went() {
    let lab = Lab::new();
    let port = free_port();
    let (good, sick) = (lab.image("1", Kind::Good), lab.image("2", Kind::Sick));
    lab.deploy("web", &web(&good, port, ""), "web 1");
    assert_eq!(lab.run(&["run", "--once"]).status.code(), Some(0));
    assert_eq!(get(port, "/").unwrap(), "version 1\n", "containers outlive it");
    lab.deploy("web", &web(&sick, port, ""), "web 2");
    assert_eq!(lab.run(&["run", "--once"]).status.code(), Some(1));
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    assert_eq!(lab.history().pop().unwrap()["reason"], "unhealthy");
}

#[test]
fn sighup_and_a_commit_are_noticed_at_once() {
    let mut lab = Lab::new();
    // Polled once an hour: whatever is noticed sooner is noticed otherwise.
    let text = std::fs::read_to_string(lab.config()).unwrap();
    std::fs::write(lab.config(), text.replace("poll = \"2s\"", "poll = \"1h\"")).unwrap();
    let image = lab.image("1", Kind::Good);
    lab.start_agent();
    lab.wait_agent();
    let commit = lab.deploy("web", &web(&image, free_port(), ""), "web 1");
    lab.wait_serving("web", &image);
    assert_eq!(lab.status()["revision"]["commit"], commit.as_str());
    let before = lab.status()["repo"]["reached_at"].clone();
    lab.signal_agent(nix::sys::signal::Signal::SIGHUP);
    wait_for("another look", || (lab.status()["repo"]["reached_at"] != before).then_some(()));
}

#[test]
fn an_agent_that_is_told_to_stop_does_not_wait_for_what_is_under_way() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    let file = web(&image, free_port(), "").replace("[deploy]", "[deploy]\npre = [\"/bin/sleep\", \"15\"]");
    lab.deploy("web", &file, "a slow start");
    lab.start_agent();
    lab.wait_agent();
    wait_for("pre", || (lab.service("web")["rollout"]["phase"] == "preparing").then_some(()));
    let begun = std::time::Instant::now();
    lab.stop_agent();
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    // The next one finds `pre` under way, or its end, and goes on.
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(lab.service("web")["health"], "healthy");
}

/// journald, run by hand where no service manager runs it.
struct Journald(Option<Child>);

impl Journald {
    fn begin() -> Self {
        let socket = Path::new("/run/systemd/journal/socket");
        let listens = || UnixDatagram::unbound().unwrap().connect(socket).is_ok();
        if listens() {
            return Self(None);
        }
        std::fs::create_dir_all("/run/systemd/journal").unwrap();
        let program = ["/lib/systemd/systemd-journald", "/usr/lib/systemd/systemd-journald"];
        let program = program.iter().find(|path| Path::new(path).exists()).unwrap();
        let child =
            Command::new(program).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        wait_for("journald", || listens().then_some(()));
        Self(Some(child.unwrap()))
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_dir_all("/run/systemd/journal");
        }
    }
}

#[test]
fn the_journal_gets_native_fields_and_what_containers_write() {
    let _journald = Journald::begin();
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    let commit = lab.deploy("web", &web(&image, free_port(), ""), "web 1");
    // What systemd sets for a service whose stderr is the journal's (systemd.exec(5)).
    lab.start_agent_with(&[("JOURNAL_STREAM", "1:1")]);
    lab.wait_agent();
    lab.sync();
    let find = |query: &[String]| {
        let output =
            Command::new("journalctl").args(["-o", "json", "--no-pager"]).args(query).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let query =
        ["MESSAGE_ID=f01d7c3b58e94a6c92b8a4e6d05f3c71".to_owned(), format!("GITOPSD_COMMIT={commit}")];
    let entry = wait_for("the message about the deploy", || find(&query).pop());
    assert_eq!(entry["GITOPSD_SERVICE"], "web");
    assert_eq!(entry["GITOPSD_GENERATION"], "1");
    assert_eq!(entry["GITOPSD_IMAGE"], image.as_str());
    assert_eq!(entry["GITOPSD_EVENT"], "deployed");
    assert_eq!(entry["PRIORITY"], "5".to_owned(), "notice or info: {entry}");
    let query = [format!("GITOPSD_COMMIT={commit}"), "MESSAGE=serving".to_owned()];
    let line = wait_for("what the container wrote", || find(&query).pop());
    assert_eq!(line["GITOPSD_SERVICE"], "web");
    assert_eq!((&line["GITOPSD_GENERATION"], &line["GITOPSD_IMAGE"]), (&"1".into(), &image.as_str().into()));
    assert_eq!(line["GITOPSD_DIGEST"], lab.service("web")["digest"], "{line}");
    assert_eq!((&line["SYSLOG_IDENTIFIER"], &line["PRIORITY"]), (&"web".into(), &"6".into()), "{line}");
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
    let query =
        ["MESSAGE_ID=b7d1c5e04f8a4926a9c3e0f7d682b51e".to_owned(), format!("GITOPSD_COMMIT={commit}")];
    let entry = wait_for("the message about the restart", || find(&query).pop());
    assert_eq!((&entry["GITOPSD_EXIT_CODE"], &entry["GITOPSD_OOM_KILLED"]), (&"0".into(), &"false".into()));
}
