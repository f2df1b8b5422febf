//! A service of a real image, on the lab's host: its versions, its log, its client.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gitopsd::engine::native::{log_file, log_tail};

use super::lab::{Lab, free_port, wait_for};

/// How often a client asks.
const PAUSE: Duration = Duration::from_millis(20);

/// One service, deployed by an agent.
pub struct Stage {
    pub lab: Lab,
    pub port: u16,
    service: &'static str,
    file: String,
    references: [String; 2],
}

impl Stage {
    /// Pushes both versions of an image, deploys the first, and waits until it serves. In `file` stand `IMAGE` and
    /// `PORT`.
    pub fn new(service: &'static str, image: &str, file: &str) -> Self {
        let mut lab = Lab::new();
        let port = free_port();
        let registry = format!("127.0.0.1:{}", lab.registry_port);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/real-images");
        let status = Command::new(script)
            .args(["--push", &registry])
            .arg(cache())
            .arg(image)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{image} cannot be made");
        let references = ["v1", "v2"].map(|tag| format!("{registry}/{image}:{tag}"));
        let file = file.replace("PORT", &port.to_string());
        lab.deploy(service, &file.replace("IMAGE", &references[0]), "version 1");
        lab.start_agent();
        lab.wait_agent();
        let stage = Self { lab, port, service, file, references };
        stage.settle(1, 1);
        stage
    }

    /// Deploys a version by a commit and waits until that is over.
    #[track_caller]
    pub fn deploy(&self, version: usize, generation: u32) {
        let file = self.file.replace("IMAGE", &self.references[version - 1]);
        self.lab.deploy(self.service, &file, &format!("version {version}"));
        self.settle(version, generation);
    }

    /// Waits until the deploy is over, and has gone well.
    #[track_caller]
    fn settle(&self, version: usize, generation: u32) {
        let output = self.lab.run(&["sync", "--wait"]);
        assert!(output.status.success(), "{output:?}\n{}", self.log(generation).join("\n"));
        let service = self.lab.service(self.service);
        assert_eq!(service["image"], self.references[version - 1].as_str(), "{service}");
        assert_eq!(service["generation"], generation, "{service}");
        assert_eq!(service["health"], "healthy", "{service}");
    }

    /// Takes the host's power, and gives it back to a host without registry and repo.
    #[track_caller]
    pub fn cut_power(&mut self) {
        self.lab.kill_agent();
        self.lab.stop_registry();
        let (repo, aside) = (self.lab.path("repo.git"), self.lab.path("aside.git"));
        std::fs::rename(&repo, &aside).unwrap();
        self.lab.cut_power();
        self.lab.start_agent();
        self.lab.wait_agent();
        wait_for("the service", || {
            let service = self.lab.service(self.service);
            (service["state"] == "running" && service["health"] == "healthy").then_some(())
        });
        std::fs::rename(&aside, &repo).unwrap();
        self.lab.start_registry();
    }

    /// What a generation wrote so far.
    pub fn log(&self, generation: u32) -> Vec<String> {
        let id = format!("{}.{generation}", self.service).parse().unwrap();
        log_tail(&log_file(&self.lab.path("state"), &id), 100_000)
    }

    /// The only place of its log where a generation says this; else the test fails.
    #[track_caller]
    pub fn said(&self, generation: u32, what: &str) {
        let log = self.log(generation);
        assert!(log.iter().any(|line| line.contains(what)), "`{what}` is missing:\n{}", log.join("\n"));
    }

    /// A generation never said this.
    #[track_caller]
    pub fn never_said(&self, generation: u32, what: &str) {
        let log = self.log(generation);
        assert!(!log.iter().any(|line| line.contains(what)), "`{what}`:\n{}", log.join("\n"));
    }

    /// Runs a command in the container; what it printed.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> String {
        let mut args = vec!["exec", self.service, "--"];
        args.extend(command);
        self.lab.ok(&args)
    }
}

/// Where images are kept.
fn cache() -> PathBuf {
    std::env::var_os("REAL_IMAGES")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-images"), PathBuf::from)
}

/// What a program printed; `None` where it failed.
pub fn ask(program: &str, args: &[&str], environment: &[(&str, &str)]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// What a client was told.
pub struct Told {
    /// The numbers of what was acknowledged.
    pub acknowledged: Vec<usize>,
    pub failed: usize,
    /// Between two acknowledgements.
    pub longest_gap: Duration,
}

/// A client that writes one number after the other until it is told to end.
pub struct Client {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    thread: JoinHandle<Told>,
}

impl Client {
    /// Begins; `write` says whether the number was acknowledged.
    pub fn begin(write: impl Fn(usize) -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let (asked, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            let mut told = Told { acknowledged: Vec::new(), failed: 0, longest_gap: Duration::ZERO };
            let mut last = Instant::now();
            for number in 0.. {
                if asked.load(Ordering::Relaxed) {
                    break;
                }
                if write(number) {
                    told.longest_gap = told.longest_gap.max(last.elapsed());
                    last = Instant::now();
                    told.acknowledged.push(number);
                    count.fetch_add(1, Ordering::Relaxed);
                } else {
                    told.failed += 1;
                }
                std::thread::sleep(PAUSE);
            }
            told
        });
        let client = Self { stop, acknowledged, thread };
        client.some_more();
        client
    }

    /// Waits until it has had some acknowledgements more.
    #[track_caller]
    fn some_more(&self) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + 5;
        wait_for("the client", || (self.acknowledged.load(Ordering::Relaxed) >= enough).then_some(()));
    }

    /// Ends it.
    #[track_caller]
    pub fn end(self) -> Told {
        self.some_more();
        self.stop.store(true, Ordering::Relaxed);
        let told = self.thread.join().unwrap();
        println!(
            "{} acknowledged, {} failed, longest gap {} ms",
            told.acknowledged.len(),
            told.failed,
            told.longest_gap.as_millis()
        );
        told
    }
}
