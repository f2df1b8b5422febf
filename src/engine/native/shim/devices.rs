//! Devices of the host that a container may use, looked at when it is made.

use std::fs;
use std::path::Path;

use super::super::launch::Launch;
use super::super::limits::{self, Device};
use crate::engine::EngineError;
use crate::types::Reason;

/// What the runtime makes in any case, or what is a file system of its own in the container.
const STANDARD: [&str; 12] =
    ["console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero"];

/// How deep `/dev` is looked through for a privileged container.
const MAX_DEPTH: u32 = 4;

/// The devices of a service; all of the host's where it is privileged.
pub(in super::super) fn prepare(launch: &Launch) -> Result<Vec<Device>, EngineError> {
    let mut found = Vec::new();
    if launch.options.privileged == Some(true) {
        all_below(Path::new("/dev"), MAX_DEPTH, &mut found);
    }
    for wanted in launch.options.devices.iter().flatten() {
        let device = limits::device(&wanted.source, &wanted.target, &wanted.access).map_err(|error| {
            let what = format!("{}: device {}", launch.id, wanted.source.display());
            EngineError::new(Reason::StartFailed, what, error)
        })?;
        found.retain(|other: &Device| other.target != device.target);
        found.push(device);
    }
    Ok(found)
}

fn all_below(dir: &Path, depth: u32, found: &mut Vec<Device>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if depth == MAX_DEPTH && STANDARD.iter().any(|standard| name == *standard) {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && depth > 0 {
            all_below(&path, depth - 1, found);
        } else if let Ok(device) = limits::device(&path, &path, "rwm") {
            found.push(device);
        }
    }
}
