//! How the agent comes to know of a commit, and what it shows to whom on the way: webhooks, sockets and credentials of
//! systemd, proxies, a forge.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::forge_server::{ForgeServer, Request};
use super::git_server::{HttpServer, tls};
use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::proxy_server::ProxyServer;

const SECRET: &str = "correct horse battery staple";

/// What comes on top of the host's configuration.
fn on_top(lab: &Lab, text: &str) {
    fs::create_dir_all(lab.path("conf.d")).unwrap();
    fs::write(lab.path("conf.d/50.toml"), text).unwrap();
}

/// A service that is for another host: there is a commit to follow, and nothing to run.
fn elsewhere(lab: &Lab, tag: &str) -> String {
    lab.deploy(
        "web",
        &format!("image = \"r.example.org/web:{tag}\"\nhosts = [\"nobody\"]\n"),
        &format!("web {tag}"),
    )
}

fn served(lab: &Lab) -> HttpServer {
    lab.git(&lab.path("repo.git"), &["config", "http.receivepack", "true"]);
    HttpServer::start(&lab.path(""), None)
}

fn wait_commit(lab: &Lab, commit: &str) {
    wait_for(&format!("commit {commit}"), || (lab.status()["revision"]["commit"] == commit).then_some(()));
}

fn webhook(lab: &Lab) -> Value {
    lab.status()["repo"]["webhook"].clone()
}

