//! What a command in a container reads where nobody gives it anything: a null device of its own. The host's would be a way to the
//! host: a container's root can change mode and owner of what it has open, and some runtimes give what they are started with to
//! the container's user (containers/crun#1845, opencontainers/runc#3674). For a container's first program the library opens the
//! container's own anew.
//!
//! Source: fsopen(2), fsmount(2), mknod(2); Linux Documentation/admin-guide/devices.txt.

use std::fs::File;
use std::io;

use rustix::fs::{FileType, Mode, OFlags, fchmod, makedev, mkdirat, mknodat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Its path from the root of its file system: what a container sees of it, as of one that was opened by name.
const NAME: &str = "dev/null";

/// A file that has an end at once, and is nobody else's.
///
/// # Errors
/// There are no descriptors left.
pub(super) fn open() -> io::Result<File> {
    device().or_else(|_| nothing())
}

/// A null device in a file system that is mounted nowhere, and goes with it.
fn device() -> io::Result<File> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let nothing_else = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, nothing_else)?;
    mkdirat(&root, "dev", Mode::from_raw_mode(0o755))?;
    let all = Mode::from_raw_mode(0o666);
    mknodat(&root, NAME, FileType::CharacterDevice, all, makedev(1, 3))?;
    let device = openat(&root, NAME, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // Whatever mask this process has.
    fchmod(&device, all)?;
    Ok(device.into())
}

/// For kernels before 5.2 and agents that may make no device: a pipe that nobody writes to.
fn nothing() -> io::Result<File> {
    let (read, _) = io::pipe()?;
    Ok(std::os::fd::OwnedFd::from(read).into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn both_have_an_end_at_once() {
        for make in [device, nothing] {
            let mut text = String::new();
            assert_eq!(make().unwrap().read_to_string(&mut text).unwrap(), 0);
        }
    }

    #[test]
    fn it_is_a_null_device_and_not_the_hosts() {
        // Both open: a file system that is gone leaves its number to the next one.
        let (one, another) = (device().unwrap(), device().unwrap());
        let (own, host) = (one.metadata().unwrap(), std::fs::metadata("/dev/null").unwrap());
        assert!(own.file_type().is_char_device());
        assert_eq!((own.rdev(), own.mode() & 0o7777), (host.rdev(), 0o666));
        assert_ne!(own.dev(), host.dev());
        assert_ne!(another.metadata().unwrap().dev(), own.dev(), "each its own");
    }
}
