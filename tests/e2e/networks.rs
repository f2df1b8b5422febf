//! Networks of services on a real host: shared ones, the host's, and the names that come and go.

use std::time::Duration;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::get;

/// A service beside another one, in its network.
fn side(image: &str, port: u16, mode: &str) -> String {
    format!(
        r#"image = "{image}"
command = ["/bin/sh", "-c", "trap 'exit 0' TERM; httpd -f -p {port} -h /www & wait"]
network_mode = "{mode}"
stop_grace_period = "2s"
[healthcheck]
tcp = {port}
interval = "200ms"
[deploy]
drain = "1s"
bake = "500ms"
timeout = "20s"
"#
    )
}

/// The network namespace that a service's program is in.
fn namespace(lab: &Lab, service: &str) -> String {
    let line = lab.ok(&["exec", service, "--", "/bin/ls", "-l", "/proc/self/ns/net"]);
    line.trim().rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn who_shares_a_network_follows_it() {
    let (mut lab, port) = (Lab::new(), free_port());
    let (v1, v2, sick) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good), lab.image("3", Kind::Sick));
    lab.write("services/side.toml", &side(&v1, 9090, "service:web"));
    lab.deploy("web", &web(&v1, port, ""), "both");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert_eq!(namespace(&lab, "side"), namespace(&lab, "web"));
    let through = |lab: &Lab| lab.ok(&["exec", "web", "--", "/bin/wget", "-qO-", "http://127.0.0.1:9090/"]);
    assert_eq!(through(&lab), "version 1\n");

    // A new generation of the one makes one of the other.
    let before = namespace(&lab, "web");
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_ne!(namespace(&lab, "web"), before);
    assert_eq!(namespace(&lab, "side"), namespace(&lab, "web"));
    assert_eq!(through(&lab), "version 1\n");
    let generations =
        |lab: &Lab| ["web", "side"].map(|name| lab.service(name)["generation"].as_u64().unwrap());
    assert_eq!(generations(&lab), [2, 2]);

    // One that never gets traffic makes none.
    lab.deploy("web", &web(&sick, port, ""), "web 3");
    assert_ne!(lab.run(&["sync", "--wait"]).status.code(), Some(0));
    assert_eq!(generations(&lab), [2, 2]);
    assert_eq!(namespace(&lab, "side"), namespace(&lab, "web"));
    // A change of the guest alone is in the same network.
    lab.deploy("side", &side(&v2, 9090, "service:web"), "side 2");
    lab.run(&["sync", "--wait"]);
    lab.wait_serving("side", &v2);
    assert_eq!(through(&lab), "version 2\n");
    assert_eq!(generations(&lab)[0], 2);
    // The agent dies and comes back: nobody is touched.
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    wait_for("both to run", || (through(&lab) == "version 2\n").then_some(()));
    assert_eq!(generations(&lab), [2, 3]);
}

