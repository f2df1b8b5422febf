//! Many agents on one machine, one git server over http, one registry: how many ask at once, how far what they ask for
//! is spread, and that no receipt is lost. `GITOPSD_TEST_ALL=1` takes fifty of them.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::git_server::HttpServer;
use crate::image::Kind;
use crate::lab::hosts::{Fleet, inside};

/// Passes connections on, and counts them.
struct Counter {
    port: u16,
    peak: Arc<AtomicUsize>,
    begun: Arc<Mutex<Vec<Instant>>>,
}

impl Counter {
    /// In front of a port of this host. Its thread waits for a connection until the process ends.
    fn before(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let counter =
            Self { port: listener.local_addr().unwrap().port(), peak: Arc::default(), begun: Arc::default() };
        let (peak, begun, active) =
            (counter.peak.clone(), counter.begun.clone(), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                peak.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let (active, begun) = (active.clone(), begun.clone());
                std::thread::spawn(move || {
                    let (mut from, mut onto) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    let up = std::thread::spawn(move || {
                        let mut buffer = [0; 16384];
                        // Connections are kept open: what is sent on them is what is asked.
                        while let Ok(count @ 1..) = from.read(&mut buffer) {
                            begun.lock().unwrap().push(Instant::now());
                            if onto.write_all(&buffer[..count]).is_err() {
                                break;
                            }
                        }
                        let _ = onto.shutdown(std::net::Shutdown::Write);
                    });
                    let (mut from, mut onto) = (server, client);
                    let _ = io::copy(&mut from, &mut onto);
                    let _ = onto.shutdown(std::net::Shutdown::Both);
                    let _ = up.join();
                    active.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        counter
    }

    /// From the first to the last request since `from`, and how many there were.
    fn spread(&self, from: Instant) -> (Duration, usize) {
        let begun = self.begun.lock().unwrap();
        let since: Vec<Duration> =
            begun.iter().filter(|at| **at >= from).map(|at| at.duration_since(from)).collect();
        let first = since.iter().min().copied().unwrap_or_default();
        (since.iter().max().copied().unwrap_or_default() - first, since.len())
    }
}

/// Waits for something, as long as fifty agents on a busy machine may take.
#[track_caller]
fn wait_for(what: &str, mut found: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !found() {
        assert!(begun.elapsed() < Duration::from_secs(240), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn many_agents_one_git_server_one_registry() {
    let all = std::env::var_os("GITOPSD_TEST_ALL").is_some();
    // Seconds between two looks: fifty agents on two processors leave little for a server beside them.
    let (count, poll) = if all { (50, 15) } else { (6, 3) };
    let mut fleet = Fleet::new();
    let git = |args: &[&str]| fleet.lab.git(&fleet.lab.path("repo.git"), args);
    git(&["config", "http.receivepack", "true"]);
    let server = HttpServer::start(&fleet.lab.path(""), None);
    let registry = Counter::before(fleet.lab.registry_port);
    fleet.url = server.url("repo.git");
    fleet.poll = if all { "15s" } else { "3s" };
    fleet.registry_port = registry.port;
    let through = |reference: &str| {
        reference.replace(&format!(":{}/", fleet.lab.registry_port), &format!(":{}/", registry.port))
    };
    let (one, two) = (through(&fleet.image("1", Kind::Good)), through(&fleet.image("2", Kind::Good)));
    fleet.lab.deploy("web", &format!("hosts = [\"nobody\"]\n{}", inside(&one)), "nothing yet");
    let names: Vec<String> = (1..=count).map(|number| format!("h-{number}")).collect();
    fleet.start(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for host in &fleet.hosts {
        wait_for("the first look", || host.status()["revision"]["commit"].is_string());
    }
    // What it costs that nothing happens: one request a look.
    let (before, begun) = (server.requests.load(Ordering::SeqCst), Instant::now());
    std::thread::sleep(Duration::from_secs(2 * poll + 1));
    let idle = server.requests.load(Ordering::SeqCst) - before;
    let looks = begun.elapsed().as_secs_f64() / f64::from(u32::try_from(poll).unwrap())
        * f64::from(u32::try_from(count).unwrap());
    println!("{count} agents at rest: {idle} requests in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(f64::from(u32::try_from(idle).unwrap()) <= looks + f64::from(u32::try_from(count).unwrap()));

    for (round, image) in [&one, &two].into_iter().enumerate() {
        let begun = Instant::now();
        fleet.lab.write("services/more.toml", &inside(image));
        fleet.lab.deploy("web", &inside(image), "all of them");
        let mut last = Duration::ZERO;
        for host in &fleet.hosts {
            for service in ["web", "more"] {
                let what = format!("{} to serve {service}", host.name);
                wait_for(&what, || host.serves(service).as_ref() == Some(image));
            }
            last = begun.elapsed();
        }
        for host in &fleet.hosts {
            wait_for("its receipts to be in git", || host.status()["outbox"] == 0);
        }
        let pushed = begun.elapsed();
        let (spread, pulls) = registry.spread(begun);
        println!(
            "commit {}: all {count} serve after {last:.1?}, all receipts in git after {pushed:.1?}; {pulls} requests to the \
             registry over {spread:.1?}, at most {} connections open; to git at most {} at once, {} requests in all",
            round + 1,
            registry.peak.load(Ordering::SeqCst),
            server.peak.load(Ordering::SeqCst),
            server.requests.load(Ordering::SeqCst),
        );
        // They do not come all at once: each has its own moment between two looks.
        assert!(spread >= Duration::from_secs(poll) / 10, "{spread:?}");
    }
    // Each agent has one thing to ask git for at a time, and one to write; the end of one may not be seen yet.
    assert!(server.peak.load(Ordering::SeqCst) <= 3 * count);

    // Every receipt of every host is in git, once, and under its own commit.
    let clone = fleet.clone_of();
    let refs = fleet.lab.git(&clone, &["for-each-ref", "--format=%(refname)", "refs/notes/gitopsd/"]);
    assert_eq!(refs.lines().count(), count);
    let mut total = 0;
    for host in &fleet.hosts {
        let own: Vec<_> = host.receipts();
        let ids: BTreeSet<&str> = own.iter().map(|receipt| receipt["id"].as_str().unwrap()).collect();
        let list = fleet.lab.git(&clone, &["notes", &format!("--ref=gitopsd/{}", host.name), "list"]);
        let mut found = Vec::new();
        for line in list.lines() {
            let (note, commit) = line.split_once(' ').unwrap();
            let text = fleet.lab.git(&clone, &["cat-file", "blob", note]);
            for line in text.lines().filter(|line| line.starts_with('{')) {
                let receipt: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(
                    (&receipt["commit"], &receipt["host"]),
                    (&commit.into(), &host.name.as_str().into())
                );
                found.push(receipt["id"].as_str().unwrap().to_owned());
            }
        }
        assert_eq!(found.len(), ids.len(), "{}", host.name);
        assert!(found.iter().all(|id| ids.contains(id.as_str())), "{}", host.name);
        assert!(found.len() >= 4, "{}: {found:?}", host.name);
        total += found.len();
    }
    println!("{total} receipts of {count} hosts in git");
    assert_eq!(fleet.lab.git(&fleet.lab.path("repo.git"), &["fsck", "--strict"]), "");
}
