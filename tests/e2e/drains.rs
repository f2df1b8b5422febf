//! Old connections: counted, shown, finished, and cut when their time is over.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::{Load, get};

/// A connection that asks nothing yet. Busybox ends it after a minute: to be had right before the deploy.
pub fn held(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Asks on a connection that was held.
fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What was told of a kind of event.
pub fn told(lab: &Lab, event: &str) -> Vec<Value> {
    let events = lab.ok(&["events"]);
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|it| it["event"] == event).collect()
}

fn connections(lab: &Lab) -> Option<u64> {
    lab.service("web")["drain"]["connections"].as_u64()
}

#[test]
fn a_drain_lasts_as_long_as_its_connections() {
    let (lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    let mut streams = [held(port), held(port), held(port)];
    lab.deploy("web", &web(&v2, port, "").replace("drain = \"3s\"", "drain = \"10m\""), "web 2");
    wait_for(&format!("the count; {}", lab.agent_log()), || (connections(&lab) == Some(3)).then_some(()));
    let drain = lab.service("web")["drain"].clone();
    assert_eq!(drain["generation"], 1);
    assert!(drain["until"].is_string() && drain["since"].is_string(), "{drain}");
    let status = lab.ok(&["status"]);
    assert!(status.contains("web: generation 1 drains: 3 connections, for "), "{status}");
    assert!(lab.ok(&["why", "web"]).contains("generation 1 drains: 3 connections"));
    // New ones go to the new generation, old ones are served by the old one.
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    let [first, second, third] = &mut streams;
    assert!(ask(first).unwrap().ends_with("version 1\n"));
    wait_for("one less", || (connections(&lab) == Some(2)).then_some(()));
    assert!(ask(second).unwrap().ends_with("version 1\n"));
    assert!(ask(third).unwrap().ends_with("version 1\n"));
    wait_for("the end of the drain", || (lab.service("web")["drain"] == Value::Null).then_some(()));
    let told = told(&lab, "drained");
    assert_eq!(told.len(), 1, "{told:?}");
    let message = told[0]["message"].as_str().unwrap();
    assert!(message.starts_with("web: generation 1 has no connection left, "), "{message}");
    assert_eq!(told[0]["generation"], 1);
}

#[test]
fn what_outlasts_its_drain_is_cut_and_hears_of_it_at_once() {
    let (lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    let mut stream = held(port);
    lab.deploy("web", &web(&v2, port, "").replace("drain = \"3s\"", "drain = \"5s\""), "web 2");
    wait_for("the count", || (connections(&lab) == Some(1)).then_some(()));
    let mut byte = [0; 1];
    // The end of it, in one way or the other, and not the time limit of this socket.
    let begun = Instant::now();
    match stream.read(&mut byte) {
        Ok(0) => {}
        Ok(_) => panic!("an answer to nothing"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    wait_for("the end of the drain", || (lab.service("web")["drain"] == Value::Null).then_some(()));
    let told = told(&lab, "drained");
    let message = told[0]["message"].as_str().unwrap();
    let lasted = message.strip_prefix("web: generation 1 is stopped with 1 connection left, ");
    let lasted =
        lasted.and_then(|rest| rest.strip_suffix(" after the switch")).unwrap_or_else(|| panic!("{message}"));
    assert!((5..30).contains(&gitopsd::types::parse_duration(lasted).unwrap().as_secs()), "{message}");
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

/// A program that finishes what it has begun: it is told early, and has the drain for it, whatever its grace period.
#[test]
fn an_early_signal_leaves_the_drain_to_the_program() {
    let mut lab = Lab::new();
    let port = super::lab::free_port();
    let v1 = lab.image("1", Kind::Good);
    let command = "trap \"sleep 12; exit 0\" TERM; httpd -f -p 8080 -h /www & wait";
    let more = format!("command = [\"/bin/sh\", \"-c\", '{command}']");
    let file = |image: &str, more: &str| {
        web(image, port, more)
            .replace("stop_grace_period = \"2s\"", "stop_grace_period = \"100ms\"")
            .replace("drain = \"3s\"", "drain = \"40s\"")
    };
    let early = file(&v1, &more).replace("[deploy]", "[deploy]\ndrain_signal = \"early\"");
    lab.deploy("web", &early, "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_serving("web", &v1);
    let v2 = lab.image("2", Kind::Good);
    let mut stream = held(port);
    lab.deploy("web", &file(&v2, ""), "web 2");
    let message = wait_for(&format!("the signal; {}", lab.agent_log()), || {
        told(&lab, "drained").first().map(|told| told["message"].as_str().unwrap().to_owned())
    });
    assert!(message.starts_with("web: generation 1 is told to end with 1 connection, "), "{message}");
    assert!(message.contains("after the switch; it has 3"), "{message}");
    let begun = Instant::now();
    // It goes on with what it has: the grace period is long over by then.
    std::thread::sleep(Duration::from_secs(1));
    assert!(ask(&mut stream).unwrap().ends_with("version 1\n"));
    wait_for("its end", || (lab.service("web")["drain"] == Value::Null).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
}

/// What serves is started again at once, however long the old version takes to end.
#[test]
fn what_serves_comes_back_while_the_old_version_ends() {
    let mut lab = Lab::new();
    let port = super::lab::free_port();
    let v1 = lab.image("1", Kind::Good);
    let command = "trap \"sleep 50; exit 0\" TERM; httpd -f -p 8080 -h /www & wait";
    let more = format!("command = [\"/bin/sh\", \"-c\", '{command}']");
    let file = |image: &str, more: &str| web(image, port, more).replace("drain = \"3s\"", "drain = \"10m\"");
    lab.deploy("web", &file(&v1, &more).replace("[deploy]", "[deploy]\ndrain_signal = \"early\""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_serving("web", &v1);
    let v2 = lab.image("2", Kind::Good);
    let _open = held(port);
    lab.deploy("web", &file(&v2, ""), "web 2");
    wait_for(&format!("the signal; {}", lab.agent_log()), || told(&lab, "drained").first().map(|_| ()));
    let of = |generation: &str| {
        let mut all = super::replicas::containers(&lab).into_iter();
        all.find(|name| name.ends_with(generation))
    };
    let begun = Instant::now();
    super::replicas::kill(&lab, &of("2").unwrap());
    wait_for("the next start", || (lab.service("web")["restarts"].as_u64() >= Some(1)).then_some(()));
    wait_for("an answer", || get(port, "/").ok().filter(|answer| answer == "version 2\n"));
    let took = begun.elapsed();
    assert!(of("1").is_some(), "the old version had ended by then, after {took:?}: {}", lab.agent_log());
}

/// A program that ends at once when it is told to, whatever it is at, and answers after a second.
fn abrupt(image: &str, port: u16, keys: &str) -> String {
    let more = r##"command = ["/bin/sh", "-c", 'trap "exit 0" TERM; /bin/busybox cp -r /www /w; /bin/busybox mkdir /w/cgi-bin; /bin/busybox printf %s "$SLOW" > /w/cgi-bin/slow; /bin/busybox chmod 755 /w/cgi-bin/slow; httpd -f -p 8080 -h /w & wait']
environment = { SLOW = '''#!/bin/sh
/bin/busybox sleep 1
/bin/busybox printf "Content-Type: text/plain\r\n\r\n"
/bin/busybox cat /w/index.html
''' }"##;
    format!("{}{keys}\n", web(image, port, more).replace("drain = \"3s\"", "drain = \"60s\""))
}

/// What is well and is given up all the same, for a newer commit or by a person, ends what it has begun.
#[test]
fn what_is_given_up_though_it_is_well_loses_no_request() {
    let (mut lab, port) = (Lab::new(), free_port());
    let all: Vec<_> = (1..=4).map(|version| lab.image(&version.to_string(), Kind::Good)).collect();
    let [v1, v2, v3, v4] = &all[..] else { unreachable!() };
    lab.deploy("web", &abrupt(v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let load = Load::of(port, "/cgi-bin/slow", 8, 8);
    let phase = |word: &str| lab.service("web")["rollout"]["phase"] == word;
    let canary = "canary = \"50%\"\ncanary_time = \"5m\"";
    lab.deploy("web", &abrupt(v2, port, canary), "web 2");
    wait_for("its part", || {
        (0..20).any(|_| get(port, "/").is_ok_and(|body| body == "version 2\n")).then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    lab.deploy("web", &abrupt(v3, port, ""), "web 3");
    lab.sync();
    assert_eq!(lab.service("web")["image"], *v3);

    let bake = abrupt(v4, port, "").replace("bake = \"500ms\"", "bake = \"5m\"");
    lab.deploy("web", &bake, "web 4");
    wait_for("all connections", || phase("baking").then_some(()));
    std::thread::sleep(Duration::from_secs(3));
    lab.ok(&["rollback", "web"]);
    wait_for("the drain", || (lab.service("web")["drain"]["generation"] == 4).then_some(()));
    let status = lab.ok(&["status"]);
    assert!(status.contains("web: generation 4 drains: "), "{status}");
    wait_for("the end of it", || lab.service("web")["rollout"].is_null().then_some(()));
    load.end_without_failure();
    assert_eq!(get(port, "/").unwrap(), "version 3\n");
    let receipts = lab.history();
    let came: Vec<_> = receipts.iter().map(|it| (it["result"].clone(), it["reason"].clone())).collect();
    let given_up = |reason: &str| (Value::from("rolled-back"), Value::from(reason));
    assert!(
        came.contains(&given_up("superseded")) && came.contains(&given_up("operator-rollback")),
        "{came:?}"
    );
    let told = told(&lab, "drained");
    let of = |generation: u64| told.iter().find(|it| it["generation"] == generation).unwrap();
    for generation in [2, 4] {
        let message = of(generation)["message"].as_str().unwrap();
        let what = format!("web: generation {generation} has no connection left, ");
        assert!(message.starts_with(&what) && message.ends_with(" after it was given up"), "{message}");
    }
}

fn take_off(lab: &Lab) {
    std::fs::remove_file(lab.path("work").join("services/web.toml")).unwrap();
    lab.commit("no web");
}

/// A service that a commit takes off the host: what it has begun is finished, and nobody begins anything new.
#[test]
fn what_is_removed_finishes_what_it_has_begun() {
    let (mut lab, port) = (Lab::new(), free_port());
    let v1 = lab.image("1", Kind::Good);
    lab.write("services/stays.toml", &web(&v1, free_port(), ""));
    lab.deploy("web", &abrupt(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let mut streams: Vec<_> = (0..4).map(|_| held(port)).collect();
    take_off(&lab);
    wait_for("the end of its route", || TcpStream::connect(("127.0.0.1", port)).is_err().then_some(()));
    for stream in &mut streams {
        stream.write_all(b"GET /cgi-bin/slow HTTP/1.0\r\n\r\n").unwrap();
    }
    let begun = Instant::now();
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("version 1\n"), "{answer:?}");
    }
    lab.sync();
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    assert_eq!(lab.history().pop().unwrap()["result"], "removed");
}

/// A service that is wanted again before its last connections have ended is back at once, as it was.
#[test]
fn what_is_wanted_again_meanwhile_was_never_away() {
    let (mut lab, port) = Lab::serving();
    let v1 = lab.service("web")["image"].as_str().unwrap().to_owned();
    lab.write("services/stays.toml", &web(&v1, free_port(), ""));
    let file = web(&v1, port, "").replace("drain = \"3s\"", "drain = \"10m\"");
    lab.deploy("web", &file, "a longer drain");
    lab.sync();
    let mut stream = held(port);
    take_off(&lab);
    wait_for("the count", || (connections(&lab) == Some(1)).then_some(()));
    let status = lab.ok(&["status"]);
    assert!(status.contains("web: generation 1 drains: 1 connection, for "), "{status}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    // The next agent goes on with it.
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    wait_for("the count again", || (connections(&lab) == Some(1)).then_some(()));
    lab.deploy("web", &file, "web is back");
    wait_for("an answer", || get(port, "/").ok().filter(|answer| answer == "version 1\n"));
    assert_eq!(lab.service("web")["generation"], 1);
    assert!(ask(&mut stream).unwrap().ends_with("version 1\n"));
    lab.sync();
    assert!(lab.history().iter().all(|it| it["result"] != "removed"), "{:?}", lab.history());
}

/// Going back by hand does not wait for the version before, which may drain for hours.
#[test]
fn going_back_does_not_wait_for_what_drains() {
    let (lab, port) = Lab::serving();
    let v2 = lab.image("2", Kind::Good);
    let _stream = held(port);
    lab.deploy("web", &web(&v2, port, "").replace("drain = \"3s\"", "drain = \"6h\""), "web 2");
    wait_for(&format!("the drain; {}", lab.agent_log()), || (connections(&lab) == Some(1)).then_some(()));
    lab.ok(&["rollback", "web"]);
    wait_for("an answer", || get(port, "/").ok().filter(|answer| answer == "version 1\n"));
    wait_for("the end", || lab.service("web")["rollout"].is_null().then_some(()));
    assert_eq!(lab.service("web")["generation"], 3);
}

/// A connection from a port of the client's choice.
fn from_port(local: u16, port: u16) -> std::io::Result<TcpStream> {
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::*;

    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, local))?;
    connect(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    let stream = TcpStream::from(socket);
    // It waits for a whole deploy.
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    Ok(stream)
}

/// A client whose connection is reset may begin the next one from the same port. The kernel still knows the connection, and
/// sends what begins another one where that one went: into a container that is about to go.
#[test]
fn a_port_that_a_client_uses_again_leads_to_what_serves() {
    let (mut lab, port) = (Lab::new(), free_port());
    let v1 = lab.image("1", Kind::Good);
    // It reads nothing: its connections are reset when it ends.
    let more = "command = [\"/bin/sh\", \"-c\", 'trap \"exit 0\" TERM; /bin/busybox nc -ll -p 8080 -e /bin/sleep 1000 & wait']";
    let deaf = web(&v1, port, more).replace("http = \"/healthz\"", "tcp = 8080");
    lab.deploy("web", &deaf, "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_serving("web", &v1);
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let local = free_port();
            let mut stream = from_port(local, port).unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            std::thread::spawn(move || {
                let ended = stream.read(&mut [0; 1]);
                drop(stream);
                let again = from_port(local, port).and_then(|mut stream| ask(&mut stream));
                (local, ended, again)
            })
        })
        .collect();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    for client in clients {
        let (local, ended, again) = client.join().unwrap();
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        let again = again.unwrap_or_else(|error| panic!("from port {local}: {error}; {}", lab.agent_log()));
        assert!(again.ends_with("version 2\n"), "from port {local}: {again}");
    }
}
