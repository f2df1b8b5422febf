//! What the OCI runtime-spec promises of a container, held against the `config.json` that a running one was made from:
//! by the built-in runtime, and by runc and crun, which have to agree.
//!
//! Looked at from outside, by `/proc` of its first process. Source: opencontainers/runtime-spec 1.0.2.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gitopsd::engine::{ContainerState, Engine};
use gitopsd::types::{
    ByteSize, CAPABILITIES, DeviceMapping, InstanceId, Options, Tmpfs, VolumeMount, VolumeSource,
};
use serde_json::Value;

use crate::containers::{Rig, bind};

/// A running container and what it was made from.
pub struct World {
    rig: Rig,
    id: InstanceId,
    pid: i32,
    config: Value,
}

type Check = fn(&World) -> Result<(), String>;

/// Page and section, the promise in short, and how it is looked at.
pub const PROMISES: &[(&str, &str, Check)] = &[
    ("config.md, Root", "`path` is what the container sees as `/`; `readonly` is in force", root),
    ("config.md, Mounts", "all are there, in the order listed, with their type", mounts),
    ("config.md, Mounts", "`ro`, `nosuid`, `nodev`, `noexec`, `size` and `mode` are in force", mount_options),
    ("config.md, Process", "`args` in order, `env`, and no more", arguments),
    ("config.md, Process", "`cwd`, `terminal`: where it is, and that no descriptor is a terminal", directory),
    ("config.md, POSIX process", "`rlimits`, soft and hard", limits),
    ("config.md, Linux Process", "`capabilities`, all five sets", capabilities),
    ("config.md, Linux Process", "`noNewPrivileges`, `oomScoreAdj`", privileges),
    ("config.md, Linux Process", "`apparmorProfile`, where the kernel has AppArmor", apparmor),
    ("config.md, User", "`uid`, `gid`, `additionalGids`, `umask`", user),
    ("config.md, Hostname", "`hostname`, `domainname`", names),
    ("config.md, POSIX-platform Hooks", "there are none: nothing runs on the host for a container", hooks),
    ("config-linux.md, Default Filesystems", "`/proc`, `/sys`, `/dev/pts`, `/dev/shm`", filesystems),
    (
        "config-linux.md, Namespaces",
        "new ones are new, those with a `path` are entered, others are the runtime's",
        namespaces,
    ),
    ("config-linux.md, Devices", "type, number, mode and owner of those listed", devices),
    (
        "config-linux.md, Default Devices",
        "null, zero, full, random, urandom, tty, ptmx; links for descriptors",
        standard_devices,
    ),
    ("config-linux.md, Control groups", "`cgroupsPath`: in every hierarchy of a controller", cgroups),
    (
        "config-linux.md, Control groups",
        "`resources`: memory, swap, CPU, processes, as the kernel has them",
        resources,
    ),
    ("config-linux.md, Sysctl", "each has its value in the container", sysctls),
    ("config-linux.md, Seccomp", "system calls are filtered", seccomp),
    ("config-linux.md, Masked Paths", "nothing can be read there", masked),
    ("config-linux.md, Readonly Paths", "nothing can be written there", read_only),
    ("config-linux.md, Rootfs Mount Propagation", "not `shared`: no mount leaves the container", propagation),
    ("runtime.md, State", "`ociVersion`, `id`, `status`, `pid`, `bundle` of a running container", state),
    ("runtime.md, Kill", "the signal reaches the process, and its end is told", kill),
    ("runtime.md, Delete", "all that was made is taken away: cgroups, mounts, files, processes", delete),
];

fn want<F, W>(what: &str, found: F, wanted: W) -> Result<(), String>
where
    F: std::fmt::Debug + PartialEq<W>,
    W: std::fmt::Debug,
{
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?}, not {wanted:?}")) }
}

