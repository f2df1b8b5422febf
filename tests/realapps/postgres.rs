//! PostgreSQL: what was committed is there, and a deploy is no crash.

use super::stage::{Client, Stage, ask};

const FILE: &str = r#"image = "IMAGE"
ports = ["127.0.0.1:PORT:5432"]
volumes = ["data:/var/lib/postgresql/data"]
environment = { POSTGRES_USER = "shop", POSTGRES_PASSWORD = "a test's", POSTGRES_DB = "orders" }
shm_size = "128m"
stop_grace_period = "30s"
[healthcheck]
test = ["CMD-SHELL", "pg_isready -q -h 127.0.0.1 -U shop -d orders"]
interval = "500ms"
start_period = "60s"
[deploy]
drain = "1s"
bake = "200ms"
"#;

/// What the server says at a start after it was stopped, and after it was not.
const WHOLE: &str = "database system was shut down at";
const BROKEN: &str = "database system was not properly shut down";

#[test]
fn postgresql_keeps_what_it_committed_and_is_stopped_cleanly() {
    if !super::everything() {
        return;
    }
    let mut stage = Stage::new("db", "postgres-app", FILE);
    let port = stage.port.to_string();
    let query = move |text: &str| {
        let args = [
            "-X",
            "-q",
            "-A",
            "-t",
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "shop",
            "-d",
            "orders",
            "-c",
            text,
        ];
        ask("psql", &args, &[("PGPASSWORD", "a test's"), ("PGCONNECT_TIMEOUT", "5")])
    };
    stage.said(1, "entrypoint: a new cluster is ready");
    query("create table orders (number int primary key, placed timestamptz default now())").unwrap();
    let write = query.clone();
    let client =
        Client::begin(move |number| write(&format!("insert into orders values ({number})")).is_some());
    stage.deploy(2, 2);
    let told = client.end();
    let all_there = || {
        let rows = query("select number from orders order by number").unwrap();
        let rows: Vec<usize> = rows.lines().map(|line| line.parse().unwrap()).collect();
        for number in &told.acknowledged {
            assert!(rows.binary_search(number).is_ok(), "order {number} was committed and is not there");
        }
    };
    all_there();
    // The image's own signal: SIGTERM would wait for every client to go.
    stage.said(1, "received fast shutdown request");
    stage.said(1, "database system is shut down");
    stage.said(2, WHOLE);
    stage.never_said(2, BROKEN);
    stage.never_said(2, "a new cluster");
    // A process for each connection, System V and POSIX shared memory, a sort on the disk.
    let sorted = query(
        "set work_mem = '64kB'; select count(*) from (select n from generate_series(1, 300000) n order by md5(n::text)) s",
    );
    assert_eq!(sorted.as_deref(), Some("300000\n"));
    stage.cut_power();
    all_there();
    stage.said(2, BROKEN);
    stage.deploy(1, 3);
    all_there();
    stage.said(2, "database system is shut down");
    stage.said(3, WHOLE);
    stage.never_said(3, BROKEN);
}