#[test]
fn names_follow_peers_while_clients_run() {
    let mut lab = Lab::new();
    let v1 = lab.image("1", Kind::Good);
    lab.write("gitopsd.toml", "format = 1\nrepo_id = \"lab\"\n[networks.front]\n[networks.back]\n");
    let on = |networks: &str| web(&v1, free_port(), &format!("networks = {networks}"));
    lab.write("services/web.toml", &on("[\"front\", \"back\"]"));
    lab.deploy("lone", &on("[\"front\"]"), "two");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let hosts = |service: &str| lab.ok(&["exec", service, "--", "/bin/cat", "/etc/hosts"]);
    assert!(hosts("web").contains(" lone\n") && !hosts("web").contains(" db\n"));

    lab.deploy("db", &on("{ back = { aliases = [\"sql\"] } }"), "db");
    lab.sync();
    assert!(hosts("web").contains(" sql\n") && hosts("web").contains(" db\n"), "{}", hosts("web"));
    assert!(!hosts("lone").contains(" db\n"));
    let ask = |from: &str, name: &str| {
        let url = format!("http://{name}:8080/");
        lab.run(&["exec", from, "--", "/bin/wget", "-qO-", &url]).stdout
    };
    assert_eq!(ask("web", "sql"), b"version 1\n");
    // Whoever knows the address is no further.
    let hosts_of_web = hosts("web");
    let address = hosts_of_web.lines().find(|line| line.ends_with(" db")).unwrap();
    let address = address.split(' ').next().unwrap();
    assert_eq!(ask("web", address), b"version 1\n");
    assert_eq!(ask("lone", address), b"");

    // The name leads to the new generation, and goes with the service; its peer runs on.
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("db", &web(&v2, free_port(), "networks = { back = { aliases = [\"data\"] } }"), "db 2");
    lab.sync();
    wait_for("the new name", || (hosts("web").contains(" data\n")).then_some(()));
    assert_eq!(ask("web", "data"), b"version 2\n");
    assert!(!hosts("web").contains(" sql\n"));
    std::fs::remove_file(lab.path("work/services/db.toml")).unwrap();
    lab.commit("no db");
    lab.sync();
    wait_for("the name to go", || (!hosts("web").contains(" db\n")).then_some(()));
    assert_eq!(
        (lab.service("web")["generation"].as_u64(), lab.service("web")["restarts"].as_u64()),
        (Some(1), Some(0))
    );
}

#[test]
fn a_service_on_the_hosts_own_network() {
    let mut lab = Lab::new();
    let (v1, v2, port) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good), free_port());
    lab.deploy("node", &side(&v1, port, "host"), "node");
    lab.deploy("web", &web(&v1, free_port(), ""), "web");
    lab.start_agent();
    lab.wait_agent();
    lab.run(&["sync", "--wait"]);
    let node = lab.service("node");
    assert!(node["message"].as_str().unwrap().contains("policy.host_network"), "{node}");
    lab.kill_agent();
    lab.configure("host_network = true\n");
    lab.start_agent();
    lab.wait_agent();
    lab.ok(&["resume", "node"]);
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    // By its name from a container, too.
    let url = format!("http://node:{port}/");
    let asked = || lab.ok(&["exec", "web", "--", "/bin/wget", "-qO-", &url]);
    assert_eq!(asked(), "version 1\n");
    // Two at once could not have the port: the plan says how it is changed.
    lab.write("services/node.toml", &side(&v2, port, "host"));
    let plan = lab.run(&["plan", lab.path("work").to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&plan.stdout).contains("(recreate, as it has the host"), "{plan:?}");
    lab.commit("node 2");
    lab.sync();
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    assert_eq!(asked(), "version 2\n");
}

#[test]
fn lost_rules_are_back_at_once() {
    let mut lab = Lab::new();
    super::lives::polled_rarely(&lab);
    let port = lab.serve();
    let name = format!("gitopsd-{}", lab.instance);
    let nft = |words: &str| {
        let words = words.split(' ').chain([name.as_str()]);
        std::process::Command::new("nft").args(words).output().unwrap().status.success()
    };
    // Lost while nobody looks; and in its place a table that is not the agent's own, as on kernels without owners.
    lab.kill_agent();
    assert!(nft("delete table inet"));
    assert!(get(port, "/").is_err());
    assert!(nft("add table inet"));
    lab.start_agent();
    lab.wait_agent();
    wait_for("the rules", || get(port, "/").ok());
    // Lost under its eyes.
    let put_right = |lab: &Lab| lab.agent_log().matches("the route to generation 1 was put right").count();
    let before = put_right(&lab);
    let since = std::time::Instant::now();
    assert!(nft("delete table inet"));
    wait_for("the rules", || get(port, "/").ok());
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    // Who watches the rules says it, or the loop where that was at work and came first.
    wait_for("a word about it", || {
        let seen = lab.agent_log().contains("somebody took rules of nftables away");
        (seen || put_right(&lab) > before).then_some(())
    });
    // The one that it has made itself cannot be lost where the kernel knows owners; nor is it made twice.
    let owned = !nft("delete table inet");
    wait_for("the rules", || get(port, "/").ok());
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    assert_eq!(owned, (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 9), "{release}");
}