impl World {
    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap_or_default()
    }

    fn status(&self, key: &str) -> String {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    fn strings(&self, pointer: &str) -> Vec<String> {
        let list = self.config.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
        list.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
    }

    fn number(&self, pointer: &str) -> Option<i64> {
        self.config.pointer(pointer).and_then(Value::as_i64)
    }

    fn list(&self, pointer: &str) -> Vec<Value> {
        self.config.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
    }

    fn output(&self, command: &[&str]) -> String {
        let command: Vec<String> = command.iter().map(ToString::to_string).collect();
        let done = self.rig.engine.exec(&self.id, &command, Duration::from_secs(60)).unwrap();
        done.output.trim_end().to_owned()
    }

    /// Mount points of the container in order: point, type, options of the mount and of its file system.
    fn mounted(&self) -> Vec<(String, String, Vec<String>)> {
        let parse = |line: &str| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let fields: Vec<&str> = mount.split(' ').collect();
            let filesystem: Vec<&str> = filesystem.split(' ').collect();
            let options = format!("{},{}", fields.get(5)?, filesystem.get(2)?);
            let options = options.split(',').map(str::to_owned).collect();
            Some(((*fields.get(4)?).to_owned(), (*filesystem.first()?).to_owned(), options))
        };
        self.proc("mountinfo").lines().filter_map(parse).collect()
    }
}

fn root(world: &World) -> Result<(), String> {
    let of_image = fs::read(world.rig.path("layer/etc/passwd")).unwrap();
    want("/etc/passwd", fs::read(world.inside("/etc/passwd")).unwrap_or_default(), of_image)?;
    let read_only = world.config["root"]["readonly"].as_bool().unwrap_or(false);
    let mounted = world.mounted();
    let root = mounted.iter().rfind(|(point, ..)| point == "/").ok_or("nothing is mounted on /")?;
    // The first of them is the mount's own.
    want("root.readonly", root.2.first().is_some_and(|option| option == "ro"), read_only)
}

fn mounts(world: &World) -> Result<(), String> {
    let mounted = world.mounted();
    let mut last = None;
    for mount in world.list("/mounts") {
        let (point, kind) = (mount["destination"].as_str().unwrap(), mount["type"].as_str().unwrap());
        let at = mounted.iter().position(|(other, ..)| other == point);
        let at = at.ok_or_else(|| format!("{point} is not mounted"))?;
        if last.is_some_and(|last| at < last) {
            return Err(format!("{point} comes too early"));
        }
        last = Some(at);
        let found = mounted[at].1.as_str();
        // On version 1 a file system in memory holds one mount for each controller.
        let fits =
            kind == "bind" || kind == found || kind == "cgroup" && matches!(found, "tmpfs" | "cgroup2");
        if !fits {
            return Err(format!("{point} is {found}, not {kind}"));
        }
    }
    Ok(())
}

fn mount_options(world: &World) -> Result<(), String> {
    let mounted = world.mounted();
    for mount in world.list("/mounts") {
        let point = mount["destination"].as_str().unwrap();
        let (_, _, found) = mounted.iter().rfind(|(other, ..)| other == point).ok_or(point)?;
        // crun mounts what holds the hierarchies of version 1 with its own options.
        if mount["type"] == "cgroup" && std::env::var("GITOPSD_TEST_RUNTIME").is_ok_and(|name| name == "crun")
        {
            continue;
        }
        for option in mount["options"].as_array().unwrap().iter().filter_map(Value::as_str) {
            let wanted = match option {
                "ro" | "nosuid" | "nodev" | "noexec" => option.to_owned(),
                "rro" => "ro".into(),
                "rnodev" => "nodev".into(),
                _ => match option.split_once('=') {
                    Some(("size", size)) => {
                        let size = size.strip_suffix('k').map_or_else(
                            || size.parse::<u64>().map(|bytes| bytes >> 10),
                            |kib| kib.parse::<u64>(),
                        );
                        format!("size={}k", size.map_err(|error| error.to_string())?)
                    }
                    Some(("mode", mode)) if point != "/dev/shm" => {
                        format!("mode={}", mode.trim_start_matches('0'))
                    }
                    _ => continue,
                },
            };
            // What tmpfs has by default it does not show.
            if !found.contains(&wanted) && wanted != "mode=1777" {
                return Err(format!("{point}: no `{wanted}` in {found:?}"));
            }
        }
    }
    Ok(())
}

fn arguments(world: &World) -> Result<(), String> {
    let list =
        |file: &str| -> Vec<String> { world.proc(file).split_terminator('\0').map(str::to_owned).collect() };
    want("args", list("cmdline"), world.strings("/process/args"))?;
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    want("env", sorted(list("environ")), sorted(world.strings("/process/env")))
}