/// The hook of the repo that does what a forge does.
fn post_receive(lab: &Lab, address: &str) {
    let hook = lab.path("repo.git/hooks/post-receive");
    let text = format!(
        "#!/bin/sh\nbody=$(mktemp)\ncat >$body\nmac=$(openssl dgst -sha256 -hmac '{SECRET}' -r $body | cut -d' ' -f1)\n\
         curl -s --noproxy '*' -o /dev/null --data-binary @$body -H \"X-Hub-Signature-256: sha256=$mac\" http://{address}/\nrm $body\n"
    );
    fs::write(&hook, text).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_push_is_told_of_by_a_webhook() {
    let mut lab = Lab::new();
    let server = served(&lab);
    fs::write(lab.path("secret"), SECRET).unwrap();
    on_top(
        &lab,
        &format!(
            "[repo]\nurl = \"{}\"\npoll = \"1h\"\n[webhook]\nlisten = \"127.0.0.1:0\"\nsecret_file = \"{}\"\n",
            server.url("repo.git"),
            lab.path("secret").display()
        ),
    );
    let first = elsewhere(&lab, "1");
    lab.start_agent();
    lab.wait_agent();
    wait_commit(&lab, &first);
    let address = webhook(&lab)["listen"].as_str().unwrap().to_owned();
    post_receive(&lab, &address);
    let mut times = Vec::new();
    for tag in 2..5 {
        let commit = elsewhere(&lab, &tag.to_string());
        let since = Instant::now();
        wait_commit(&lab, &commit);
        times.push(since.elapsed());
        assert_eq!(webhook(&lab)["deliveries"], tag - 1);
    }
    println!("from a push that is over to its commit believed, by webhook: {times:?}");
    // One that is not signed asks the git server nothing.
    let before = server.requests.load(Ordering::SeqCst);
    let status = Command::new("curl")
        .args(["-s", "--noproxy", "*", "-o", "/dev/null", "-d", "{}", &format!("http://{address}/")])
        .status()
        .unwrap();
    assert!(status.success());
    wait_for("the refusal to be counted", || (webhook(&lab)["refused"] == 1).then_some(()));
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(server.requests.load(Ordering::SeqCst), before);
    assert!(lab.agent_log().contains("is refused: it bears no signature"), "{}", lab.agent_log());
}

/// By the program that systemd has for trying sockets out: it listens, and executes the agent when somebody comes.
#[test]
fn a_socket_of_systemd_is_taken_over() {
    let lab = Lab::new();
    elsewhere(&lab, "1");
    fs::write(lab.path("secret"), SECRET).unwrap();
    let secret = lab.path("secret").display().to_string();
    on_top(&lab, &format!("[webhook]\nlisten = \"systemd\"\nsecret_file = \"{secret}\"\n"));
    let address = format!("127.0.0.1:{}", free_port());
    let log = fs::File::create(lab.path("agent.log")).unwrap();
    let mut agent = Command::new("systemd-socket-activate")
        .args(["-l", &address])
        .arg(&lab.program)
        .arg("--config")
        .arg(lab.config())
        .arg("run")
        .env_remove("NOTIFY_SOCKET")
        .stderr(log)
        .spawn()
        .unwrap();
    // What is sent before the agent runs is answered once it does.
    let sent = wait_for("the delivery", || {
        let output = Command::new("curl")
            .args(["-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", "-d", "{}"])
            .args(["-H", &format!("X-Gitlab-Token: {SECRET}"), &format!("http://{address}/")])
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    let told = webhook(&lab);
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(
        (sent.as_str(), &told["listen"], &told["deliveries"]),
        ("202", &Value::from(address), &Value::from(1))
    );
}

#[test]
fn a_proxy_of_the_environment_and_a_credential_of_systemd() {
    let mut lab = Lab::new();
    // Through a tunnel, to a server of an own authority that wants a token.
    let (certificate, authority) = tls(&lab.path(""));
    let server = HttpServer::start(&lab.path(""), Some(certificate));
    server.behaviour.lock().unwrap().credentials = Some("x-access-token:t0ken".to_owned());
    let port = server.url("").trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
    let proxy = ProxyServer::start(port);
    let place = format!("http://127.0.0.1:{}", proxy.port);
    fs::create_dir(lab.path("credentials")).unwrap();
    fs::write(lab.path("credentials/git-token"), "t0ken\n").unwrap();
    let credentials = lab.path("credentials").display().to_string();
    on_top(
        &lab,
        &format!(
            "[repo]\nurl = \"{}\"\npoll = \"1h\"\nca_file = \"{}\"\ntoken_file = \"credential:git-token\"\n\
             [report]\npush = false\n",
            server.url("repo.git"),
            authority.display()
        ),
    );
    let commit = elsewhere(&lab, "2");
    lab.start_agent_with(&[("https_proxy", place.as_str()), ("CREDENTIALS_DIRECTORY", credentials.as_str())]);
    lab.wait_agent();
    wait_commit(&lab, &commit);
    // From now on the server is shown the token at once, and the proxy never.
    let asked = || server.shown.lock().unwrap().iter().filter(|shown| shown.is_none()).count();
    let before = asked();
    lab.sync();
    assert_eq!(asked(), before);
    let tunnel = format!("CONNECT 127.0.0.1:{port} ");
    assert!(proxy.lines().iter().all(|line| line.starts_with(&tunnel)), "{:?}", proxy.lines());
    lab.stop_agent();
    // What NO_PROXY names goes by none, and plain http does not.
    let before = proxy.lines().len();
    let commit = elsewhere(&lab, "3");
    lab.start_agent_with(&[
        ("https_proxy", place.as_str()),
        ("no_proxy", "127.0.0.1"),
        ("CREDENTIALS_DIRECTORY", credentials.as_str()),
    ]);
    lab.wait_agent();
    wait_commit(&lab, &commit);
    assert_eq!(proxy.lines().len(), before);
    lab.stop_agent();
    let server = served(&lab);
    on_top(&lab, &format!("[repo]\nurl = \"{}\"\npoll = \"1h\"\n", server.url("repo.git")));
    let commit = elsewhere(&lab, "4");
    lab.start_agent_with(&[("http_proxy", place.as_str())]);
    lab.wait_agent();
    wait_commit(&lab, &commit);
    assert_eq!(proxy.lines().len(), before);
}

#[test]
fn a_host_that_is_settled_asks_once_a_poll_and_writes_nothing() {
    use notify::{RecursiveMode, Watcher as _};
    let (mut lab, _) = Lab::serving();
    let server = served(&lab);
    on_top(&lab, &format!("[repo]\nurl = \"{}\"\npoll = \"1s\"\n", server.url("repo.git")));
    lab.stop_agent();
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    wait_for("the receipts to be pushed", || {
        let status = lab.status();
        (status["outbox"] == 0 && status["agent"]["state"] == "in-sync").then_some(())
    });
    // What follows a start (layers are looked at, images collected) is over.
    let calm = || {
        let (tell, told) = std::sync::mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event
                && !event.kind.is_access()
                // What the container itself writes is none of the agent's.
                && !event.paths.iter().any(|path| path.components().any(|part| part.as_os_str() == "logs"))
            {
                let _ = tell.send(event);
            }
        })
        .unwrap();
        watcher.watch(&lab.path("state"), RecursiveMode::Recursive).unwrap();
        let before = server.requests.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_secs(4));
        let asked = server.requests.load(Ordering::SeqCst) - before;
        let written: Vec<_> = told.try_iter().collect();
        if !written.is_empty() {
            println!("{written:?}");
        }
        written.is_empty().then_some(asked)
    };
    let asked = wait_for("four seconds without a write", calm);
    assert!((2..=5).contains(&asked), "{asked} requests in 4 s of a poll of 1 s");
}

