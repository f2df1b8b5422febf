//! Remotes over http, https and ssh.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use gitopsd::config::agent::RepoConfig;
use gitopsd::git::{GitError, Repository};
use gitopsd::types::Reason;

use crate::git_server::{HttpServer, Lab, SshServer, tls};
use crate::notes::receipt;
use crate::{config, follow};

fn http(lab: &Lab) -> HttpServer {
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    HttpServer::start(&lab.path(""), None)
}

/// Fetches, reads, publishes, moves on, publishes again.
fn whole_way(lab: &Lab, config: &RepoConfig, cache: &Path) {
    let repository = Repository::open(config, cache).unwrap();
    let name = "web-1".parse().unwrap();
    let first = follow(&repository, None).unwrap();
    assert!(repository.files(&first).unwrap().contains_key("services/shop.toml"));
    repository.publish(None, &name, &[receipt(first.id(), "a")]).unwrap();
    assert!(!repository.fetch().unwrap().moved);
    let second = lab.commit("services/shop.toml", "2", "2");
    let second = follow(&repository, Some(first.id())).map(|c| (c.id().as_str() == second, c)).unwrap();
    assert!(second.0);
    // Somebody else writes to the notes meanwhile; then the state is lost.
    lab.git("config.git", &["notes", "--ref=gitopsd/web-1", "append", "-m", "by hand", first.id().as_str()]);
    repository.publish(None, &name, &[receipt(second.1.id(), "b")]).unwrap();
    fs::remove_dir_all(cache).unwrap();
    let repository = Repository::open(config, cache).unwrap();
    follow(&repository, Some(first.id())).unwrap();
    repository.publish(None, &name, &[receipt(first.id(), "a"), receipt(first.id(), "c")]).unwrap();
    let log = lab.git("config.git", &["log", "--notes=gitopsd/*", "main"]);
    for part in ["\"id\":\"a\"", "\"id\":\"b\"", "\"id\":\"c\"", "by hand"] {
        assert_eq!(log.matches(part).count(), 1, "{part} in {log}");
    }
}

fn fails(config: &RepoConfig, lab: &Lab) -> GitError {
    let error = Repository::open(config, &lab.cache()).unwrap().fetch().unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    error
}

#[test]
fn http_goes_the_whole_way() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    whole_way(&lab, &config(&server.url("config.git")), &lab.cache());
}

#[test]
fn a_look_at_an_unmoved_branch_is_one_request() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    let repository = Repository::open(&config(&server.url("config.git")), &lab.cache()).unwrap();
    repository.fetch().unwrap();
    let before = server.requests.load(Ordering::SeqCst);
    repository.fetch().unwrap();
    assert_eq!(server.requests.load(Ordering::SeqCst) - before, 1);
}

#[test]
fn http_credentials() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    server.behaviour.lock().unwrap().credentials = Some("deploy:hunter2".to_owned());
    let mut config = config(&server.url("config.git"));
    let error = fails(&config, &lab);
    assert_eq!(error.reason, Reason::Auth);
    assert!(error.to_string().contains("repo.token_file"), "{error}");

    fs::write(lab.path("password"), "wrong\n").unwrap();
    config.username = Some("deploy".to_owned());
    config.password_file = Some(lab.path("password"));
    let before = server.requests.load(Ordering::SeqCst);
    let error = fails(&config, &lab);
    assert_eq!(error.reason, Reason::Auth);
    assert!(error.to_string().contains("refused the git credentials"), "{error}");
    assert!(server.requests.load(Ordering::SeqCst) - before < 5, "no guessing");

    fs::write(lab.path("password"), "hunter2\n").unwrap();
    whole_way(&lab, &config, &lab.path("cache2"));

    config.password_file = Some(lab.path("none"));
    let error = fails(&config, &lab);
    assert_eq!(error.reason, Reason::Auth);
    assert!(error.to_string().contains("repo.password_file"), "{error}");

    // The name and password of the URL are not shown, and the ones of repo.url go nowhere else.
    config.url = server.url("config.git").replace("http://", "http://deploy:hunter2x@").parse().unwrap();
    fails(&config, &lab);
    let other = http(&lab);
    other.behaviour.lock().unwrap().credentials = Some("deploy:hunter2".to_owned());
    config.url = server.url("config.git").parse().unwrap();
    config.password_file = Some(lab.path("password"));
    let repository = Repository::open(&config, &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let audit = other.url("config.git").parse().unwrap();
    let error = repository
        .publish(Some(&audit), &"web-9".parse().unwrap(), &[receipt(commit.id(), "x")])
        .unwrap_err();
    assert_eq!(error.reason, Reason::Auth, "{error}");
}

