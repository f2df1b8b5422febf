//! A look at a repo that has not moved costs one request and no write.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gitopsd::git::Repository;
use gitopsd::types::Reason;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

use crate::git_server::{HttpServer, Lab, SshServer, tls};
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

/// What the server is shown by some looks, one entry a request.
fn shown_by(server: &HttpServer, looks: usize, repository: &Repository) -> Vec<Option<String>> {
    server.shown.lock().unwrap().clear();
    for _ in 0..looks {
        assert!(!repository.fetch().unwrap().moved);
    }
    server.shown.lock().unwrap().clone()
}

fn basic(login: &str) -> Option<String> {
    Some(format!("Basic {}", STANDARD.encode(login)))
}

fn wants(server: &HttpServer, login: &str) {
    server.behaviour.lock().unwrap().credentials = Some(login.to_owned());
}

#[test]
fn one_request_and_no_write_with_credentials_over_tls() {
    let lab = Lab::new().with_repo();
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    let (certificate, authority) = tls(&lab.path(""));
    let server = HttpServer::start(&lab.path(""), Some(certificate));
    let mut settings = config(&server.url("config.git"));
    settings.ca_file = Some(authority);

    // A token in a file. A new one in the file counts at once, also where the old one would still do.
    wants(&server, "x-access-token:one");
    let mut with_token = settings.clone();
    with_token.token_file = Some(lab.path("token"));
    std::fs::write(lab.path("token"), "one\n").unwrap();
    let repository = Repository::open(&with_token, &lab.cache()).unwrap();
    // The first look is git's own: the server is shown nothing before it asks.
    let first = follow(&repository, None).unwrap();
    assert_eq!(server.shown.lock().unwrap()[..2], [None, basic("x-access-token:one")]);
    looks_write_nothing(&repository, &lab.cache());
    assert_eq!(shown_by(&server, 5, &repository), vec![basic("x-access-token:one"); 5]);
    std::fs::write(lab.path("token"), "two\n").unwrap();
    wants(&server, "x-access-token:two");
    assert_eq!(shown_by(&server, 3, &repository), vec![basic("x-access-token:two"); 3]);
    // What moved comes with it too: the branch, and what others wrote.
    let second = lab.commit("services/shop.toml", "2", "2");
    server.shown.lock().unwrap().clear();
    assert_eq!(follow(&repository, Some(first.id())).unwrap().id().as_str(), second);
    let shown = server.shown.lock().unwrap().clone();
    assert_eq!(shown, vec![basic("x-access-token:two"); 2], "a list and a pack");

    // Refused, it is asked as at first, and says what it always said; then it is taken up again.
    wants(&server, "x-access-token:three");
    for requests in [3, 2] {
        server.shown.lock().unwrap().clear();
        let error = repository.fetch().unwrap_err();
        assert!(error.reason == Reason::Auth && error.to_string().contains("refused"), "{error}");
        assert_eq!(server.shown.lock().unwrap().len(), requests, "no guessing");
    }
    std::fs::write(lab.path("token"), "three\n").unwrap();
    assert_eq!(shown_by(&server, 1, &repository), [None, basic("x-access-token:three")]);
    assert_eq!(shown_by(&server, 2, &repository), vec![basic("x-access-token:three"); 2]);
    std::fs::remove_file(lab.path("token")).unwrap();
    server.shown.lock().unwrap().clear();
    let error = repository.fetch().unwrap_err();
    assert!(error.to_string().contains("repo.token_file"), "{error}");
    assert_eq!(*server.shown.lock().unwrap(), [None], "nothing to show");
    // A server that does not ask any more needs no file.
    server.behaviour.lock().unwrap().credentials = None;
    assert_eq!(shown_by(&server, 2, &repository), [None, None]);

    // In the address.
    let mut inline = settings.clone();
    inline.url = server.url("config.git").replace("https://", "https://ann:p%40ss@").parse().unwrap();
    wants(&server, "ann:p@ss");
    let repository = Repository::open(&inline, &lab.path("cache-inline")).unwrap();
    follow(&repository, None).unwrap();
    assert_eq!(shown_by(&server, 3, &repository), vec![basic("ann:p@ss"); 3]);
    assert!(!format!("{repository:?}").contains("ss@"));
}

