//! Services by a runtime of the host, and with users of their own, on a real network.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::image::Kind;
use crate::lab::{Lab, free_port, web};
use crate::load::get;

/// The first process of a service's container.
fn process(lab: &Lab, name: &str) -> i64 {
    let container = lab.service(name)["container"].as_str().unwrap().to_owned();
    let text = fs::read_to_string(lab.path(&format!("run/containers/{container}/run.json"))).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["init"]["pid"].as_i64().unwrap()
}

fn configure(lab: &Lab, engine: &str) {
    fs::create_dir_all(lab.path("conf.d")).unwrap();
    fs::write(lab.path("conf.d/engine.toml"), format!("[engine]\n{engine}\n")).unwrap();
}

#[test]
fn a_host_that_changes_its_runtime_keeps_what_runs() {
    let (mut lab, port) = Lab::serving();
    lab.wait_receipt("deployed");
    let before = process(&lab, "web");
    lab.stop_agent();
    configure(&lab, "runtime = \"crun\"");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(process(&lab, "web"), before, "it was started again");
    assert!(lab.ok(&["exec", "web", "--", "/bin/sh", "-c", "echo in $HOSTNAME"]).contains("in web"));
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.sync();
    lab.wait_serving("web", &v2);
    let container = lab.service("web")["container"].as_str().unwrap().to_owned();
    let launch = fs::read_to_string(lab.path(&format!("run/containers/{container}/launch.json"))).unwrap();
    assert!(launch.contains("/crun\""), "{launch}");
    assert!(get(port, "/").unwrap().contains("version"));
    assert!(lab.ok(&["exec", "web", "--", "/bin/sh", "-c", "echo in $HOSTNAME"]).contains("in web"));
}

#[test]
fn a_service_whose_root_is_nobody_serves() {
    let mut lab = Lab::new();
    configure(&lab, "subuids = \"1000000:655360\"");
    let port = free_port();
    let v1 = lab.image("1", Kind::Good);
    lab.deploy("web", &web(&v1, port, "userns_mode = \"auto\"\nvolumes = [\"data:/data:ro\"]"), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    lab.wait_serving("web", &v1);
    assert!(get(port, "/").unwrap().contains("version"));
    let user = fs::metadata(format!("/proc/{}", process(&lab, "web"))).unwrap().uid();
    assert!((1_000_000..1_655_360).contains(&user), "{user}");
    assert!(lab.ok(&["exec", "web", "--", "/bin/sh", "-c", "cat /proc/self/uid_map"]).contains(" 65536"));
    // "host" is what is so in any case, and another generation.
    lab.deploy(
        "web",
        &web(&v1, port, "userns_mode = \"host\"\nvolumes = [\"data:/data:ro\"]"),
        "web as before",
    );
    lab.sync();
    let user = fs::metadata(format!("/proc/{}", process(&lab, "web"))).unwrap().uid();
    assert_eq!(user, 0);
}
