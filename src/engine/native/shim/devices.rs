//! Devices of the host that a container may use, looked at when it is made.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;

use super::super::in_root;
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

/// The library makes the directories that devices stand in for everybody to write to; they are to be root's, as Docker's
/// are. `init`: the container's first process, before it executes anything.
///
/// # Errors
/// The container's root or a directory cannot be opened.
pub(super) fn close_directories(init: i32, devices: &[Device]) -> io::Result<()> {
    let dev = Path::new("/dev");
    let above = devices.iter().flat_map(|device| device.target.ancestors().skip(1));
    let dirs: BTreeSet<&Path> = above.filter(|dir| dir.starts_with(dev) && *dir != dev).collect();
    if dirs.is_empty() {
        return Ok(());
    }
    let root = File::open(format!("/proc/{init}/root"))?;
    let open = |dir: &Path| in_root::open(&root, dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map(File::from);
    let own = open(dev)?.metadata()?.dev();
    for dir in dirs {
        let dir = open(dir)?;
        // What is mounted there is a directory of the host's.
        if dir.metadata()?.dev() == own {
            dir.set_permissions(fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
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