#[test]
fn a_credential_helper_is_asked_again_only_when_it_was_wrong() {
    let lab = Lab::new().with_repo();
    let (certificate, authority) = tls(&lab.path(""));
    let server = HttpServer::start(&lab.path(""), Some(certificate));
    let mut settings = config(&server.url("config.git"));
    settings.ca_file = Some(authority);
    let helper = lab.path("helper");
    let (word, asked) = (lab.path("word"), lab.path("asked"));
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\necho x >>{}\necho username=deploy\necho password=$(cat {})\n",
        asked.display(),
        word.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    settings.credential_helper = vec![helper.display().to_string()];
    std::fs::write(&word, "hunter1").unwrap();
    wants(&server, "deploy:hunter1");
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    follow(&repository, None).unwrap();
    assert_eq!(shown_by(&server, 4, &repository), vec![basic("deploy:hunter1"); 4]);
    let times = || std::fs::read_to_string(&asked).unwrap().lines().count();
    assert_eq!(times(), 1);
    // Its own idea of the password changes when the server's does: 401, asked again, taken.
    std::fs::write(&word, "hunter2").unwrap();
    wants(&server, "deploy:hunter2");
    assert_eq!(shown_by(&server, 1, &repository), [basic("deploy:hunter1"), None, basic("deploy:hunter2")]);
    assert_eq!(shown_by(&server, 2, &repository), vec![basic("deploy:hunter2"); 2]);
    assert_eq!(times(), 2);
    // One that is not allowed any more, and one that is gone: forgotten, whatever the server calls it.
    for status in [403, 404, 500] {
        server.behaviour.lock().unwrap().status = Some(status);
        repository.fetch().unwrap_err();
        server.behaviour.lock().unwrap().status = None;
        assert_eq!(shown_by(&server, 1, &repository), [None, basic("deploy:hunter2")], "{status}");
    }
    // Of its answers nothing is kept on the disk.
    let kept = std::process::Command::new("grep").args(["-r", "hunter"]).arg(lab.cache()).output().unwrap();
    assert_eq!(kept.status.code(), Some(1), "{}", String::from_utf8_lossy(&kept.stdout));
}

#[test]
fn credentials_that_a_server_took_follow_no_redirect() {
    let lab = Lab::new().with_repo();
    let (certificate, authority) = tls(&lab.path(""));
    let server = HttpServer::start(&lab.path(""), Some(certificate.clone()));
    let mut settings = config(&server.url("config.git"));
    settings.ca_file = Some(authority);
    settings.token_file = Some(lab.path("token"));
    std::fs::write(lab.path("token"), "one\n").unwrap();
    let taken = basic("x-access-token:one");
    // Another name of the same machine; another port of the same name, to where libgit2 goes whatever it is told.
    let other = HttpServer::start(&lab.path(""), Some(certificate));
    let plain = other.url("").trim_end_matches('/').to_owned();
    for (n, place) in [plain.replace("127.0.0.1", "localhost"), plain].into_iter().enumerate() {
        wants(&server, "x-access-token:one");
        wants(&other, "x-access-token:one");
        let repository = Repository::open(&settings, &lab.path(&format!("cache-{n}"))).unwrap();
        follow(&repository, None).unwrap();
        assert_eq!(shown_by(&server, 2, &repository), vec![taken.clone(); 2]);
        server.behaviour.lock().unwrap().redirect = Some(place.clone());
        for _ in 0..3 {
            let error = repository.fetch().unwrap_err();
            println!("{place}: {error}");
            assert!(!error.to_string().contains("cache"), "{error}");
        }
        assert!(other.shown.lock().unwrap().iter().all(Option::is_none), "{place}");
        server.behaviour.lock().unwrap().redirect = None;
        repository.fetch().unwrap();
    }
}

/// Where plain http leads to https on the same host: there it is looked at who answers, and nothing is shown unasked.
#[test]
fn credentials_taken_over_http_are_not_shown_unasked_by_https() {
    let lab = Lab::new().with_repo();
    let (certificate, authority) = tls(&lab.path(""));
    let server = HttpServer::start(&lab.path(""), None);
    let mut settings = config(&server.url("config.git"));
    settings.ca_file = Some(authority);
    settings.token_file = Some(lab.path("token"));
    std::fs::write(lab.path("token"), "one\n").unwrap();
    let taken = basic("x-access-token:one");
    wants(&server, "x-access-token:one");
    let repository = Repository::open(&settings, &lab.cache()).unwrap();
    follow(&repository, None).unwrap();
    assert_eq!(shown_by(&server, 2, &repository), vec![taken.clone(); 2]);
    let other = HttpServer::start(&lab.path(""), Some(certificate));
    let place = other.url("").trim_end_matches('/').to_owned();
    server.behaviour.lock().unwrap().redirect = Some(place);
    // It does not ask: nothing is shown to it.
    repository.fetch().unwrap();
    repository.fetch().unwrap();
    let shown = std::mem::take(&mut *other.shown.lock().unwrap());
    assert!(shown.len() >= 2 && shown.iter().all(Option::is_none), "{shown:?}");
    // It asks, each time.
    wants(&other, "x-access-token:one");
    for _ in 0..2 {
        repository.fetch().unwrap();
        assert_eq!(std::mem::take(&mut *other.shown.lock().unwrap()), [None, taken.clone()]);
    }
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
