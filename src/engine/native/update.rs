//! Changing a running container in place: its limits, its unit's, and what is written down of them.

use std::io;

use super::launch::{Launch, Tried};
use super::observe::{running, this_boot};
use super::supervisor::{self, Turn};
use super::{NativeEngine, cgroup_limits, record, storage_reason};
use crate::engine::EngineError;
use crate::types::{ByteSize, InstanceId, PinnedImage, Reason, ServiceSpec};

/// See [`crate::engine::Engine::update`].
pub(super) fn update(
    engine: &NativeEngine,
    id: &InstanceId,
    spec: &ServiceSpec<PinnedImage>,
) -> Result<(), EngineError> {
    let run = engine.layout.run(id);
    if running(&run, &this_boot()?).is_none() {
        return Ok(());
    }
    let failed = |what: &str, error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::ResourceBusy => Reason::Memory,
            _ => storage_reason(&error, Reason::StartFailed),
        };
        EngineError::new(reason, format!("{id}: {what}"), error)
    };
    let mut before: Launch = record::read(&run.launch())
        .ok_or_else(|| failed("launch.json", io::Error::other("it cannot be read")))?;
    let after = with_limits(before.clone(), spec);
    let limits = "its limits cannot be changed";
    // What could not be started with them may not go on with them either.
    if let Some(misfit) = after.options.swap_misfit(after.memory.map(ByteSize)) {
        return Err(failed(limits, io::Error::new(io::ErrorKind::InvalidInput, misfit)));
    }
    // First: whoever comes after a crash has to know what may be there beside what was.
    let tried = Tried::from(&after);
    if tried != Tried::from(&before) && !before.tried.contains(&tried) {
        before.tried.push(tried);
        record::write(&run.launch(), &before)
            .map_err(|error| failed("launch.json cannot be written", error))?;
    }
    // The unit stands around the container: it makes room before, and follows after.
    supervisor::limit(&before, &after, Turn::Wider).map_err(|error| failed(limits, error))?;
    cgroup_limits::apply(&engine.cgroups, &before, &after).map_err(|error| failed(limits, error))?;
    supervisor::limit(&before, &after, Turn::Narrower).map_err(|error| failed(limits, error))?;
    // Last: what a crash before has left undone is done again.
    record::write(&run.launch(), &after).map_err(|error| failed("launch.json cannot be written", error))
}

/// The same container with the limits of `spec`. All else is what it was started with.
fn with_limits(mut launch: Launch, spec: &ServiceSpec<PinnedImage>) -> Launch {
    launch.memory = spec.mem_limit.map(|size| size.0);
    launch.milli_cpus = spec.milli_cpus;
    launch.pids = spec.pids_limit;
    launch.grace = spec.stop_grace_period;
    let options = &spec.options;
    launch.options.memswap_limit = options.memswap_limit;
    launch.options.mem_reservation = options.mem_reservation;
    launch.options.cpuset.clone_from(&options.cpuset);
    launch.options.cpu_shares = options.cpu_shares;
    launch.options.blkio.clone_from(&options.blkio);
    launch.tried.clear();
    launch
}
