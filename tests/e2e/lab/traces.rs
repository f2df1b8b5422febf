//! What a lab's instance leaves on the host, and a power cut, which leaves the disk.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Lab, wait_for};

impl Lab {
    /// Takes away all of this instance that does not survive a reboot. The agent has to be gone already.
    pub fn cut_power(&self) {
        let root = self.dir.path().to_string_lossy().into_owned();
        let kill = |pid: &str| {
            if let Ok(pid) = pid.trim().parse() {
                // It may be gone with another one.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        };
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains("internal-") && line.contains(&root) {
                kill(&process.file_name().to_string_lossy());
            }
        }
        cgroups(Path::new("/sys/fs/cgroup"), &self.instance, 0, &mut |path| {
            fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines().for_each(kill);
            wait_for("an empty cgroup", || match fs::remove_dir(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => None,
                _ => Some(()),
            });
        });
        for entry in fs::read_dir(self.path("run/netns")).into_iter().flatten().flatten() {
            nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
        fs::remove_dir_all(self.path("run")).unwrap();
        // The next agent is in another boot than this one was.
        let former = serde_json::json!({ "boot_id": "00000000-0000-0000-0000-000000000000", "clean": false });
        gitopsd::state::atomic::write(&self.path("state/boot.json"), &former).unwrap();
        for entry in fs::read_dir("/sys/class/net").unwrap().flatten() {
            let alias = fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
            if alias.contains(&format!(":{}:", self.instance)) {
                let name = entry.file_name();
                // The other end of a pair that is gone already.
                let _ = Command::new("ip").args(["link", "delete"]).arg(name).stderr(Stdio::null()).status();
            }
        }
        let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
        for table in
            String::from_utf8(tables.stdout).unwrap().lines().filter(|line| line.ends_with(&self.instance))
        {
            let words = table.split(' ').skip(1);
            assert!(Command::new("nft").args(["delete", "table"]).args(words).status().unwrap().success());
        }
    }

    /// Everything of this instance that the host shows, in words: kernel objects, processes, directories.
    pub fn traces(&self) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        let mut add = |kind: &str, name: String| {
            traces.insert(format!("{kind} {name}"));
        };
        for folder in ["state/containers", "run/containers", "run/netns"] {
            for entry in fs::read_dir(self.path(folder)).into_iter().flatten().flatten() {
                add(folder, entry.file_name().to_string_lossy().into_owned());
            }
        }
        let root = self.dir.path().to_string_lossy().into_owned();
        for line in fs::read_to_string("/proc/mounts").unwrap().lines().filter(|line| line.contains(&root)) {
            add("mount", line.split(' ').nth(1).unwrap().replace(&root, ""));
        }
        for entry in fs::read_dir("/sys/class/net").unwrap().flatten() {
            let alias = fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
            if alias.contains(&format!(":{}:", self.instance)) {
                add("link", alias.trim().to_owned());
            }
        }
        cgroups(Path::new("/sys/fs/cgroup"), &self.instance, 0, &mut |path| {
            add("cgroup", path.file_name().unwrap().to_string_lossy().into_owned());
        });
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("internal-") && line.contains(&root) {
                add("process", line.trim().replace(&root, ""));
            }
        }
        traces
    }
}

/// Calls `found` with each cgroup directory below one that is named after the instance.
fn cgroups(dir: &Path, instance: &str, depth: u32, found: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let inside = dir.file_name().is_some_and(|name| name == instance);
        if inside {
            found(&entry.path());
        } else if depth < 3 {
            cgroups(&entry.path(), instance, depth + 1, found);
        }
    }
}
