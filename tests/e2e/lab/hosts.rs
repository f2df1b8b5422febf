//! Many hosts on one machine, each with an agent, an instance, directories and a subnet of its own: a fleet.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::{Lab, wait_for};
use crate::image::Kind;

static SUBNETS: AtomicU32 = AtomicU32::new(0);

/// A lab without an agent of its own, and hosts that follow its repo.
pub struct Fleet {
    pub lab: Lab,
    pub hosts: Vec<Host>,
    /// Where the hosts find the repo.
    pub url: String,
    pub poll: &'static str,
    /// Where they find the registry.
    pub registry_port: u16,
    /// More of the hosts' configuration.
    pub more: &'static str,
}

pub struct Host {
    pub name: String,
    root: PathBuf,
    instance: String,
    program: PathBuf,
    agent: Option<Child>,
}

impl Fleet {
    pub fn new() -> Self {
        let lab = Lab::new();
        let url = lab.path("repo.git").display().to_string();
        let registry_port = lab.registry_port;
        Self { lab, hosts: Vec::new(), url, poll: "1s", registry_port, more: "" }
    }

    /// Makes hosts and starts their agents.
    pub fn start(&mut self, names: &[&str]) {
        for name in names {
            let number = SUBNETS.fetch_add(1, Ordering::Relaxed);
            let instance = format!("fl{}x{number}", std::process::id());
            let root = self.lab.path(&format!("hosts/{name}"));
            fs::create_dir_all(&root).unwrap();
            // Labs have 10.100 to 10.119.
            let (a, b) = (120 + std::process::id() % 100, number % 250);
            let text = format!(
                r#"state_dir = "{root}/state"
run_dir = "{root}/run"
instance = "{instance}"
[repo]
url = "{url}"
poll = "{poll}"
[host]
name = "{name}"
[engine]
subnet = "10.{a}.{b}.0/24"
[registry."127.0.0.1:{port}"]
plain_http = true
{more}"#,
                root = root.display(),
                url = self.url,
                poll = self.poll,
                more = self.more,
                port = self.registry_port,
            );
            fs::write(root.join("gitopsd.toml"), text).unwrap();
            let mut host = Host {
                name: (*name).to_owned(),
                root,
                instance,
                program: self.lab.program.clone(),
                agent: None,
            };
            host.start();
            self.hosts.push(host);
        }
    }

    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    /// The hosts whose names begin so.
    pub fn of<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Host> {
        self.hosts.iter().filter(move |host| host.name.starts_with(prefix))
    }

    /// `gitopsd fleet --json` on a clone that is up to date.
    pub fn seen(&self) -> Value {
        let clone = self.clone_of();
        let output = Command::new(&self.lab.program)
            .args(["--config", "/nonexistent/gitopsd.toml", "fleet", "--json"])
            .arg(&clone)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A clone with notes, brought up to date.
    pub fn clone_of(&self) -> PathBuf {
        let clone = self.lab.path("clone");
        if !clone.exists() {
            self.lab.git(&self.lab.path(""), &["clone", "-q", "repo.git", "clone"]);
        }
        self.lab.git(&clone, &["pull", "-q", "--ff-only"]);
        self.lab.git(&clone, &["fetch", "-q", "origin", "+refs/notes/gitopsd/*:refs/notes/gitopsd/*"]);
        clone
    }
}

/// A service file without a port of the host: every host can have it.
pub fn inside(image: &str) -> String {
    format!(
        r#"image = "{image}"
stop_grace_period = "1s"
[healthcheck]
http = "/healthz"
port = 8080
interval = "200ms"
timeout = "2s"
start_period = "5s"
retries = 3
[deploy]
drain = "0s"
bake = "200ms"
timeout = "30s"
"#
    )
}

impl Fleet {
    /// An image, pushed.
    pub fn image(&self, version: &str, kind: Kind) -> String {
        self.lab.image(version, kind)
    }
}

impl Host {
    pub fn start(&mut self) {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.root.join("agent.log")).unwrap();
        let child = self
            .command(&["run"])
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .env("GITOPSD_LOG", "info")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// Kills the agent and starts a new one, of which nothing is known yet.
    pub fn restart(&mut self) {
        self.kill();
        fs::remove_file(self.root.join("run/status.json")).unwrap();
        self.start();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.root.join("gitopsd.toml")).args(args).stdin(Stdio::null());
        command
    }

    /// The status file: asking nobody. `Null` before there is one.
    pub fn status(&self) -> Value {
        let text = fs::read(self.root.join("run/status.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// The image that a service serves with.
    pub fn serves(&self, service: &str) -> Option<String> {
        let status = self.status();
        let service = status["services"].as_array()?.iter().find(|it| it["name"] == service)?.clone();
        (service["state"] == "running").then(|| service["image"].as_str().map(str::to_owned))?
    }

    #[track_caller]
    pub fn wait_serving(&self, service: &str, image: &str) {
        wait_for(&format!("{} to serve {image}", self.name), || {
            (self.serves(service).as_deref() == Some(image)).then_some(())
        });
    }

    /// Waits until the head is not acted on for this reason; gives the message.
    #[track_caller]
    pub fn wait_repo(&self, reason: &str) -> String {
        wait_for(&format!("{} to say {reason}", self.name), || {
            let repo = &self.status()["repo"];
            (repo["reason"] == reason).then(|| repo["message"].as_str().unwrap().to_owned())
        })
    }

    /// Its receipts, oldest first.
    pub fn receipts(&self) -> Vec<Value> {
        let output = self.command(&["history", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("agent.log")).unwrap_or_default()
    }

    /// Ends the agent as -9 does.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        let output = self.command(&["teardown", "--purge", "--yes"]).output().unwrap();
        if std::thread::panicking() {
            eprintln!("---- {} ({})\n{}\n{output:?}", self.name, self.instance, self.log());
        } else {
            assert!(output.status.success(), "{}: {output:?}", self.name);
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.kill();
        }
        let hosts = std::mem::take(&mut self.hosts);
        if std::thread::panicking() {
            return drop(hosts);
        }
        std::thread::scope(|scope| {
            let mut left = hosts.into_iter();
            let parts: Vec<Vec<Host>> = std::iter::from_fn(|| {
                Some(left.by_ref().take(10).collect::<Vec<_>>()).filter(|it| !it.is_empty())
            })
            .collect();
            for part in parts {
                scope.spawn(move || drop(part));
            }
        });
    }
}
