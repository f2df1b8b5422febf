//! Control groups of one instance: finding them, killing what is in them, taking them away. libcontainer makes them.
//!
//! A container's group is `/<instance>/<id>` or, as a unit of systemd, `ctr` below the unit's group, in every hierarchy:
//! one on cgroup v2, one for each controller on v1.
//! Source: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::launch::Launch;
use super::supervisor::{CONTAINER, SHIM, Tree};
use crate::types::InstanceId;

/// Where shims live, below the instance's group. Not an instance's name: those hold a dot.
const SHIMS: &str = "shims";

/// Every cgroup hierarchy of this machine.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    instance: String,
    /// Where units are, with systemd.
    units: Option<Tree>,
}

#[derive(Debug, Clone)]
struct Hierarchy {
    mount: PathBuf,
    v2: bool,
    /// v1's `name=systemd`, which only groups processes.
    named: bool,
}

impl Hierarchy {
    /// Whether it is v1's of memory, which may be mounted together with others.
    fn counts_memory(&self) -> bool {
        let name = self.mount.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.split(',').any(|controller| controller == "memory")
    }
}

impl Cgroups {
    /// Finds the hierarchies. Source of the format: proc_pid_mountinfo(5).
    pub fn detect(instance: &str) -> io::Result<Self> {
        let hierarchies = parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?);
        if hierarchies.is_empty() {
            return Err(io::Error::other("no cgroup hierarchy is mounted on this machine"));
        }
        Ok(Self { hierarchies, instance: instance.to_owned(), units: Tree::detect(instance) })
    }

    fn parents(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|h| h.mount.join(&self.instance))
    }

    /// A container's groups in every hierarchy, those that there may be and those that there are.
    fn groups(&self, id: &InstanceId) -> Vec<PathBuf> {
        self.hierarchies.iter().flat_map(|hierarchy| self.groups_in(hierarchy, id)).collect()
    }

    fn groups_in(&self, hierarchy: &Hierarchy, id: &InstanceId) -> Vec<PathBuf> {
        let own = hierarchy.mount.join(&self.instance).join(id.to_string());
        let units = self.units_in(hierarchy).into_iter().filter(|(found, _)| found == id);
        std::iter::once(own).chain(units.map(|(_, group)| group)).collect()
    }

    /// The containers' groups below the units of a hierarchy.
    fn units_in(&self, hierarchy: &Hierarchy) -> Vec<(InstanceId, PathBuf)> {
        let Some(tree) = &self.units else { return Vec::new() };
        let units = children(&below(&hierarchy.mount, &tree.slice_group())).into_iter();
        let container = |unit: PathBuf| {
            let id = tree.id_of(unit.file_name()?.to_str()?)?;
            let group = unit.join(CONTAINER);
            group.exists().then_some((id, group))
        };
        units.filter_map(container).collect()
    }

    /// The v1 hierarchies as they are mounted in a container, by the last part of their names.
    pub fn v1_names(&self) -> Vec<String> {
        let names = self.hierarchies.iter().filter(|h| !h.v2).filter_map(|h| h.mount.file_name()?.to_str());
        names.map(str::to_owned).collect()
    }

    /// Whether there is cgroup v2 alone.
    pub fn only_v2(&self) -> bool {
        self.hierarchies.iter().all(|hierarchy| hierarchy.v2)
    }

    /// Whether groups have no lists of devices: those are v1's.
    pub fn lack_device_lists(&self) -> bool {
        self.only_v2()
    }

    /// Every container that has a group.
    pub fn list(&self) -> BTreeSet<InstanceId> {
        let own = self.parents().flat_map(|parent| children(&parent));
        let own = own.filter_map(|group| group.file_name()?.to_str()?.parse().ok());
        let units = self.hierarchies.iter().flat_map(|hierarchy| self.units_in(hierarchy));
        own.chain(units.map(|(id, _)| id)).collect()
    }

    /// Sends SIGKILL to every process of the container, and says how many there were.
    pub fn kill(&self, id: &InstanceId) -> usize {
        let mut killed = 0;
        for group in self.groups(id).into_iter().filter(|group| group.exists()) {
            killed += kill_group(&group);
        }
        killed
    }

    /// Kills what is left in the container's group and takes the group away. The kernel needs a moment to let go.
    pub fn remove(&self, id: &InstanceId, timeout: Duration) -> io::Result<()> {
        let end = Instant::now() + timeout;
        for group in self.groups(id) {
            loop {
                match remove_tree(&group) {
                    Ok(()) => break,
                    Err(error) if Instant::now() >= end => {
                        let processes = processes(&group);
                        let text = format!("cgroup {} (processes {processes:?}): {error}", group.display());
                        return Err(io::Error::new(error.kind(), text));
                    }
                    Err(_) => {
                        kill_group(&group);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes away the instance's own groups, if no container is left. The last shim may be on its way out still.
    pub fn remove_empty_parents(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        while self.list().is_empty() {
            let busy = self.parents().filter(|parent| {
                // Busy, or not there: either is told by the second call.
                let _ = fs::remove_dir(parent.join(SHIMS));
                matches!(fs::remove_dir(parent), Err(error) if error.kind() != io::ErrorKind::NotFound)
            });
            if busy.count() == 0 || Instant::now() >= end {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A file of the container's group, by the first of `names` that some hierarchy has.
    pub fn read(&self, id: &InstanceId, names: &[&str]) -> Option<String> {
        let groups = self.groups(id);
        let files = names.iter().flat_map(|name| groups.iter().map(move |group| group.join(name)));
        files.filter_map(|file| fs::read_to_string(file).ok()).next()
    }

    /// The container's group that has a file of this name.
    pub fn with_file(&self, id: &InstanceId, name: &str) -> Option<PathBuf> {
        self.groups(id).into_iter().find(|group| group.join(name).exists())
    }

    /// Writes a file of the container's group; `false` = its group has no such file.
    pub fn set(&self, id: &InstanceId, file: &str, value: &str) -> io::Result<bool> {
        let mut files = self.groups(id).into_iter().map(|group| group.join(file));
        files.find(|file| file.exists()).map_or(Ok(false), |file| fs::write(file, value).map(|()| true))
    }

    /// How often the kernel killed something in the container for memory.
    pub fn oom_kills(&self, id: &InstanceId) -> u64 {
        let counts = self.hierarchies.iter().filter_map(|hierarchy| {
            let file = match hierarchy.v2 {
                true => "memory.events",
                false if hierarchy.counts_memory() => "memory.oom_control",
                false => return None,
            };
            let groups = self.groups_in(hierarchy, id);
            groups.iter().filter_map(|group| oom_count(&fs::read_to_string(group.join(file)).ok()?)).max()
        });
        counts.max().unwrap_or(0)
    }

    /// Moves the calling process out of the agent's group, so that a service manager that ends the agent's group does
    /// not end the containers' supervisors: into the unit's group for them or, without one, the instance's.
    ///
    /// On v1 only the hierarchies by which systemd tells services apart matter; the others would only copy limits.
    pub fn adopt_self(&self, launch: &Launch) -> io::Result<()> {
        let pid = std::process::id().to_string();
        for hierarchy in self.hierarchies.iter().filter(|h| h.v2 || h.named) {
            let (group, whole) = match &launch.unit {
                Some(unit) => (below(&hierarchy.mount, &unit.group.join(SHIM)), false),
                None => (hierarchy.mount.join(&self.instance).join(SHIMS), true),
            };
            // Twice: a removal of the last container may take the empty group away in between.
            let mut result = Ok(());
            for _ in 0..5 {
                // A unit that is gone is not made again: what is above the last part is systemd's.
                match fs::DirBuilder::new().recursive(whole).create(&group) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                result = fs::write(group.join("cgroup.procs"), &pid);
                if result.is_ok() {
                    break;
                }
            }
            result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", group.display())))?;
        }
        Ok(())
    }
}

/// The place of a group that is named from the hierarchy's root.
fn below(mount: &Path, group: &Path) -> PathBuf {
    mount.join(group.strip_prefix("/").unwrap_or(group))
}

fn parse_mountinfo(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4) else { continue };
        let mut filesystem = filesystem.split(' ');
        let v2 = match filesystem.next() {
            Some("cgroup") => false,
            Some("cgroup2") => true,
            _ => continue,
        };
        let named = filesystem.nth(1).is_some_and(|options| options.split(',').any(|o| o == "name=systemd"));
        let mount = PathBuf::from(point);
        if !found.iter().any(|h| h.mount == mount) {
            found.push(Hierarchy { mount, v2, named });
        }
    }
    found
}

/// The number behind `oom_kill` in v2's `memory.events` and v1's `memory.oom_control`.
fn oom_count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn processes(group: &Path) -> Vec<i32> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(group) {
        pids.extend(processes(&child));
    }
    pids
}

fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter_map(Result::ok).filter(is_dir).map(|entry| entry.path()).collect()
}

fn kill_group(group: &Path) -> usize {
    let before = processes(group);
    // v2 since Linux 5.14: one write, no race with fork(2).
    if fs::write(group.join("cgroup.kill"), "1").is_ok() {
        return before.len();
    }
    // A pid may be somebody else's by now: hold it first, then look whether it is still in the group.
    let held: Vec<_> = before
        .iter()
        .filter_map(|pid| Some((*pid, pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?)))
        .collect();
    let still = processes(group);
    for (_, fd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
        let _ = pidfd_send_signal(fd, Signal::KILL);
    }
    held.len()
}

fn remove_tree(group: &Path) -> io::Result<()> {
    for child in children(group) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_mountinfo() {
        let text = "\
28 19 0:24 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw
29 28 0:25 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
30 28 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
31 28 0:27 / /sys/fs/cgroup/unified rw shared:10 master:2 - cgroup2 cgroup2 rw
32 28 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
        let found = parse_mountinfo(text);
        let shown: Vec<_> = found.iter().map(|h| (h.mount.to_str().unwrap(), h.v2, h.named)).collect();
        assert_eq!(
            shown,
            [
                ("/sys/fs/cgroup/memory", false, false),
                ("/sys/fs/cgroup/systemd", false, true),
                ("/sys/fs/cgroup/unified", true, false),
            ]
        );
    }

    #[test]
    fn oom_kills_are_read_in_both_spellings() {
        assert_eq!(oom_count("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(oom_count("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        assert_eq!(oom_count("oom_kill_disable 0\nunder_oom 0\n"), None);
    }
}
