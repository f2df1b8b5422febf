//! What tests of containers share: an engine in a directory of its own, an image made of busybox, a network that is no
//! more than an empty namespace, and a way to see what of an instance is left on the machine.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gitopsd::engine::native::{NativeConfig, NativeEngine, Network};
use gitopsd::engine::{
    ContainerRequest, ContainerState, Engine, EngineError, Exit, ImageConfig, LocalImage, ObservedContainer,
};
use gitopsd::types::{Digest, InstanceId, PinnedImage, Reason, ServiceSpec, VolumeMount, VolumeSource};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// How much slower this machine is than others: `GITOPSD_TEST_SLOW`.
pub fn slow() -> u32 {
    std::env::var("GITOPSD_TEST_SLOW").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Longest that anything here is waited for.
pub fn patience() -> Duration {
    Duration::from_secs(30) * slow()
}

/// Empty network namespaces, one a container, kept by a bind mount each.
pub struct EmptyNamespaces {
    dir: PathBuf,
}

impl EmptyNamespaces {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        Self { dir: dir.to_owned() }
    }
}

fn network_error(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    EngineError::new(Reason::Network, what, error)
}

impl Network for EmptyNamespaces {
    fn attach(&self, id: &InstanceId, _: Ipv4Addr) -> Result<PathBuf, EngineError> {
        let path = self.dir.join(id.to_string());
        // Only a mount point is one: an agent killed in the middle leaves a plain file.
        if is_namespace(&path) {
            return Ok(path);
        }
        fs::write(&path, b"").map_err(|e| network_error("namespace file", e))?;
        let target = path.clone();
        // In a thread of its own, as unshare(2) of the network is for one thread.
        let made = std::thread::spawn(move || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none: Option<&str> = None;
            mount(Some("/proc/thread-self/ns/net"), &target, none, MsFlags::MS_BIND, none)
        });
        made.join().unwrap().map_err(|e| network_error("namespace", e))?;
        Ok(path)
    }

    fn detach(&self, id: &InstanceId) -> Result<(), EngineError> {
        let path = self.dir.join(id.to_string());
        if path.exists() {
            if is_namespace(&path) {
                umount2(&path, MntFlags::MNT_DETACH).map_err(|e| network_error("umount", e))?;
            }
            fs::remove_file(&path).map_err(|e| network_error("unlink", e))?;
        }
        Ok(())
    }

    fn attached(&self) -> Result<Vec<InstanceId>, EngineError> {
        let entries = fs::read_dir(&self.dir).map_err(|e| network_error("readdir", e))?;
        Ok(entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect())
    }
}

fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// An engine with all its things in one directory.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub instance: String,
    pub engine: NativeEngine,
}

impl Rig {
    /// The file that a container's log is written to.
    pub fn log_file(&self, id: &InstanceId) -> PathBuf {
        gitopsd::engine::native::log_file(&self.dir.path().join("state"), id)
    }

    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let instance = format!("gtest-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        make_layer(&dir.path().join("layer"));
        let engine = engine_at(dir.path(), &instance);
        Self { dir, instance, engine }
    }

    /// Another engine on the same directories, as a new agent has it.
    pub fn new_agent(&self) -> NativeEngine {
        engine_at(self.dir.path(), &self.instance)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A request to run a shell script as `name.generation`.
    pub fn script(&self, id: &str, script: &str) -> ContainerRequest {
        script_request(self.dir.path(), id, script)
    }

    pub fn start(&self, request: &ContainerRequest) {
        if let Err(error) = self.engine.start(request) {
            panic!("{}", error.to_refusal());
        }
    }

    /// Starts a script and waits until it has ended.
    pub fn run(&self, request: &ContainerRequest) -> (Exit, Vec<String>) {
        self.start(request);
        let exit = self.wait_exit(&request.id);
        (exit, self.engine.log_tail(&request.id, 1000))
    }

    pub fn state(&self, id: &InstanceId) -> Option<ContainerState> {
        self.find(id).map(|found| found.state)
    }

    pub fn find(&self, id: &InstanceId) -> Option<ObservedContainer> {
        self.engine.observe().unwrap().into_iter().find(|container| container.id == *id)
    }

    pub fn pid(&self, id: &InstanceId) -> i32 {
        match self.state(id) {
            Some(ContainerState::Running { pid, .. }) => pid,
            other => panic!("{id} does not run: {other:?}"),
        }
    }

    pub fn wait_exit(&self, id: &InstanceId) -> Exit {
        wait_for(&format!("the end of {id}"), || match self.state(id) {
            Some(ContainerState::Exited(exit)) => Some(exit),
            _ => None,
        })
    }

    pub fn wait_log(&self, id: &InstanceId, line: &str) {
        wait_for(&format!("`{line}` in the log of {id}"), || {
            self.engine.log_tail(id, 1000).iter().any(|found| found == line).then_some(())
        });
    }

    pub fn shim_pid(&self, id: &InstanceId) -> i32 {
        let text = fs::read_to_string(self.path(&format!("run/containers/{id}/shim.json"))).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["pid"].as_i64().unwrap() as i32
    }

    /// A verb of the real program for this engine's containers; no agent runs.
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let config = self.path("gitopsd.toml");
        let root = self.dir.path().display();
        let text = format!(
            "state_dir = \"{root}/state\"\nrun_dir = \"{root}/run\"\ninstance = \"{}\"\n[repo]\nurl = \"{root}/repo.git\"\n",
            self.instance
        );
        if !config.exists() {
            fs::write(&config, text).unwrap();
        }
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gitopsd"));
        command.arg("--config").arg(config).args(args).stdin(std::process::Stdio::null());
        command
    }

