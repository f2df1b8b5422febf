//! Limits of a control group that has processes: written file by file, and only what differs from what the kernel has.
//!
//! What libcontainer writes when it makes a group, for one that is there. A limit of memory is never made smaller than what
//! is in use: on v1 the kernel refuses that, on v2 it would kill, and so it is asked to make room first.
//!
//! Source: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{memory,blkio-controller,cpusets}.rst,
//! Documentation/scheduler/sched-bwc.rst; OCI runtime-spec config-linux.md, "Control groups".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cgroup::Cgroups;
use super::launch::Launch;
use super::limits::{self, CPU_PERIOD};
use crate::types::{Blkio, ByteSize, InstanceId};

/// "No limit" in files of cgroup v2.
const NONE: &str = "max";
/// The kernel's own share beside others, where nothing is said.
const USUAL_SHARES: u64 = 1024;
/// The same for disks, in Compose's numbers.
const USUAL_WEIGHT: u16 = 500;

/// Gives a container's groups the limits of `after`. `before`: what it was started with, or given last.
///
/// # Errors
/// `ResourceBusy`: it uses more memory than it may have, and nothing more of that can be taken back.
pub(super) fn apply(cgroups: &Cgroups, before: &Launch, after: &Launch) -> io::Result<()> {
    let groups = Groups { cgroups, id: &after.id };
    // The one that can be refused comes first, so that nothing has changed then.
    groups.memory(after)?;
    groups.pids(after.pids)?;
    groups.processors(after)?;
    let none = Blkio::default();
    let tried = before.tried.iter().map(|tried| tried.blkio.as_ref());
    let former = tried.chain([before.options.blkio.as_ref()]).map(|it| it.unwrap_or(&none));
    let former: Vec<&Blkio> = former.collect();
    groups.disks(&former, after.options.blkio.as_ref())
}

struct Groups<'a> {
    cgroups: &'a Cgroups,
    id: &'a InstanceId,
}

