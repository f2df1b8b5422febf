//! A lab: a registry, a config repo, a host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use self::free_port::free_port;
use super::image::{self, Kind};

#[path = "../support/free_port.rs"]
mod free_port;
#[path = "lab/hosts.rs"]
pub mod hosts;
#[path = "lab/manager.rs"]
pub mod manager;
#[path = "lab/traces.rs"]
mod traces;

/// How long anything may take here. Generous: these machines are shared.
const LIMIT: Duration = Duration::from_secs(60);

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    dir: tempfile::TempDir,
    registry: Option<Child>,
    pub registry_port: u16,
    agent: Option<Child>,
    pub instance: String,
    number: u32,
    /// What is run as `gitopsd`.
    pub program: PathBuf,
    /// What keeps the agent's descriptors while there is none.
    pub manager: Option<manager::Manager>,
}

/// Waits for something; fails the test when it does not come.
#[track_caller]
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(begun.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Lab {
    /// A registry and an empty repo; no agent yet.
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("e2e{}x{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix("gitopsd-e2e-").tempdir().unwrap();
        let mut lab = Self {
            dir,
            registry: None,
            registry_port: free_port(),
            agent: None,
            instance,
            number,
            program: env!("CARGO_BIN_EXE_gitopsd").into(),
            manager: None,
        };
        lab.start_registry();
        lab.git(lab.dir.path(), &["init", "-q", "--bare", "-b", "main", "repo.git"]);
        lab.git(lab.dir.path(), &["clone", "-q", "repo.git", "work"]);
        lab.write("gitopsd.toml", "format = 1\nrepo_id = \"lab\"\n");
        lab.configure("");
        lab
    }

    /// Writes the host's configuration.
    pub fn configure(&self, more: &str) {
        let root = self.dir.path().display();
        // Labs of other processes run beside this one.
        let (a, b) = (100 + std::process::id() / 250 % 20, (std::process::id() + self.number) % 250);
        let text = format!(
            r#"state_dir = "{root}/state"
run_dir = "{root}/run"
instance = "{instance}"
[repo]
url = "{root}/repo.git"
poll = "2s"
[host]
name = "host-1"
[engine]
subnet = "10.{a}.{b}.0/24"
[registry."127.0.0.1:{port}"]
plain_http = true
[policy]
host_mounts = ["{root}/**"]
max_removals = 1
{more}"#,
            instance = self.instance,
            port = self.registry_port,
        );
        fs::write(self.config(), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("gitopsd.toml")
    }

    pub fn start_registry(&mut self) {
        let port = self.registry_port;
        let root = self.path("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            root.display()
        );
        let config = self.path("registry.yml");
        fs::write(&config, text).unwrap();
        let log = fs::File::create(self.path("registry.log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.registry = Some(child);
        wait_for("the registry", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    }

    pub fn stop_registry(&mut self) {
        if let Some(mut child) = self.registry.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Pushes an image and gives its reference.
    pub fn image(&self, version: &str, kind: Kind) -> String {
        let reference = self.reference(version);
        image::push(&image::build(self.dir.path(), version, kind), &reference);
        reference
    }

    /// Pushes a good image that takes some room, and gives its reference.
    pub fn large_image(&self, version: &str, bytes: usize) -> String {
        let reference = self.reference(version);
        image::push(&image::build_with(self.dir.path(), version, Kind::Good, bytes), &reference);
        reference
    }

    /// A lab whose agent serves `web`, version 1, on a port of the host.
    pub fn serving() -> (Self, u16) {
        let mut lab = Self::new();
        let port = lab.serve();
        (lab, port)
    }

    /// Has the agent serve `web`, version 1, on a port of the host.
    pub fn serve(&mut self) -> u16 {
        let (lab, port) = (self, free_port());
        let v1 = lab.image("1", Kind::Good);
        lab.deploy("web", &web(&v1, port, ""), "web 1");
        lab.start_agent();
        lab.wait_agent();
        lab.sync();
        port
    }

    pub fn reference(&self, version: &str) -> String {
        format!("127.0.0.1:{}/web:{version}", self.registry_port)
    }

    pub fn git(&self, dir: &Path, args: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(dir)
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@example.org")])
            .envs([("GIT_COMMITTER_NAME", "Ada"), ("GIT_COMMITTER_EMAIL", "ada@example.org")])
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes a file of the work tree.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path("work").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Commits all of the work tree, pushes it, and gives the commit.
    pub fn commit(&self, message: &str) -> String {
        let work = self.path("work");
        self.git(&work, &["add", "-A"]);
        self.git(&work, &["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&work, &["push", "-q", "origin", "HEAD:main"]);
        self.git(&work, &["rev-parse", "HEAD"])
    }

    /// Commits a service file.
    pub fn deploy(&self, name: &str, file: &str, message: &str) -> String {
        self.write(&format!("services/{name}.toml"), file);
        self.commit(message)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.config()).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a verb.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a verb that has to succeed, and gives what it printed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {out}{err}\n{}", self.agent_log());
        out.into_owned()
    }

    pub fn start_agent(&mut self) {
        self.start_agent_with(&[]);
    }

    /// Starts the agent and waits until it answers.
    pub fn start_agent_with(&mut self, environment: &[(&str, &str)]) {
        assert!(self.agent.is_none());
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path("agent.log")).unwrap();
        let mut command = self.command(&["run"]);
        match &self.manager {
            Some(manager) => command = manager.command(&command),
            None => {
                command.env_remove("NOTIFY_SOCKET");
            }
        }
        let child = command
            .env_remove("JOURNAL_STREAM")
            .envs(environment.iter().copied())
            .env("GITOPSD_LOG", "debug,h2=info,hyper=info,reqwest=info,rustls=info")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// The agent's process.
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// Sends the agent a signal.
    pub fn signal_agent(&self, signal: nix::sys::signal::Signal) {
        let agent = self.agent.as_ref().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent.id().cast_signed()), signal).unwrap();
    }

    /// Waits until the agent answers.
    #[track_caller]
    pub fn wait_agent(&mut self) {
        wait_for("the agent", || {
            let ended = self.agent.as_mut().and_then(|agent| agent.try_wait().unwrap());
            assert!(ended.is_none(), "the agent ended: {ended:?}\n{}", self.agent_log());
            self.run(&["status", "--json"]).status.success().then_some(())
        });
    }

    pub fn agent_log(&self) -> String {
        let text = fs::read_to_string(self.path("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Kills the agent as -9 does.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// Ends the agent as systemd does.
    pub fn stop_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let pid = nix::unistd::Pid::from_raw(agent.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            agent.wait().unwrap();
        }
    }

    /// Whether the agent has ended by itself (or by a failpoint).
    pub fn agent_ended(&mut self) -> bool {
        let ended = self.agent.as_mut().is_none_or(|agent| agent.try_wait().unwrap().is_some());
        if ended {
            self.agent = None;
        }
        ended
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// The status of one service; `Null` when there is none.
    pub fn service(&self, name: &str) -> Value {
        let status = self.status();
        status["services"].as_array().unwrap().iter().find(|s| s["name"] == name).cloned().unwrap_or_default()
    }

    pub fn history(&self) -> Vec<Value> {
        serde_json::from_str(&self.ok(&["history", "--json"])).unwrap()
    }

    /// Waits until the last receipt is of this result: what serves does so a moment before that is written.
    #[track_caller]
    pub fn wait_receipt(&self, result: &str) -> Value {
        wait_for(&format!("the receipt `{result}`; {}", self.agent_log()), || {
            self.history().pop().filter(|receipt| receipt["result"] == result)
        })
    }

    /// Waits until a service serves an image.
    #[track_caller]
    pub fn wait_serving(&self, name: &str, reference: &str) {
        wait_for(&format!("{name} to serve {reference}; {}", self.agent_log()), || {
            let service = self.service(name);
            (service["image"] == reference && service["state"] == "running").then_some(())
        });
    }

    #[track_caller]
    pub fn sync(&self) {
        self.ok(&["sync", "--wait"]);
    }
}

/// The names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill_agent();
        if let Some(manager) = &self.manager {
            manager.stop();
        }
        let output = self.run(&["teardown", "--purge", "--yes"]);
        self.stop_registry();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("agent.log")).unwrap_or_default();
            eprintln!("---- agent ----\n{log}\n---- teardown: {output:?}");
        } else {
            assert!(output.status.success(), "teardown: {}", String::from_utf8_lossy(&output.stderr));
            let left = self.traces();
            assert!(left.is_empty(), "left over after teardown: {left:?}");
        }
    }
}

/// A service file for the test image: blue-green, quick.
pub fn web(image: &str, port: u16, more: &str) -> String {
    format!(
        r#"image = "{image}"
ports = ["127.0.0.1:{port}:8080"]
stop_grace_period = "2s"
{more}
[healthcheck]
http = "/healthz"
interval = "200ms"
timeout = "1s"
start_period = "2s"
retries = 3
[deploy]
drain = "3s"
bake = "500ms"
timeout = "20s"
"#
    )
}