fn directory(world: &World) -> Result<(), String> {
    let cwd = fs::read_link(format!("/proc/{}/cwd", world.pid)).map_err(|error| error.to_string())?;
    want("cwd", cwd, PathBuf::from(world.config["process"]["cwd"].as_str().unwrap()))?;
    want("terminal", world.config["process"]["terminal"].as_bool(), Some(false))?;
    for entry in fs::read_dir(format!("/proc/{}/fd", world.pid)).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let text = target.to_string_lossy().into_owned();
        if text.starts_with("/dev/pts/") || text == "/dev/console" || text == "/dev/tty" {
            return Err(format!("descriptor {:?} is {text}", entry.file_name()));
        }
    }
    Ok(())
}

fn limits(world: &World) -> Result<(), String> {
    let names = BTreeMap::from([
        ("RLIMIT_NOFILE", "Max open files"),
        ("RLIMIT_CORE", "Max core file size"),
        ("RLIMIT_NPROC", "Max processes"),
    ]);
    let found = world.proc("limits");
    let listed = world.list("/process/rlimits");
    want("rlimits", listed.len(), 3)?;
    for limit in listed {
        let name = names.get(limit["type"].as_str().unwrap()).ok_or("another limit")?;
        let line = found.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let values: Vec<&str> = line.split_whitespace().take(2).collect();
        want(name, values, [limit["soft"].to_string(), limit["hard"].to_string()].to_vec())?;
    }
    Ok(())
}

fn capabilities(world: &World) -> Result<(), String> {
    for (set, line) in [
        ("bounding", "CapBnd"),
        ("effective", "CapEff"),
        ("permitted", "CapPrm"),
        ("inheritable", "CapInh"),
        ("ambient", "CapAmb"),
    ] {
        let names = world.strings(&format!("/process/capabilities/{set}"));
        let bit = |name: &String| CAPABILITIES.iter().position(|known| known == name).unwrap();
        let mut bits = names.iter().fold(0u64, |bits, name| bits | 1 << bit(name));
        // capabilities(7), "Effect of user ID changes": a user that is not root keeps none of these two.
        if world.number("/process/user/uid") != Some(0) && matches!(set, "effective" | "permitted") {
            bits = 0;
        }
        want(line, world.status(line), format!("{bits:016x}"))?;
    }
    Ok(())
}

fn privileges(world: &World) -> Result<(), String> {
    let wanted = u8::from(world.config["process"]["noNewPrivileges"].as_bool().unwrap());
    want("NoNewPrivs", world.status("NoNewPrivs"), wanted.to_string())?;
    let adjusted = world.number("/process/oomScoreAdj").unwrap();
    want("oom_score_adj", world.proc("oom_score_adj").trim().to_owned(), adjusted.to_string())
}

fn apparmor(world: &World) -> Result<(), String> {
    let label = world.proc("attr/apparmor/current");
    let found = label.split(" (").next().map(str::trim_end).filter(|name| !name.is_empty());
    want(
        "label",
        found.unwrap_or("unconfined"),
        world.config["process"]["apparmorProfile"].as_str().unwrap_or("unconfined"),
    )
}

fn user(world: &World) -> Result<(), String> {
    let four = |number: i64| [number; 4].map(|number| number.to_string()).join(" ");
    want("uid", world.status("Uid"), four(world.number("/process/user/uid").unwrap()))?;
    want("gid", world.status("Gid"), four(world.number("/process/user/gid").unwrap()))?;
    let mut groups: Vec<i64> =
        world.list("/process/user/additionalGids").iter().filter_map(Value::as_i64).collect();
    groups.sort_unstable();
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    want("additionalGids", world.status("Groups"), groups.join(" "))?;
    want("umask", world.status("Umask"), format!("{:04o}", world.number("/process/user/umask").unwrap()))
}