    /// Everything of this instance on the machine: cgroups, mounts, files of containers, processes.
    pub fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for line in mounts.lines() {
            let point = line.split(' ').nth(4).unwrap();
            if line.contains(&*self.dir.path().to_string_lossy()) || line.contains(&self.instance) {
                found.push(format!("mount {point}"));
            }
            if line.contains(" - cgroup") {
                for group in walk(&Path::new(point).join(&self.instance)) {
                    found.push(format!("cgroup {}", group.display()));
                }
            }
        }
        for dir in ["state/containers", "run/containers", "net"] {
            for entry in fs::read_dir(self.path(dir)).into_iter().flatten() {
                found.push(format!("file {}", entry.unwrap().path().display()));
            }
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
            if String::from_utf8_lossy(&command).contains(&*self.dir.path().to_string_lossy()) {
                found.push(format!(
                    "process {} {}",
                    entry.path().display(),
                    String::from_utf8_lossy(&command)
                ));
            }
        }
        found
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for container in self.engine.observe().unwrap_or_default() {
            if let Err(error) = self.engine.remove(&container.id) {
                eprintln!("{}", error.to_refusal());
            }
        }
    }
}

/// Looks at all containers, and has those given another supervisor that have lost theirs, as an agent does.
pub fn look_after(engine: &NativeEngine) {
    for seen in engine.observe().unwrap().into_iter().filter(|seen| seen.unsupervised) {
        if let Err(error) = engine.adopt(&seen.id) {
            eprintln!("{}", error.to_refusal());
        }
    }
}

fn walk(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let mut found = vec![group.to_owned()];
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        found.extend(walk(&entry.path()));
    }
    found
}

pub fn engine_at(dir: &Path, instance: &str) -> NativeEngine {
    engine_with(dir, instance, Path::new(env!("CARGO_BIN_EXE_gitopsd")))
}

pub fn engine_with(dir: &Path, instance: &str, program: &Path) -> NativeEngine {
    let config = NativeConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        instance: instance.to_owned(),
        program: program.to_owned(),
    };
    let engine = NativeEngine::new(config, Arc::new(EmptyNamespaces::new(&dir.join("net")))).unwrap();
    // For another runtime than the built-in one: `tests/runtime.rs`, and any test by hand.
    engine.with_runtime(std::env::var("GITOPSD_TEST_RUNTIME").ok())
}

/// Copies a program by another process: a descriptor open for writing here could be inherited by a process that another
/// test starts at that moment, and the copy could not be executed (ETXTBSY).
pub fn copy_program(from: &str, to: &Path) {
    let status = std::process::Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "{from} is needed (busybox: package busybox-static)");
}

/// A root file system with busybox and a few users.
fn make_layer(layer: &Path) {
    for dir in ["bin", "etc", "tmp", "data", "root"] {
        fs::create_dir_all(layer.join(dir)).unwrap();
        fs::set_permissions(layer.join(dir), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(layer, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    copy_program("/bin/busybox", &layer.join("bin/busybox"));
    for applet in [
        "sh", "cat", "diff", "echo", "sleep", "env", "id", "hostname", "ls", "grep", "head", "kill", "mknod",
        "mount", "nc", "nproc", "pwd", "seq", "stat", "tail", "test", "touch", "tr", "true", "yes", "ps",
        "wc", "mkdir", "dd", "readlink", "stty", "tty",
    ] {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n").unwrap();
    fs::write(layer.join("etc/group"), "root:x:0:\napp:x:1001:\nlogs:x:1002:app\n").unwrap();
    for (file, mode) in [("bin/busybox", 0o755), ("etc/passwd", 0o644), ("etc/group", 0o644)] {
        fs::set_permissions(layer.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
}

pub fn script_request(dir: &Path, id: &str, script: &str) -> ContainerRequest {
    let digest: Digest = format!("sha256:{}", "5a".repeat(32)).parse().unwrap();
    let image = PinnedImage { reference: "registry.test/busybox:1".parse().unwrap(), digest: digest.clone() };
    let mut spec = ServiceSpec::new(image);
    spec.command = Some(vec!["sh".into(), "-c".into(), script.into()]);
    ContainerRequest {
        id: id.parse().unwrap(),
        spec,
        image: LocalImage { digest, layers: vec![dir.join("layer")], config: ImageConfig::default() },
        address: Ipv4Addr::new(10, 98, 7, 2),
        joins: None,
        hosts: BTreeMap::new(),
        commit: "c0ffee".repeat(7)[..40].parse().unwrap(),
        one_shot: None,
    }
}

/// A directory or file of the host in the container.
pub fn bind(source: impl Into<std::path::PathBuf>, target: &str, read_only: bool) -> VolumeMount {
    VolumeMount::new(VolumeSource::Bind(source.into()), target, read_only)
}

/// A block device of this machine; nothing is done with it but to name it.
pub fn disk() -> PathBuf {
    let entries = fs::read_dir("/dev").unwrap().flatten();
    let mut disks: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_block_device()))
        .collect();
    disks.sort();
    let real = |path: &&PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        !name.starts_with("loop") && !name.starts_with("sr")
    };
    disks.iter().find(real).or(disks.first()).unwrap_or_else(|| panic!("no block device in /dev")).clone()
}

/// Asks again and again until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
