//! What a service writes, followed through all that can happen to it; and what else is seen of a running one.

use std::fs::{self, File};

use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};

#[test]
fn a_follower_sees_a_restart_a_swap_and_the_end() {
    let mut lab = Lab::new();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    let port = free_port();
    lab.write("services/other.toml", &web(&v1, free_port(), ""));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let follow = |name: &str, args: &[&str]| {
        let mut command = lab.command(&[&["logs", "web", "-f"], args].concat());
        let file = |end: &str| File::create(lab.path(&format!("{name}.{end}"))).unwrap();
        command.stdout(file("out")).stderr(file("err")).spawn().unwrap()
    };
    let (mut plain, mut json) = (follow("plain", &["-n", "0"]), follow("json", &["--json", "-n", "1"]));
    let mut first_only = follow("first", &["--generation", "1"]);
    let read = |name: &str| fs::read_to_string(lab.path(name)).unwrap();
    wait_for("what was there", || (read("json.out").lines().count() == 1).then_some(()));
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
    wait_for("the restart", || (read("json.out").lines().count() == 2).then_some(()));
    wait_for("it to be well", || (lab.service("web")["health"] == "healthy").then_some(()));
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    wait_for("a line of the new generation", || (read("json.out").lines().count() == 3).then_some(()));
    let lines: Vec<Value> =
        read("json.out").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let generations: Vec<u64> = lines.iter().map(|line| line["generation"].as_u64().unwrap()).collect();
    assert_eq!(generations, [1, 1, 2]);
    let look: Value = serde_json::from_str(&lab.ok(&["top", "web", "--json"])).unwrap();
    assert_eq!(look["containers"].as_array().unwrap().last().unwrap()["generation"], 2, "{look}");

    lab.sync();
    fs::remove_file(lab.path("work/services/web.toml")).unwrap();
    lab.commit("no web");
    lab.sync();
    for (name, child) in [("plain", &mut plain), ("json", &mut json), ("first", &mut first_only)] {
        let status = wait_for("the end of a follower", || child.try_wait().unwrap());
        assert!(status.success(), "{name}");
        let said = read(&format!("{name}.err"));
        assert!(said.ends_with("-- web was removed from this host --\n"), "{name}: {said}");
    }
    assert_eq!(read("plain.out"), "serving\nserving\n");
    assert!(read("plain.err").starts_with("-- generation 2 --\n"), "{}", read("plain.err"));
    assert_eq!(read("first.out"), "serving\nserving\n");
    // What it wrote is kept.
    assert_eq!(lab.ok(&["logs", "web"]), "serving\nserving\nserving\n");
}

#[test]
fn logs_and_commands_need_no_agent() {
    let (mut lab, _port) = Lab::serving();
    lab.kill_agent();
    assert_eq!(lab.ok(&["logs", "web"]), "serving\n");
    assert_eq!(lab.ok(&["exec", "web", "--", "/bin/sh", "-c", "echo inside"]), "inside\n");
    assert!(lab.ok(&["top"]).contains("web"));
    assert_eq!(lab.run(&["exec", "nobody", "--", "/bin/true"]).status.code(), Some(69));
    assert_eq!(lab.run(&["logs", "nobody"]).status.code(), Some(1));
}