impl Groups<'_> {
    /// The file of that name in the group that has one.
    fn file(&self, name: &str) -> Option<PathBuf> {
        self.cgroups.with_file(self.id, name).map(|group| group.join(name))
    }

    /// Writes the first of `choices` that the kernel has: a file and its text. Without a file, only "no limit" is as asked.
    fn put(&self, is_limit: bool, choices: &[(&str, String)]) -> io::Result<()> {
        for (name, value) in choices {
            if let Some(file) = self.file(name) {
                return write(&file, value);
            }
        }
        let name = choices.first().map_or("", |(name, _)| name);
        match is_limit {
            true => Err(io::Error::new(io::ErrorKind::Unsupported, format!("this kernel has no {name}"))),
            false => Ok(()),
        }
    }

    fn pids(&self, limit: Option<u32>) -> io::Result<()> {
        self.put(limit.is_some(), &[("pids.max", or_none(limit))])
    }

    fn processors(&self, after: &Launch) -> io::Result<()> {
        let quota = after.milli_cpus.map(limits::quota);
        if let Some(file) = self.file("cpu.cfs_quota_us") {
            write(&file.with_file_name("cpu.cfs_period_us"), &CPU_PERIOD.to_string())?;
            write(&file, &quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string()))?;
        } else {
            self.put(quota.is_some(), &[("cpu.max", format!("{} {CPU_PERIOD}", or_none(quota)))])?;
        }
        let shares = after.options.cpu_shares;
        let usual = shares.unwrap_or(USUAL_SHARES);
        // Where nothing is said, v2's own usual weight, which is not the one that 1024 comes to.
        let weight = shares.map_or(100, weight);
        self.put(shares.is_some(), &[("cpu.shares", usual.to_string()), ("cpu.weight", weight.to_string())])?;
        let cpus = after.options.cpuset.as_deref();
        let Some(file) = self.file("cpuset.cpus") else {
            return self.put(cpus.is_some(), &[("cpuset.cpus", String::new())]);
        };
        // A group with processes has to name some, on v1 always, on v2 once it has named any: those of the group above.
        let all = |name: &str| {
            let above = file.parent().and_then(Path::parent).map(|group| group.join(name));
            let text = above.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
            text.trim().to_owned()
        };
        let v1 = !file.with_file_name("cpuset.cpus.effective").exists();
        match cpus {
            Some(cpus) => write(&file, cpus),
            None if v1 => write(&file, &all("cpuset.cpus")),
            None => write(&file, "").or_else(|_| write(&file, &all("cpuset.cpus.effective"))),
        }
    }

    /// `before`: what it may have now.
    fn disks(&self, before: &[&Blkio], after: Option<&Blkio>) -> io::Result<()> {
        let none = Blkio::default();
        let after = after.unwrap_or(&none);
        let rates = |of: fn(&Blkio) -> &Vec<(PathBuf, u64)>| -> Vec<&(PathBuf, u64)> {
            before.iter().flat_map(|before| of(before)).collect()
        };
        if before.iter().any(|before| before.weight != after.weight) {
            let weight = after.weight.unwrap_or(USUAL_WEIGHT);
            // v2's own goes from 1 to 10000.
            let wide = 1 + u32::from(weight.saturating_sub(10)) * 9999 / 990;
            let (wide, weight) = (wide.to_string(), weight.to_string());
            let choices = [
                ("blkio.weight", weight.clone()),
                ("blkio.bfq.weight", weight.clone()),
                ("io.bfq.weight", weight),
                ("io.weight", wide),
            ];
            self.put(after.weight.is_some(), &choices)?;
        }
        for (v1, v2, before, after) in [
            ("blkio.throttle.read_bps_device", "rbps", rates(|it| &it.read_bps), &after.read_bps),
            ("blkio.throttle.write_bps_device", "wbps", rates(|it| &it.write_bps), &after.write_bps),
            ("blkio.throttle.read_iops_device", "riops", rates(|it| &it.read_iops), &after.read_iops),
            ("blkio.throttle.write_iops_device", "wiops", rates(|it| &it.write_iops), &after.write_iops),
        ] {
            let gone = before.into_iter().filter(|(path, _)| !after.iter().any(|(other, _)| other == path));
            let gone = gone.map(|(path, _)| (path, None));
            for (path, rate) in gone.chain(after.iter().map(|(path, rate)| (path, Some(*rate)))) {
                let device = match limits::device(path, path, "") {
                    Ok(device) => format!("{}:{}", device.major, device.minor),
                    // A disk that is gone needs no limit taken away.
                    Err(_) if rate.is_none() => continue,
                    Err(error) => {
                        return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
                    }
                };
                let old = format!("{device} {}", rate.unwrap_or(0));
                let new = format!("{device} {v2}={}", or_none(rate));
                self.put(rate.is_some(), &[(v1, old), ("io.max", new)])?;
            }
        }
        Ok(())
    }

    fn memory(&self, after: &Launch) -> io::Result<()> {
        let limit = after.memory;
        let both = after.options.memswap_limit.or_else(|| limits::usual_swap(limit?));
        let reserved = after.options.mem_reservation.map(|size| size.0);
        if let Some(file) = self.file("memory.limit_in_bytes") {
            let number =
                |limit: Option<u64>| limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string());
            memory_v1(&file, limit, both)?;
            return write(&file.with_file_name("memory.soft_limit_in_bytes"), &number(reserved));
        }
        // Both together are what Compose limits, and v2 limits swap alone. Together they are never less: `update` has looked.
        let swap = both.and_then(|both| u64::try_from(both).ok()).zip(limit);
        let swap = swap.map(|(both, limit)| both.saturating_sub(limit));
        match self.file("memory.max") {
            Some(file) => memory_v2(&file, limit)?,
            None => self.put(limit.is_some(), &[("memory.max", String::new())])?,
        }
        self.put(false, &[("memory.swap.max", or_none(swap))])?;
        self.put(reserved.is_some(), &[("memory.low", reserved.unwrap_or(0).to_string())])
    }
}

/// Memory, and memory and swap together, which may never be less than memory alone.
fn memory_v1(file: &Path, limit: Option<u64>, both: Option<i64>) -> io::Result<()> {
    let text = limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string());
    let swap = file.with_file_name("memory.memsw.limit_in_bytes");
    if !swap.exists() {
        return busy(write(file, &text), file, limit);
    }
    let both = both.filter(|_| limit.is_some()).unwrap_or(-1);
    let former = fs::read_to_string(file)?;
    let former_both = fs::read_to_string(&swap)?;
    let now: u64 = former.trim().parse().unwrap_or(0);
    let alone = || write(file, &text);
    let together = || write(&swap, &both.to_string());
    let set = match u64::try_from(both) {
        Ok(both) if both <= now => alone().and_then(|()| together()),
        _ => together().and_then(|()| alone()),
    };
    if set.is_err() {
        // As it was: half of it would leave the container to its swap. Wider again, so that neither can be refused.
        let _ = write(&swap, "-1").and_then(|()| write(file, former.trim()));
        let _ = write(&swap, former_both.trim());
    }
    busy(set, file, limit)
}

