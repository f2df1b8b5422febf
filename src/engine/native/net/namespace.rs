//! Network namespaces that live without a process: made on a thread, pinned by a bind mount, as ip-netns(8) does.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::statfs;

/// `NSFS_MAGIC` of linux/magic.h: what statfs(2) says of a pinned namespace.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Whether `path` is a pinned namespace.
pub fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type().0 as u64 == NSFS_MAGIC)
}

/// Makes a new network namespace and pins it at `path`. A plain file that a crash left there is used.
pub fn pin(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    // On a thread of its own, which ends in the new namespace: no other work is ever done there by mistake.
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    })
}

/// Pins a namespace that is there already, such as that of a container whose pin somebody took away.
pub fn pin_again(path: &Path, namespace: BorrowedFd<'_>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Takes the pin and its file away; fine if either is not there. Processes inside keep the namespace itself.
pub fn unpin(path: &Path) -> io::Result<()> {
    // Two agents that raced may have mounted twice.
    while is_pinned(path) {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Runs `work` inside the network namespace at `path`, on a thread of its own.
///
/// A thread that has changed its namespace must not go back to a pool: this one ends with `work`.
pub fn inside<T: Send, E: From<io::Error> + Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    let namespace = fs::File::open(path)?;
    on_thread(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        work()
    })
}

/// Runs `work` on a new thread and waits for it.
fn on_thread<T: Send, E: From<io::Error> + Send>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked").into()))
    })
}
