//! The store under a running agent: pulled ahead, listed, repaired while it is in use, collected, looked at after a
//! power cut.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

/// A lab whose agent serves web 1.
fn serving(more: &str) -> (Lab, u16) {
    let mut lab = Lab::new();
    lab.configure(more);
    let port = lab.serve();
    (lab, port)
}

fn json(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text).into_iter().map(Result::unwrap).collect()
}

/// The references of the images that are here, with the roles they have for services.
fn images(lab: &Lab) -> Vec<(String, Vec<String>)> {
    let found = &json(&lab.ok(&["images", "--json"]))[0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut images: Vec<(String, Vec<String>)> = found["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| {
            let users = image["users"].as_array().unwrap();
            (text(&image["references"][0]), users.iter().map(|user| text(&user["role"])).collect())
        })
        .collect();
    images.sort();
    images
}

/// The tree of the layer that has a path.
fn tree_with(lab: &Lab, path: &str) -> PathBuf {
    let layers = fs::read_dir(lab.path("state/store/layers")).unwrap();
    let mut trees = layers.map(|entry| entry.unwrap().path().join("fs"));
    trees.find(|tree| tree.join(path).exists()).unwrap()
}

fn events(lab: &Lab, name: &str) -> Vec<Value> {
    let events = json(&lab.ok(&["events"]));
    events.into_iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn what_is_pulled_ahead_is_deployed_without_the_registry() {
    let (mut lab, port) = serving("");
    let v2 = lab.image("2", Kind::Good);
    let lines = json(&lab.ok(&["pull", &v2, "--json"]));
    let (result, progress) = lines.split_last().unwrap();
    let image = &result["images"][0];
    assert_eq!(
        (&result["ok"], &image["layers"], &image["layers_here"]),
        (&true.into(), &2.into(), &1.into())
    );
    assert!(!progress.is_empty() && progress.iter().all(|line| line["progress"]["reference"] == v2.as_str()));
    assert_eq!(images(&lab), [(lab.reference("1"), vec!["current".to_owned()]), (v2.clone(), vec![])]);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    let receipt = lab.history().pop().unwrap();
    assert_eq!((&receipt["result"], &receipt["pulled_bytes"]), (&"deployed".into(), &0.into()), "{receipt}");
    lab.sync();
    let roles = |lab: &Lab| images(lab).into_iter().map(|(_, roles)| roles.join(" ")).collect::<Vec<_>>();
    assert_eq!(roles(&lab), ["previous", "current"]);
    // All that the repo wants: it is here, so that not even the registry is asked.
    lab.stop_registry();
    let result = json(&lab.ok(&["pull", "--all", "--json"])).pop().unwrap();
    assert_eq!((&result["ok"], &result["images"][0]["layers_here"]), (&true.into(), &2.into()), "{result}");
    let output = lab.run(&["pull", &lab.reference("7")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("registry-unreachable"), "{output:?}");
}

#[test]
fn a_damaged_layer_is_repaired_while_its_container_serves() {
    let (lab, port) = serving("");
    let load = Load::begin(port, 50);
    let file = tree_with(&lab, "etc/passwd").join("etc/passwd");
    let (good, times) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().modified().unwrap());
    let mut bad = good.clone();
    bad[0] ^= 1;
    fs::write(&file, &bad).unwrap();
    fs::File::open(&file).unwrap().set_modified(times).unwrap();
    assert_eq!(lab.run(&["fsck"]).status.code(), Some(0));
    let output = lab.run(&["fsck", "--full"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("on it run: web") && text.contains("fs/etc/passwd has content"), "{text}");
    assert!(text.contains("`gitopsd fsck --full --repair` gets it again"), "{text}");
    let text = lab.ok(&["fsck", "--full", "--repair"]);
    assert!(
        text.contains("rebuilt") && text.contains("goes on with the former files until it starts again"),
        "{text}"
    );
    assert_eq!(fs::read(&file).unwrap(), good);
    lab.ok(&["fsck", "--full"]);
    // The container still has every file of the old tree.
    let passwd = |lab: &Lab| lab.ok(&["exec", "web", "--", "cat", "/etc/passwd"]).into_bytes();
    assert_eq!(passwd(&lab), bad);
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    load.end_without_failure();
    lab.ok(&["gc"]);
    let aside = || super::lab::names(&lab.path("state/store/quarantine"));
    assert_eq!(aside().len(), 1, "it is in use");
    let hint = text.split("kill -KILL ").nth(1).unwrap();
    let pid: i32 = hint.split('`').next().unwrap().parse().unwrap();
    // Containers that begin about the time of the repair count as older; its name says how long.
    let until: u64 = aside()[0].split('.').nth(1).unwrap().parse().unwrap();
    wait_for("the moment", || {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        (now > until).then_some(())
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("the new files", || {
        let output = lab.run(&["exec", "web", "--", "cat", "/etc/passwd"]);
        (output.stdout == good).then_some(())
    });
    lab.ok(&["sync", "--wait"]);
    lab.ok(&["gc"]);
    assert_eq!(aside(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_repaired_is_pulled_when_it_is_needed() {
    let (mut lab, port) = serving("");
    let file = tree_with(&lab, "www/healthz").join("www/healthz");
    fs::write(&file, "no\n").unwrap();
    lab.stop_registry();
    let output = lab.run(&["fsck", "--repair", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found = &json(&String::from_utf8(output.stdout).unwrap())[0];
    let repaired = &found["repaired"][0];
    assert_eq!((&found["ok"], &repaired["remedy"]), (&false.into(), &"quarantined".into()), "{found:#}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n", "what runs, runs");
    lab.start_registry();
    // The container starts again, on what is pulled for it.
    lab.kill_agent();
    lab.cut_power();
    lab.start_agent();
    lab.wait_agent();
    wait_for(&format!("web; {}", lab.agent_log()), || {
        get(port, "/healthz").is_ok_and(|body| body == "ok\n").then_some(())
    });
    lab.ok(&["fsck", "--full"]);
}

#[test]
fn images_that_nothing_needs_go_by_themselves() {
    let (lab, port) = serving("[images]\nkeep = \"0s\"\nkeep_count = 0\nmin_free = \"0%\"\n");
    for version in ["2", "3"] {
        let image = lab.image(version, Kind::Good);
        lab.deploy("web", &web(&image, port, ""), version);
        lab.wait_serving("web", &image);
        lab.sync();
    }
    wait_for("the oldest image to go", || {
        let here: Vec<String> = images(&lab).into_iter().map(|(name, _)| name).collect();
        (here == [lab.reference("2"), lab.reference("3")]).then_some(())
    });
    wait_for("its event", || (!events(&lab, "images-collected").is_empty()).then_some(()));
    let told = events(&lab, "images-collected");
    assert!(told[0]["message"].as_str().unwrap().contains(&lab.reference("1")), "{told:?}");
    lab.ok(&["fsck", "--full"]);
    // The one before is still there to go back to.
    lab.ok(&["rollback", "web"]);
    wait_for("the rollback", || (get(port, "/").unwrap() == "version 2\n").then_some(()));
    lab.run(&["sync", "--wait"]);
    let text = lab.ok(&["gc"]);
    assert!(text.contains("0 images: 0 B freed"), "{text}");
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

/// A small file system for the store; gone with its user.
struct SmallStore(PathBuf);

impl SmallStore {
    fn mount(lab: &Lab, megabytes: usize) -> Self {
        let path = lab.path("state/store");
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={megabytes}m,mode=0700");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), flags, Some(options.as_str())).unwrap();
        Self(path)
    }
}

impl Drop for SmallStore {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_pull_that_does_not_fit_makes_old_images_go() {
    let mut lab = Lab::new();
    lab.configure("[images]\nkeep = \"7d\"\nkeep_count = 9\nmin_free = \"0%\"\n");
    // Room for three.
    let _store = SmallStore::mount(&lab, 44);
    let port = free_port();
    lab.start_agent();
    for version in ["1", "2", "3"] {
        let image = lab.large_image(version, 12 << 20);
        lab.deploy("web", &web(&image, port, ""), version);
        lab.wait_agent();
        lab.wait_serving("web", &image);
        lab.sync();
    }
    let here = |lab: &Lab| images(lab).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(here(&lab).len(), 3, "nothing goes while there is room");
    let load = Load::begin(port, 50);
    let v4 = lab.large_image("4", 12 << 20);
    lab.deploy("web", &web(&v4, port, ""), "4");
    lab.wait_serving("web", &v4);
    load.end_without_failure();
    let left = here(&lab);
    assert!(!left.contains(&lab.reference("1")) && left.contains(&lab.reference("3")), "{left:?}");
    lab.ok(&["fsck", "--full"]);
    lab.kill_agent();
}

/// Cuts the power, which the page does not survive.
fn lose_the_page(lab: &mut Lab) {
    lab.kill_agent();
    lab.cut_power();
    // What a file system may make of data that was never synced.
    let file = tree_with(lab, "www/index.html").join("www/index.html");
    let times = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "").unwrap();
    fs::File::open(&file).unwrap().set_modified(times).unwrap();
    for name in ["boot.json", "boot.previous.json"] {
        fs::write(lab.path("state").join(name), "").unwrap();
    }
}

#[test]
fn after_a_power_cut_what_came_last_is_looked_at() {
    let (mut lab, port) = serving("");
    lose_the_page(&mut lab);
    // However long it takes, systemd is told that the agent is not ready yet.
    let path = lab.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    lab.start_agent_with(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    let mut heard = Vec::new();
    wait_for("READY=1", || {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).unwrap();
        heard.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        heard.last().unwrap().contains("READY=1").then_some(())
    });
    let longer = heard.iter().filter(|said| said.starts_with("EXTEND_TIMEOUT_USEC=90000000"));
    assert_eq!(longer.count(), 2, "once a layer: {heard:?}");
    // Nobody reads on.
    drop(socket);
    lab.wait_agent();
    wait_for(&format!("web; {}", lab.agent_log()), || {
        get(port, "/").is_ok_and(|body| body == "version 1\n").then_some(())
    });
    let told = events(&lab, "store-damaged");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["message"].as_str().unwrap().contains("fs/www/index.html has 0 bytes"), "{told:?}");
    lab.ok(&["fsck", "--full"]);
    // Killed alone, it looks at nothing.
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    assert_eq!(events(&lab, "store-damaged").len(), 1);
}

/// The agent tells of one damaged layer, and web runs on a sound one.
fn heals(lab: &mut Lab, port: u16) {
    lab.start_agent();
    lab.wait_agent();
    wait_for(&format!("web; {}", lab.agent_log()), || {
        get(port, "/").is_ok_and(|body| body == "version 1\n").then_some(())
    });
    assert_eq!(events(lab, "store-damaged").len(), 1);
    lab.ok(&["fsck", "--full"]);
    lab.kill_agent();
}

/// A host that keeps layers as they came needs nobody.
#[test]
fn after_a_power_cut_what_is_kept_is_enough() {
    let (mut lab, port) = serving("[images]\nkeep_blobs = true\n");
    lose_the_page(&mut lab);
    lab.stop_registry();
    heals(&mut lab, port);
}

/// An agent that is killed during the look, as systemd does to one that takes too long, leaves it to the next one.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn a_look_after_a_power_cut_that_is_broken_off_is_done_anew() {
    let (mut lab, port) = serving("");
    lose_the_page(&mut lab);
    for _ in 0..2 {
        lab.start_agent_with(&[("FAILPOINTS", "look::after_layer=return")]);
        wait_for("its end", || lab.agent_ended().then_some(()));
    }
    heals(&mut lab, port);
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn the_status_says_how_far_a_pull_is() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    lab.deploy("web", &web(&image, free_port(), ""), "web 1");
    // All has come, and has no name yet.
    lab.start_agent_with(&[("FAILPOINTS", "pull::before_rename=sleep(12000)")]);
    lab.wait_agent();
    let progress = wait_for("progress", || {
        let progress = lab.service("web")["rollout"]["progress"].clone();
        (progress["bytes"].as_u64() > Some(0) && progress["bytes"] == progress["total"]).then_some(progress)
    });
    let text = lab.ok(&["status"]);
    assert!(
        text.contains("pulling") && text.contains(" MiB of ") || text.contains(" KiB of "),
        "{text} {progress}"
    );
    lab.sync();
    assert!(lab.service("web")["rollout"].is_null());
}