fn shown(forge: &ForgeServer) -> Vec<(String, String)> {
    let of = |request: Request| {
        let commit = request.line.split(['/', ' ']).rev().nth(2).unwrap().to_owned();
        (commit, request.body["state"].as_str().unwrap().to_owned())
    };
    forge.requests().into_iter().map(of).collect()
}

#[test]
fn a_forge_shows_what_became_of_each_commit() {
    let forge = ForgeServer::start();
    // It is away at first: nothing waits for it, and it is said once.
    forge.answer("500 Oops\r\n|{\"message\": \"try later\"}");
    let mut lab = Lab::new();
    fs::write(lab.path("token"), "s3cret").unwrap();
    on_top(
        &lab,
        &format!(
            "[status]\nforge = \"gitea\"\nurl = \"http://127.0.0.1:{}/ops/config\"\ntoken_file = \"{}\"\n",
            forge.port,
            lab.path("token").display()
        ),
    );
    let port = lab.serve();
    let work = lab.path("work");
    let first = lab.git(&work, &["rev-parse", "HEAD"]);
    lab.wait_receipt("deployed");
    wait_for("the first commit to be shown", || {
        shown(&forge).contains(&(first.clone(), "success".to_owned())).then_some(())
    });
    let events = lab.ok(&["events"]);
    assert_eq!(events.matches("status-stuck").count(), 1, "{events}");
    assert!(!events.contains("s3cret") && !lab.agent_log().contains("s3cret"));

    // One that is not well.
    let sick = lab.image("2", Kind::Sick);
    let second = lab.deploy("web", &web(&sick, port, ""), "web 2");
    wait_for("the second commit to fail", || {
        shown(&forge).contains(&(second.clone(), "failure".to_owned())).then_some(())
    });
    let of_second: Vec<String> =
        shown(&forge).into_iter().filter(|(commit, _)| *commit == second).map(|(_, state)| state).collect();
    assert_eq!(of_second, ["pending", "failure"], "each once, and in order");
    let last = forge.requests().pop().unwrap();
    assert_eq!(last.body["context"], "gitopsd/host-1");
    assert!(last.body["description"].as_str().unwrap().starts_with("web: "), "{last:?}");
    // A restart says nothing again of what it has noted; the forge hears of it a moment before.
    wait_for("a note of it", || {
        let noted = fs::read_to_string(lab.path("state/commit-status.json")).unwrap_or_default();
        (noted.contains(&second) && noted.contains("failure")).then_some(())
    });
    let count = forge.requests().len();
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    let good = lab.image("3", Kind::Good);
    let third = lab.deploy("web", &web(&good, port, ""), "web 3");
    wait_for("the third commit", || {
        shown(&forge).contains(&(third.clone(), "success".to_owned())).then_some(())
    });
    assert!(shown(&forge)[count..].iter().all(|(commit, _)| *commit == third), "{:?}", shown(&forge));
}

