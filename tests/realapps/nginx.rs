//! nginx with uploads: files that two generations may write side by side, so that it is swapped without a pause.

use super::stage::{Client, Stage, ask};

const FILE: &str = r#"image = "IMAGE"
ports = ["127.0.0.1:PORT:80"]
volumes = ["uploads:/srv/uploads"]
environment = { NGINX_WORKERS = "2" }
stop_grace_period = "10s"
[healthcheck]
http = "/healthz"
interval = "200ms"
[deploy]
strategy = "blue-green"
drain = "2s"
bake = "200ms"
"#;

fn life(image: &str) {
    let mut stage = Stage::new("web", image, FILE);
    let url = format!("http://127.0.0.1:{}", stage.port);
    let (place, get) = (url.clone(), |url: &str| ask("curl", &["-fsS", "-m", "5", url], &[]));
    assert_eq!(get(&url).as_deref(), Some("version 1\n"));
    assert_eq!(
        get(&format!("{url}/uploads/.keep")).as_deref(),
        Some(""),
        "the volume begins as the image has it"
    );
    let client = Client::begin(move |number| {
        let (data, to) = (format!("file {number}\n"), format!("{place}/uploads/{number}"));
        let args = ["-fsS", "-m", "5", "-X", "PUT", "--data-binary", &data, &to];
        ask("curl", &args, &[]).is_some()
    });
    stage.deploy(2, 2);
    let told = client.end();
    assert_eq!(told.failed, 0, "nobody noticed");
    assert_eq!(get(&url).as_deref(), Some("version 2\n"));
    let all_there = || {
        for number in &told.acknowledged {
            let content = get(&format!("{url}/uploads/{number}"));
            assert_eq!(content.as_deref(), Some(&*format!("file {number}\n")));
        }
    };
    all_there();
    stage.said(1, "gracefully shutting down");
    stage.said(1, "\"PUT /uploads/0 HTTP/1.1\" 201");
    assert_eq!(stage.exec(&["stat", "-c", "%U", "/srv/uploads/0"]), "www-data\n");
    stage.cut_power();
    all_there();
    stage.deploy(1, 3);
    all_there();
    stage.said(2, "gracefully shutting down");
}

#[test]
fn small_nginx_takes_uploads_through_a_swap() {
    life("nginx-slim");
}

#[test]
fn nginx_of_its_package_takes_uploads_through_a_swap() {
    if super::everything() {
        life("nginx-app");
    }
}