#[test]
fn http_errors_are_never_an_empty_repo() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    let url = config(&server.url("config.git"));
    let repository = Repository::open(&url, &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    for (status, reason) in [
        (401, Reason::Auth),
        (403, Reason::Auth),
        (404, Reason::GitUnreachable),
        (500, Reason::GitUnreachable),
        (502, Reason::GitUnreachable),
    ] {
        server.behaviour.lock().unwrap().status = Some(status);
        let error = repository.fetch().unwrap_err();
        println!("{status}: {error}");
        assert_eq!(error.reason, reason, "{status}: {error}");
        let error =
            repository.publish(None, &"web-1".parse().unwrap(), &[receipt(commit.id(), "a")]).unwrap_err();
        assert_eq!(error.reason, reason, "{status}: {error}");
    }
    server.behaviour.lock().unwrap().status = None;
    assert_eq!(fails(&config(&server.url("none.git")), &lab).reason, Reason::GitUnreachable);

    // Another host, by redirect.
    let elsewhere = http(&lab);
    let place = elsewhere.url("").trim_end_matches('/').replace("127.0.0.1", "localhost");
    server.behaviour.lock().unwrap().redirect = Some(place);
    let error = repository.fetch().unwrap_err();
    assert_eq!(error.reason, Reason::GitUnreachable, "{error}");
    assert_eq!(elsewhere.requests.load(Ordering::SeqCst), 0);

    let url = server.url("config.git");
    drop(server);
    assert_eq!(fails(&config(&url), &lab).reason, Reason::GitUnreachable);
}

#[test]
fn refused_receipts_say_so() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    let repository = Repository::open(&config(&server.url("config.git")), &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let publish = || repository.publish(None, &"web-1".parse().unwrap(), &[receipt(commit.id(), "a")]);

    lab.git("config.git", &["config", "http.receivepack", "false"]);
    let error = publish().unwrap_err();
    assert_eq!(error.reason, Reason::Auth, "read-only: {error}");
    lab.git("config.git", &["config", "http.receivepack", "true"]);

    // Neither the notes nor a branch: `branch.rs` has what comes of the one without the other.
    for hidden in ["refs/notes", "refs/heads/gitopsd"] {
        lab.git("config.git", &["config", "--add", "transfer.hideRefs", hidden]);
    }
    let error = publish().unwrap_err();
    assert_eq!(error.reason, Reason::NotesRefused, "hidden: {error}");
    assert!(error.to_string().matches("hidden").count() >= 2, "{error}");
    lab.git("config.git", &["config", "--unset-all", "transfer.hideRefs"]);

    let hook = lab.path("config.git/hooks/update");
    fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    Command::new("chmod").arg("755").arg(&hook).status().unwrap();
    let error = publish().unwrap_err();
    assert_eq!(error.reason, Reason::NotesRefused, "hook: {error}");
    fs::remove_file(&hook).unwrap();
    publish().unwrap();

    // A branch that is hidden is a branch that is missing.
    lab.git("config.git", &["config", "transfer.hideRefs", "refs/heads/main"]);
    assert_eq!(repository.fetch().unwrap_err().reason, Reason::GitUnreachable);
}

#[test]
fn https_wants_a_trusted_certificate() {
    let lab = Lab::new().with_repo();
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    let (certificate, authority) = tls(&lab.path(""));
    let server = HttpServer::start(&lab.path(""), Some(certificate));
    let mut config = config(&server.url("config.git"));
    // In this order: libgit2 has one list of authorities a process.
    let error = fails(&config, &lab);
    assert_eq!(error.reason, Reason::Tls, "{error}");
    config.ca_file = Some(authority);
    whole_way(&lab, &config, &lab.path("cache2"));
    // The name counts too.
    config.url = server.url("config.git").replace("127.0.0.1", "localhost").parse().unwrap();
    let error = fails(&config, &lab);
    assert_eq!(error.reason, Reason::Tls, "{error}");
}

