//! RabbitMQ: messages outlive a deploy and a power cut. Its node is named after its host's name, which is its service's
//! in every generation.

use std::collections::BTreeSet;

use super::stage::{Client, Stage, ask};

const FILE: &str = r#"image = "IMAGE"
ports = ["127.0.0.1:PORT:5672"]
volumes = ["data:/var/lib/rabbitmq"]
mem_limit = "1g"
stop_grace_period = "30s"
[healthcheck]
test = ["CMD", "setpriv", "--reuid", "rabbitmq", "--regid", "rabbitmq", "--clear-groups", "rabbitmq-diagnostics", "-q", "check_port_connectivity"]
interval = "1s"
timeout = "15s"
start_period = "2m"
[deploy]
drain = "1s"
bake = "200ms"
"#;

#[test]
fn rabbitmq_keeps_messages() {
    if !super::everything() {
        return;
    }
    let mut stage = Stage::new("queue", "rabbitmq-app", FILE);
    // Its user `guest` may come from the loopback only, and a published port does not.
    let ctl =
        ["setpriv", "--reuid", "rabbitmq", "--regid", "rabbitmq", "--clear-groups", "rabbitmqctl", "-q"];
    for words in [&["add_user", "shop", "a-test"][..], &["set_permissions", "shop", ".*", ".*", ".*"]] {
        stage.exec(&[&ctl[..], words].concat());
    }
    // Nothing but a confirmation counts.
    let url = format!("amqp://shop:a-test@127.0.0.1:{}/%2F?socket_timeout=5", stage.port);
    let pika = move |words: &[&str]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/realapps/rabbitmq.py");
        ask("/usr/bin/python3", &[&[script, &url], words].concat(), &[])
    };
    pika(&["declare"]).unwrap();
    let publish = pika.clone();
    let client = Client::begin(move |number| publish(&["publish", &format!("order {number}")]).is_some());
    stage.deploy(2, 2);
    let told = client.end();
    stage.cut_power();
    stage.deploy(1, 3);
    let got = pika(&["take"]).unwrap();
    let got: BTreeSet<&str> = got.lines().collect();
    for number in &told.acknowledged {
        let order = format!("order {number}");
        assert!(got.contains(&*order), "{order} is lost; {} are there", got.len());
    }
    for generation in [1, 2] {
        stage.said(generation, "msg_store_persistent' is stopped");
    }
}