/// The kernel refuses a limit that it cannot bring the group under.
fn busy(result: io::Result<()>, file: &Path, limit: Option<u64>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
            let used = fs::read_to_string(file.with_file_name("memory.usage_in_bytes")).unwrap_or_default();
            Err(too_much(used.trim().parse().ok(), limit))
        }
        result => result,
    }
}

/// A smaller `memory.max` kills what does not fit at once. `memory.high` only takes back what can be taken back: whether it
/// then fits is seen before the limit is set.
fn memory_v2(file: &Path, limit: Option<u64>) -> io::Result<()> {
    let high = file.with_file_name("memory.high");
    let former: u64 = fs::read_to_string(file)?.trim().parse().unwrap_or(u64::MAX);
    if let Some(limit) = limit.filter(|limit| *limit < former) {
        write(&high, &limit.to_string())?;
        let used = fs::read_to_string(file.with_file_name("memory.current"))?.trim().parse().ok();
        if used.is_none_or(|used: u64| used > limit) {
            write(&high, NONE)?;
            return Err(too_much(used, Some(limit)));
        }
    }
    let set = write(file, &or_none(limit));
    // Also what an update that was cut short has left.
    write(&high, NONE)?;
    set
}

fn too_much(used: Option<u64>, limit: Option<u64>) -> io::Error {
    let size = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| ByteSize(bytes).human());
    let text = format!("it uses {} of memory, and may have {}", size(used), size(limit));
    io::Error::new(io::ErrorKind::ResourceBusy, text)
}

fn or_none(limit: Option<impl ToString>) -> String {
    limit.map_or_else(|| NONE.to_owned(), |limit| limit.to_string())
}

/// v1's shares as v2's weight, as OCI runtimes have it since 2025: 2 is 1, 1024 is 100, 262144 is 10000, and between them
/// a curve. Source: github.com/opencontainers/cgroups, `ConvertCPUSharesToCgroupV2Value`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "within 1 and 10000"
)]
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// Writes what is not so already. No file is made: those of a control group are the kernel's.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let now = fs::read_to_string(file).unwrap_or_default();
    if now.trim() == value.trim() {
        return Ok(());
    }
    use io::Write as _;
    let written = fs::OpenOptions::new().write(true).open(file).and_then(|mut opened| {
        // Nothing is nothing to write: an empty list is a line of its own.
        opened.write_all(format!("{value}\n").as_bytes())
    });
    written.map_err(|error| match error.raw_os_error() {
        // Kept as it is: the caller tells it from others by its number.
        Some(nix::libc::EBUSY) => error,
        _ => io::Error::new(error.kind(), format!("{value} to {}: {error}", file.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_at_the_start() {
        for (shares, expected) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((2..5000).map(weight).is_sorted());
    }

    #[test]
    fn a_smaller_limit_comes_after_the_room_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let text = |name: &str| fs::read_to_string(file(name)).unwrap().trim().to_owned();
        // Files of a plain directory, which keep what is written: the order shows, the kernel's part does not.
        let lay = |max: &str, current: &str| {
            for (name, value) in [("memory.max", max), ("memory.high", "max"), ("memory.current", current)] {
                fs::write(file(name), format!("{value}\n")).unwrap();
            }
        };
        lay("max", "1000");
        memory_v2(&file("memory.max"), Some(2000)).unwrap();
        assert_eq!((text("memory.max").as_str(), text("memory.high").as_str()), ("2000", "max"));
        let error = memory_v2(&file("memory.max"), Some(999)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!((text("memory.max").as_str(), text("memory.high").lines().next()), ("2000", Some("max")));
        memory_v2(&file("memory.max"), None).unwrap();
        assert_eq!(text("memory.max").lines().next(), Some("max"));
    }
}
