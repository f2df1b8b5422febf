//! A container's user namespace, and what it can see of the host's files: mounts on which users have other numbers, so
//! that layers and volumes are the same on disk for all containers, in a place that its root may reach.
//!
//! Source: user_namespaces(7), mount_setattr(2) "ID-mapped mounts", open_tree(2).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Uid, fork, pipe2, setfsgid, setfsuid};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::super::userns::EACH;

/// Directories that everybody may pass, as every host has them.
const PLACES: [&str; 5] = ["/mnt", "/srv", "/opt", "/media", "/home"];

/// Attributes of a mount: linux/mount.h.
const READ_ONLY: u64 = 0x1;
const NO_DEVICES: u64 = 0x4;
const MAPPED: u64 = 0x0010_0000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A user namespace in which root is the host's user `first`.
pub(super) struct UserNamespace {
    file: File,
    pub first: u32,
}

impl UserNamespace {
    /// Makes it, with the maps of users and groups written.
    pub fn new(first: u32) -> io::Result<Self> {
        // Told that it is there, and told to go by the end of the other pipe.
        let (made, making) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (waiting, done) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: this process has one thread, so its child may do all that it may.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop((made, done));
                let code = match unshare(CloneFlags::CLONE_NEWUSER) {
                    Ok(()) => 0,
                    Err(error) => error as i32,
                };
                let _ = nix::unistd::write(&making, &[u8::try_from(code).unwrap_or(u8::MAX)]);
                let _ = nix::unistd::read(&waiting, &mut [0]);
                // SAFETY: ends the process; there is nothing to put in order.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop((making, waiting));
                let file = || -> io::Result<File> {
                    let mut code = [0];
                    let length = nix::unistd::read(&made, &mut code)?;
                    if length != 1 || code != [0] {
                        return Err(io::Error::from_raw_os_error(code[0].into()));
                    }
                    for map in ["uid_map", "gid_map"] {
                        fs::write(format!("/proc/{child}/{map}"), format!("0 {first} {EACH}"))?;
                    }
                    File::open(format!("/proc/{child}/ns/user"))
                };
                let file = file();
                drop(done);
                let _ = waitpid(child, None);
                Ok(Self { file: file?, first })
            }
        }
    }

    /// Its name for setns(2), as long as this value is there.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Shows `source` and all that is mounted on it at `target` (made here), with its users as the container's.
    pub fn show(&self, source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
        let told = |error: io::Error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => io::Error::other(format!(
                "{}: its file system cannot show users by other numbers (idmapped mounts), which `userns_mode` needs",
                source.display()
            )),
            _ => io::Error::new(error.kind(), format!("{}: {error}", source.display())),
        };
        if source.is_dir() {
            fs::create_dir_all(target)?;
        } else {
            File::create(target)?;
        }
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(rustix::fs::CWD, source, flags).map_err(|error| told(error.into()))?;
        let access = if read_only { READ_ONLY } else { 0 };
        self.map(&tree, NO_DEVICES | access).map_err(told)?;
        move_mount(&tree, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| told(error.into()))
    }

    fn map(&self, tree: impl AsFd, set: u64) -> io::Result<()> {
        let user_namespace = u64::try_from(self.file.as_raw_fd()).unwrap_or_default();
        let attributes = MountAttributes { set: set | MAPPED, clear: 0, propagation: 0, user_namespace };
        // SAFETY: mount_setattr(2) reads the empty name and a structure of the size that is told, and keeps neither.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_fd().as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
                &raw const attributes,
                size_of::<MountAttributes>(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Does something as the container's root would where files get an owner.
    pub fn as_its_root<T>(&self, work: impl FnOnce() -> T) -> T {
        setfsgid(Gid::from_raw(self.first));
        setfsuid(Uid::from_raw(self.first));
        let result = work();
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
        result
    }
}

/// A directory that only this mount namespace has and everybody in it may pass. None of `used` is hidden by it.
pub(super) fn place(used: &[&Path]) -> io::Result<PathBuf> {
    // Where links lead counts, not how things are called.
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let used: Vec<PathBuf> = used.iter().map(|path| real(path)).collect();
    let fits = |place: &&Path| {
        let there = real(place);
        place.is_dir() && !used.iter().any(|path| path.starts_with(&there))
    };
    let place = PLACES.iter().map(Path::new).find(fits);
    let place = place
        .ok_or_else(|| io::Error::other(format!("none of {PLACES:?} is a directory that can be covered")))?;
    mount(
        Some("gitopsd"),
        place,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755,size=1m"),
    )?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
    Ok(place.to_owned())
}

/// Does something in the network namespace `path`. This process has one thread.
pub(super) fn in_network<T>(path: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = File::open("/proc/self/ns/net")?;
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(own, CloneFlags::CLONE_NEWNET)?;
    result
}
