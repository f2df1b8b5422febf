//! What containers use of the machine, as their control groups count it.
//!
//! Source: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{cpuacct,memory,pids,blkio-controller}.rst.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::cgroup::Cgroups;
use crate::types::InstanceId;

/// cgroup v1 says "no limit" by the largest number of whole pages; nobody has that much.
const NO_LIMIT: u64 = 1 << 62;

/// What one container uses. What a kernel does not count is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time of processors since it was started, those of all processors added up.
    pub cpu: Option<Duration>,
    /// Bytes of memory, without the cache that the kernel can take back at once.
    pub memory: Option<u64>,
    /// Bytes of memory that it may use; `None` = no limit.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Processes and threads that it may have; `None` = no limit.
    pub pids_limit: Option<u64>,
    /// Bytes read from disks since it was started.
    pub read: Option<u64>,
    /// Bytes written to disks since it was started.
    pub written: Option<u64>,
}

/// What each running container of an instance uses now.
///
/// # Errors
/// The machine has no control groups.
pub fn usages(instance: &str) -> io::Result<BTreeMap<InstanceId, Usage>> {
    let cgroups = Cgroups::detect(instance)?;
    let ids = cgroups.list().into_iter();
    // A group that is about to be taken away has no process any more.
    Ok(ids.map(|id| (id.clone(), of(&cgroups, &id))).filter(|(_, usage)| usage.pids != Some(0)).collect())
}

/// Bytes of memory of one container, without the cache that the kernel can take back at once.
pub(super) fn memory(cgroups: &Cgroups, id: &InstanceId) -> Option<u64> {
    let all: u64 = cgroups.read(id, &["memory.current", "memory.usage_in_bytes"])?.trim().parse().ok()?;
    let stat = cgroups.read(id, &["memory.stat"]).unwrap_or_default();
    // v1 has both: the group's own, and with those below it, as v2 has it.
    let cache = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"));
    Some(all.saturating_sub(cache.unwrap_or(0)))
}

fn of(cgroups: &Cgroups, id: &InstanceId) -> Usage {
    let text = |names: &[&str]| cgroups.read(id, names);
    let number = |names: &[&str]| text(names)?.trim().parse::<u64>().ok();
    // "max" is no number, and no limit either.
    let limit = |names: &[&str]| number(names).filter(|limit| *limit < NO_LIMIT);

    let (read, written) = match text(&["io.stat"]) {
        Some(stat) => (Some(sum_v2(&stat, "rbytes=")), Some(sum_v2(&stat, "wbytes="))),
        None => {
            let names = ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
            let stat = text(&names);
            let sum = |kind| stat.as_deref().map(|stat| sum_v1(stat, kind));
            (sum("Read"), sum("Write"))
        }
    };
    Usage {
        cpu: cpu(text(&["cpu.stat"]).as_deref(), number(&["cpuacct.usage"])),
        memory: memory(cgroups, id),
        memory_limit: limit(&["memory.max", "memory.limit_in_bytes"]),
        pids: number(&["pids.current"]),
        pids_limit: limit(&["pids.max"]),
        read,
        written,
    }
}

/// v2's `cpu.stat` has the time; v1 has a file of the same name without it, and the time in nanoseconds elsewhere.
fn cpu(stat: Option<&str>, nanoseconds: Option<u64>) -> Option<Duration> {
    let micros = stat.and_then(|stat| field(stat, "usage_usec"));
    micros.map(Duration::from_micros).or(nanoseconds.map(Duration::from_nanos))
}

/// The number on the line that begins with a word.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `8:0 rbytes=1 wbytes=2 …`, one line a disk.
fn sum_v2(text: &str, key: &str) -> u64 {
    let words = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    words.fold(0, u64::saturating_add)
}

/// `8:0 Read 1`, a line for each disk and kind, and a sum of all kinds without a disk.
fn sum_v1(text: &str, kind: &str) -> u64 {
    let number = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()?.contains(':') && words.next()? == kind).then(|| words.next()?.parse::<u64>().ok())?
    };
    text.lines().filter_map(number).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let v2 = "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n";
        assert_eq!(cpu(Some(v2), None), Some(Duration::from_millis(1500)));
        let v1 = "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n";
        assert_eq!(cpu(Some(v1), Some(2_000_000_000)), Some(Duration::from_secs(2)));
        assert_eq!(cpu(None, None), None);
        let stat = "inactive_file 1\ntotal_inactive_file 4096\n";
        assert_eq!(field(stat, "total_inactive_file"), Some(4096));
        assert_eq!(field(stat, "inactive_file"), Some(1));
        assert_eq!(field("inactive_files 7\n", "inactive_file"), None);
        let io = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:1 rbytes=5 wbytes=0\n";
        assert_eq!((sum_v2(io, "rbytes="), sum_v2(io, "wbytes=")), (15, 20));
        let io = "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n8:16 Read 5\nTotal 35\n";
        assert_eq!((sum_v1(io, "Read"), sum_v1(io, "Write"), sum_v1("Total 0\n", "Read")), (15, 20, 0));
    }
}
