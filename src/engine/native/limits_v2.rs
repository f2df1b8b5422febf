//! Limits that the runtime's library does not bring into a group on cgroup v2: written when it has made the group, before
//! the program runs.
//!
//! Source: Linux Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files", "IO Interface Files".

use std::io;

use super::cgroup::Cgroups;
use super::launch::Launch;

/// Writes them. On cgroup v1 there are none.
///
/// # Errors
/// Names the limit.
pub(super) fn complete(launch: &Launch, cgroups: &Cgroups) -> io::Result<()> {
    if !cgroups.only_v2() {
        return Ok(());
    }
    let set = |file: &str, value: u64| {
        let told = |error: io::Error| io::Error::new(error.kind(), format!("{file}: {error}"));
        cgroups.set(&launch.id, file, &value.to_string()).map_err(told)
    };
    let swap = launch.options.memswap_limit.and_then(|limit| u64::try_from(limit).ok());
    // The library takes no swap at all for nothing said.
    if swap.is_some() && swap == launch.memory {
        set("memory.swap.max", 0)?;
    }
    // It counts in 16 bits, which the weight does not fit.
    let weight = launch.options.blkio.as_ref().and_then(|blkio| blkio.weight);
    if let Some(weight) = weight.map(u64::from)
        && !set("io.bfq.weight", weight)?
        && !set("io.weight", io_weight(weight))?
    {
        let text = "`blkio_config.weight`: this kernel has neither io.bfq.weight nor io.weight";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(())
}

/// 10..=1000 of `blkio_config` as 1..=10000 of `io.weight`, on a straight line, as runc has it.
fn io_weight(weight: u64) -> u64 {
    1 + weight.saturating_sub(10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_ends() {
        assert_eq!([10, 100, 300, 500, 1000].map(io_weight), [1, 910, 2930, 4950, 10_000]);
    }
}
