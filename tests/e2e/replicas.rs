//! `deploy.replicas`: several containers of a generation, which share its connections and are swapped together.

use std::collections::BTreeSet;
use std::time::Duration;

use super::drains::told;
use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

/// [`web`] with several containers, each of which says which one it is.
pub fn several(image: &str, port: u16, count: u32) -> String {
    let command = "trap \"exit 0\" TERM; /bin/busybox cp -r /www /w; /bin/busybox hostname -i > /w/who; httpd -f -p 8080 -h /w & wait";
    let more = format!("command = [\"/bin/sh\", \"-c\", '{command}']");
    format!("{}replicas = {count}\n", web(image, port, &more))
}

/// A lab whose agent serves version 1 of [`several`], three of them, on a port of the host.
fn three() -> (Lab, u16) {
    let (mut lab, port) = (Lab::new(), free_port());
    let v1 = lab.image("1", Kind::Good);
    lab.deploy("web", &several(&v1, port, 3), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    (lab, port)
}

/// The containers that answer, of so many requests.
pub fn who(port: u16, requests: usize) -> BTreeSet<String> {
    (0..requests).map(|_| get(port, "/who").unwrap()).collect()
}

/// The replicas that get new connections.
pub fn serving(lab: &Lab) -> usize {
    let service = lab.service("web");
    let replicas = service["replicas"].as_array().cloned().unwrap_or_default();
    replicas.iter().filter(|replica| replica["serves"] == true).count()
}

/// What runs, by name.
pub fn containers(lab: &Lab) -> Vec<String> {
    let mut names = super::lab::names(&lab.path("run/containers"));
    names.sort();
    names
}

/// Ends the program of a container, as a crash does.
pub fn kill(lab: &Lab, container: &str) {
    let record = std::fs::read(lab.path(&format!("run/containers/{container}/run.json"))).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let pid = i32::try_from(record["init"]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn three_share_are_swapped_together_and_scaled_in_place() {
    let (lab, port) = three();
    let v2 = lab.image("2", Kind::Good);
    assert_eq!(serving(&lab), 3);
    assert_eq!(who(port, 60).len(), 3, "each of them answers");
    let status = lab.ok(&["status"]);
    assert!(status.contains("healthy 3/3"), "{status}");
    assert!(status.contains("web.1-3 at "), "{status}");
    let own = |index: &str| {
        let output = lab.ok(&["exec", "web", "--index", index, "--", "/bin/busybox", "cat", "/w/who"]);
        output.trim().to_owned()
    };
    assert_ne!(own("1"), own("3"), "--index says which");
    let last = lab.history().pop().unwrap();
    assert_eq!((&last["result"], &last["replicas"]), (&"deployed".into(), &3.into()), "{last}");

    // A swap under load: three beside three, then the old ones go.
    let load = Load::begin(port, 100);
    lab.deploy("web", &several(&v2, port, 3), "web 2");
    lab.sync();
    assert_eq!((serving(&lab), lab.service("web")["generation"].clone()), (3, 2.into()));
    wait_for("the end of the old ones", || {
        (containers(&lab) == ["web.2", "web.2-2", "web.2-3"]).then_some(())
    });

    // 3 -> 1 -> 2, in place. Somebody holds a connection to the third, and outlasts its drain.
    let _held = std::net::TcpStream::connect((own("3"), 8080)).unwrap();
    let before = told(&lab, "drained").len();
    lab.deploy("web", &several(&v2, port, 1), "one of it");
    lab.sync();
    let drained: Vec<_> = told(&lab, "drained").split_off(before);
    let told: Vec<_> = drained.iter().map(|it| it["message"].as_str().unwrap()).collect();
    let of = |index: u32| {
        let begin = format!("web: replica {index} of generation 2 ");
        told.iter().find_map(|message| message.strip_prefix(&begin)).unwrap_or_else(|| panic!("{told:?}"))
    };
    assert_eq!((told.len(), of(3)), (2, "is stopped with 1 connection left, 3s after it left the others"));
    assert!(of(2).contains("connection") && of(2).ends_with("s after it left the others"), "{told:?}");
    assert_eq!(containers(&lab), ["web.2"]);
    assert_eq!(who(port, 20).len(), 1);
    lab.deploy("web", &several(&v2, port, 2), "two of it");
    lab.sync();
    assert_eq!(who(port, 60).len(), 2);
    load.end_without_failure();
    assert_eq!(lab.service("web")["generation"], 2, "without a new generation");
    let last = lab.history().pop().unwrap();
    assert!(last["message"].as_str().unwrap().starts_with("replicas 1 -> 2: changed in place"), "{last}");
}

#[test]
fn one_that_ends_is_taken_out_and_comes_back() {
    let (lab, port) = three();
    for container in ["web.1-2", "web.1"] {
        let before = lab.history().len();
        let load = Load::begin(port, 200);
        std::thread::sleep(Duration::from_millis(100));
        kill(&lab, container);
        let receipt = wait_for("its receipt", || lab.history().get(before).cloned());
        wait_for("it to be back", || (serving(&lab) == 3).then_some(()));
        assert_eq!(who(port, 60).len(), 3);
        load.end_without_refusal();
        assert_eq!(receipt["result"], "restarted", "{receipt}");
        assert_eq!(receipt["exit"]["signal"], 9, "{receipt}");
    }
    let events = lab.ok(&["events"]);
    assert!(events.matches("\"spread-changed\"").count() >= 4, "out and in, twice: {events}");
    // One that falls sick, and is well again.
    let sick =
        |lab: &Lab, command: &str| lab.ok(&["exec", "web", "--index", "3", "--", "/bin/sh", "-c", command]);
    sick(&lab, "/bin/busybox mv /w/healthz /h");
    wait_for("the sick one to be out", || (serving(&lab) == 2).then_some(()));
    assert_eq!(who(port, 60).len(), 2);
    assert_eq!(lab.service("web")["health"], "unhealthy");
    sick(&lab, "/bin/busybox mv /h /w/healthz");
    wait_for("it to be back", || (serving(&lab) == 3).then_some(()));
}

#[test]
fn an_agent_that_ends_leaves_them_as_they_are() {
    let (mut lab, port) = three();
    let before = lab.service("web")["replicas"].clone();
    let load = Load::begin(port, 50);
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    std::thread::sleep(Duration::from_secs(1));
    load.end_without_failure();
    assert_eq!(lab.service("web")["replicas"], before);
    assert_eq!(lab.history().len(), 1, "nothing was started again");
    // A sick candidate: none of its containers stays.
    let v2 = lab.image("2", Kind::Sick);
    lab.deploy("web", &several(&v2, port, 3), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(containers(&lab), ["web.1", "web.1-2", "web.1-3"]);
    assert_eq!(who(port, 60).len(), 3);
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
}

/// One that was told to end takes no new connections any more: wanted again, it is not taken back, also by an agent that knows it
/// from its record alone.
#[test]
fn one_that_was_told_to_end_is_not_taken_back() {
    let (mut lab, port) = (Lab::new(), free_port());
    let v1 = lab.image("1", Kind::Good);
    let file = |count: u32| {
        // It does not end by itself.
        let file =
            several(&v1, port, count).replace("exit 0", ":").replace("& wait", "& while :; do wait; done");
        file.replace("drain = \"3s\"", "drain_signal = \"early\"\ndrain = \"10s\"")
    };
    lab.deploy("web", &file(3), "three of it");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.deploy("web", &file(2), "two of it");
    let message = wait_for("the signal", || {
        told(&lab, "drained").first().map(|told| told["message"].as_str().unwrap().to_owned())
    });
    assert!(message.starts_with("web: replica 3 of generation 1 is told to end"), "{message}");
    // Wanted again while it is told to end: whoever comes next finds both.
    lab.deploy("web", &file(3), "three of it again");
    lab.ok(&["sync"]);
    lab.kill_agent();
    assert!(containers(&lab).contains(&"web.1-3".to_owned()), "it has not ended yet");
    let load = Load::begin(port, 50);
    lab.start_agent();
    lab.wait_agent();
    wait_for("all three to serve", || (serving(&lab) == 3).then_some(()));
    lab.sync();
    assert_eq!(who(port, 60).len(), 3);
    load.end_without_failure();
}
