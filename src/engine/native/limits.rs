//! Limits of a container, as the OCI configuration has them: memory, processors, disks, open files.
//!
//! Source: OCI runtime-spec config.md, "POSIX process", and config-linux.md, "Control groups".

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::launch::Launch;
use super::rights;
use crate::types::{ByteSize, Options};

/// Files that a process may have open, where the host allows as many.
const MAX_FILES: u64 = 1 << 20;

/// Microseconds over which a share of the processors is counted. Source: cgroup-v2.rst, `cpu.max`.
pub(super) const CPU_PERIOD: u64 = 100_000;
/// The kernel takes no smaller quota.
const MIN_CPU_QUOTA: u64 = 1_000;

/// A device of the host, looked at.
#[derive(Debug, Clone)]
pub(super) struct Device {
    /// In the container.
    pub target: PathBuf,
    /// `b` or `c`.
    pub kind: char,
    /// Number of the driver.
    pub major: u64,
    /// Number of the device.
    pub minor: u64,
    /// Of `r`, `w`, `m`.
    pub access: String,
    /// Permissions, owner and group of the device file.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Looks at a device file of the host.
pub(super) fn device(source: &Path, target: &Path, access: &str) -> io::Result<Device> {
    let found = std::fs::symlink_metadata(source)?;
    let kind = match found.file_type() {
        kind if kind.is_block_device() => 'b',
        kind if kind.is_char_device() => 'c',
        _ => return Err(io::Error::other("it is not a device")),
    };
    Ok(Device {
        target: target.to_owned(),
        kind,
        major: rustix::fs::major(found.rdev()).into(),
        minor: rustix::fs::minor(found.rdev()).into(),
        access: access.to_owned(),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
    })
}

/// `process.rlimits`. `files` is the most open files that this host lets us allow.
pub(super) fn rlimits(options: &Options, files: u64) -> Vec<Value> {
    let files = files.min(MAX_FILES).cast_signed();
    let mut limits = BTreeMap::from([("nofile", (files, files))]);
    limits.extend(options.ulimits.iter().flatten().map(|(name, pair)| (name.as_str(), *pair)));
    let entry = |(name, (soft, hard)): (&str, (i64, i64))| {
        // -1 is RLIM_INFINITY, whose bits are all set.
        let (soft, hard) = (soft.cast_unsigned(), hard.cast_unsigned());
        json!({ "type": format!("RLIMIT_{}", name.to_ascii_uppercase()), "soft": soft, "hard": hard })
    };
    limits.into_iter().map(entry).collect()
}

/// What is told where a container whose shim may have `files` open gets no more either, and says nothing of `nofile`.
pub(super) fn fewer_files(options: &Options, files: u64) -> Option<String> {
    let says = options.ulimits.as_ref().is_some_and(|limits| limits.contains_key("nofile"));
    (files < MAX_FILES && !says).then(|| {
        let most = "no more than its supervisor, which this host gives no more (`ulimit -Hn`, fs.nr_open)";
        format!("a process in a container may have {files} files open and not {MAX_FILES}: {most}")
    })
}

/// The most files that a process can have open. Source: proc_pid_limits(5).
pub(super) fn most_files(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let values = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    // The soft one, and the hard one.
    values.split_whitespace().nth(1)?.parse().ok()
}

/// The first of a service's `ulimits` that this process cannot give, told for people: the kernel would only say that it is
/// not permitted. Source: getrlimit(2), "EPERM".
pub(super) fn out_of_reach(options: &Options) -> Option<String> {
    let wanted = options.ulimits.as_ref()?;
    let may_raise = rights::in_force("CAP_SYS_RESOURCE");
    let nr_open = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let nr_open = nr_open.and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
    wanted.iter().find_map(|(name, (_, hard))| {
        // -1 is RLIM_INFINITY.
        let hard = u64::try_from(*hard).unwrap_or(u64::MAX);
        let (most, why) = match may_raise {
            false => {
                let own = getrlimit(resource(name)?).maximum.unwrap_or(u64::MAX);
                (own, "gitopsd has no more itself, and no CAP_SYS_RESOURCE")
            }
            true if name == "nofile" => (nr_open, "fs.nr_open of this host"),
            true => (u64::MAX, ""),
        };
        let said = if hard == u64::MAX { "no limit".to_owned() } else { hard.to_string() };
        (hard > most).then(|| format!("`ulimits.{name}`: {said} is more than {most}: {why}"))
    })
}

/// As `ulimits` calls it. Source: getrlimit(2).
fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

/// Memory and swap together where only the former is limited, as Docker has it: as much swap as memory. Without, what
/// runs wild would fill the host's swap before it is ended. `None` where the kernel does not count swap.
pub(super) fn usual_swap(memory: u64) -> Option<i64> {
    let v1 = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    let v2 = on_v2() && Path::new("/proc/swaps").exists();
    let limit = memory.checked_mul(2)?;
    (v1 || v2).then(|| i64::try_from(limit).ok()).flatten()
}

/// Microseconds of processors in each [`CPU_PERIOD`].
pub(super) fn quota(milli_cpus: u32) -> u64 {
    (u64::from(milli_cpus) * CPU_PERIOD / 1000).max(MIN_CPU_QUOTA)
}

/// Whether there is cgroup v2 alone.
fn on_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// `linux.resources`. `devices` are those of the service, `disks` those of its `blkio_config`.
pub(super) fn resources(launch: &Launch, devices: &[Device]) -> io::Result<Value> {
    let options = &launch.options;
    let privileged = options.privileged == Some(true);
    // v1 only: the standard devices are allowed by the runtime. On v2 the missing CAP_MKNOD and `nodev` do the same.
    let mut rules = vec![json!({ "allow": privileged, "access": "rwm" })];
    for device in devices {
        let Device { kind, major, minor, access, .. } = device;
        rules.push(json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access }));
    }
    let mut resources = json!({ "devices": rules });
    let mut set = |group: &str, key: &str, value: Value| resources[group][key] = value;
    if let Some(limit) = launch.memory.and_then(|bytes| i64::try_from(bytes).ok()) {
        set("memory", "limit", limit.into());
    }
    if let Some(misfit) = options.swap_misfit(launch.memory.map(ByteSize)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, misfit));
    }
    // Without a limit of memory it can only be "none", which is so then; on v2 runtimes refuse to be told.
    if let Some(limit) = launch.memory.and_then(|memory| options.memswap_limit.or_else(|| usual_swap(memory)))
    {
        set("memory", "swap", limit.into());
    }
    if let Some(size) = options.mem_reservation.and_then(|size| i64::try_from(size.0).ok()) {
        set("memory", "reservation", size.into());
    }
    if let Some(milli) = launch.milli_cpus {
        let quota = quota(milli);
        set("cpu", "quota", quota.into());
        set("cpu", "period", CPU_PERIOD.into());
    }
    if let Some(shares) = options.cpu_shares {
        set("cpu", "shares", shares.into());
    }
    if let Some(cpus) = &options.cpuset {
        set("cpu", "cpus", cpus.as_str().into());
    }
    if let Some(limit) = launch.pids {
        set("pids", "limit", limit.into());
    }
    if let Some(blkio) = &options.blkio {
        // The built-in runtime's is `limits_v2`'s there.
        if let Some(weight) = blkio.weight.filter(|_| launch.runtime.is_some() || !on_v2()) {
            set("blockIO", "weight", weight.into());
        }
        for (key, rates) in [
            ("throttleReadBpsDevice", &blkio.read_bps),
            ("throttleWriteBpsDevice", &blkio.write_bps),
            ("throttleReadIOPSDevice", &blkio.read_iops),
            ("throttleWriteIOPSDevice", &blkio.write_iops),
        ] {
            let entry = |(path, rate): &(PathBuf, u64)| {
                let device = device(path, path, "")
                    .map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?;
                Ok(json!({ "major": device.major, "minor": device.minor, "rate": rate }))
            };
            let entries: Vec<Value> = rates.iter().map(entry).collect::<io::Result<_>>()?;
            if !entries.is_empty() {
                set("blockIO", key, entries.into());
            }
        }
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_open_files_than_elsewhere_are_told_of_who_asks_for_no_number() {
        let says = Options {
            ulimits: Some(BTreeMap::from([("nofile".to_owned(), (100, 200))])),
            ..Options::default()
        };
        let told = fewer_files(&Options::default(), 3000).unwrap();
        assert!(told.contains("may have 3000 files open and not 1048576"), "{told}");
        assert_eq!(fewer_files(&says, 3000), None);
        assert_eq!(fewer_files(&Options::default(), MAX_FILES), None);
        assert!(most_files(std::process::id().cast_signed()).unwrap_or(u64::MAX) > 0);
        assert_eq!(most_files(-1), None);
    }
}
