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
    let url = format!("amqp://shop:a-test@127.0.0.1:{}", stage.port);
    let (to, from) = (url.clone(), url.clone());
    ask("amqp-declare-queue", &["-u", &url, "-d", "-q", "orders"], &[]).unwrap();
    let client = Client::begin(move |number| {
        ask("amqp-publish", &["-u", &to, "-p", "-r", "orders", "-b", &format!("order {number}")], &[])
            .is_some()
    });
    stage.deploy(2, 2);
    let told = client.end();
    stage.cut_power();
    stage.deploy(1, 3);
    let mut got = BTreeSet::new();
    while let Some(message) = ask("amqp-get", &["-u", &from, "-q", "orders"], &[]) {
        got.insert(message);
    }
    for number in &told.acknowledged {
        assert!(got.contains(&format!("order {number}")), "order {number} is lost; {} are there", got.len());
    }
    for generation in [1, 2] {
        stage.said(generation, "Successfully stopped RabbitMQ and its dependencies");
    }
}