#[test]
fn ssh_goes_the_whole_way_and_checks_the_host() {
    let lab = Lab::new().with_repo();
    let server = SshServer::start(&lab.path("sshd"));
    let known = |text: String| {
        fs::write(lab.path("known_hosts"), text).unwrap();
        lab.path("known_hosts")
    };
    let place = format!("[127.0.0.1]:{}", server.port);
    let mut config =
        config(&format!("ssh://root@127.0.0.1:{}{}", server.port, lab.path("config.git").display()));
    config.ssh_key = Some(server.client_key.clone());

    // Each of the server's keys alone is enough: the agent asks for one it knows.
    for (n, key) in ["host_rsa", "host_ecdsa", "host_ed25519"].into_iter().enumerate() {
        config.known_hosts = Some(known(format!("{place} {}\n", server.host_key(key))));
        let repository = Repository::open(&config, &lab.path(&format!("cache-{n}"))).unwrap();
        repository.fetch().unwrap_or_else(|e| panic!("{key}: {e}\n{}", server.log()));
    }
    let status =
        Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(lab.path("known_hosts")).output().unwrap();
    assert!(status.status.success());
    assert!(fs::read_to_string(lab.path("known_hosts")).unwrap().starts_with("|1|"));
    whole_way(&lab, &config, &lab.path("cache-3"));

    // Another key than the known one, none at all, a revoked one, one of another port.
    let other = fs::read_to_string(lab.path("sshd/client.pub")).unwrap();
    for (text, expected) in [
        (format!("{place} {other}"), "is not the one in"),
        (String::new(), "no host key of"),
        (format!("{place} {0}\n@revoked * {0}\n", server.host_key("host_ed25519")), "revoked"),
        (format!("127.0.0.1 {}\n", server.host_key("host_ed25519")), "no host key of"),
    ] {
        config.known_hosts = Some(known(text));
        let error = fails(&config, &lab);
        assert_eq!(error.reason, Reason::HostKey, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    config.known_hosts = Some(lab.path("none"));
    assert_eq!(fails(&config, &lab).reason, Reason::HostKey);

    // The wrong key of ours, a missing one, no such repo.
    config.known_hosts = Some(known(format!("{place} {}\n", server.host_key("host_ed25519"))));
    config.ssh_key = Some(lab.path("sshd/host_ecdsa"));
    let error = fails(&config, &lab);
    assert_eq!(error.reason, Reason::Auth, "{error}");
    config.ssh_key = Some(lab.path("none"));
    let error = fails(&config, &lab);
    assert!(error.reason == Reason::Auth && error.to_string().contains("repo.ssh_key"), "{error}");
    config.ssh_key = None;
    assert_eq!(fails(&config, &lab).reason, Reason::Auth);
    config.ssh_key = Some(server.client_key.clone());
    config.url = format!("ssh://root@127.0.0.1:{}/none.git", server.port).parse().unwrap();
    let error = fails(&config, &lab);
    println!("no such repo: {error}");
    assert_eq!(error.reason, Reason::GitUnreachable, "{error}");
}

#[test]
fn many_hosts_publish_at_once() {
    let lab = Lab::new().with_repo();
    let server = http(&lab);
    let urls = [server.url("config.git"), lab.url()];
    std::thread::scope(|scope| {
        for n in 0..12 {
            let (lab, url) = (&lab, &urls[n % 2]);
            scope.spawn(move || {
                let repository = Repository::open(&config(url), &lab.path(&format!("cache-{n}"))).unwrap();
                let commit = follow(&repository, None).unwrap();
                let name = format!("web-{n}").parse().unwrap();
                for id in 0..3 {
                    repository.publish(None, &name, &[receipt(commit.id(), &id.to_string())]).unwrap();
                }
            });
        }
    });
    let log = lab.git("config.git", &["log", "--notes=gitopsd/*", "main"]);
    assert_eq!(log.matches("Notes (gitopsd/web-").count(), 12, "{log}");
    assert_eq!(log.matches("{\"id\"").count(), 36, "{log}");
    let peak = server.peak.load(Ordering::SeqCst);
    assert!((1..=12).contains(&peak), "{peak} connections at once, of six hosts");
    assert_eq!(lab.git("config.git", &["fsck", "--strict", "--no-dangling"]), "");
}

#[test]
#[ignore = "takes as long as the deadline, half a minute"]
fn a_silent_server_is_given_up() {
    let lab = Lab::new().with_repo();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    fs::write(lab.path("known_hosts"), "").unwrap();
    std::thread::scope(|scope| {
        for scheme in ["http", "https", "ssh"] {
            let lab = &lab;
            scope.spawn(move || {
                let mut config = config(&format!("{scheme}://127.0.0.1:{port}/x.git"));
                config.known_hosts = Some(lab.path("known_hosts"));
                let since = std::time::Instant::now();
                let repository = Repository::open(&config, &lab.path(scheme)).unwrap();
                let error = repository.fetch().unwrap_err();
                println!("{scheme}: {error} after {:?}", since.elapsed());
                assert_eq!(error.reason, Reason::GitUnreachable, "{error}");
                assert!(since.elapsed().as_secs() < 60);
            });
        }
    });
}
