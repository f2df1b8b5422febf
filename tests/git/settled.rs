//! A look at a repo that has not moved costs one request and no write.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use gitopsd::git::Repository;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

use crate::git_server::{HttpServer, Lab, SshServer};
use crate::notes::receipt;
use crate::{config, follow};

/// What is written below a directory, by inotify.
pub fn writes(dir: &Path) -> (RecommendedWatcher, Receiver<Event>) {
    let (tell, told) = channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if let Ok(event) = event
            && !event.kind.is_access()
        {
            let _ = tell.send(event);
        }
    })
    .unwrap();
    watcher.watch(dir, RecursiveMode::Recursive).unwrap();
    (watcher, told)
}

fn looks_write_nothing(repository: &Repository, cache: &Path) {
    let first = follow(repository, None).unwrap();
    repository.publish(None, &"web-1".parse().unwrap(), &[receipt(first.id(), "a")]).unwrap();
    assert!(!repository.fetch().unwrap().moved);
    let (_watcher, told) = writes(cache);
    for _ in 0..5 {
        let commit = follow(repository, Some(first.id())).unwrap();
        assert_eq!(commit, first);
        repository.files(&commit).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    let written: Vec<Event> = told.try_iter().collect();
    assert!(written.is_empty(), "{written:?}");
    // The watch does see what is written.
    std::fs::write(cache.join("repo.git/probe"), "x").unwrap();
    told.recv_timeout(Duration::from_secs(10)).expect("a write");
    std::fs::remove_file(cache.join("repo.git/probe")).unwrap();
}

#[test]
fn one_request_and_no_write_over_http() {
    let lab = Lab::new().with_repo();
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    let server = HttpServer::start(&lab.path(""), None);
    let repository = Repository::open(&config(&server.url("config.git")), &lab.cache()).unwrap();
    looks_write_nothing(&repository, &lab.cache());
    let before = server.requests.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert!(!repository.fetch().unwrap().moved);
    }
    assert_eq!(server.requests.load(Ordering::SeqCst) - before, 5);
}

#[test]
fn no_write_over_ssh_and_of_a_directory() {
    let lab = Lab::new().with_repo();
    looks_write_nothing(&lab.open(), &lab.cache());
    let server = SshServer::start(&lab.path("sshd"));
    let mut config =
        config(&format!("ssh://root@127.0.0.1:{}{}", server.port, lab.path("config.git").display()));
    config.ssh_key = Some(server.client_key.clone());
    let known = format!("[127.0.0.1]:{} {}\n", server.port, server.host_key("host_ed25519"));
    std::fs::write(lab.path("known_hosts"), known).unwrap();
    config.known_hosts = Some(lab.path("known_hosts"));
    let repository = Repository::open(&config, &lab.path("cache-ssh")).unwrap();
    looks_write_nothing(&repository, &lab.path("cache-ssh"));
}
