//! The host that suffers: a lab in a network namespace of its own, whose one service is a polite program.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gitopsd::reconcile::record::Phase;

use super::super::firewall::host::knows_owners;
use super::super::image;
use super::super::lab::manager::Manager;
use super::super::lab::{Lab, free_port, wait_for};
use super::super::load::get;
use super::faults::Undo;

/// Good answers in a row, after which what was gone is back.
const BACK: u32 = 5;
/// From one question to the next.
const ASK: Duration = Duration::from_millis(5);

/// What served at some moment.
#[derive(Debug, Clone)]
pub struct Serving {
    pub generation: u64,
    pub image: String,
}

/// A time in which what answered was gone.
#[derive(Debug, Clone)]
pub struct Window {
    pub why: &'static str,
    pub since: Instant,
    pub until: Instant,
}

pub struct Host {
    pub lab: Lab,
    pub port: u16,
    /// Commits that were thrown in.
    pub more: u32,
    /// Faults that last, and when they end.
    pub under_way: Vec<(Instant, Undo)>,
    program: PathBuf,
    /// Whether the new version is killed only before the switch to it begins: what it has begun to answer, nobody else can.
    pub spares: bool,
    windows: Arc<Mutex<Vec<Window>>>,
    watches: Vec<JoinHandle<()>>,
}

impl Host {
    /// Moves this thread into a network namespace of its own; whatever it starts is there, too.
    pub fn new() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let mut lab = Lab::new();
        lab.manager = Some(Manager::begin(&lab.path("notify.sock")));
        let program = compile(&lab);
        let mut host = Self {
            lab,
            port: free_port(),
            more: 0,
            under_way: Vec::new(),
            program,
            spares: false,
            windows: Arc::default(),
            watches: Vec::new(),
        };
        host.commit("0");
        host.lab.start_agent();
        host.lab.wait_agent();
        host.lab.sync();
        host
    }

    /// Pushes an image and commits it as the one to run.
    pub fn commit(&mut self, version: &str) -> String {
        let reference = self.lab.reference(version);
        // What goes on with the registry is no matter of the repo's.
        let pushed = self.is_under_way(Undo::Registry);
        if pushed {
            self.end(Undo::Registry);
        }
        let command = ["/app", "--manner", "polite", "--silence-ms", "2000"];
        image::push(&image::build_program(&self.lab.path(""), version, &self.program, &command), &reference);
        let file = format!(
            r#"image = "{reference}"
ports = ["{}:8080"]
stop_grace_period = "5s"
[healthcheck]
http = "/"
interval = "200ms"
timeout = "1s"
start_period = "2s"
retries = 3
[deploy]
min_healthy_time = "300ms"
drain = "1s"
bake = "700ms"
timeout = "20s"
"#,
            self.port
        );
        self.lab.deploy("web", &file, &format!("web {version}"))
    }

    /// What serves now, as the agent says.
    pub fn serving(&self) -> Serving {
        let service = self.lab.service("web");
        Serving {
            generation: service["generation"].as_u64().unwrap(),
            image: service["image"].as_str().unwrap().to_owned(),
        }
    }

    /// Generations that have a container, or remains of one.
    pub fn generations(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(self.lab.path("run/containers")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut all: Vec<u64> = names.filter_map(|name| name.strip_prefix("web.")?.parse().ok()).collect();
        all.sort_unstable();
        all
    }

    pub fn is_under_way(&self, undo: Undo) -> bool {
        self.under_way.iter().any(|(_, other)| *other == undo)
    }

    fn end(&mut self, undo: Undo) {
        self.under_way.retain(|(_, other)| *other != undo);
        self.undo(undo);
    }

    /// Waits, and ends what is due meanwhile.
    pub fn wait_until(&mut self, moment: Instant) {
        while let Some((at, undo)) =
            self.under_way.iter().copied().min_by_key(|(at, _)| *at).filter(|(at, _)| *at <= moment)
        {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            self.end(undo);
        }
        std::thread::sleep(moment.saturating_duration_since(Instant::now()));
    }

    /// Waits until everything is there again.
    pub fn calm(&mut self) {
        let last = self.under_way.iter().map(|(at, _)| *at).max();
        self.wait_until(last.unwrap_or_else(Instant::now));
        self.lab.wait_agent();
        for watch in self.watches.drain(..) {
            watch.join().unwrap();
        }
    }

    /// Finds out when it serves again, while everything else goes on.
    pub fn watch_gap(&mut self, why: &'static str, since: Instant) {
        let (port, windows) = (self.port, self.windows.clone());
        self.watches.push(std::thread::spawn(move || {
            let mut good = 0;
            let mut until = since;
            wait_for(&format!("answers after {why}"), || {
                if get(port, "/").is_ok() {
                    if good == 0 {
                        until = Instant::now();
                    }
                    good += 1;
                } else {
                    good = 0;
                }
                std::thread::sleep(ASK);
                (good == BACK).then_some(())
            });
            windows.lock().unwrap().push(Window { why, since, until });
        }));
    }

    pub fn windows(&self) -> Vec<Window> {
        self.windows.lock().unwrap().clone()
    }

    /// Whether new connections, or some of them, go to a generation.
    pub fn leads_to(&self, generation: u64) -> bool {
        self.rules().contains(&format!("comment \"generation {generation}\""))
    }

    /// How far a candidate has come, as its service's record says: as long as there is a phase, the version before is there.
    pub fn phase(&self, generation: u64) -> Option<Phase> {
        let journal = gitopsd::state::journal::read_journal(&self.lab.path("state/services")).unwrap();
        let rollout = journal.records.values().find_map(|record| record.rollout.as_ref())?;
        (rollout.to.generation.0 == generation).then_some(rollout.phase)
    }

    /// Whether an agent has the table for itself, so that a flush leaves it where it is.
    pub fn is_owned(&self) -> bool {
        knows_owners() && self.rules().contains("flags owner")
    }

    /// Whether the agent has come round once.
    pub fn agent_answers(&self) -> bool {
        self.lab.run(&["status", "--json"]).status.success()
    }

    /// The rules of this namespace.
    pub fn rules(&self) -> String {
        let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The program with manners, which is an image by itself.
fn compile(lab: &Lab) -> PathBuf {
    let to = lab.path("app");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/app.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "strip=symbols"])
        .args(["-C", "target-feature=+crt-static", "-o"])
        .args([to.as_os_str(), source.as_ref()])
        .output()
        .unwrap();
    assert!(output.status.success(), "rustc: {}", String::from_utf8_lossy(&output.stderr));
    to
}
