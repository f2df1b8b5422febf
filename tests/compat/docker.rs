//! A Docker daemon of the test's own: its own data, socket, and network and mount namespaces, so that nothing of the
//! machine's own Docker is seen or touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A running daemon; ends with this value.
pub struct Docker {
    dir: PathBuf,
    /// unshare(1), whose place the daemon takes.
    process: Child,
}

/// Name of the image that [`Docker::start`] makes.
const IMAGE: &str = "probe:1";

impl Docker {
    /// A daemon with all it has below `dir`, and one image made of the files in `layer`.
    pub fn start(dir: &Path, layer: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        // Sockets of Docker and containerd lie below /run: in a file system of its own there.
        // Its containerd is begun by itself, as the daemon would wait for it for 15 s, which a slow machine takes.
        let script = "mount --make-rprivate / && mount -t tmpfs run /run && ip link set lo up || exit
            cd $1 && shift
            containerd --root $PWD/containerd --state $PWD/state --address $PWD/containerd.sock &
            echo $! >containerd.pid
            until test -S containerd.sock; do sleep 0.05; done
            exec dockerd --containerd $PWD/containerd.sock \"$@\"";
        let option = |name: &str, value: &str| format!("--{name}={}", dir.join(value).display());
        let log = fs::File::create(dir.join("log")).unwrap();
        let process = Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", script, "dockerd"])
            .arg(dir)
            .args([option("data-root", "data"), option("exec-root", "exec"), option("pidfile", "pid")])
            .arg(format!("--host=unix://{}", dir.join("socket").display()))
            .args(["--storage-driver=overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("dockerd is needed: package docker.io");
        let mut docker = Self { dir: dir.to_owned(), process };
        let end = Instant::now() + 2 * crate::containers::patience();
        while !docker.command().arg("version").output().is_ok_and(|done| done.status.success()) {
            let died = docker.process.try_wait().unwrap();
            let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(died.is_none() && Instant::now() < end, "dockerd does not answer ({died:?}):\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let archive = dir.join("layer.tar");
        run(Command::new("tar").arg("-C").arg(layer).arg("-cf").arg(&archive).arg("."));
        run(docker.command().arg("import").arg(&archive).arg(IMAGE));
        docker
    }

    /// `docker run` with these options; gives back what the command wrote.
    pub fn run(&self, options: &[String], command: &[&str]) -> String {
        let mut run = self.command();
        run.args(["run", "--rm", "--network=none", "--cgroupns=private"]).args(options);
        let output = self::run(run.arg(IMAGE).args(command));
        String::from_utf8(output.stdout).unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_CONFIG", &self.dir);
        command.arg("--host").arg(format!("unix://{}", self.dir.join("socket").display()));
        command
    }
}

/// Runs a command to its end, which has to be a good one.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let words: Vec<_> = command.get_args().filter(|word| word.len() < 100).collect();
    assert!(output.status.success(), "{words:?}: {}: {told}", output.status);
    output
}

impl Drop for Docker {
    fn drop(&mut self) {
        let end = |pid: i32| {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
        };
        let _ = end(self.process.id().cast_signed());
        let _ = self.process.wait();
        let containerd = fs::read_to_string(self.dir.join("containerd.pid")).ok();
        if let Some(pid) = containerd.and_then(|text| text.trim().parse().ok()) {
            let _ = end(pid);
            let until = Instant::now() + crate::containers::patience();
            while Path::new(&format!("/proc/{pid}")).exists() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // What it had mounted went with its mount namespace.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
