//! Redis: one writer, so that a new version takes the place of the old one on the same volume.

use super::stage::{Client, Stage, ask};

const FILE: &str = r#"image = "IMAGE"
command = ["redis-server", "--protected-mode", "no", "--appendonly", "yes"]
ports = ["127.0.0.1:PORT:6379"]
volumes = ["data:/data"]
stop_grace_period = "10s"
read_only = true
[healthcheck]
test = ["CMD", "redis-cli", "ping"]
interval = "200ms"
[deploy]
drain = "1s"
bake = "200ms"
"#;

fn life(image: &str) {
    let mut stage = Stage::new("redis", image, FILE);
    let port = stage.port.to_string();
    let cli = move |words: &[&str]| {
        let mut args = vec!["-e", "-p", &port];
        args.extend(words);
        ask("redis-cli", &args, &[])
    };
    let write = cli.clone();
    let client = Client::begin(move |number| {
        write(&["set", &format!("key:{number}"), &number.to_string()]).as_deref() == Some("OK\n")
    });
    stage.deploy(2, 2);
    let told = client.end();
    let all_there = || {
        for number in &told.acknowledged {
            let value = cli(&["get", &format!("key:{number}")]);
            assert_eq!(value.as_deref(), Some(&*format!("{number}\n")));
        }
    };
    all_there();
    stage.said(1, "DB saved on disk");
    stage.said(1, "bye bye");
    assert!(stage.exec(&["id", "-u"]).trim() == "0", "as Docker does: the image's own user");
    let processes = stage.exec(&["stat", "-c", "%U", "/proc/1", "/data/dump.rdb"]);
    assert_eq!(processes, "redis\nredis\n", "the entrypoint has changed the user, and so has the data");
    stage.cut_power();
    all_there();
    stage.deploy(1, 3);
    all_there();
    stage.said(2, "bye bye");
}

#[test]
fn small_redis_keeps_what_it_acknowledged() {
    life("redis-slim");
}

#[test]
fn redis_of_its_package_keeps_what_it_acknowledged() {
    if super::everything() {
        life("redis-app");
    }
}
