//! What a commit changes in a running container without a new one, and what is asked of the host before a new one.

use std::fs;

use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

const LIMIT: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";

/// The memory that the container may have, as it sees it itself.
fn limit(lab: &Lab, service: &str) -> u64 {
    lab.run(&["exec", service, "--", "/bin/sh", "-c", &format!("{LIMIT}; true")])
        .stdout
        .split(|byte| *byte == b'\n')
        .find_map(|line| std::str::from_utf8(line).ok()?.parse().ok())
        .expect("a limit")
}

fn container(lab: &Lab, id: &str) -> Value {
    let path = lab.path("run/containers").join(id).join("run.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn plan(lab: &Lab) -> (String, Value) {
    let dir = lab.path("work");
    let dir = dir.to_str().unwrap();
    let text = lab.run(&["plan", dir]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let json = lab.run(&["plan", dir, "--json"]);
    (text, serde_json::from_slice(&json.stdout).unwrap())
}

#[test]
fn limits_ports_labels_and_checks_change_in_place_under_load() {
    let mut lab = Lab::new();
    let (port, second) = (free_port(), free_port());
    let image = lab.image("1", Kind::Good);
    let file = |more: &str| web(&image, port, &format!("mem_limit = \"64m\"\n{more}"));
    lab.deploy("web", &file(""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let before = container(&lab, "web.1");
    assert_eq!(limit(&lab, "web"), 64 << 20);

    let load = Load::begin(port, 40);
    let changed = file("pids_limit = 200\nlabels = { team = \"x\" }\ncpus = 0.5")
        .replace("64m", "128m")
        .replace(":8080\"]", &format!(":8080\", \"127.0.0.1:{second}:8080\"]"))
        .replace("interval = \"200ms\"", "interval = \"300ms\"")
        .replace("bake = \"500ms\"", "bake = \"1s\"");
    lab.write("services/web.toml", &changed);
    let (text, json) = plan(&lab);
    assert!(
        text.contains("amend ") && text.contains("live: ") && text.contains("mem_limit 64m -> 128m"),
        "{text}"
    );
    let change = &json["changes"][0];
    assert_eq!(change["action"], "amend", "{change}");
    let keys: Vec<(&str, &str)> = change["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| (key["key"].as_str().unwrap(), key["how"].as_str().unwrap()))
        .collect();
    let all = ["ports", "mem_limit", "cpus", "pids_limit", "labels", "healthcheck", "deploy"];
    assert_eq!(keys, all.map(|key| (key, "live")));
    let why = change["keys"].as_array().unwrap().iter().map(|key| key["why"].as_str().unwrap());
    let [group, unseen] = ["a limit of its control group", "the container does not see it"];
    let all = ["a rule of the host", group, group, group, unseen, unseen, unseen];
    assert_eq!(why.collect::<Vec<_>>(), all, "{change}");

    let commit = lab.commit("more room for web");
    lab.sync();
    assert_eq!(limit(&lab, "web"), 128 << 20);
    assert_eq!(get(second, "/").unwrap(), "version 1\n");
    assert_eq!(container(&lab, "web.1"), before, "the same process, started once");
    let receipt = lab.history().pop().unwrap();
    assert_eq!((&receipt["result"], &receipt["commit"]), (&"deployed".into(), &commit.as_str().into()));
    assert_eq!(receipt["from"]["generation"], receipt["to"]["generation"], "{receipt}");
    let message = receipt["message"].as_str().unwrap();
    assert!(
        message.contains("mem_limit 64m -> 128m") && message.contains("without a new generation"),
        "{message}"
    );
    // Taken back, and a port taken away; the other one serves on.
    lab.deploy("web", &file(""), "as it was");
    lab.sync();
    assert_eq!(limit(&lab, "web"), 64 << 20);
    assert!(get(second, "/").is_err(), "the port is away");
    load.end_without_failure();
    assert_eq!(lab.history().len(), 3);
    assert!(lab.run(&["sync", "--wait"]).status.success());

    // What the container sees is a new generation, and the rest comes with it.
    lab.write("services/web.toml", &file("environment = { A = \"b\" }").replace("64m", "96m"));
    let (text, json) = plan(&lab);
    assert!(text.contains("new generation: environment; with it: mem_limit 64m -> 96m"), "{text}");
    let key = &json["changes"][0]["keys"][0];
    assert_eq!(key["key"], "environment", "{json}");
    assert_eq!(key["why"], "the container sees it", "{json}");
    lab.commit("another environment");
    lab.sync();
    assert_eq!((lab.service("web")["generation"].as_u64(), limit(&lab, "web")), (Some(2), 96 << 20));

    // A boot begins with what was changed in place.
    lab.deploy("web", &file("environment = { A = \"b\" }").replace("64m", "80m"), "in place");
    lab.sync();
    assert_eq!(lab.service("web")["generation"], 2);
    lab.kill_agent();
    lab.cut_power();
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!((lab.service("web")["generation"].as_u64(), limit(&lab, "web")), (Some(2), 80 << 20));
}

#[test]
fn a_limit_below_what_is_used_takes_a_new_generation() {
    let mut lab = Lab::new();
    let port = free_port();
    let image = lab.image("1", Kind::Good);
    let file = |limit: &str| web(&image, port, &format!("mem_limit = \"{limit}\""));
    lab.deploy("web", &file("200m"), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let mut hog = lab
        .command(&[
            "exec",
            "web",
            "--",
            "/bin/sh",
            "-c",
            "b=/bin/busybox; x=$($b head -c 30000000 /dev/zero | $b tr '\\0' a); echo held; sleep 600; true",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(hog.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "held\n");
    lab.write("services/web.toml", &file("20m"));
    let (text, _) = plan(&lab);
    assert!(
        text.contains("replace") && text.contains("it uses") && text.contains("may have 20.0 MiB"),
        "{text}"
    );
    let load = Load::begin(port, 20);
    lab.commit("less room");
    lab.sync();
    load.end_without_failure();
    assert_eq!((lab.service("web")["generation"].as_u64(), limit(&lab, "web")), (Some(2), 20 << 20));
    assert_eq!(lab.service("web")["oom_kills"], 0, "{}", lab.service("web"));
    // It went with the first generation.
    hog.wait().unwrap();
}

#[test]
fn without_memory_for_two_copies_nothing_is_begun() {
    let mut lab = Lab::new();
    let port = free_port();
    let [first, second] = ["1", "2"].map(|version| lab.image(version, Kind::Good));
    lab.deploy("web", &web(&first, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    // More than any machine has.
    let more = "mem_reservation = \"900000g\"";
    lab.deploy("web", &web(&second, port, more), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let service = lab.service("web");
    assert_eq!((&service["reason"], &service["generation"]), (&"memory".into(), &1.into()), "{service}");
    let message = service["message"].as_str().unwrap();
    assert!(
        message.contains("a second copy is expected to use") && message.contains("are available"),
        "{message}"
    );
    assert_eq!(service["rollout"], Value::Null, "nothing was begun: {service}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    // One that stops first needs no second place.
    lab.deploy(
        "web",
        &web(&second, port, more).replace("[deploy]", "[deploy]\nstrategy = \"recreate\""),
        "one by one",
    );
    lab.sync();
    lab.wait_serving("web", &second);
    // The host's owner may not want to be asked.
    lab.kill_agent();
    lab.configure("memory_overcommit = true\n");
    lab.start_agent();
    lab.wait_agent();
    lab.deploy("web", &web(&first, port, more), "web 1 again");
    lab.sync();
    lab.wait_serving("web", &first);
}

#[test]
fn an_exhausted_subnet_is_told_before_anything_is_begun() {
    let mut lab = Lab::new();
    let text = fs::read_to_string(lab.config()).unwrap();
    let subnet = text.lines().find(|line| line.starts_with("subnet = ")).unwrap();
    fs::write(lab.config(), text.replace(subnet, &subnet.replace("/24", "/28"))).unwrap();
    let image = lab.image("1", Kind::Good);
    // Of sixteen addresses four are for services.
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        lab.write(&format!("services/{name}.toml"), &web(&image, free_port(), ""));
    }
    lab.commit("five services");
    lab.start_agent();
    lab.wait_agent();
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let refused: Vec<_> = names.iter().filter(|name| lab.service(name)["reason"] == "network").collect();
    assert_eq!(refused.len(), 1, "{}", lab.status());
    let message = lab.service(refused[0])["message"].to_string();
    assert!(message.contains("no free address left: all 4 for services are in use"), "{message}");
}

#[test]
fn two_that_write_to_one_directory_are_changed_one_after_the_other() {
    let mut lab = Lab::new();
    let shared = lab.path("shared");
    fs::create_dir_all(shared.join("inner")).unwrap();
    let [first, second] = ["1", "2"].map(|version| lab.image(version, Kind::Good));
    let ports = [free_port(), free_port()];
    let write = |lab: &Lab, image: &str| {
        for ((name, place), port) in
            ["api", "web"].iter().zip([shared.clone(), shared.join("inner")]).zip(ports)
        {
            let volumes = format!("volumes = [\"{}:/shared\"]", place.display());
            lab.write(&format!("services/{name}.toml"), &web(image, port, &volumes));
        }
    };
    write(&lab, &first);
    lab.commit("both 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    write(&lab, &second);
    lab.commit("both 2");
    lab.sync();
    let receipts = lab.history();
    let of = |name: &str| receipts.iter().rev().find(|it| it["service"] == name).unwrap();
    let (api, web) = (of("api"), of("web"));
    assert_eq!((&api["result"], &web["result"]), (&"deployed".into(), &"deployed".into()), "{receipts:?}");
    let time = |value: &Value| value.as_str().unwrap().parse::<gitopsd::types::Timestamp>().unwrap();
    let one_by_one = |first: &Value, then: &Value| time(&then["switched_at"]) >= time(&first["finished_at"]);
    // Whichever image was here first.
    assert!(one_by_one(api, web) || one_by_one(web, api), "{api} {web}");
    // A service in the place of another one waits until that one is away.
    fs::remove_file(lab.path("work/services/api.toml")).unwrap();
    let volumes = format!("volumes = [\"{}:/shared\"]", shared.display());
    lab.write("services/shop.toml", &self::web(&second, ports[0], &volumes));
    lab.commit("api is called shop now");
    wait_for("the new name", || {
        lab.run(&["sync", "--wait"]);
        (lab.service("shop")["state"] == "running").then_some(())
    });
    let receipts = lab.history();
    let of = |name: &str| receipts.iter().rev().find(|it| it["service"] == name).unwrap();
    let (gone, new) = (of("api"), of("shop"));
    assert_eq!(gone["result"], "removed");
    assert!(time(&new["switched_at"]) >= time(&gone["finished_at"]), "{gone} {new}");
}