fn names(world: &World) -> Result<(), String> {
    let found = world.output(&["cat", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname"]);
    let name = |key: &str| world.config[key].as_str().unwrap().to_owned();
    want("names", found, format!("{}\n{}", name("hostname"), name("domainname")))
}

fn hooks(world: &World) -> Result<(), String> {
    want("hooks", world.config.get("hooks").is_none(), true)
}

fn filesystems(world: &World) -> Result<(), String> {
    let mounted = world.mounted();
    for (point, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev/pts", "devpts"), ("/dev/shm", "tmpfs")]
    {
        let found = mounted.iter().find(|(other, ..)| other == point).map(|(_, kind, _)| kind.as_str());
        want(point, found, Some(kind))?;
    }
    Ok(())
}

fn namespaces(world: &World) -> Result<(), String> {
    let files = BTreeMap::from([
        ("mount", "mnt"),
        ("uts", "uts"),
        ("cgroup", "cgroup"),
        ("network", "net"),
        ("pid", "pid"),
        ("ipc", "ipc"),
        ("user", "user"),
    ]);
    let listed = world.list("/linux/namespaces");
    let number = |path: &Path| fs::metadata(path).map(|found| found.ino()).map_err(|error| error.to_string());
    for (kind, file) in files {
        let inside = number(Path::new(&format!("/proc/{}/ns/{file}", world.pid)))?;
        let outside = number(Path::new(&format!("/proc/self/ns/{file}")))?;
        match listed.iter().find(|namespace| namespace["type"] == kind) {
            None => want(kind, inside, outside)?,
            Some(namespace) => match namespace["path"].as_str() {
                Some(path) => want(kind, inside, number(Path::new(path))?)?,
                None => want(kind, inside == outside, false)?,
            },
        }
    }
    Ok(())
}

fn devices(world: &World) -> Result<(), String> {
    let listed = world.list("/linux/devices");
    want("devices", listed.len(), 1)?;
    for device in listed {
        let path = device["path"].as_str().unwrap();
        let found = fs::symlink_metadata(world.inside(path)).map_err(|error| format!("{path}: {error}"))?;
        want("type", found.file_type().is_char_device(), device["type"] == "c")?;
        let number = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        let wanted = |key: &str| u32::try_from(device[key].as_u64().unwrap()).unwrap();
        want("number", number, (wanted("major"), wanted("minor")))?;
        want("mode", found.mode() & 0o7777, wanted("fileMode"))?;
        want("owner", (found.uid(), found.gid()), (wanted("uid"), wanted("gid")))?;
    }
    Ok(())
}

fn standard_devices(world: &World) -> Result<(), String> {
    for (name, minor, major) in
        [("null", 3, 1), ("zero", 5, 1), ("full", 7, 1), ("random", 8, 1), ("urandom", 9, 1), ("tty", 0, 5)]
    {
        let found = fs::symlink_metadata(world.inside(&format!("/dev/{name}")))
            .map_err(|e| format!("{name}: {e}"))?;
        let number = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        want(name, number, (major, minor))?;
        want(name, found.mode() & 0o777, 0o666)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        let found =
            fs::read_link(world.inside(&format!("/dev/{name}"))).map_err(|e| format!("{name}: {e}"))?;
        want(name, found, PathBuf::from(target))?;
    }
    Ok(())
}

fn cgroups(world: &World) -> Result<(), String> {
    let wanted = world.config["linux"]["cgroupsPath"].as_str().unwrap();
    let text = world.proc("cgroup");
    let hybrid = text.lines().count() > 1;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap(), fields.next().unwrap());
        // Beside version 1 the hierarchy of version 2 has no controller, and that of systemd never has one.
        if controllers.is_empty() && hybrid || controllers.starts_with("name=") {
            continue;
        }
        want(controllers, path, wanted)?;
    }
    Ok(())
}

fn resources(world: &World) -> Result<(), String> {
    let path = world.config["linux"]["cgroupsPath"].as_str().unwrap();
    let limit = |key: &str| world.number(&format!("/linux/resources/{key}")).unwrap().to_string();
    let swap = world.number("/linux/resources/memory/swap").unwrap()
        - world.number("/linux/resources/memory/limit").unwrap();
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let files = if v2 {
        vec![
            (format!("{path}/memory.max"), limit("memory/limit")),
            (format!("{path}/memory.swap.max"), swap.to_string()),
            (format!("{path}/memory.low"), limit("memory/reservation")),
            (format!("{path}/cpu.max"), format!("{} {}", limit("cpu/quota"), limit("cpu/period"))),
            (format!("{path}/pids.max"), limit("pids/limit")),
        ]
    } else {
        vec![
            (format!("/memory{path}/memory.limit_in_bytes"), limit("memory/limit")),
            (format!("/memory{path}/memory.memsw.limit_in_bytes"), limit("memory/swap")),
            (format!("/memory{path}/memory.soft_limit_in_bytes"), limit("memory/reservation")),
            (format!("/cpu{path}/cpu.cfs_quota_us"), limit("cpu/quota")),
            (format!("/cpu{path}/cpu.cfs_period_us"), limit("cpu/period")),
            (format!("/cpu{path}/cpu.shares"), limit("cpu/shares")),
            (format!("/pids{path}/pids.max"), limit("pids/limit")),
        ]
    };
    for (file, wanted) in files {
        let found =
            fs::read_to_string(format!("/sys/fs/cgroup{file}")).map_err(|e| format!("{file}: {e}"))?;
        want(&file, found.trim().to_owned(), wanted)?;
    }
    Ok(())
}

fn sysctls(world: &World) -> Result<(), String> {
    let listed = world.config["linux"]["sysctl"].as_object().unwrap();
    want("sysctl", listed.len() >= 3, true)?;
    for (name, value) in listed {
        let found = world.output(&["cat", &format!("/proc/sys/{}", name.replace('.', "/"))]);
        want(name, found.replace('\t', " "), value.as_str().unwrap().to_owned())?;
    }
    Ok(())
}

fn seccomp(world: &World) -> Result<(), String> {
    want("Seccomp", world.status("Seccomp"), "2".to_owned())
}

fn masked(world: &World) -> Result<(), String> {
    let listed = world.strings("/linux/maskedPaths");
    want("maskedPaths", listed.len() > 5, true)?;
    for path in listed {
        let place = world.inside(&path);
        if place.is_dir() {
            want(&path, fs::read_dir(&place).unwrap().count(), 0)?;
        } else if place.exists() {
            want(&path, fs::read(&place).map_err(|error| format!("{path}: {error}"))?.len(), 0)?;
        }
    }
    Ok(())
}

fn read_only(world: &World) -> Result<(), String> {
    let listed = world.strings("/linux/readonlyPaths");
    want("readonlyPaths", listed.len() >= 5, true)?;
    for path in listed.iter().filter(|path| world.inside(path).exists()) {
        let found = rustix::fs::statvfs(world.inside(path)).map_err(|error| format!("{path}: {error}"))?;
        want(path, found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), true)?;
    }
    Ok(())
}

