//! A port of the host that somebody has already: the later one is refused before anything is begun, by name.

use std::net::TcpListener;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

/// What a verb says on either output.
fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_port_of_another_instance_is_refused_and_taken_over_when_it_is_free() {
    let (one, port) = Lab::serving();
    let mut two = Lab::new();
    let image = two.image("2", Kind::Good);
    two.deploy("shop", &web(&image, port, ""), "the same port");
    let plan = two.run(&["plan"]);
    assert_eq!(plan.status.code(), Some(1), "{plan:?}");
    assert!(
        said(&plan).contains(&format!("port {port}/tcp is published by service web of another")),
        "{plan:?}"
    );
    two.start_agent();
    two.wait_agent();
    let output = two.run(&["sync", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).contains(&one.instance), "the holder is named: {output:?}");
    let shop = two.service("shop");
    assert_eq!((&shop["reason"], &shop["state"]), (&"port-in-use".into(), &"failed".into()), "{shop}");
    assert_eq!(shop["generation"], serde_json::Value::Null, "nothing was begun: {shop}");
    assert!(two.history().is_empty(), "{:?}", two.history());
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    // It moves away, and the other one gets it without another commit.
    one.deploy("web", &web(&one.reference("1"), free_port(), ""), "another port");
    one.sync();
    two.wait_serving("shop", &image);
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

#[test]
fn a_port_of_a_process_is_refused_by_its_name() {
    let mut lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let image = lab.image("1", Kind::Good);
    lab.deploy("web", &web(&image, port, ""), "web 1");
    let plan = lab.run(&["plan"]);
    assert_eq!(plan.status.code(), Some(1), "{plan:?}");
    lab.start_agent();
    lab.wait_agent();
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let web = lab.service("web");
    let message = web["message"].as_str().unwrap().to_owned();
    assert_eq!(web["reason"], "port-in-use");
    assert!(message.contains(&format!("port {port}/tcp")), "{message}");
    assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
    assert!(lab.history().is_empty());
    drop(listener);
    lab.wait_serving("web", &image);
}

#[test]
fn a_new_file_that_claims_a_port_stops_only_itself() {
    let (lab, port) = Lab::serving();
    let other = free_port();
    // By name it comes before the one that has the port.
    let api = web(&lab.reference("1"), port, "");
    lab.deploy("api", &api, "a newcomer on the port of web");
    let plan = lab.run(&["plan"]);
    assert_eq!(plan.status.code(), Some(1), "{plan:?}");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let (refused, kept) = (lab.service("api"), lab.service("web"));
    assert_eq!((&refused["reason"], &kept["state"]), (&"port-in-use".into(), &"running".into()), "{kept}");
    assert!(refused["message"].as_str().unwrap().contains("service web"), "{refused}");
    let check = lab.run(&["check", lab.path("work").to_str().unwrap()]);
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    // The one that was there can be updated, with the newcomer still in its way.
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_eq!(lab.service("api")["reason"], "port-in-use");
    // It moves away in a commit of its own: then the port is the newcomer's.
    lab.deploy("web", &web(&v2, other, ""), "web moves");
    wait_for(&format!("api on {port}; {}", lab.agent_log()), || {
        (lab.service("api")["state"] == "running").then_some(())
    });
    lab.sync();
    assert_eq!(
        (get(port, "/").unwrap(), get(other, "/").unwrap()),
        ("version 1\n".into(), "version 2\n".into())
    );
}

#[test]
fn two_that_exchange_their_ports_are_refused_and_serve_on() {
    let mut lab = Lab::new();
    let (one, two, free) = (free_port(), free_port(), free_port());
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    // Recreated: what is stopped for a port that does not come would be missed.
    let file = |image: &str, port: u16| web(image, port, "volumes = [\"data:/data\"]");
    lab.write("services/a.toml", &file(&v1, one));
    lab.write("services/b.toml", &file(&v2, two));
    lab.commit("a and b");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let served = || (get(one, "/").unwrap(), get(two, "/").unwrap());
    let before = served();
    lab.write("services/a.toml", &file(&v2, two));
    lab.write("services/b.toml", &file(&v1, one));
    lab.commit("they exchange their ports, and more");
    let plan = lab.run(&["plan"]);
    assert!(plan.status.code() == Some(1) && said(&plan).contains("in a commit before"), "{plan:?}");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    for name in ["a", "b"] {
        let service = lab.service(name);
        assert_eq!(
            (&service["reason"], &service["generation"]),
            (&"port-in-use".into(), &1.into()),
            "{service}"
        );
    }
    assert_eq!(served(), before);
    // By way of a free one: b takes what a has left once that is over.
    lab.write("services/a.toml", &file(&v2, free));
    lab.commit("a moves aside");
    lab.sync();
    assert_eq!((get(one, "/").unwrap(), get(free, "/").unwrap()), before);
    lab.write("services/a.toml", &file(&v2, two));
    lab.commit("a takes what b had");
    lab.sync();
    assert_eq!(served(), before, "the same versions, by the other services");
}

/// Two that write nowhere, on ports of their own; and a third port.
fn two() -> (Lab, [u16; 3]) {
    let mut lab = Lab::new();
    let ports = [free_port(), free_port(), free_port()];
    let image = lab.image("1", Kind::Good);
    lab.write("services/web.toml", &web(&image, ports[0], ""));
    lab.write("services/api.toml", &web(&image, ports[1], ""));
    lab.commit("web and api");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    (lab, ports)
}

#[test]
fn a_port_goes_to_another_service_without_a_lost_request() {
    let (lab, [port, other, free]) = two();
    let (v1, v2) = (lab.reference("1"), lab.image("2", Kind::Good));
    let load = Load::begin(port, 200);
    // The giver is changed in place at once; the other one is replaced, which takes longer.
    lab.write("services/web.toml", &web(&v1, free, ""));
    lab.write("services/api.toml", &web(&v2, port, ""));
    lab.commit("the port of web is api's");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_eq!(get(free, "/").unwrap(), "version 1\n");
    assert!(get(other, "/").is_err(), "nobody is to have it");
    // Back, and this time the giver is replaced and watched for a while.
    lab.write("services/web.toml", &web(&v1, port, ""));
    lab.write("services/api.toml", &web(&v1, other, "").replace("500ms", "3s"));
    lab.commit("it is web's again");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    assert!(get(free, "/").is_err());
    // The service gets another name.
    std::fs::remove_file(lab.path("work/services/web.toml")).unwrap();
    lab.write("services/shop.toml", &web(&v2, port, ""));
    lab.commit("web is called shop from now on");
    lab.sync();
    lab.wait_receipt("removed");
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    load.end_without_failure();
}

#[test]
fn a_next_version_without_the_port_waits_until_another_service_has_it() {
    let (lab, [port, other, free]) = two();
    let (v1, v2) = (lab.reference("1"), lab.image("2", Kind::Good));
    let load = Load::begin(port, 200);
    // Nothing listens on that port of the container.
    let without = |image: &str, port: u16| {
        web(image, port, "").replace(":8080\"", ":9\"").replace("retries", "port = 8080\nretries")
    };
    lab.write("services/web.toml", &without(&v2, free));
    let slow = web(&v2, port, "").replace("bake", "min_healthy_time = \"2s\"\nbake");
    lab.write("services/api.toml", &slow);
    lab.commit("the port of web is api's, and web has another one");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert!(get(other, "/").is_err(), "nobody is to have it");
    // Both ways at once: what had it leaves it for good, and it is an old service's again.
    lab.write("services/web.toml", &web(&v1, port, ""));
    lab.write("services/api.toml", &without(&v1, other));
    lab.commit("it is web's again");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    // Who is to have it is no good: the next version waits, and what runs serves on.
    let bad = lab.image("3", Kind::Sick);
    lab.write("services/web.toml", &without(&v2, free));
    lab.write("services/api.toml", &web(&bad, port, ""));
    lab.commit("the port is to be a sick one's");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let waits = lab.service("web");
    assert_eq!((&waits["reason"], &waits["image"]), (&"dependency".into(), &v1.as_str().into()), "{waits}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    lab.deploy("api", &web(&v2, port, ""), "a good one");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    load.end_without_failure();
}

#[test]
fn what_is_to_have_a_port_and_is_sick_does_not_get_it() {
    let (lab, [port, other, _]) = two();
    let bad = lab.image("2", Kind::Sick);
    let load = Load::begin(port, 200);
    std::fs::remove_file(lab.path("work/services/web.toml")).unwrap();
    lab.write("services/shop.toml", &web(&bad, port, ""));
    lab.commit("web is called shop from now on, and no good");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let (old, new) = (lab.service("web"), lab.service("shop"));
    assert_eq!((&new["state"], &old["reason"]), (&"failed".into(), &"dependency".into()), "{old} {new}");
    let message = old["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("it goes once shop serves port {port}/tcp")), "{message}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    // The next one is well.
    lab.deploy("shop", &web(&lab.reference("1"), port, ""), "shop, mended");
    lab.sync();
    lab.wait_receipt("removed");
    load.end_without_failure();
    assert_eq!(lab.service("shop")["state"], "running");
    assert_eq!(get(other, "/").unwrap(), "version 1\n");
}
