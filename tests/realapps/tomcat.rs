//! Tomcat: a page compiled by the server, heap within the container's memory, and notes kept on a volume.

use super::stage::{Client, Stage, ask};

const FILE: &str = r#"image = "IMAGE"
ports = ["127.0.0.1:PORT:8080"]
volumes = ["notes:/var/lib/notes"]
mem_limit = "512m"
cpus = 2
pids_limit = 300
stop_grace_period = "20s"
[healthcheck]
http = "/index.jsp"
interval = "500ms"
timeout = "10s"
start_period = "60s"
[deploy]
strategy = "blue-green"
drain = "3s"
bake = "200ms"
"#;

#[test]
fn tomcat_is_swapped_while_it_is_used() {
    if !super::everything() {
        return;
    }
    let mut stage = Stage::new("shop", "tomcat-app", FILE);
    let url = format!("http://127.0.0.1:{}", stage.port);
    let get = |url: &str| ask("curl", &["-fsS", "-m", "20", url], &[]);
    assert_eq!(get(&format!("{url}/index.jsp")).as_deref(), Some("version 1\n"));
    let notes = format!("{url}/notes.jsp");
    let place = notes.clone();
    let client = Client::begin(move |number| get(&format!("{place}?add=note{number}")).is_some());
    stage.deploy(2, 2);
    let told = client.end();
    assert_eq!(told.failed, 0, "nobody noticed");
    assert_eq!(get(&format!("{url}/index.jsp")).as_deref(), Some("version 2\n"));
    let all_there = || {
        let kept = get(&notes).unwrap();
        for number in &told.acknowledged {
            let note = format!("note{number}");
            assert!(kept.lines().any(|line| line == note), "{note} is not there");
        }
    };
    all_there();
    // What the virtual machine makes of the limit: a quarter of it.
    let heap = stage.exec(&["java", "-XX:+PrintFlagsFinal", "-version"]);
    let heap = heap.lines().find(|line| line.contains(" MaxHeapSize ")).unwrap();
    assert_eq!(heap.split_whitespace().nth(3), Some("134217728"), "{heap}");
    stage.said(1, "Destroying ProtocolHandler");
    stage.cut_power();
    all_there();
    stage.deploy(1, 3);
    all_there();
    stage.said(2, "Destroying ProtocolHandler");
}