fn propagation(world: &World) -> Result<(), String> {
    let shared: Vec<String> =
        world.proc("mountinfo").lines().filter(|line| line.contains(" shared:")).map(str::to_owned).collect();
    want("shared mounts", shared, Vec::<String>::new())
}

fn state(world: &World) -> Result<(), String> {
    let dir = world.rig.path(&format!("run/containers/{}", world.id));
    if let Ok(runtime) = std::env::var("GITOPSD_TEST_RUNTIME") {
        let told = std::process::Command::new(runtime)
            .arg("--root")
            .arg(dir.join("oci"))
            .args(["state", &world.id.to_string()])
            .output()
            .unwrap();
        return state_is(world, &serde_json::from_slice(&told.stdout).unwrap(), &dir);
    }
    let text =
        fs::read(dir.join(format!("oci/{}/state.json", world.id))).map_err(|error| error.to_string())?;
    state_is(world, &serde_json::from_slice(&text).unwrap(), &dir)
}

fn state_is(world: &World, state: &Value, dir: &Path) -> Result<(), String> {
    want("ociVersion", state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")), true)?;
    want("id", state["id"].as_str(), Some(world.id.to_string().as_str()))?;
    want("status", state["status"].as_str(), Some("running"))?;
    want("pid", state["pid"].as_i64(), Some(world.pid.into()))?;
    want("bundle", state["bundle"].as_str().map(PathBuf::from), Some(dir.join("bundle")))
}

fn kill(world: &World) -> Result<(), String> {
    world.rig.engine.stop(&world.id, Duration::from_secs(20)).map_err(|error| error.to_string())?;
    let exit = world.rig.wait_exit(&world.id);
    want("the end", (exit.code, exit.signal), (Some(42), None))
}

fn delete(world: &World) -> Result<(), String> {
    world.rig.engine.remove(&world.id).map_err(|error| error.to_string())?;
    want("what is left", world.rig.traces(), Vec::<String>::new())
}

/// A container that uses as much of the configuration as one can.
fn world() -> World {
    let rig = Rig::new();
    fs::create_dir(rig.path("host")).unwrap();
    let mut request = rig.script("shop.1", "trap 'exit 42' TERM; echo up; while :; do sleep 0.05; done");
    let spec = &mut request.spec;
    spec.user = Some("app".into());
    spec.working_dir = Some("/srv/app".into());
    spec.environment.insert("LOG".into(), "a b=c".into());
    spec.mem_limit = Some(ByteSize(64 << 20));
    spec.milli_cpus = Some(500);
    spec.pids_limit = Some(50);
    let named = VolumeSource::Named("data".into());
    spec.volumes = vec![VolumeMount::new(named, "/data", false), bind(rig.path("host"), "/data/host", true)];
    let words = |words: &[&str]| Some(words.iter().map(ToString::to_string).collect());
    spec.options = Options {
        group_add: words(&["44"]),
        hostname: Some("front".into()),
        domainname: Some("example.org".into()),
        cap_drop: words(&["CAP_CHOWN"]),
        devices: Some(vec![DeviceMapping {
            source: "/dev/zero".into(),
            target: "/dev/nought".into(),
            access: "r".into(),
        }]),
        sysctls: Some(BTreeMap::from([("kernel.msgmax".into(), "16384".into())])),
        ulimits: Some(BTreeMap::from([("core".into(), (0, 4096)), ("nproc".into(), (500, 600))])),
        shm_size: Some(ByteSize(8 << 20)),
        tmpfs: Some(vec![Tmpfs {
            target: "/run".into(),
            options: vec!["size=2m".into(), "mode=0750".into()],
        }]),
        read_only: Some(true),
        memswap_limit: Some(96 << 20),
        mem_reservation: Some(ByteSize(16 << 20)),
        cpu_shares: Some(512),
        oom_score_adj: Some(321),
        ..Options::default()
    };
    rig.start(&request);
    rig.wait_log(&request.id, "up");
    let Some(ContainerState::Running { pid, .. }) = rig.state(&request.id) else { panic!("it does not run") };
    let config = fs::read(rig.path("run/containers/shop.1/bundle/config.json")).unwrap();
    World { pid, id: request.id, config: serde_json::from_slice(&config).unwrap(), rig }
}

#[test]
fn a_container_is_what_the_runtime_spec_promises() {
    let world = world();
    let broken: Vec<String> = PROMISES
        .iter()
        .filter_map(|(section, promise, check)| {
            check(&world).err().map(|error| format!("{section}: {promise}\n    {error}"))
        })
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn runc_and_crun_agree() {
    for runtime in ["runc", "crun"] {
        let again = std::process::Command::new(std::env::current_exe().unwrap())
            .env("GITOPSD_TEST_RUNTIME", runtime)
            .args(["--exact", "promises::a_container_is_what_the_runtime_spec_promises"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success() && text.contains("1 passed"), "{runtime}: {text}");
    }
}

/// The bundle, by the validator of opencontainers/runtime-tools; its packages are 400 MB, so that only `make test-all` has
/// them.
#[test]
#[ignore = "needs golang-go and golang-github-opencontainers-runtime-tools-dev"]
fn the_validator_of_runtime_tools_finds_nothing() {
    let world = world();
    let validator = world.rig.path("validate");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/validate.go");
    let built = std::process::Command::new("go")
        .args(["build", "-o"])
        .args([&validator, &source])
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", world.rig.path("gocache"))
        .output()
        .expect("go is needed: package golang-go");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let found = |config: &Value| {
        let bundle = world.rig.path("bundle");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let output = std::process::Command::new(&validator).arg(bundle).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.ends_with("checked\n"), "{text}");
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("* "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut config = world.config.clone();
    // It knows one version, and wants the root in the bundle, where the specification takes any absolute path.
    config["ociVersion"] = "1.0.2-dev".into();
    config["root"]["path"] = "rootfs".into();
    // The network is one that was made for the container before it; it has these parameters.
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    let network = namespaces.iter_mut().find(|namespace| namespace["type"] == "network").unwrap();
    assert!(network.as_object_mut().unwrap().remove("path").is_some());
    assert_eq!(found(&config), Vec::<String>::new());
    // It does find what is wrong.
    config["process"]["cwd"] = "relative".into();
    config["mounts"][0]["destination"] = "proc".into();
    let said = found(&config).join("\n");
    assert!(said.contains("cwd") && said.contains("proc"), "{said}");
}
