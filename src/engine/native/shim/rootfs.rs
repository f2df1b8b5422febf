//! The container's root: the image's layers below, its own writable layer on top, in the shim's mount namespace.
//!
//! Source: Linux Documentation/filesystems/overlayfs.rst.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};

/// What a container may write in memory where its own directory cannot be written: it counts as the container's memory
/// and is bounded beside that, as the memory is the host's.
const SCRATCH: &str = "size=128m,nr_inodes=32768,mode=0700";

/// Mounts the layers (lowest first) and gives back the mount point, below the container's state directory `state`.
///
/// Where that cannot be written to (a disk that was made read-only, or is full), what the container wrote before is
/// read, and what it writes from now on lies below `scratch`, in a small file system in memory that this mount namespace
/// and the container alone have: it runs, and that is lost with it.
pub(super) fn mount(state: &Path, scratch: &Path, layers: &[PathBuf]) -> io::Result<PathBuf> {
    let error = match mount_overlay(state, layers) {
        Err(error) if cannot_write(state, &error) => error,
        result => return result,
    };
    note(&error, state);
    let mut layers = layers.to_vec();
    let kept = state.join("upper");
    if kept.is_dir() {
        layers.push(kept);
    }
    // What cannot be mounted there either is the first trouble's fault.
    mount_scratch(scratch).and_then(|()| mount_overlay(scratch, &layers)).map_err(|_| error)
}

/// Without it what the container writes would be `/run`'s, and would fill it for the whole host.
fn mount_scratch(scratch: &Path) -> io::Result<()> {
    // Where the root is has to be a directory to those outside as well: commands in the container are begun there.
    fs::create_dir_all(scratch.join("rootfs"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(nix::mount::mount(Some("tmpfs"), scratch, Some("tmpfs"), flags, Some(SCRATCH))?)
}

fn cannot_write(state: &Path, error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    // What is there already answers by that rather than by the file system's state.
    let read_only = rustix::fs::access(state, rustix::fs::Access::WRITE_OK) == Err(rustix::io::Errno::ROFS);
    read_only || matches!(error.kind(), ReadOnlyFilesystem | StorageFull | QuotaExceeded)
}

/// In the shim's own log, which the agent reads when something goes wrong.
fn note(error: &io::Error, state: &Path) {
    use std::io::Write as _;
    let _ = writeln!(
        io::stderr(),
        "{} cannot be written ({error}): what the container writes is lost at its next start",
        state.display()
    );
}

/// The layers are named by short links relative to the working directory: the mount options of 127 layers with their
/// full names would not fit the one page that mount(2) takes, and a `:` or `,` in a path would need escapes.
fn mount_overlay(state: &Path, layers: &[PathBuf]) -> io::Result<PathBuf> {
    let links = state.join("l");
    let _ = fs::remove_dir_all(&links);
    for dir in ["l", "upper", "work", "rootfs"] {
        fs::create_dir_all(state.join(dir))?;
    }
    let mut names = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        if !layer.is_dir() {
            return Err(io::Error::other(format!("layer {} is not there", layer.display())));
        }
        symlink(layer, links.join(number.to_string()))?;
        names.push(format!("l/{number}"));
    }
    if let Some(top) = layers.last() {
        // The root directory itself takes its owner and mode from the writable layer.
        let model = fs::metadata(top)?;
        let upper = state.join("upper");
        chown(&upper, Some(model.uid()), Some(model.gid()))?;
        fs::set_permissions(&upper, Permissions::from_mode(model.mode() & 0o7777))?;
    }
    names.reverse();
    std::env::set_current_dir(state)?;
    // index and metacopy off: whatever the host's kernel was built with, layers stay plain directories.
    let options = format!("lowerdir={},upperdir=upper,workdir=work,index=off,metacopy=off", names.join(":"));
    let mounted = nix::mount::mount(
        Some("overlay"),
        "rootfs",
        Some("overlay"),
        MsFlags::MS_NODEV,
        Some(options.as_str()),
    );
    std::env::set_current_dir("/")?;
    mounted?;
    Ok(state.join("rootfs"))
}

/// Takes the root away again, once nothing runs in it. Its writable layer stays, also one in memory: that goes with this
/// process.
pub(super) fn unmount(state: &Path, scratch: &Path) {
    // The namespace ends with the shim in any case; this only makes it sooner.
    for dir in [state, scratch] {
        let _ = umount2(&dir.join("rootfs"), MntFlags::MNT_DETACH);
    }
}