#[test]
fn receipts_go_to_a_branch_where_the_server_takes_no_notes_and_it_is_said_once() {
    let mut lab = Lab::new();
    let server = served(&lab);
    on_top(&lab, &format!("[repo]\nurl = \"{}\"\npoll = \"1s\"\n", server.url("repo.git")));
    let hook = lab.path("repo.git/hooks/update");
    fs::write(&hook, "#!/bin/sh\ncase $1 in refs/notes/*) exit 1;; esac\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let port = lab.serve();
    for version in ["2", "3"] {
        let image = lab.image(version, Kind::Good);
        lab.deploy("web", &web(&image, port, ""), &format!("web {version}"));
        lab.wait_serving("web", &image);
    }
    wait_for("three receipts on the branch", || {
        let count = Command::new("git")
            .args(["--git-dir", lab.path("repo.git").to_str().unwrap(), "-c", "safe.directory=*"])
            .args(["rev-list", "--count", "gitopsd/receipts/host-1"])
            .output()
            .unwrap();
        (String::from_utf8_lossy(&count.stdout).trim() == "3" && lab.status()["outbox"] == 0).then_some(())
    });
    let events = lab.ok(&["events"]);
    assert_eq!(events.matches("receipts-on-branch").count(), 1, "{events}");
    assert_eq!(events.matches("receipts-stuck").count(), 0, "{events}");
    // Whoever clones has them.
    lab.git(&lab.path(""), &["clone", "-q", "repo.git", "reader"]);
    let reader = lab.path("reader").display().to_string();
    let fleet: Value = serde_json::from_str(&lab.ok(&["fleet", &reader, "--json"])).unwrap();
    assert_eq!(
        (&fleet["hosts"][0]["host"], &fleet["hosts"][0]["state"]),
        (&"host-1".into(), &"in-step".into())
    );
}

/// When the agent said that it believes a commit, in milliseconds since 1970.
fn admitted(lab: &Lab, commit: &str) -> i64 {
    wait_for(&format!("commit {commit} to be believed"), || {
        let events = lab.ok(&["events"]);
        let mut found = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let event = found.find(|event| event["event"] == "revision-admitted" && event["commit"] == commit)?;
        let time: gitopsd::types::Timestamp = event["at"].as_str()?.parse().ok()?;
        Some(time.as_millisecond())
    })
}

fn now() -> i64 {
    gitopsd::agent::clock::now().as_millisecond()
}

/// `scripts/bench-watch`: from the beginning of `git push` until the agent believes the commit, by mode.
#[test]
#[ignore = "a measurement: scripts/bench-watch"]
fn bench_watch() {
    const ROUNDS: usize = 15;
    let mut lab = Lab::new();
    if let Some(program) = std::env::var_os("GITOPSD_BIN") {
        lab.program = program.into();
    }
    let server = served(&lab);
    fs::write(lab.path("secret"), SECRET).unwrap();
    elsewhere(&lab, "0");
    let (local, remote) = (lab.path("repo.git").display().to_string(), server.url("repo.git"));
    let listen =
        format!("[webhook]\nlisten = \"127.0.0.1:0\"\nsecret_file = \"{}\"\n", lab.path("secret").display());
    println!("| way | remote | `git push` itself, ms | to its commit believed, ms: median | least | most |");
    println!("|---|---|---|---|---|---|");
    let mut tag = 0;
    for (way, url, poll, more) in [
        ("file watch", &local, "1h", ""),
        ("webhook", &remote, "1h", listen.as_str()),
        ("`gitopsd sync` after the push", &remote, "1h", ""),
        ("poll of 2 s", &remote, "2s", ""),
    ] {
        on_top(&lab, &format!("[repo]\nurl = \"{url}\"\npoll = \"{poll}\"\n{more}"));
        lab.start_agent();
        lab.wait_agent();
        lab.sync();
        let hook = lab.path("repo.git/hooks/post-receive");
        let _ = fs::remove_file(&hook);
        if way == "webhook" {
            post_receive(&lab, webhook(&lab)["listen"].as_str().unwrap());
        }
        let (mut pushes, mut times) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            tag += 1;
            let text = format!("image = \"r.example.org/web:{tag}\"\nhosts = [\"nobody\"]\n");
            lab.write("services/web.toml", &text);
            let work = lab.path("work");
            lab.git(&work, &["commit", "-q", "-am", &format!("web {tag}")]);
            let commit = lab.git(&work, &["rev-parse", "HEAD"]);
            let begun = now();
            lab.git(&work, &["push", "-q", "origin", "HEAD:main"]);
            pushes.push(now() - begun);
            if way.contains("sync") {
                lab.ok(&["sync"]);
            }
            times.push(admitted(&lab, &commit) - begun);
            // Wakes of one second are one wake: the next push is not to wait for that.
            std::thread::sleep(Duration::from_millis(1_100));
        }
        pushes.sort_unstable();
        times.sort_unstable();
        println!(
            "| {way} | {} | {} | **{}** | {} | {} |",
            if *url == local { "a directory" } else { "http" },
            pushes[ROUNDS / 2],
            times[ROUNDS / 2],
            times[0],
            times[ROUNDS - 1]
        );
        lab.stop_agent();
    }
}
